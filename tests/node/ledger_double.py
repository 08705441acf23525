"""A network in one process whose order is made by a queue instead of Raft; everything else is the real thing.

Blocks are cut, signed, checked and certified as real ones, applied by the real `Applier` over a
real `LedgerStore` per member, and awaited by the real `Submitter`. What is missing is disagreement.

    async with running(LedgerDouble(3)) as ledger:
        hospital, clinic, lab = ledger.members
        receipt = await hospital.submitter.submit(signed)
"""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple

import trio

from node.applier import Applier, Certified
from node.identity import Identity
from node.ports import CallHandler, PeerStatus, StreamHandler
from node.receipts import Receipts, Submitter
from node.standing import Standing
from protocol import block as blocks
from protocol import certificate
from protocol.block import Block
from protocol.certificate import ElectionCertificate
from protocol.codec import encode
from protocol.configuration import Card, Configuration, Member, found, network_id
from protocol.errors import CarechainError, RemoteFault, Unavailable
from protocol.finality import Certificate, cast_vote
from protocol.hpke import x25519_public
from protocol.identifiers import Digest, Height, NetworkId, NodeId, PublicKey, Term
from protocol.passphrase import Hardness
from protocol.signing import SigningKey
from storage.envelope_store import EnvelopeStore
from storage.key_value import Batch, KeyValue
from storage.keystore import Keystore
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
START_MS = 1_800_000_000_000
NAMES = ("hospital", "clinic", "laboratory", "insurer", "archive")


class SeededEntropy:
    """Repeatable bytes: SHA-256 of seed and counter."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._drawn = 0

    def bytes(self, count: int) -> bytes:
        drawn = b""
        while len(drawn) < count:
            self._drawn += 1
            drawn += hashlib.sha256(f"{self._seed}/{self._drawn}".encode()).digest()
        return drawn[:count]


class DoubleClock:
    """Trio's time, counted from a fixed date; `advance_ms` moves the wall clock alone."""

    def __init__(self) -> None:
        self._moved_ms = 0

    def advance_ms(self, duration_ms: int) -> None:
        self._moved_ms += duration_ms

    def now_ms(self) -> int:
        return START_MS + self._moved_ms + int(trio.current_time() * 1000) % 1_000_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        await trio.sleep(duration_ms / 1000)


class InlineDisk:
    """The Disk port, writing at once."""

    def __init__(self, rows: KeyValue) -> None:
        self._rows = rows

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        await trio.lowlevel.checkpoint()
        self._rows.write(batch, sync=sync)

    def read(self, key: bytes) -> bytes | None:
        return self._rows.get(key)


class InlineWorkers:
    """The Workers port without threads."""

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)


