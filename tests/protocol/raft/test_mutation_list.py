"""The list of mutations keeps up with the code: each still applies, names tests that exist, and no scenario is without one.

Whether each is caught is what `replay_mutations` finds out; a few are replayed here, to see that it does.
"""

import dataclasses

import pytest

from tests.protocol.raft.mutation_list import (
    ROOT,
    Mutation,
    NotApplicable,
    functions_of,
    load,
    parse,
    scenario_tests,
)
from tests.protocol.raft.replay_mutations import replay_all

GOOD = """
```mutation
name: one
scenarios: 5, 6
file: protocol/raft/voter.py
test: tests/protocol/raft/test_log.py::test_a
test: tests/protocol/raft/test_log.py::test_b
--- old
    a
  b
--- new
```
"""


def exists(test: str) -> bool:
    file, _, function = test.partition("::")
    return function in functions_of(file)


def test_every_mutation_still_applies():
    for mutation in load():
        text = (ROOT / mutation.file).read_text(encoding="utf-8")
        assert mutation.apply(text) != text


def test_every_test_that_is_named_exists():
    assert [test for mutation in load() for test in mutation.tests if not exists(test)] == []
    assert [test for tests in scenario_tests().values() for test in tests if not exists(test)] == []


def test_every_scenario_with_a_test_has_a_mutation_that_it_catches():
    rows = scenario_tests()
    assert sorted(rows) == list(range(1, 61))
    caught: dict[int, set[str]] = {number: set() for number in rows}
    for mutation in load():
        for number in set(mutation.scenarios) & caught.keys():
            caught[number] |= set(mutation.tests)
    unguarded = [number for number, tests in rows.items() if tests and not tests & caught[number]]
    assert unguarded == []


def test_a_list_is_read_as_it_is_written():
    assert parse(GOOD) == (
        Mutation(
            "one",
            (5, 6),
            "protocol/raft/voter.py",
            ("tests/protocol/raft/test_log.py::test_a", "tests/protocol/raft/test_log.py::test_b"),
            "    a\n  b",
            "",
        ),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD + GOOD, "two mutations"),
        (GOOD.replace("--- new\n", ""), "without"),
        (GOOD.replace("name: one\n", ""), "lacks"),
        (GOOD.replace("    a\n  b\n", ""), "lacks"),
        (GOOD.replace("name: one", "name one"), "not 'key: value'"),
    ],
)
def test_a_malformed_list_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("b", "0 times"), ("a a", "2 times"), ("a = (", "no Python")],
)
def test_a_mutation_that_does_not_fit_says_so(text, complaint):
    mutation = Mutation("x", (), "f.py", ("t",), "a", "b")
    assert mutation.apply("a = 1") == "b = 1"
    with pytest.raises(NotApplicable, match=complaint):
        mutation.apply(text)


@pytest.mark.slow
def test_a_replay_tells_what_is_caught_from_what_is_not():
    by_name = {mutation.name: mutation for mutation in load()}
    genuine = [by_name[name] for name in ("vote-twice", "older-term-committed-by-counting", "applied-twice")]
    harmless = dataclasses.replace(genuine[0], name="harmless", new=genuine[0].old + " ")
    moved = dataclasses.replace(genuine[0], name="moved", old="what stands nowhere")
    verdicts = {
        outcome.mutation.name: outcome.verdict for outcome in replay_all([*genuine, harmless, moved], jobs=1)
    }
    assert verdicts == {
        **{mutation.name: "caught" for mutation in genuine},
        "harmless": "survived",
        "moved": "does not apply",
    }
