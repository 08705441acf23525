import itertools
import math
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.linearizability import Operation, check, overlap

WRITTEN = -1
"""The answer to a write."""

Registered = Operation[tuple[str, str, int], int]


class Registers:
    """Registers by name, 0 at first. Asked: (name, "write", value) or (name, "read", 0)."""

    def initial(self) -> int:
        return 0

    def part_of(self, asked: tuple[str, str, int]) -> str:
        return asked[0]

    def step(self, state: int, asked: tuple[str, str, int], output: int | None) -> int | None:
        if asked[1] == "write":
            return asked[2]
        return state if output in (None, state) else None


def is_read(asked: tuple[str, str, int], _output: int) -> bool:
    return asked[1] == "read"


def write(client: int, call: float, ret: float, value: int, name: str = "x") -> Registered:
    return Operation(client, call, ret, (name, "write", value), None if ret == math.inf else WRITTEN)


def read(client: int, call: float, ret: float, value: int, name: str = "x") -> Registered:
    return Operation(client, call, ret, (name, "read", 0), value)


def orders(history: Sequence[Registered]) -> Iterator[tuple[Registered, ...]]:
    """Yield every order of all operations with an answer and any of the others that keeps real time."""
    known = [one for one in history if one.is_known]
    unknown = [one for one in history if not one.is_known]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *some]):
                if all(not later.ret < before.call for before, later in itertools.combinations(order, 2)):
                    yield order


def has_an_order(history: Sequence[Registered]) -> bool:
    def allows(order: tuple[Registered, ...]) -> bool:
        state: int | None = 0
        for one in order:
            state = Registers().step(state, one.input, one.output) if state is not None else None
        return state is not None

    parts = [[one for one in history if one.input[0] == name] for name in ("x", "y")]
    return all(any(map(allows, orders(part))) for part in parts)


