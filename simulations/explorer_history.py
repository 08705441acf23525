"""What must hold between nodes, and the little of the past that has to be remembered to see it.

Who led each term, and the newest block that anybody has committed: both outlive the node that knew it, and so belong to
the state of a world, not to the search.
"""

from dataclasses import dataclass, replace

from protocol.identifiers import Height, Term
from simulations.explorer_disk import Broken, demand
from simulations.explorer_moves import NODES, Move, Moves, View

_Views = tuple[int, ...]
_Reads = tuple[tuple[int, ...], tuple[tuple[int, Height | None], ...]]


@dataclass(frozen=True, slots=True)
class History:
    """The leader of each term that had one, the number of the newest committed block, and reads that wait.

    A read is (node, number, the newest block that was committed when it began).
    """

    leaders: tuple[tuple[Term, int], ...] = ()
    chain: int = 0
    reads: tuple[tuple[int, int, int], ...] = ()


class Histories:
    """Histories by number, and the invariants of ledger.md section 3 between nodes."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._histories = [History()]
        self._numbers = {History(): 0}
        self._after: dict[tuple[int, int, _Views, _Reads], tuple[int, str | None]] = {}
        self._matching: set[tuple[int, int]] = set()
        self.first = 0

    def after(self, history: int, n: int, views: _Views, move: Move) -> tuple[int, str | None]:
        """Return the history after node `n` has moved, which led to these views, and what is violated or None."""
        key = history, n, views, (move.asked, move.answers)
        found = self._after.get(key)
        if found is None:
            found = self._after[key] = self._judge(history, n, views, move)
        return found

    def _judge(self, history: int, n: int, views: _Views, move: Move) -> tuple[int, str | None]:
        try:
            asked = self._read(self._histories[history], n, views, move)
            after = self._check(asked, n, views)
        except Broken as violation:
            return history, str(violation)
        number = self._numbers.setdefault(after, len(self._histories))
        if number == len(self._histories):
            self._histories.append(after)
        return number, None

    def _check(self, history: History, n: int, views: _Views) -> History:
        view = [self._moves.view[number] for number in views]
        history = self._led(history, n, view[n])
        for other in range(NODES):
            if other != n:
                self._check_match(view[n].tip, view[other].tip)
        history = self._committed(history, n, view)
        for leader in view:
            self._check_complete(history, leader)
        return history

    def _read(self, history: History, n: int, views: _Views, move: Move) -> History:
        """Linearizable reads: no answer is below what was committed anywhere when the read began (thesis §6.4)."""
        if not (history.reads or move.asked):
            return history
        reads = {(node, number): chain for node, number, chain in history.reads}
        reads |= {(n, number): history.chain for number in move.asked}
        for number, height in move.answers:
            began = self._moves.blocks.blocks[reads.pop((n, number))].height
            demand(
                height is None or height >= began,
                f"stale read: the answer is {height}, and {began} was committed when it was asked",
            )
        is_up = self._moves.view[views[n]].is_up
        left = [(*key, chain) for key, chain in reads.items() if is_up or key[0] != n]
        return replace(history, reads=tuple(sorted(left)))

    def _led(self, history: History, n: int, view: View) -> History:
        """Election safety: at most one leader is elected in a term (Raft §5.2)."""
        if not view.leads:
            return history
        leaders = dict(history.leaders)
        first = leaders.setdefault(view.term, n)
        demand(first == n, f"election safety: term {view.term} was led by {first + 1} and by {n + 1}")
        return replace(history, leaders=tuple(sorted(leaders.items())))

    def _check_match(self, one: int, other: int) -> None:
        """Log matching: blocks of one height and term are one block, and so are all before them (Raft §5.3)."""
        if (one, other) in self._matching:
            return
        blocks = self._moves.blocks
        for mine, theirs in zip(blocks.chain(one), blocks.chain(other), strict=False):
            block = blocks.blocks[mine]
            demand(
                mine == theirs or block.term != blocks.blocks[theirs].term,
                f"log matching: two blocks of height {block.height} and term {block.term}",
            )
        self._matching.add((one, other))

    def _committed(self, history: History, n: int, view: list[View]) -> History:
        """State machine safety: all that anybody commits is one chain, and durable on a quorum when it is (Raft §5.4.3)."""
        blocks, committed = self._moves.blocks, view[n].committed
        block = blocks.blocks[committed]
        if block.height <= blocks.blocks[history.chain].height:
            demand(
                blocks.holds(history.chain, committed),
                f"state machine safety: two blocks are committed at height {block.height}",
            )
            return history
        demand(
            blocks.holds(committed, history.chain),
            f"state machine safety: block {block.height} is committed upon another chain",
        )
        holders = self._holders(view, committed)
        demand(
            holders >= self._moves.raft_quorum,
            f"durability: block {block.height} is committed and durable on {holders}",
        )
        return replace(history, chain=committed)

    def _holders(self, view: list[View], block: int) -> int:
        """Return how many voters hold a block durably: a witness counts for nothing here (P6)."""
        return sum(self._moves.blocks.holds(view[n].durable, block) for n in self._moves.voters)

    def _check_complete(self, history: History, leader: View) -> None:
        """Leader completeness: who leads a later term has every block that was committed before (Raft §5.4)."""
        blocks = self._moves.blocks
        block = blocks.blocks[history.chain]
        if leader.leads and leader.term >= block.term:
            demand(
                blocks.holds(leader.tip, history.chain),
                f"leader completeness: the leader of term {leader.term} lacks the committed block {block.height}",
            )

    # --- situations -----------------------------------------------------------------------------------------------

    def situations(self, world: tuple[int, int, int, int]) -> tuple[str, ...]:
        """Return what is remarkable about a world, given by the views of its nodes and its history."""
        view = [self._moves.view[number] for number in world[:NODES]]
        history = self._histories[world[NODES]]
        names = [f"a leader of term {one.term}" for one in view if one.leads]
        if len(names) > 1:
            names.append("two leaders at once")
        blocks = self._moves.blocks
        if any(not blocks.holds(a.tip, b.tip) and not blocks.holds(b.tip, a.tip) for a in view for b in view):
            names.append("diverging logs")
        if any(self._is_figure_8(leader, view, history) for leader in view if leader.leads):
            names.append("an older block on a quorum, not committed, under a later leader (Figure 8)")
        if any(
            one.leads and blocks.blocks[one.committed].height > blocks.blocks[one.durable].height
            for one in view
        ):
            names.append("a leader commits a block that is not on its own disk yet")
        newest = blocks.blocks[history.chain]
        if newest.term > 1:
            names.append(f"a block of term {newest.term} is committed")
        if any(not one.is_up for one in view):
            names.append("a node is down")
        return tuple(dict.fromkeys(names))

    def _is_figure_8(self, leader: View, view: list[View], history: History) -> bool:
        blocks = self._moves.blocks
        for number in blocks.chain(leader.tip)[1:]:
            is_held = self._holders(view, number) >= self._moves.raft_quorum
            older = blocks.blocks[number].term < leader.term
            if older and is_held and not blocks.holds(history.chain, number):
                return True
        return False
