"""What must never be: Raft's five properties and the promises to clients, checked event by event.

Every checker is fed with what was written to a disk, applied, or told to a client, and calls `report` with a sentence
for what it finds. None asks a node what it believes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from protocol import ledger_state
from protocol.block import Block
from protocol.certificate import Acknowledgement, ElectionGrant
from protocol.configuration import Configuration
from protocol.identifiers import ZERO, Digest, Height, NodeId, Term, Txid
from protocol.ledger_rows import Receipt
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    InstallSnapshot,
    RequestVote,
    VoteReply,
)
from protocol.raft.state import HardState

Report = Callable[[str], None]
Position = tuple[Height, int]
"""A transaction's place in the ledger: height and index."""


def short(node: bytes) -> str:
    """Return an id as violations show it."""
    return node.hex()[:8]


class ElectionSafety:
    """At most one leader is elected in a term (Raft §5.2)."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._leaders: dict[Term, NodeId] = {}

    def led(self, term: Term, leader: NodeId) -> None:
        """Hear that a block cut by `leader` in `term` was stored by anybody."""
        known = self._leaders.setdefault(term, leader)
        if known != leader:
            self._report(f"election safety: term {term} was led by {short(known)} and by {short(leader)}")


class LogMatching:
    """Entries of one height and term are one entry; with hash links, so are all before them (Raft §5.3)."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._hashes: dict[tuple[Height, Term], Digest] = {}

    def stored(self, block: Block) -> None:
        """Hear that a node stored a block."""
        known = self._hashes.setdefault((block.height, block.term), block.hash)
        if known != block.hash:
            self._report(f"log matching: two blocks of height {block.height} and term {block.term}")


class DurableState:
    """A voter never takes back a term, a vote or an acknowledgement that it has written (Raft §5.2, ledger.md decision 6)."""

    def __init__(self, report: Report, is_undone: Callable[[Digest], bool] = lambda _: False) -> None:
        """`is_undone`: whether a block is certified that stands on another branch than this one."""
        self._report = report
        self._is_undone = is_undone
        self._last: dict[NodeId, HardState] = {}

    def last(self, node: NodeId) -> HardState | None:
        """Return the hard state that is durable at a node."""
        return self._last.get(node)

    def written(self, node: NodeId, state: HardState, *, sync: bool = True) -> None:
        """Hear of a hard state that a node wrote, or found on its disk when it started."""
        if not sync:
            self._report(f"durable state: {short(node)} wrote a hard state without synchronising it")
            return
        before = self._last.get(node)
        self._last[node] = state
        if before is None:
            return
        if state.term < before.term:
            self._report(f"durable state: {short(node)} went back from term {before.term} to {state.term}")
        if state.term == before.term and before.vote not in (ZERO, state.vote):
            self._report(f"durable state: {short(node)} changed its vote in term {state.term}")
        # A certificate for another branch undoes what was acknowledged on this one, in a term that is then left (P5, E2).
        is_undone = state.ack_term == before.ack_term < state.term and self._is_undone(
            Digest(before.ack_hash)
        )
        if (state.ack_term, state.ack_height) < (before.ack_term, before.ack_height) and not is_undone:
            self._report(
                f"durable state: {short(node)} forgot that it acknowledged block {before.ack_height}"
            )

    def started(self, node: NodeId, state: HardState | None) -> None:
        """Hear what a node found on its disk when it started."""
        if state is not None:
            self.written(node, state)
        elif node in self._last:
            self._report(f"durable state: {short(node)} has lost its hard state")


class PersistBeforeSend:
    """No message leaves before the state that it promises is durable, and no voter promises one term to two (Raft §5.2, P2)."""

    def __init__(self, report: Report, durable: DurableState) -> None:
        self._report = report
        self._durable = durable
        self._votes: dict[tuple[NodeId, Term], NodeId] = {}

    def sent(self, node: NodeId, message: object, hash_at: Callable[[Height], Digest | None]) -> None:
        """Hear of a message that a node hands to its transport; `hash_at` reads the blocks on its disk."""
        match message:
            case VoteReply(grant=ElectionGrant() as grant):
                self._voted(node, grant.term, grant.candidate)
            case RequestVote():
                self._voted(node, message.term, node)
            case AppendEntries() | Heartbeat() | InstallSnapshot():
                # The leader's frames may leave before its blocks are written, never before the term it leads is.
                state = self._durable.last(node)
                if message.leader == node and (state is None or state.term < message.term):
                    self._report(
                        f"persist before send: {short(node)} led term {message.term} before that was durable"
                    )
            case AppendReply(ack=Acknowledgement() as ack):
                state = self._durable.last(node)
                marker = (state.ack_term, state.ack_height) if state is not None else (0, 0)
                if marker < (ack.term, ack.height) or hash_at(ack.height) != ack.header_hash:
                    self._report(
                        f"persist before send: {short(node)} acknowledged block {ack.height} before it was durable"
                    )
            case _:
                pass  # promises nothing

    def _voted(self, node: NodeId, term: Term, candidate: NodeId) -> None:
        state = self._durable.last(node)
        # A higher term that is durable keeps the promise too: whoever has it votes in this one never again.
        kept = state is not None and (state.term > term or (state.term == term and state.vote == candidate))
        if not kept:
            self._report(f"persist before send: {short(node)} voted in term {term} before that was durable")
        known = self._votes.setdefault((node, term), candidate)
        if known != candidate:
            self._report(f"one vote: {short(node)} voted for two candidates in term {term}")