class SilentLog:
    """Keeps what was logged, for tests that ask."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def debug(self, event: str, **values: Any) -> None:
        self.events.append(("debug", event, values))

    def info(self, event: str, **values: Any) -> None:
        self.events.append(("info", event, values))

    def warning(self, event: str, **values: Any) -> None:
        self.events.append(("warning", event, values))

    def error(self, event: str, **values: Any) -> None:
        self.events.append(("error", event, values))


class DirectTransport:
    """The PeerTransport port as function calls between members of one double."""

    def __init__(self, me: NodeId, network: "dict[NodeId, DirectTransport]") -> None:
        self.me = me
        self._network = network
        self._handlers: dict[str, CallHandler] = {}
        self._streams: dict[str, StreamHandler] = {}
        self.is_up = True
        network[me] = self

    async def call(self, peer: NodeId, channel: str, body: bytes, *, timeout_ms: int) -> bytes:
        await trio.lowlevel.checkpoint()
        handler = self._reach(peer)._handlers.get(channel)
        if handler is None:
            raise RemoteFault(f"nobody serves {channel}")
        try:
            with trio.fail_after(timeout_ms / 1000):
                return await handler(self.me, body)
        except trio.TooSlowError:
            raise Unavailable("timed out") from None
        except CarechainError as error:
            raise RemoteFault(str(error)) from None

    def send(self, peer: NodeId, channel: str, body: bytes) -> None:
        """Drop it: `send` is a hint, and consensus between members is not what these tests are about."""

    def fetch(
        self, peer: NodeId, channel: str, body: bytes
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
            yield self._reach(peer)._streams[channel](self.me, body)

        return opened()

    def serve(self, channel: str, handler: CallHandler) -> None:
        self._handlers[channel] = handler

    def serve_stream(self, channel: str, handler: StreamHandler) -> None:
        self._streams[channel] = handler

    def inbox(self, channel: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        return trio.open_memory_channel[tuple[NodeId, bytes]](size)[1]

    async def publish(self, topic: str, body: bytes) -> None:
        await trio.lowlevel.checkpoint()

    def subscribe(self, topic: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        return trio.open_memory_channel[tuple[NodeId, bytes]](size)[1]

    def peers(self) -> tuple[PeerStatus, ...]:
        return tuple(
            PeerStatus(node, self.is_up and other.is_up, "/ip4/127.0.0.1/tcp/1", "config")
            for node, other in sorted(self._network.items())
            if node != self.me
        )

    def addresses(self) -> tuple[str, ...]:
        return ("/ip4/127.0.0.1/tcp/1",)

    def _reach(self, peer: NodeId) -> "DirectTransport":
        other = self._network.get(peer)
        if other is None or not other.is_up or not self.is_up:
            raise Unavailable("not connected")
        return other


class MemberDouble:
    """One facility: its keys, its stores, its applier and submitter."""

    def __init__(self, name: str, role: str, seed: str) -> None:
        self.name = name
        self.entropy = SeededEntropy(f"{seed}/{name}")
        self.identity = Identity.generate(self.entropy.bytes)
        self.member = Member(
            name,
            "hospital",
            role,
            self.identity.node_id,
            x25519_public(self.identity.kex),
            PublicKey(SigningKey(self.identity.team).public),
            PublicKey(SigningKey(self.identity.governance).public),
            PublicKey(SigningKey(self.identity.checkpoint).public),
            (),
        )
        self.card = Card.make(self.member, SigningKey(self.identity.node))
        self.rows = MemoryStore()
        self.payloads = MemoryStore()
        self.secrets = MemoryStore()
        self.keystore = Keystore.create(self.secrets, "x", self.entropy.bytes, hardness=Hardness(1, 8192))
        self.log = SilentLog()

    def join(self, ledger: "LedgerDouble") -> None:
        """Open the ledger of the network."""
        self.clock = ledger.clock
        self.workers = InlineWorkers()
        self.disk = InlineDisk(self.rows)
        self.store = LedgerStore(self.rows, ledger.genesis)
        self.envelopes = EnvelopeStore(self.rows)
        self.receipts = Receipts()
        self.applier = Applier(self.store, self.disk, self.receipts)
        self.transport = DirectTransport(self.member.node, ledger.transports)
        self.submitter = Submitter(
            ledger=ledger.network,
            store=self.store,
            receipts=self.receipts,
            transport=self.transport,
            clock=ledger.clock,
            leader=lambda: self.member.node,
            propose=ledger.propose,
            standing=Standing(self.member.node, self.store, lambda: self.applier.mark.height, lambda: None),
        )


class LedgerDouble:
    """Members of one network, and the queue that orders their transactions."""

    def __init__(self, voters: int = 1, *, observers: int = 0, seed: str = "double") -> None:
        self.clock = DoubleClock()
        roles = ["voter"] * voters + ["observer"] * observers
        self.members = [MemberDouble(name, role, seed) for name, role in zip(NAMES, roles, strict=False)]
        nonce = hashlib.sha256(seed.encode()).digest()
        self.genesis: Configuration = found(tuple(member.card for member in self.members), nonce=nonce)
        self.network: NetworkId = network_id(self.genesis)
        self.transports: dict[NodeId, DirectTransport] = {}
        for member in self.members:
            member.join(self)
        self.has_quorum = True
        self._voters = [SigningKey(m.identity.node) for m in self.members if m.member.role == "voter"]
        self._voters.sort(key=lambda key: key.public)
        self._send, self._proposals = trio.open_memory_channel[tuple[bytes, ...]](1_000)

    def certify_with(self, member: MemberDouble) -> None:
        """Have a voter lead, and vote for what is final, from now on."""
        self._voters.sort(key=lambda key: NodeId(key.public) != member.member.node)

    def certify_without(self, member: MemberDouble) -> None:
        """Have a voter vote for nothing from now on."""
        self._voters.sort(key=lambda key: NodeId(key.public) == member.member.node)

    async def propose(self, transactions: tuple[bytes, ...]) -> None:
        """Queue transactions for the next block; without a quorum they are lost, as with a leader cut off."""
        if self.has_quorum:
            await self._send.send(transactions)

    async def run(self) -> None:
        """Open term 1, then order what is proposed until cancelled."""
        if self.members[0].store.applied().height == 0:
            await self._open_term()
        async for transactions in self._proposals:
            await self.order(transactions)

    async def order(self, transactions: tuple[bytes, ...]) -> Block:
        """Make one final block of these transactions at once."""
        # As the leader's pool does: what is submitted twice at once goes into a block once.
        return await self._append(tuple(dict.fromkeys(transactions)), b"")

    async def reconfigure(self, following: Configuration) -> None:
        """Bring a configuration into force by a block of its own."""
        await self._append((), b"", following)

    async def _open_term(self) -> None:
        tip = self.members[0].store.applied().hash
        leader = NodeId(self._voters[0].public)
        grants = tuple(
            certificate.grant_vote(
                key, self.network, epoch=0, incarnation=0, term=Term(1), candidate=leader, tip=tip
            )
            for key in self._voters
        )
        await self._append((), encode(ElectionCertificate(Term(1), leader, tip, grants)))

    async def _append(
        self, transactions: tuple[bytes, ...], opening: bytes, following: Configuration | None = None
    ) -> Block:
        store = self.members[0].store
        mark = store.applied()
        block = blocks.cut(
            transactions,
            opening=opening,
            configuration=following,
            predecessor=store.header(mark.height),
            predecessor_hash=mark.hash,
            frontier=mark.frontier,
            term=Term(1),
            key=self._voters[0],
            now_ms=self.clock.now_ms(),
        )
        blocks.check_body(block)
        votes = tuple(
            cast_vote(
                key,
                self.network,
                epoch=0,
                incarnation=0,
                height=Height(block.height),
                tip=block.hash,
                base_height=mark.height,
                base=Digest(mark.hash),
            )
            for key in self._voters[: self.genesis.certificate_quorum]
        )
        certified = Certified((block,), Certificate(block.header, (), votes), is_stored=False)
        for member in self.members:
            if member.transport.is_up:
                await member.applier.apply(certified)
        return block


@asynccontextmanager
async def running(ledger: LedgerDouble) -> AsyncIterator[LedgerDouble]:
    """Run the order and every member's submitter for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ledger.run)
        for member in ledger.members:
            nursery.start_soon(member.submitter.run)
        while ledger.members[0].store.applied().height == 0:
            await trio.lowlevel.checkpoint()
        yield ledger
        nursery.cancel_scope.cancel()
