"""Reads `mutations.md`: the rules of the consensus, each with an edit that removes it and the tests that must notice.

In the text for people stand fenced blocks for the machine:

    ```mutation
    name: vote-twice
    scenarios: 5, 6
    file: protocol/raft/election.py
    test: tests/protocol/raft/test_elections.py::test_05_06_a_voter_grants_one_candidate_a_term_also_after_a_crash
    --- old
            free = voter.hard.vote in (ZERO, request.candidate)
    --- new
            free = True
    ```

`old` occurs exactly once in the file; `new` takes its place, and may be empty. `scenarios` are numbers of ledger.md
section 3, and may be none. `test` may come several times: every one of them fails when the edit is made.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LIST = Path(__file__).with_name("mutations.md")
_FENCE = re.compile(r"^```mutation\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PARTS = re.compile(r"\A(?P<head>.*?)^--- old\n(?P<old>.*?)^--- new\n(?P<new>.*)\Z", re.MULTILINE | re.DOTALL)
_TABLE_ROW = re.compile(r"^\| (\d+) \|.*$", re.MULTILINE)
_TEST_NAME = re.compile(r"`(?:([\w./]+)::)(test_\w+)`")


class NotApplicable(Exception):
    """A mutation does not fit the code any more: the rule has moved, and the list must follow."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One edit. `file` is relative to the root, `tests` are pytest's ids without parameters."""

    name: str
    scenarios: tuple[int, ...]
    file: str
    tests: tuple[str, ...]
    old: str
    new: str

    def apply(self, text: str) -> str:
        """Return the file's text with the edit made.

        Raises:
            NotApplicable: what is to be replaced occurs not once, or the result is no Python.
        """
        count = text.count(self.old)
        if count != 1:
            raise NotApplicable(f"{self.name}: what it replaces occurs {count} times in {self.file}")
        edited = text.replace(self.old, self.new)
        try:
            compile(edited, self.file, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise NotApplicable(f"{self.name}: {self.file} is no Python any more: {error}") from None
        return edited


def parse(text: str) -> tuple[Mutation, ...]:
    """Return the mutations of a list, in its order.

    Raises:
        ValueError: a block is malformed, or two have one name.
    """
    mutations = tuple(_mutation(match.group(1)) for match in _FENCE.finditer(text))
    names = [mutation.name for mutation in mutations]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise ValueError(f"two mutations of one name: {', '.join(doubles)}")
    return mutations


def load() -> tuple[Mutation, ...]:
    """Return the mutations of `mutations.md`."""
    return parse(LIST.read_text(encoding="utf-8"))


def _mutation(body: str) -> Mutation:
    parts = _PARTS.match(body)
    if parts is None:
        raise ValueError(f"a mutation without '--- old' and '--- new': {body[:60]!r}")
    fields: dict[str, list[str]] = {}
    for line in parts["head"].splitlines():
        key, colon, value = line.partition(": ")
        if not colon and not key.endswith(":"):
            raise ValueError(f"not 'key: value' in a mutation: {line!r}")
        fields.setdefault(key.rstrip(":"), []).append(value.strip())
    missing = {"name", "scenarios", "file", "test"} - fields.keys()
    if missing or not parts["old"].strip():
        raise ValueError(f"a mutation lacks {sorted(missing) or 'what it replaces'}: {body[:60]!r}")
    scenarios = tuple(int(number) for number in re.findall(r"\d+", fields["scenarios"][0]))
    return Mutation(
        fields["name"][0],
        scenarios,
        fields["file"][0],
        tuple(fields["test"]),
        # Lines are replaced without the last line's end, so that a part of a line can be named as well.
        parts["old"].removesuffix("\n"),
        parts["new"].removesuffix("\n"),
    )


def functions_of(file: str) -> frozenset[str]:
    """Return the names of the test functions in a file; none when there is no such file."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds))


def scenario_tests() -> dict[int, frozenset[str]]:
    """Return the ids of the tests that the README's table names for each scenario."""
    text = LIST.with_name("README.md").read_text(encoding="utf-8")
    rows: dict[int, frozenset[str]] = {}
    for row in _TABLE_ROW.finditer(text):
        rows[int(row.group(1))] = frozenset(_ids(row.group(0)))
    return rows


def _ids(row: str) -> Iterator[str]:
    folder = LIST.parent.relative_to(ROOT).as_posix()
    for file, function in _TEST_NAME.findall(row):
        yield f"{file if '/' in file else f'{folder}/{file}'}::{function}"