@dataclass(frozen=True, slots=True)
class _Final:
    digest: Digest
    proof_term: Term


class StateMachineSafety:
    """All nodes apply the same block at a height, in order, once; and what they apply is what a model makes of it (Raft §5.4.3).

    The model is `ledger_state.apply` over a dictionary: `rows` are what every node's state must equal at its height.
    """

    def __init__(self, report: Report, configuration: Configuration, genesis: Block) -> None:
        self._report = report
        self._configuration = configuration
        self._chain = [_Final(genesis.hash, Term(0))]
        self._heights: dict[NodeId, Height] = {}
        self.rows: dict[bytes, bytes] = {}
        self.positions: dict[Txid, Position] = {}
        """Where each transaction stands first."""

    @property
    def height(self) -> Height:
        """The highest block applied by anybody."""
        return Height(len(self._chain) - 1)

    def started(self, node: NodeId, height: Height) -> None:
        """Hear from where a node goes on after a start."""
        self._heights[node] = height

    def applied(self, node: NodeId, block: Block, proof_term: Term) -> None:
        """Hear that a node applied a block that was certified upon proofs of a term."""
        expected = Height(self._heights.get(node, Height(0)) + 1)
        if block.height != expected:
            self._report(f"state machine safety: {short(node)} applied block {block.height}, not {expected}")
            return
        self._heights[node] = expected
        if block.height <= self.height:
            if self._chain[block.height].digest != block.hash:
                self._report(
                    f"state machine safety: {short(node)} applied another block {block.height} than others"
                )
            return
        if block.header.prev_hash != self._chain[-1].digest:
            self._report(f"state machine safety: block {block.height} does not follow what others applied")
        self._chain.append(_Final(block.hash, proof_term))
        self._model(block)

    def _model(self, block: Block) -> None:
        effect = ledger_state.apply(self.rows.get, self._configuration, block)
        for key, value in effect.writes.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        for index, outcome in enumerate(effect.outcomes):
            self.positions.setdefault(outcome.receipt.txid, (block.height, index))
        block.forget()

    def led(self, term: Term, leader: NodeId, hash_at: Callable[[Height], Digest | None]) -> None:
        """Check that a new leader's log holds what was committed in earlier terms (leader completeness, Raft §5.4.3)."""
        height = self.height
        while self._chain[height].proof_term >= term and height > 0:
            height = Height(height - 1)
        if hash_at(height) != self._chain[height].digest:
            self._report(
                f"leader completeness: {short(leader)} leads term {term} without committed block {height}"
            )


class Promises:
    """What a client was told is final stays: at its place, once, and after all that was final when it was submitted."""

    def __init__(self, report: Report, chain: StateMachineSafety) -> None:
        self._report = report
        self._chain = chain
        self._floors: dict[Txid, Position] = {}
        self._last: Position = (Height(0), 0)
        self.acknowledged: dict[Txid, Receipt] = {}

    def submitted(self, txid: Txid) -> None:
        """Hear that a client handed a transaction to a node, for the first or another time."""
        self._floors.setdefault(txid, self._last)

    def told(self, receipt: Receipt) -> None:
        """Hear that a client got a receipt."""
        txid, position = receipt.txid, (receipt.height, receipt.index)
        known = self.acknowledged.setdefault(txid, receipt)
        if known != receipt:
            self._report(
                f"exactly once: {short(txid)} has two receipts, at {known.height} and {receipt.height}"
            )
        if self._chain.positions.get(txid) != position:
            self._report(f"promise: {short(txid)} is not at the place its receipt names, {position}")
        if position <= self._floors.get(txid, (Height(0), -1)):
            self._report(f"real-time order: {short(txid)} stands before what was final when it was submitted")
        self._last = max(self._last, position)

    def kept(self, node: NodeId, receipt_of: Callable[[Txid], Receipt | None]) -> None:
        """Check that a node that has caught up knows every receipt that any client got."""
        for txid, receipt in self.acknowledged.items():
            if receipt_of(txid) != receipt:
                self._report(
                    f"promise: {short(node)} has lost {short(txid)}, final at block {receipt.height}"
                )


def agreed(
    report: Report, chain: StateMachineSafety, states: dict[NodeId, tuple[Height, Digest, dict[bytes, bytes]]]
) -> None:
    """Check that nodes that have caught up hold the same tree and the state of the model.

    `states`: applied height, root of the transaction tree and rows of each.
    """
    if len({(height, root) for height, root, _ in states.values()}) != 1:
        report("agreement: nodes that have caught up differ in height or in the root of their trees")
    for node, (_, _, rows) in states.items():
        if rows != chain.rows:
            report(f"agreement: the state of {short(node)} is not what its blocks mean")
