"""Announcing certified blocks to observers over GossipSub: a lossy hint that pulling repairs (architecture.md).

The leader announces height, hash and certificate; the bodies ride along while the message stays small, else they are pulled.
"""

import trio

from node.applier import Certified
from node.event_log import EventLog
from node.ports import PeerTransport
from protocol import codec, limits
from protocol.catchup import Announce
from protocol.errors import CarechainError
from protocol.raft.machine import Raft

TOPIC = "blocks"
_ANNOUNCEMENTS_MAX = 64
"""Announcements queued; when there are more, the newest is dropped: observers pull what they miss."""


class Announcer:
    """The last stage of the pipeline on a voter."""

    def __init__(self, transport: PeerTransport, raft: Raft, log: EventLog) -> None:
        self._transport = transport
        self._raft = raft
        self._log = log
        self._send, self._receive = trio.open_memory_channel[Announce](_ANNOUNCEMENTS_MAX)

    async def announce(self, certified: Certified) -> None:
        """Queue an announcement, if this node leads; never waits."""
        if self._raft.leader != self._transport.me:
            return
        raw = tuple(block.raw for block in certified.blocks)
        rides_along = (
            len(raw) <= limits.APPEND_BLOCKS_MAX and sum(map(len, raw)) <= limits.GOSSIP_BODY_BYTES_MAX
        )
        try:
            self._send.send_nowait(Announce(certified.certificate, raw if rides_along else ()))
        except trio.WouldBlock:
            self._log.debug(
                "announcement dropped; observers pull", height=certified.certificate.header.height
            )

    async def run(self) -> None:
        """Publish what was announced, until cancelled."""
        async for announcement in self._receive:
            try:
                body = codec.encode(announcement)
                if len(body) > limits.PUBLISH_BYTES_MAX:  # the certificate of many voters takes room too
                    body = codec.encode(Announce(announcement.certificate, ()))
                await self._transport.publish(TOPIC, body)
            except CarechainError as error:
                self._log.debug("announcement not published; observers pull", reason=str(error))
