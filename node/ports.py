"""The five seams between the node and the world: transport, disk, workers, clock, entropy.

Each has two implementations: the real one (`libp2p_transport`, `disk`, `system`) and a virtual one in
`simulations/`, which is why these, and only these, are Protocols. Code in `node/` reaches the world through them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar, TypeVarTuple

import trio

from protocol.identifiers import NodeId
from storage.key_value import Batch

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CallHandler = Callable[[NodeId, bytes], Awaitable[bytes]]
StreamHandler = Callable[[NodeId, bytes], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What the transport knows of one configured member.

    `found_by` is one of mdns, config, genesis, book, inbound, or "" before anything is known; `address` is a multiaddr or "".
    """

    node: NodeId
    connected: bool
    address: str
    found_by: str


class PeerTransport(Protocol):
    """Authenticated messages between configured members. `channel` names a kind of traffic ("consensus", "rpc", …).

    Everything is lossy unless a call returned: `send` and `publish` are hints.
    """

    @property
    def me(self) -> NodeId:
        """This node's own id."""
        ...

    async def call(self, peer: NodeId, channel: str, body: bytes, *, timeout_ms: int) -> bytes:
        """Return the peer's answer to one request.

        Raises:
            Unavailable: not connected, timed out, or the connection broke.
            RemoteFault: the peer's handler refused the request (its text travels).
        """
        ...

    def send(self, peer: NodeId, channel: str, body: bytes) -> None:
        """Queue one message without an answer; never blocks. When the peer's queue is full, or it is away, it is dropped."""
        ...

    def fetch(
        self, peer: NodeId, channel: str, body: bytes
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Ask for a stream of frames (bulk transfer, on a stream of its own with flow control).

        The iterator raises Unavailable when the peer goes away and RemoteFault when its handler failed.
        """
        ...

    def serve(self, channel: str, handler: CallHandler) -> None:
        """Answer calls on `channel`. A handler raising CarechainError answers with its text; another error with "internal error"."""
        ...

    def serve_stream(self, channel: str, handler: StreamHandler) -> None:
        """Answer fetches on `channel`."""
        ...

    def inbox(self, channel: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        """Return the queue of messages sent to us on `channel`; when it is full, new ones are dropped.

        There is one at a time: whoever closes it may ask again.
        """
        ...

    async def publish(self, topic: str, body: bytes) -> None:
        """Gossip a message (at most 64 KiB) to every subscriber, best effort."""
        ...

    def subscribe(self, topic: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        """Return the queue of (original publisher, body); when it is full, new ones are dropped."""
        ...

    def peers(self) -> tuple[PeerStatus, ...]:
        """Return the status of every configured member but this one, sorted by node id."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Return the multiaddrs this node listens on (real ports, without /p2p)."""
        ...


class Disk(Protocol):
    """One database. Writes are made by one writer that groups what is queued into one synchronised batch."""

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch atomically; with `sync`, return only once it is on stable storage.

        Raises:
            StorageFull: nothing was written.
            OSError: the device failed; the process must stop (an fsync error is never retried).
        """
        ...

    def read(self, key: bytes) -> bytes | None:
        """Return the value of a key. Raises Corruption when its bytes fail their check."""
        ...


class Workers(Protocol):
    """Runs functions that release the interpreter lock (verify, seal, hash, compress) beside the event loop."""

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return `function(*args)`, computed in a bounded pool of threads."""
        ...


class Clock(Protocol):
    """Wall clock and sleeping. Consensus and retries use nothing else."""

    def now_ms(self) -> int:
        """Return Unix time in milliseconds."""
        ...

    async def sleep_ms(self, duration_ms: int) -> None:
        """Sleep for a duration."""
        ...


class Entropy(Protocol):
    """The only source of randomness."""

    def bytes(self, count: int) -> bytes:
        """Return `count` unpredictable bytes."""
        ...