GOOD = {
    "nothing at all": [],
    "one after the other": [write(1, 0, 1, 5), read(2, 2, 3, 5)],
    "a read beside a write sees the old value": [write(1, 0, 10, 5), read(2, 2, 3, 0)],
    "a read beside a write sees the new value": [write(1, 0, 10, 5), read(2, 2, 3, 5)],
    "equal times overlap": [write(1, 0, 1, 5), read(2, 1, 2, 0)],
    "two writes at once in the other order": [write(1, 0, 10, 1), write(2, 0, 10, 2), read(3, 11, 12, 1)],
    "an unknown write took effect late": [write(1, 0, math.inf, 5), read(2, 1, 2, 0), read(2, 50, 51, 5)],
    "an unknown write never took effect": [write(1, 0, math.inf, 5), read(2, 1, 2, 0), read(2, 50, 51, 0)],
    "a write of what is there already comes after one that is unknown": [
        write(4, 0, 0, 2),
        write(1, 0, 1, 2),
        write(2, 0, math.inf, 1),
        read(3, 1, 1, 1),
        read(5, 2, 2, 2),
    ],
    "two objects do not touch": [write(1, 0, 1, 5, "x"), read(1, 2, 3, 0, "y")],
}
BAD = {
    "a stale read": [write(1, 0, 1, 5), read(2, 2, 3, 0)],
    "a value from nowhere": [read(1, 0, 1, 7)],
    "a value from the future": [read(1, 0, 1, 7), write(2, 2, 3, 7)],
    "new, then old again": [write(1, 0, 10, 5), read(2, 1, 2, 5), read(3, 3, 4, 0)],
    "an unknown write undone": [write(1, 0, math.inf, 5), read(2, 1, 2, 5), read(2, 3, 4, 0)],
    "two clients see two orders": [
        write(1, 0, 10, 1),
        write(2, 0, 10, 2),
        *(read(3, 11 + k, 11.5 + k, value) for k, value in enumerate((1, 2, 1))),
    ],
    "an unknown write called after the read": [read(1, 0, 1, 5), write(2, 2, math.inf, 5)],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_what_one_register_could_have_answered_is_ok(history: list[Registered]) -> None:
    assert check(history, Registers()).outcome == "ok"
    assert has_an_order(history)


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_what_no_register_could_have_answered_is_a_violation(history: list[Registered]) -> None:
    verdict = check(history, Registers())
    assert verdict.outcome == "violation"
    assert not has_an_order(history)


@st.composite
def small_histories(draw: st.DrawFn) -> list[Registered]:
    history: list[Registered] = []
    for client in range(draw(st.integers(1, 6))):
        call = draw(st.integers(0, 8))
        if draw(st.booleans()):
            ret = draw(st.one_of(st.just(math.inf), st.integers(call, 10)))
            history.append(write(client, call, ret, draw(st.integers(1, 3))))
        else:
            history.append(read(client, call, draw(st.integers(call, 10)), draw(st.integers(0, 3))))
    return history


@settings(max_examples=200, deadline=None)
@given(small_histories())
def test_the_search_agrees_with_trying_every_order(history: list[Registered]) -> None:
    expected = "ok" if has_an_order(history) else "violation"
    assert check(history, Registers()).outcome == expected
    assert check(history, Registers(), is_read=is_read).outcome == expected


seeded = st.integers(0, 2**32).map(random.Random)
"""Not Hypothesis' own: it would make every write unknown, which is as hard as it gets."""


def executed(rng: random.Random, count: int, clients: int, *, unknown: float = 0.02) -> list[Registered]:
    """Return a linearizable history: each operation takes effect at a time between its call and its return."""
    free, state, history = [0.0] * clients, 0, []
    for number in range(count):
        at = float(number)
        client = rng.randrange(clients)
        if free[client] > at:
            continue
        call = max(free[client], at - rng.uniform(0, clients))
        ret = at + rng.uniform(0, clients)
        free[client] = ret
        if rng.random() < 0.5:
            state = number + 1
            history.append(write(client, call, math.inf if rng.random() < unknown else ret, state))
        else:
            history.append(read(client, call, ret, state))
    rng.shuffle(history)
    return history


@settings(max_examples=60, deadline=None)
@given(seeded, st.integers(1, 8))
def test_executions_one_at_a_time_stay_ok_however_their_calls_and_returns_stretch(
    rng: random.Random, clients: int
) -> None:
    assert check(executed(rng, 60, clients), Registers()).outcome == "ok"


@settings(max_examples=60, deadline=None)
@given(seeded, st.integers(1, 4))
def test_a_read_of_a_value_that_was_never_written_is_caught(rng: random.Random, clients: int) -> None:
    history = [*executed(rng, 40, clients), read(99, 30, 50, 1_000)]
    assert check(history, Registers()).outcome == "violation"


@settings(max_examples=60, deadline=None)
@given(seeded)
def test_any_other_answer_to_a_client_that_is_alone_is_caught(rng: random.Random) -> None:
    history = [one for one in executed(rng, 60, 1) if one.is_known]
    reads = [at for at, one in enumerate(history) if one.input[1] == "read"]
    if reads:
        at = rng.choice(reads)
        value = history[at].output
        assert value is not None
        history[at] = read(0, history[at].call, history[at].ret, value + 1)
    assert (check(history, Registers()).outcome == "violation") == bool(reads)


def test_a_violation_names_the_longest_order_and_what_cannot_follow_it() -> None:
    history = [write(1, 0, 1, 5), read(1, 2, 3, 5), write(2, 4, 9, 6), read(1, 5, 6, 0), read(1, 10, 11, 6)]
    (part,) = check(history, Registers()).violations
    assert part.explanation is not None
    assert part.explanation.blocked == history[3]
    assert part.explanation.last == (history[0], history[1], history[2])
    text = str(part.explanation)
    assert "3 operations can be ordered" in text
    assert "the state is 6, and this cannot follow: [client 1 from 5 to 6: ('x', 'read', 0) -> 0]" in text


@settings(max_examples=100, deadline=None)
@given(small_histories())
def test_what_had_returned_by_the_end_of_the_blocked_operation_already_contradicts_itself(
    history: list[Registered],
) -> None:
    verdict = check(history, Registers())
    for part in verdict.violations:
        assert part.explanation is not None
        end = part.explanation.blocked.ret
        early = [one for one in history if one.ret <= end or (one.input[1] == "write" and one.call <= end)]
        cut = [one if one.ret <= end else write(0, one.call, math.inf, one.input[2]) for one in early]
        assert check(cut, Registers()).outcome == "violation"


def test_steps_that_run_out_are_unknown_and_never_ok() -> None:
    history = executed(random.Random(1), 400, 4)
    needed = check(history, Registers()).steps
    verdict = check(history, Registers(), steps_max=needed // 2)
    assert check(history, Registers(), steps_max=needed).outcome == "ok"
    assert verdict.outcome == "unknown"
    assert [part.part for part in verdict.undecided] == ["x"]
    assert "1 undecided" in str(verdict)


def test_a_violation_outweighs_what_is_unknown() -> None:
    hard = [write(k, 0, 100, k + 1) for k in range(14)] + [read(20, 101, 102, 99)]
    stale = [write(1, 0, 1, 5, "y"), read(2, 2, 3, 0, "y")]
    verdict = check([*hard, *stale], Registers(), steps_max=50)
    assert {part.part: part.outcome for part in verdict.parts} == {"x": "unknown", "y": "violation"}
    assert verdict.outcome == "violation"


@pytest.mark.parametrize("count", [1_000, 5_000])
def test_ten_clients_at_one_object_cost_few_steps_for_each_operation(count: int) -> None:
    # The sizes of ledger.md section 5. Steps are counted, not seconds: a model is asked about a microsecond's worth.
    history = executed(random.Random(count), 2 * count, 10, unknown=0.001)
    verdict = check(history, Registers(), is_read=is_read)
    assert verdict.outcome == "ok"
    assert len(history) > count
    assert 10 <= verdict.parts[0].overlap <= 16
    assert verdict.steps < 15 * len(history)


def test_a_corrupted_history_of_ten_clients_is_refused_within_the_default_budget() -> None:
    history = executed(random.Random(7), 1_500, 10, unknown=0.002)
    at = max(
        (at for at, one in enumerate(history) if one.input[1] == "read"), key=lambda at: history[at].call
    )
    history[at] = read(0, history[at].call, history[at].ret, 1)
    assert check(history, Registers(), is_read=is_read).outcome == "violation"


def test_a_model_that_changes_at_what_is_said_to_be_a_read_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="said to be a read"):
        check([write(1, 0, 1, 5)], Registers(), is_read=lambda _asked, _output: True)


def test_an_operation_has_an_answer_exactly_when_it_has_returned() -> None:
    with pytest.raises(ValueError, match="exactly when"):
        Operation(1, 0, math.inf, ("x", "read", 0), 5)
    with pytest.raises(ValueError, match="exactly when"):
        Operation(1, 0, 1, ("x", "read", 0), None)
    with pytest.raises(ValueError, match="cannot have returned"):
        Operation(1, 2, 1, ("x", "read", 0), 5)


def test_the_overlap_counts_unknown_operations_for_ever() -> None:
    assert overlap([write(1, 0, math.inf, 1), write(2, 1, 2, 2), write(3, 3, 4, 3), write(4, 4, 5, 4)]) == 3
    assert overlap(list[Registered]()) == 0
