"""What a run's history shows of each node over time: intervals and marks, ready to be drawn.

Fed with the events that `history.History` kept, of either tier. What is begun ends with its own end, with the crash of
its node where that ends it, with healing, or with the run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from simulations.history import Happening

DOWN: Final = "down"
LEADER: Final = "leader"
LINK_FAULTS: Final = ("cut", "bridge", "flap", "clog", "link")
DISK_FAULTS: Final = ("slow", "disk-full", "disk-lies")
_NODE_STATES: Final = ("pause", *DISK_FAULTS)
_ENDS: Final = {"resume": "pause", "disk-free": "disk-full"}
_POINTS: Final = (
    "disk-error",
    "bit-rot",
    "clock",
    "drift",
    "transfer",
    "rebuild",
    "add-voter",
    "remove-voter",
)
_CLIENT: Final = ("ack", "refused", "unknown")


@dataclass(frozen=True, slots=True)
class Interval:
    """Something that lasted: at one node, in virtual seconds. `label` is for people: the term, the direction, the delay."""

    node: int
    kind: str
    start_s: float
    end_s: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at one moment: at a node, or in the whole world (None)."""

    node: int | None
    kind: str
    at_s: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """All that is drawn of a run."""

    nodes: int
    end_s: float
    intervals: tuple[Interval, ...]
    marks: tuple[Mark, ...]


@dataclass(slots=True)
class _Open:
    kind: str
    words: tuple[str, ...]
    nodes: tuple[int, ...]
    start_s: float
    label: str


@dataclass(slots=True)
class _Reader:
    nodes: int
    open: list[_Open] = field(default_factory=list)
    intervals: list[Interval] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def read(self, at_s: float, kind: str, words: tuple[str, ...]) -> None:
        match kind:
            case "start":
                self._close_of(at_s, int(words[0]), (DOWN,))
            case "crash" | "failed" | "damaged":
                self._stop(at_s, int(words[0]))
            case "leader":
                # Who led before may believe it still: the picture shows who was elected last.
                self._close(at_s, [one for one in self.open if one.kind == LEADER])
                self._begin(at_s, LEADER, words, (int(words[0]),), f"term {words[1]}")
            case "heal":
                self._close(at_s, [one for one in self.open if one.kind not in (DOWN, LEADER)])
                self.marks.append(Mark(None, kind, at_s))
            case "end":
                self._end(at_s, words)
            case _ if kind in _ENDS:
                self._close_of(at_s, int(words[0]), (_ENDS[kind],))
            case _ if kind in LINK_FAULTS:
                nodes = tuple(int(word) for word in words if word.isdecimal())
                self._begin(at_s, kind, words, nodes, " ".join(words))
            case _ if kind in _NODE_STATES:
                node = int(words[0])
                self._close_of(at_s, node, (kind,))
                self._begin(at_s, kind, words, (node,), " ".join(words[1:]))
            case _:
                self._mark(at_s, kind, words)

    def finish(self, end_s: float) -> Timeline:
        self._close(end_s, list(self.open))
        return Timeline(
            self.nodes,
            end_s,
            tuple(sorted(self.intervals, key=lambda one: (one.node, one.start_s, one.kind))),
            tuple(self.marks),
        )

    def _mark(self, at_s: float, kind: str, words: tuple[str, ...]) -> None:
        if kind == "applied":
            self.marks.append(Mark(int(words[0]), kind, at_s, f"block {words[1]}"))
        elif kind in _POINTS:
            self.marks.append(Mark(int(words[0]), kind, at_s, " ".join(words[1:])))
        elif kind in (*_CLIENT, "violation", "blackout", "quality"):
            self.marks.append(Mark(None, kind, at_s, " ".join(words) if kind not in _CLIENT else ""))

    def _begin(
        self, at_s: float, kind: str, words: tuple[str, ...], nodes: tuple[int, ...], label: str
    ) -> None:
        self.open.append(_Open(kind, words, nodes, at_s, label))

    def _stop(self, at_s: float, node: int) -> None:
        if any(one.kind == DOWN and node in one.nodes for one in self.open):
            return  # the crash of a node that had ended by itself
        self._close_of(at_s, node, (LEADER, "pause"))
        self._begin(at_s, DOWN, (), (node,), "")

    def _end(self, at_s: float, words: tuple[str, ...]) -> None:
        """Close what has exactly these words, or else the oldest of its kind at the first node named."""
        kind, rest = words[0], words[1:]
        alike = [one for one in self.open if one.kind == kind]
        exact = [one for one in alike if one.words == rest]
        of_node = [one for one in alike if rest and rest[0].isdecimal() and int(rest[0]) in one.nodes]
        self._close(at_s, (exact or of_node or alike)[:1])

    def _close_of(self, at_s: float, node: int, kinds: tuple[str, ...]) -> None:
        self._close(at_s, [one for one in self.open if one.kind in kinds and node in one.nodes])

    def _close(self, at_s: float, some: list[_Open]) -> None:
        for one in some:
            self.open.remove(one)
            self.intervals.extend(
                Interval(node, one.kind, one.start_s, at_s, one.label) for node in one.nodes
            )


def timeline(happenings: Iterable[Happening], *, nodes: int, end_s: float) -> Timeline:
    """Return the intervals and marks of a history, in order of node and time."""
    reader = _Reader(nodes)
    for at_s, kind, words in happenings:
        reader.read(at_s, kind, words)
    return reader.finish(end_s)
