"""Whether one copy of an object, doing one operation at a time, could have told its clients what they were told.

A history is linearizable when its operations can be put into one order that a sequential model allows and that keeps
real time: whatever had returned before another was called stands before it (Herlihy and Wing 1990). The search is that
of Wing and Gong (1993) with Lowe's memory of configurations (2017), as Porcupine has it: it splits by object first
(a history is linearizable when its part for each object is), walks the events in time, orders a called operation when
the model allows its answer, and goes back when one has returned that could not be ordered. Two things are added: a read
that may come now is ordered now, without alternatives; and of two ways to the same configuration, the one that used up
more operations of unknown outcome is not followed.

```
  history ─► parts by object ─► walk: call   ─ the model allows it, (set, state) is new ─► order it, walk from the front
                                      return ─ of what is not ordered ─► order one without answer, or go back
                                      nothing left that had an answer ─► ok        nowhere to go back to ─► violation
```
An operation whose outcome is unknown returns at infinity: it may be ordered anywhere after its call, or nowhere. What
definitely failed is not part of the history. Times are any numbers of one clock: virtual, monotonic of one machine, or
event numbers; equal times count as overlapping, which never accuses falsely.

The problem is NP-complete: time is bounded in steps, and running out of them is "unknown", never "ok". Up to ten
operations at once in a part cost little (ledger.md section 5); `PartVerdict` gives every part's size.

Nothing here knows a simulation: histories of real processes are checked alike.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)
I = TypeVar("I")  # noqa: E741 - the inputs of operations, as the papers call them
O = TypeVar("O")  # noqa: E741 - and their outputs
InputT_contra = TypeVar("InputT_contra", contravariant=True)
OutputT_contra = TypeVar("OutputT_contra", contravariant=True)

Outcome = Literal["ok", "violation", "unknown"]

UNKNOWN_RETURN = math.inf
"""When an operation returned of which nobody knows whether it took effect."""
STEPS_MAX = 1_000_000
"""Questions to the model per part: about two seconds."""
_SHOWN = 6
"""Operations named on each side of the point where no order goes on."""
_HEAD = 0


@dataclass(frozen=True, slots=True)
class Operation(Generic[I, O]):
    """What a client asked of one object, and was told. `output` is None exactly when `ret` is infinite: unknown.

    Raises:
        ValueError: it returned before it was called, or has an answer without an end or an end without an answer.
    """

    client: int | str
    call: float
    ret: float
    input: I
    output: O | None

    def __post_init__(self) -> None:
        if not self.call <= self.ret:
            raise ValueError(f"an operation called at {self.call} cannot have returned at {self.ret}")
        if (self.output is None) != (self.ret == UNKNOWN_RETURN):
            raise ValueError("an operation has an output exactly when it has returned")

    @property
    def is_known(self) -> bool:
        """Whether the client was told the outcome."""
        return self.ret != UNKNOWN_RETURN

    def __str__(self) -> str:
        if not self.is_known:
            return f"client {self.client} from {_time(self.call)}: {self.input} -> unknown"
        span = f"from {_time(self.call)} to {_time(self.ret)}"
        return f"client {self.client} {span}: {self.input} -> {self.output}"


def _time(time: float) -> str:
    return str(time) if isinstance(time, int) else f"{time:.6f}"


class Model(Protocol[S, InputT_contra, OutputT_contra]):
    """One object that does one operation at a time. States are hashable values and never None."""

    def initial(self) -> S:
        """Return the state of an object that nobody has used."""
        ...

    def part_of(self, asked: InputT_contra) -> Hashable:
        """Return which object an operation is about."""
        ...

    def step(self, state: S, asked: InputT_contra, output: OutputT_contra | None) -> S | None:
        """Return the state after an operation that was answered so, or None where it cannot be answered so.

        With output None (unknown): the state after it took effect, or None where it cannot take any.
        """
        ...


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where no order goes on: what had returned when `blocked` returned contradicts itself, whatever came later."""

    ordered: int
    """Operations in the longest order that comes this far."""
    last: tuple[Operation[Any, Any], ...]
    """The last of them, in that order."""
    state: Hashable
    """What the model holds after them."""
    blocked: Operation[Any, Any]
    """The operation that must come next at the latest, and cannot."""
    beside: tuple[Operation[Any, Any], ...]
    """Others that were under way meanwhile and not ordered."""

    def __str__(self) -> str:
        text = f"{self.ordered} operations can be ordered"
        if self.last:
            text += f", at the end {_listed(self.last)}"
        text += f"; then the state is {self.state}, and this cannot follow: [{self.blocked}]"
        return text + (f"; nor before it what was under way: {_listed(self.beside)}" if self.beside else "")


def _listed(operations: Iterable[Operation[Any, Any]]) -> str:
    return ", ".join(f"[{operation}]" for operation in operations)


