"""Writes down what real cores of tier A decide, in the words of the model of certificates.

A `Recorder` puts itself between a cluster and its cores: after every input and before and after every output it looks at
what has changed, and notes it as deeds. `certificate_replay` holds them against the model.

A deed is noted when the core decides, which is when it signs; what a crash took before it was durable has never left the
node, and counts as not done (`Record.is_lost`). Only blocks leave before they are durable here: a leader's frames overtake
its disk. What a core has heard of certificates is gone with a crash, but for what stands in its hard state.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from protocol.block import Block, Header, header_hash
from protocol.configuration import Configuration
from protocol.finality import CommitVote
from protocol.identifiers import ZERO, Digest, Height, NodeId, Term
from protocol.raft.machine import Raft
from protocol.raft.messages import AppendReply, Input, Message, RequestVote, VoteNotice, VoteReply
from protocol.raft.state import HardState, Ready, Role
from protocol.signing import SigningKey
from simulations.certificate_model_guards import Act
from simulations.core_cluster import Cluster


class Deed(NamedTuple):
    """One thing that a core did. `block` is what it is about, as in `Move`.

    STAND: the term, the tip, its marker's term and the base it names (`other`). GRANT: the term, the candidate and the tip
    that it showed. LEAD, PROPOSE: the block made. ACKNOWLEDGE: term and block. VOTE: block and base (`other`). LEARN,
    LEAVE: the block certified. CRASH: a start; the block is what is known to be certified then.
    """

    act: Act
    block: Digest
    term: Term = Term(0)
    other: Digest | NodeId | None = None
    marker_term: Term = Term(0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a core holds, as far as the model speaks of it; `ordered` and `certified` are the highest such blocks here."""

    role: Role
    term: Term
    has_voted: bool
    log: Digest
    marker_term: Term
    marker: bytes
    vote: bytes
    ordered: Digest
    certified: Digest


