"""Publishing and subscribing over libp2p's gossip, under names that carry the network id.

A message is a hint: it may be lost, and it is dropped when its subscriber's queue is full. Strict signing proves who
published it; that a member did is checked here, because a member may forward what a stranger signed.
"""

from collections.abc import Callable
from typing import Any

import trio

from node.libp2p_kit import node_of_bytes
from protocol import limits
from protocol.errors import LocalFault
from protocol.identifiers import NetworkId, NodeId

TRIM_INTERVAL_S = 30


class GossipTopics:
    """The topics this node follows. `pubsub` and `router` are libp2p's, running before `run` is called."""

    def __init__(
        self,
        pubsub: Any,
        router: Any,
        *,
        network: NetworkId,
        is_member: Callable[[NodeId], bool],
        me: NodeId,
        count: Callable[[str], None],
    ) -> None:
        self._pubsub = pubsub
        self._router = router
        self._network = network
        self._is_member = is_member
        self._me = me
        self._count = count
        self._subscribers: dict[str, trio.MemorySendChannel[tuple[NodeId, bytes]]] = {}
        self._tasks: trio.Nursery | None = None

    async def run(self) -> None:
        """Follow the subscribed topics until cancelled."""
        async with trio.open_nursery() as tasks:
            self._tasks = tasks
            for topic in self._subscribers:
                tasks.start_soon(self._follow, topic)
            try:
                while True:
                    await trio.sleep(TRIM_INTERVAL_S)
                    # libp2p trims this only with adaptive gossip on: 32 bytes per message, for ever.
                    self._router.recent_message_deliveries.clear()
            finally:
                self._tasks = None

    async def publish(self, topic: str, body: bytes) -> None:
        """Gossip a message; dropped and counted when not running. Raises LocalFault over `PUBLISH_BYTES_MAX`."""
        if len(body) > limits.PUBLISH_BYTES_MAX:
            raise LocalFault(f"a gossip message of {len(body)} bytes is over the limit")
        if self._tasks is None:
            self._count("publishes_dropped_not_running")
        else:
            await self._pubsub.publish(self._name(topic), body)

    def subscribe(self, topic: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        """Return the queue of (publisher, body) of a topic. Raises LocalFault when it has a subscriber."""
        if topic in self._subscribers:
            raise LocalFault(f"topic {topic} has a subscription")
        self._subscribers[topic], received = trio.open_memory_channel[tuple[NodeId, bytes]](size)
        if self._tasks is not None:
            self._tasks.start_soon(self._follow, topic)
        return received

    def _name(self, topic: str) -> str:
        return f"/carechain/{self._network.hex()}/{topic}/1"

    async def _follow(self, topic: str) -> None:
        name = self._name(topic)
        # Synchronous: libp2p runs ten asynchronous validators at a time and delivers duplicates meanwhile.
        self._pubsub.set_topic_validator(name, self._is_acceptable, is_async_validator=False)
        subscription = await self._pubsub.subscribe(name)
        while True:
            # Nothing but moving: libp2p's own queue drops silently, and what it dropped never comes again.
            message = await subscription.get()
            node = node_of_bytes(message.from_id)
            if node is None or node == self._me:
                continue
            try:
                self._subscribers[topic].send_nowait((node, bytes(message.data)))
            except trio.WouldBlock:
                self._count("gossip_dropped_queue_full")
            except trio.BrokenResourceError:
                self._count("gossip_dropped_nobody_reads")

    def _is_acceptable(self, _forwarder: Any, message: Any) -> bool:
        node = node_of_bytes(message.from_id)
        if node is None or not self._is_member(node) or len(message.data) > limits.PUBLISH_BYTES_MAX:
            self._count("gossip_refused")
            return False
        return True
