"""When a peer tells another certified story than the one applied here: both are kept, told to the operator, and judged elsewhere.

    announcement below the applied height ──┐                                       ┌─► row (`keyspace.FORK`)
    blocks that do not continue ours ───────┴─► where do we part? (asked of it) ──┴─► `status`, and its word counts no more

What was applied stays: certified twice means that more members lied than the network tolerates, and only people can say
which story is to be gone on with (ledger.md 7.4).
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from node.block_server import CHANNEL
from node.event_log import EventLog
from node.hearing import Hearing
from node.ports import Disk, PeerTransport
from protocol import codec
from protocol.block import Block, Header, header_hash
from protocol.catchup import BlocksFrom, Segment, StoryFrom
from protocol.errors import Corruption, Invalid, RemoteFault, Unavailable
from protocol.evidence_certificates import Configurations
from protocol.finality import Certificate
from protocol.fork import FORK_HEADERS_MAX, NONE_KNOWN, CertifiedFork, Story, check_fork
from protocol.identifiers import Height, NodeId
from storage.key_value import Batch
from storage.ledger_store import LedgerStore

_FIRST_PATIENCE_S, _PATIENCE_S = 2.0, 10.0
"""How long a peer may take to show that it differs, and then where."""
_LOOK_AGAIN_S = 60.0


class Forks:
    """What this member knows of forks. `shunned` are the members that told another certified story."""

    def __init__(
        self,
        store: LedgerStore,
        disk: Disk,
        transport: PeerTransport,
        log: EventLog,
        hearing: Hearing | None = None,
    ) -> None:
        """`hearing` is told the two stories of a fork, from which a quorum of liars can be convicted."""
        self._store = store
        self._network = store.network
        self._disk = disk
        self._transport = transport
        self._log = log
        self._hearing = hearing
        self._looked: dict[NodeId, float] = {}
        self.shunned: set[NodeId] = set()

    async def look_into(
        self, peer: NodeId, told: Certificate | None = None, *, at: Height | None = None
    ) -> bool:
        """Find out whether a peer's certified blocks are others than ours; return whether they are.

        `told` is a certificate of its that contradicts what is applied here: enough by itself where it serves no blocks.
        `at` is an applied height at which the peer has said that it differs; without one it has to be as far as we are.
        """
        now = trio.current_time()
        if now < self._looked.get(peer, -_LOOK_AGAIN_S) + _LOOK_AGAIN_S:
            return False  # who only says so must not keep us from following the others
        self._looked[peer] = now
        fork: CertifiedFork | None = None
        differs, height = False, self._store.applied().height if at is None else at
        try:
            with trio.move_on_after(_FIRST_PATIENCE_S):
                differs = await self._differs(peer, height)
            if differs:
                with trio.move_on_after(_PATIENCE_S):
                    fork = await self._parted(peer, height)
        except (Unavailable, RemoteFault, Corruption) as reason:  # what is damaged here is mended first
            self._log.debug("no fork was found at a peer", peer=peer.hex()[:16], reason=str(reason))
        if fork is None and told is not None:
            fork = self._checked(Story((told.header,), told))
        if fork is None:
            return False
        await self.keep(fork)
        self.shunned.add(peer)
        return True

    async def keep(self, fork: CertifiedFork) -> None:
        """Write a checked fork down, and tell the operator."""
        if self._hearing is not None:
            stories = fork.own, fork.other
            headers = [header for story in stories for header in story.headers]
            self._hearing.stories([story.certificate for story in stories], headers)
        known = self._store.forks()
        if fork.height in (one.height for one in known):
            return
        batch = Batch()
        self._store.put_fork(batch, fork)
        await self._disk.commit(batch, sync=True)
        self._log.error("two blocks of one height are certified: members have lied", height=fork.height)

    async def _parted(self, peer: NodeId, other: Height) -> CertifiedFork | None:
        """Find the lowest block of the peer's, up to the one at `other`, that is another than ours; None when all are ours.

        Two chains that differ at a height differ at all above it, so that a few questions find the first.
        """
        same = Height(0)
        while other - same > 1:
            middle = Height((same + other) // 2)
            if await self._differs(peer, middle):
                other = middle
            else:
                same = middle
        return self._checked(*await self._story(peer, other))

    async def _differs(self, peer: NodeId, height: Height) -> bool:
        async with aclosing(self._segments(peer, BlocksFrom(height))) as segments:
            async for segment in segments:
                block = Block.decode(segment.blocks[0])
                if block.height != height:
                    raise Invalid(f"sends block {block.height} when asked for {height}")
                return block.hash != self._store.hash(height)
        raise Unavailable("it serves no blocks from there")

    async def _story(self, peer: NodeId, height: Height) -> tuple[Story, Configurations]:
        """Return a peer's story from a height, and the configuration that its last block sets, if it sets one."""
        headers: list[Header] = []
        async with aclosing(self._segments(peer, StoryFrom(height))) as segments:
            async for segment in segments:
                blocks = [Block.decode(raw) for raw in segment.blocks]
                headers += [block.header for block in blocks]
                if segment.certificate is not None:
                    set_by = [blocks[-1].next_configuration()] if blocks[-1].is_configuration else []
                    return Story(tuple(headers), segment.certificate), {one.digest: one for one in set_by}
                if len(headers) > FORK_HEADERS_MAX:
                    raise Invalid("sends blocks without ever certifying them")
        raise Unavailable("it serves no certified blocks from there")

    async def _segments(self, peer: NodeId, asked: BlocksFrom | StoryFrom) -> AsyncGenerator[Segment, None]:
        async with self._transport.fetch(peer, CHANNEL, codec.encode(asked)) as frames:
            async for frame in frames:
                yield codec.decode(frame, Segment)

    def _checked(self, other: Story, set_by: Configurations = NONE_KNOWN) -> CertifiedFork | None:
        """Return the fork that another story makes with ours; None when it is ours. `set_by` is what its last block sets.

        Raises:
            Invalid: the story does not hold.
        """
        try:
            if self._store.hash(other.height) == other.hash:
                return None
            fork = CertifiedFork(self._own(other.height), other)
        except Corruption:
            return None  # what is damaged here is fetched first; the story is told again
        known = {**self._store.configurations.by_digest(), **set_by}
        check_fork(fork, self._network, self._store.configuration_at(other.height), known)
        return fork

    def _own(self, height: Height) -> Story:
        certificate = self._store.certificate_at_or_above(height)
        if certificate is None:
            raise Corruption(f"block {height} is applied without a certificate")
        between = range(height, certificate.height)
        headers = [self._store.header(Height(at)) for at in between]
        return Story((*headers, certificate.header), certificate)


def contradicts(store: LedgerStore, certificate: Certificate) -> bool:
    """Return whether a certificate, checked or not, is for another block than the one applied at its height."""
    own = store.certificate(certificate.height)
    if own is not None and own.height == certificate.height:
        return own.header != certificate.header  # without reading a block for every announcement heard twice
    try:
        return store.hash(certificate.height) != header_hash(certificate.header)
    except (Corruption, Unavailable):
        return False