@dataclass(frozen=True, slots=True)
class Record:
    """What one member did at one time, and what it held then. `is_lost`: a crash came before it was durable."""

    at_s: float
    member: int
    deeds: tuple[Deed, ...]
    seen: Seen
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A header, and whether its block opens a term."""

    header: Header
    opens: bool
    is_held: bool = True
    """Whether some log holds it; of a header that was only shown, nobody knows the body."""


class Recorder:
    """All that the cores of one cluster do from now on; the members in `untold` are not looked at: a liar."""

    def __init__(self, cluster: Cluster, *, untold: Iterable[int] = ()) -> None:
        self.records: list[Record] = []
        self.blocks: dict[Digest, Made] = {}
        """By header hash, in the order in which they were met."""
        self.configurations: dict[Digest, Configuration] = {}
        self.members: dict[NodeId, int] = {node.id: node.index for node in cluster.nodes}
        self.untold = frozenset(untold)
        self._agenda = cluster.agenda
        self._cores: dict[int, TracedRaft] = {}
        self.genesis = cluster.genesis
        self.meet(cluster.genesis)
        self.configurations[cluster.configuration.digest] = cluster.configuration
        cluster.make_core = self._make_core

    def meet(self, block: Block) -> None:
        """Note a block that some log holds."""
        if not self.holds(block.hash):
            self.blocks[block.hash] = Made(block.header, bool(block.opening))
            if block.is_configuration:
                following = block.next_configuration()
                self.configurations.setdefault(following.digest, following)

    def holds(self, digest: Digest) -> bool:
        """Return whether a block, and so all below it, has been in some log."""
        known = self.blocks.get(digest)
        return known is not None and known.is_held

    def meet_header(self, header: Header) -> Digest:
        """Note a block that nobody here may have: one shown by a candidate, or certified elsewhere; return its hash."""
        digest = header_hash(header)
        self.blocks.setdefault(digest, Made(header, opens=False, is_held=False))
        return digest

    def note(self, member: int, deeds: Iterable[Deed], seen: Seen) -> int:
        """Add a record; return its number."""
        self.records.append(Record(self._agenda.now, member, tuple(deeds), seen))
        return len(self.records) - 1

    def lose(self, numbers: Iterable[int]) -> None:
        """Take back what a crash came before. Blocks stay made: frames with them may have left."""
        has_stood = False
        for number in numbers:
            record = self.records[number]
            has_stood = has_stood or any(deed.act is Act.STAND for deed in record.deeds)
            # With nobody else to elect it a candidate leads at once, but sends nothing before its term is durable.
            made = () if has_stood else tuple([d for d in record.deeds if d.act in (Act.LEAD, Act.PROPOSE)])
            self.records[number] = replace(record, deeds=made, is_lost=True)

    def _make_core(
        self, *, key: SigningKey, hard_state: HardState, **parts: Any
    ) -> Raft:  # Any: passed on as it came
        member = self.members[NodeId(key.public)]
        if member in self.untold:
            return Raft(key=key, hard_state=hard_state, **parts)
        before = self._cores.get(member)
        if before is not None:
            self.lose(before.undone(hard_state))
        core = self._cores[member] = TracedRaft(self, member, key=key, hard_state=hard_state, **parts)
        return core


class TracedRaft(Raft):
    """A core that tells a recorder what it decides."""

    def __init__(self, recorder: Recorder, member: int, **parts: Any) -> None:  # Any: passed on as it came
        super().__init__(**parts)
        self._recorder = recorder
        self._member = member
        self._pending: list[int] = []
        """Numbers of the records that are not part of a write yet."""
        self._writing: tuple[Ready, tuple[int, ...]] | None = None
        self._told = set[Deed]()
        self._vote: CommitVote | None = None
        self._meet_tail()
        self._last = self._seen()
        self._note([Deed(Act.CRASH, self._last.certified)])

    def undone(self, hard_state: HardState) -> tuple[int, ...]:
        """Return the records of this life that its end came before, given what the disk held then."""
        lost = tuple(self._pending)
        if self._writing is None:
            return lost
        ready, numbers = self._writing
        written = ready.hard_state
        # An installation may have set the height that was left, and nothing else.
        is_there = written is None or replace(written, left_height=hard_state.left_height) == hard_state
        return lost if is_there else numbers + lost

    # --- inputs and outputs ---------------------------------------------------------------------------------------

    def tick(self, now_ms: int, *, waiting: bool = False) -> None:
        """Let time pass."""
        super().tick(now_ms, waiting=waiting)
        self._look()

    def step(self, sender: NodeId, message: Input, now_ms: int) -> None:
        """Take a message."""
        queued = len(self._voter.outbox)
        try:
            super().step(sender, message, now_ms)
        finally:
            # Part of a message may have been taken before the rest was refused.
            granted = self._grants(self._voter.outbox[queued:])
            if granted and isinstance(message, RequestVote):
                self._recorder.meet_header(message.tip)
            self._look(granted)

    def ready(self) -> Ready | None:
        """Return the next work; a vote is cast here."""
        self._look()
        ready = super().ready()
        self._look(self._statements(ready.messages) if ready is not None else ())
        voter = self._voter
        if ready is not None and ready.must_persist:
            self._writing, self._pending = (ready, tuple(self._pending)), []
        elif self._writing is None and voter.hard == voter.durable and not voter.log.has_unpersisted:
            self._pending.clear()
        return ready

    def advance(self, ready: Ready) -> None:
        """Hear that something is durable."""
        super().advance(ready)
        if self._writing is not None and self._writing[0] is ready:
            self._writing = None

    # --- looking --------------------------------------------------------------------------------------------------

    def _look(self, deeds: Iterable[Deed] = ()) -> None:
        """Note what has changed since the last look, if anything has: certificates first, then what was signed upon them."""
        made, own = self._meet_tail(), self._certifying.uncertified_vote
        is_new_vote = own is not None and own is not self._vote
        said = list(deeds)
        if not (said or made or is_new_vote) and self._is_as_before():
            return
        before, now, hard = self._last, self._seen(), self._voter.hard
        self._last = now
        found = list(self._certificates(before, now))
        if hard.vote == self._voter.me and (now.term > before.term or not before.has_voted):
            # As it was before: whose own vote elects it has cut a block since.
            found.append(Deed(Act.STAND, before.log, now.term, before.certified, before.marker_term))
        found += [deed for deed in said if deed.act is Act.GRANT]
        found += made
        if now.marker != ZERO and (now.marker_term, now.marker) != (before.marker_term, before.marker):
            found.append(Deed(Act.ACKNOWLEDGE, Digest(now.marker), now.marker_term))
        if is_new_vote and own is not None:
            self._vote = own
            found.append(Deed(Act.VOTE, Digest(own.header_hash), other=own.base_hash))
        found += [deed for deed in said if deed.act is not Act.GRANT and deed not in found]
        self._note(found)

    def _is_as_before(self) -> bool:
        last, voter = self._last, self._voter
        return (
            voter.hard is self._hard
            and self._role is last.role
            and voter.log.tip_hash == last.log
            and (voter.log.committed, voter.log.certified) == self._heights
        )

    def _seen(self) -> Seen:
        voter, log = self._voter, self._voter.log
        hard = self._hard = voter.hard
        self._heights = log.committed, log.certified
        base = Digest(voter.base[1])
        return Seen(
            self._role,
            hard.term,
            hard.vote != ZERO,
            log.tip_hash,
            hard.ack_term,
            hard.ack_hash,
            hard.last_vote_hash,
            log.hash(log.committed),
            base,
        )

    def _note(self, deeds: list[Deed]) -> None:
        self._pending.append(self._recorder.note(self._member, deeds, self._last))

    def _certificates(self, before: Seen, now: Seen) -> Iterator[Deed]:
        ahead, log = self._certifying.ahead, self._voter.log
        if now.certified != before.certified:
            yield Deed(Act.LEARN, now.certified)
        elif ahead is not None and now.log == now.certified != before.log:
            # Only a certificate shortens a log: else what is left makes way for other blocks, never for none.
            yield Deed(Act.LEAVE, self._recorder.meet_header(ahead.header), other=log.tip_hash)

    def _meet_tail(self) -> list[Deed]:
        """Note the blocks that are new in this log; return those that this node has made."""
        log, new = self._voter.log, list[Block]()
        height = log.tip_height
        while height >= log.first() and not self._recorder.holds(log.hash(height)):
            new.append(log.block(height))
            height = Height(height - 1)
        for block in reversed(new):
            self._recorder.meet(block)
        return [
            Deed(Act.LEAD if block.opening else Act.PROPOSE, block.hash, block.term)
            for block in reversed(new)
            if block.header.leader == self._voter.me
        ]

    def _grants(self, queued: Iterable[tuple[NodeId, Message]]) -> list[Deed]:
        grants = [message.grant for _, message in queued if isinstance(message, VoteReply) and message.grant]
        deeds = [Deed(Act.GRANT, one.tip_hash, one.term, one.candidate) for one in grants]
        return [deed for deed in deeds if self._is_untold(deed)]

    def _statements(self, queued: Iterable[tuple[NodeId, Message]]) -> list[Deed]:
        """Return what is signed in messages and was not told in this life: nothing, if a core keeps to its own records."""
        deeds = list[Deed]()
        for _, message in queued:
            if isinstance(message, AppendReply) and message.ack is not None:
                deeds.append(Deed(Act.ACKNOWLEDGE, message.ack.header_hash, message.ack.term))
            vote = message.vote if isinstance(message, AppendReply | VoteNotice) else None
            if vote is not None:
                deeds.append(Deed(Act.VOTE, vote.header_hash, other=vote.base_hash))
        return [deed for deed in deeds if self._is_untold(deed)]

    def _is_untold(self, deed: Deed) -> bool:
        is_untold = deed not in self._told
        self._told.add(deed)
        return is_untold