@dataclass(frozen=True, slots=True)
class PartVerdict:
    """What came of one object's part. `overlap` is the most operations that were under way at once in it."""

    part: Hashable
    outcome: Outcome
    operations: int
    overlap: int
    steps: int
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a history, part by part."""

    parts: tuple[PartVerdict, ...]

    @property
    def outcome(self) -> Outcome:
        """A violation if there is one; else unknown if any part was not decided; else ok."""
        outcomes = {part.outcome for part in self.parts}
        if "violation" in outcomes:
            return "violation"
        return "unknown" if "unknown" in outcomes else "ok"

    @property
    def violations(self) -> tuple[PartVerdict, ...]:
        """The parts that no order explains."""
        return tuple(part for part in self.parts if part.outcome == "violation")

    @property
    def undecided(self) -> tuple[PartVerdict, ...]:
        """The parts whose steps ran out."""
        return tuple(part for part in self.parts if part.outcome == "unknown")

    @property
    def operations(self) -> int:
        """How many operations were judged."""
        return sum(part.operations for part in self.parts)

    @property
    def steps(self) -> int:
        """How often the model was asked."""
        return sum(part.steps for part in self.parts)

    def __str__(self) -> str:
        return (
            f"{self.outcome}: {self.operations} operations on {len(self.parts)} objects in {self.steps} steps, "
            f"at most {max((part.overlap for part in self.parts), default=0)} at once, "
            f"{len(self.violations)} violations, {len(self.undecided)} undecided"
        )


def _may_change(_asked: object, _output: object) -> bool:
    return False


def check(
    history: Iterable[Operation[I, O]],
    model: Model[S, I, O],
    *,
    is_read: Callable[[I, O], bool] = _may_change,
    steps_max: int = STEPS_MAX,
) -> Verdict:
    """Return whether a history is linearizable, part by part; each part has `steps_max` steps.

    `is_read` may say of an operation and its answer that they leave every state as it is, in which they are possible:
    reads, and refusals. It makes the search several times shorter; what it is not said of is searched in full.
    """
    parts: dict[Hashable, list[Operation[I, O]]] = {}
    for operation in history:
        parts.setdefault(model.part_of(operation.input), []).append(operation)
    verdicts: list[PartVerdict] = []
    for part, done in parts.items():
        search = _Search(done, model, is_read, steps_max)
        outcome = search.run()
        stuck = search.stuck if outcome == "violation" else None
        verdicts.append(PartVerdict(part, outcome, len(done), overlap(done), search.steps, stuck))
    return Verdict(tuple(verdicts))


def overlap(operations: Iterable[Operation[I, O]]) -> int:
    """Return how many operations were under way at once, at most; those of unknown outcome never end."""
    under_way = most = 0
    for _, change in sorted(
        # A call counts before a return of the same time: those two overlap.
        (time, -change)
        for operation in operations
        for time, change in ((operation.call, 1), (operation.ret, -1))
    ):
        under_way -= change
        most = max(most, under_way)
    return most


@dataclass(slots=True)
class _Frame(Generic[S]):
    """A configuration on the way: the operation ordered last (-1 for none), the state, and where to go from here."""

    number: int
    state: S
    moves: list[
        tuple[int, S]
    ]  # operations that may come next, the first to try last, with the states after them
    is_forced: bool  # the one move, or none, is all there is to try


class _Search(Generic[S, I, O]):
    """One walk. Operations with an answer have the numbers 0 … n-1 by call, those without the numbers from n.

    Events of the former are a doubly linked list in the order of time: 2k+1 is the call of k, 2k+2 its return, 0 the
    head. What has no answer is tried last: ordered first, it would mostly have to be taken back.
    """

    def __init__(
        self,
        operations: Sequence[Operation[I, O]],
        model: Model[S, I, O],
        is_read: Callable[[I, O], bool],
        steps_max: int,
    ) -> None:
        by_call = sorted(operations, key=lambda operation: operation.call)
        known = [operation for operation in by_call if operation.is_known]
        self._operations = known + [operation for operation in by_call if not operation.is_known]
        self._known = len(known)
        self._reads = [one.output is not None and is_read(one.input, one.output) for one in known]
        self._model = model
        self._steps_max = steps_max
        self.steps = 0
        self._next, self._previous = _linked(known)
        self._stack: list[_Frame[S]] = []
        self._ordered = 0  # the set of ordered operations with an answer, one bit each
        self._spent = 0  # and of those without
        # What was reached before, and by which sets of operations without answer: the smallest of them.
        self._seen: dict[tuple[int, S], list[int]] = {}
        self.stuck: Explanation | None = None
        """The dead end that came furthest."""

    def run(self) -> Outcome:
        """Return whether an order exists."""
        self._stack.append(self._frame(-1, self._model.initial()))
        while self._next[_HEAD] != _HEAD:
            if self.steps > self._steps_max:
                return "unknown"
            frame = self._stack[-1]
            if frame.moves:
                number, state = frame.moves.pop()
                if self._order(number, state):
                    self._stack.append(self._frame(number, state))
            elif not frame.is_forced:
                frame.moves, frame.is_forced = self._moves_without_answer(frame.state), True
            else:
                self._note(frame.state)
                self._stack.pop()
                if not self._stack:
                    return "violation"
                self._take_back(frame.number)
        return "ok"

    def _frame(self, number: int, state: S) -> _Frame[S]:
        """Return a configuration with the operations that may come next: called before any that is left returned."""
        moves: list[tuple[int, S]] = []
        event = self._next[_HEAD]
        while event % 2:
            after = self._step(event // 2, state)
            if after is not None and self._reads[event // 2]:
                assert after == state, "the model changes its state at what is said to be a read"
                # Whatever order goes on from here, it may as well stand at its beginning: nothing else is changed by that.
                return _Frame(number, state, [(event // 2, state)], is_forced=True)
            if after is not None:
                moves.append((event // 2, after))
            event = self._next[event]
        # What leaves this state as it is mostly fits best; it comes last in the list, which is tried first.
        moves.sort(key=lambda move: (move[1] == state, -move[0]))
        return _Frame(number, state, moves, is_forced=False)

    def _moves_without_answer(self, state: S) -> list[tuple[int, S]]:
        """Return what may have taken effect here although nobody heard of it, where that changes anything."""
        end = self._operations[self._first_return()].ret
        moves: list[tuple[int, S]] = []
        for number in range(self._known, len(self._operations)):
            if not self._spent >> number & 1 and self._operations[number].call <= end:
                after = self._step(number, state)
                if after is not None and after != state:
                    moves.append((number, after))
        return moves[::-1]

    def _step(self, number: int, state: S) -> S | None:
        self.steps += 1
        operation = self._operations[number]
        return self._model.step(state, operation.input, operation.output)

    def _first_return(self) -> int:
        """Return which operation that is not ordered returned first."""
        event = self._next[_HEAD]
        while event % 2:
            event = self._next[event]
        return event // 2 - 1

    def _order(self, number: int, state: S) -> bool:
        """Order an operation next, unless the configuration after it has been reached before; return whether it was done.

        Whoever has spent a subset of the operations without answer can go on in every way that this can.
        """
        is_known = number < self._known
        ordered = self._ordered | is_known << number
        spent = self._spent | (not is_known) << number
        reached = self._seen.setdefault((ordered, state), [])
        if any(other & spent == other for other in reached):
            return False
        reached[:] = [other for other in reached if other & spent != spent]
        reached.append(spent)
        self._ordered, self._spent = ordered, spent
        if is_known:
            for event in (2 * number + 1, 2 * number + 2):
                self._next[self._previous[event]] = self._next[event]
                self._previous[self._next[event]] = self._previous[event]
        return True

    def _take_back(self, number: int) -> None:
        """Undo the last `_order`."""
        if number >= self._known:
            self._spent ^= 1 << number
            return
        self._ordered ^= 1 << number
        # In the opposite order of taking them out, so that each finds its neighbours as they were.
        for event in (2 * number + 2, 2 * number + 1):
            self._next[self._previous[event]] = event
            self._previous[self._next[event]] = event

    def _note(self, state: S) -> None:
        """Remember the dead end that came furthest in time: no order at all passes the last of these returns."""
        number = self._first_return()
        blocked = self._operations[number]
        count = len(self._stack) - 1
        if self.stuck is not None and (blocked.ret, count) <= (self.stuck.blocked.ret, self.stuck.ordered):
            return
        last = tuple(
            self._operations[frame.number] for frame in self._stack[max(1, len(self._stack) - _SHOWN) :]
        )
        beside = tuple(itertools.islice(self._beside(number), _SHOWN))
        self.stuck = Explanation(count, last, state, blocked, beside)

    def _beside(self, blocked: int) -> Iterator[Operation[I, O]]:
        """Yield operations that overlap the blocked one and are not ordered."""
        event, end = self._next[_HEAD], self._operations[blocked].ret
        # The first return in the list is the blocked operation's: before it there are only calls.
        while event % 2:
            if event // 2 != blocked:
                yield self._operations[event // 2]
            event = self._next[event]
        for number in range(self._known, len(self._operations)):
            if not self._spent >> number & 1 and self._operations[number].call <= end:
                yield self._operations[number]


def _linked(known: Sequence[Operation[I, O]]) -> tuple[list[int], list[int]]:
    """Return the successors and predecessors of all events in the order of time, calls before returns."""
    events = [(operation.call, 0, 2 * number + 1) for number, operation in enumerate(known)]
    events += [(operation.ret, 1, 2 * number + 2) for number, operation in enumerate(known)]
    ring = [_HEAD, *(event for _, _, event in sorted(events)), _HEAD]
    successor, predecessor = [_HEAD] * (len(ring) - 1), [_HEAD] * (len(ring) - 1)
    for before, after in itertools.pairwise(ring):
        successor[before] = after
        predecessor[after] = before
    return successor, predecessor
