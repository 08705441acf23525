"""A run as a picture: a lane for each node over virtual time, as one SVG file that needs nothing else.

From top to bottom in a lane: blocks applied as ticks, the band of the node (white while it runs, dark while it is down,
coloured by term while it leads, dotted while it stands still), a line for faults of its links and one for its disk. Below
all lanes: what clients were told. Lines through all lanes: healing, power lost everywhere, violations. Each shape tells its
time in a tooltip and its facts in `data-` attributes, by which tests find it.
"""

import math
from typing import Final
from xml.etree import ElementTree as ET

from simulations.runner import Verdict
from simulations.timeline import DISK_FAULTS, DOWN, LEADER, LINK_FAULTS, Interval, Mark, Timeline, timeline

_LEFT, _RIGHT, _TOP, _WIDTH = 84.0, 16.0, 48.0, 1400.0
_LANE, _BAND_Y, _BAND, _LINK_Y, _DISK_Y, _STRIP = 56.0, 10.0, 20.0, 33.0, 40.0, 5.0
_CLIENT_LANE = 30.0
_TERMS: Final = ("#4e79a7", "#59a14f", "#b07aa1", "#76b7b2", "#9c755f", "#edc948", "#86bcb6", "#d37295")
"""Colours of terms, in turn; neighbours differ also for those who cannot tell red from green."""
_COLOURS: Final = {
    DOWN: "#3b3b3b",
    "pause": "url(#paused)",
    "cut": "#e15759",
    "bridge": "#b22222",
    "flap": "#ff7f7f",
    "clog": "#c98bb9",
    "link": "#f2b8b5",
    "slow": "#f28e2b",
    "disk-full": "#8c510a",
    "disk-lies": "#d4a017",
    "applied": "#555555",
    "ack": "#2e8b57",
    "refused": "#2e8b57",
    "unknown": "#999999",
    "heal": "#2e8b57",
    "blackout": "#3b3b3b",
    "violation": "#d00000",
}
_Four = tuple[float, float, float, float]
_POINT_COLOUR: Final = "#111111"
_LEGEND: Final = (
    (DOWN, "down"),
    (LEADER, "leads (a colour for each term)"),
    ("pause", "stands still"),
    ("cut", "cut off"),
    ("bridge", "bridge between two halves"),
    ("flap", "link flaps"),
    ("clog", "link clogged"),
    ("link", "link bad"),
    ("slow", "disk slow"),
    ("disk-full", "disk full"),
    ("disk-lies", "disk lies"),
    ("applied", "block applied"),
    ("ack", "client told the outcome"),
    ("unknown", "client told nothing"),
    ("heal", "all healed"),
    ("blackout", "all lose power"),
    ("violation", "violation"),
    ("event", "clock set, bit rot, transfer …"),
)


def draw_svg(verdict: Verdict) -> str:
    """Return the picture of a run as an SVG document. The verdict must hold its history (`Options.keeps_history`)."""
    options = verdict.options
    told = timeline(
        verdict.happenings,
        nodes=options.voters + options.witnesses + options.observers,
        end_s=verdict.virtual_seconds,
    )
    outcome = f"{len(verdict.violations)} violations" if verdict.violations else "no violation"
    title = (
        f"seed {options.seed}, tier {options.tier}, {options.scenario}: {outcome}; {verdict.commits} blocks, "
        f"{verdict.leader_changes} leaders"
    )
    return _Picture(told, title, options.voters).text()


class _Picture:
    """The document while it grows."""

    def __init__(self, told: Timeline, title: str, voters: int) -> None:
        self._told = told
        self._voters = voters
        self._lanes_end = _TOP + _LANE * told.nodes
        self._scale = (_WIDTH - _LEFT - _RIGHT) / max(told.end_s, 1e-9)
        height = self._lanes_end + _CLIENT_LANE + 30 + 20 * math.ceil(len(_LEGEND) / 6) + 16
        self._root = ET.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {_WIDTH:g} {height:g}",
                "width": f"{_WIDTH:g}",
                "height": f"{height:g}",
                "font-family": "system-ui, sans-serif",
                "font-size": "11",
            },
        )
        ET.SubElement(self._root, "title").text = title
        self._patterns()
        self._rect(self._root, (0, 0, _WIDTH, height), "#ffffff")
        self._text(_LEFT, 22, title, size=15)

    def text(self) -> str:
        """Draw everything and return the document."""
        for node in range(self._told.nodes):
            self._lane(node)
        self._axis()
        self._clients()
        for mark in self._told.marks:
            if mark.kind in ("heal", "blackout", "violation"):
                self._line_through(mark)
        self._legend()
        ET.indent(self._root)
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(self._root, encoding="unicode") + "\n"

    # --- lanes ----------------------------------------------------------------------------------------------------

    def _lane(self, node: int) -> None:
        top = _TOP + _LANE * node
        role = "voter" if node < self._voters else "observer"
        group = ET.SubElement(self._root, "g", {"class": "lane", "data-node": str(node), "data-role": role})
        self._text(8, top + _BAND_Y + 14, f"{role} {node}", parent=group)
        self._rect(group, (_LEFT, top + _BAND_Y, _WIDTH - _LEFT - _RIGHT, _BAND), "#f7f7f7", stroke="#bbbbbb")
        # What the node is comes first, so that standing still shows on top of leading.
        mine = [each for each in self._told.intervals if each.node == node]
        for interval in sorted(mine, key=lambda each: each.kind == "pause"):
            self._interval(group, top, interval)
        drawn: set[int] = set()
        for mark in self._told.marks:
            if mark.node == node:
                self._mark(group, top, mark, drawn)

    def _interval(self, group: ET.Element, top: float, interval: Interval) -> None:
        if interval.kind in LINK_FAULTS:
            y, height = top + _LINK_Y, _STRIP
        elif interval.kind in DISK_FAULTS:
            y, height = top + _DISK_Y, _STRIP
        else:
            y, height = top + _BAND_Y, _BAND
        x = self._x(interval.start_s)
        width = max(1.0, self._x(interval.end_s) - x)
        shape = self._rect(group, (x, y, width, height), _colour(interval))
        shape.set("class", interval.kind)
        shape.set("data-from", f"{interval.start_s:.6f}")
        shape.set("data-to", f"{interval.end_s:.6f}")
        shape.set("data-label", interval.label)
        said = f"{interval.kind} {interval.label}: {interval.start_s:.3f} to {interval.end_s:.3f} s"
        ET.SubElement(shape, "title").text = said
        if interval.kind == LEADER and width > 20:
            self._text(
                x + 3, y + 14, interval.label.replace("term ", "t"), parent=group, colour="#ffffff", size=10
            )

    def _mark(self, group: ET.Element, top: float, mark: Mark, drawn: set[int]) -> None:
        x = self._x(mark.at_s)
        if mark.kind == "applied":
            # One tick a pixel: more would not be seen.
            if round(x) not in drawn:
                drawn.add(round(x))
                self._line(group, (x, top + 2, x, top + _BAND_Y - 1), _COLOURS["applied"], mark)
            return
        shape = self._triangle(group, x, top + _DISK_Y + _STRIP)
        shape.set("class", mark.kind)
        shape.set("data-at", f"{mark.at_s:.6f}")
        ET.SubElement(shape, "title").text = f"{mark.kind} {mark.label}: {mark.at_s:.3f} s"

    def _clients(self) -> None:
        top = self._lanes_end + 4
        group = ET.SubElement(self._root, "g", {"class": "clients"})
        self._text(8, top + 12, "clients", parent=group)
        drawn: set[tuple[int, str]] = set()
        for mark in self._told.marks:
            if mark.kind in ("ack", "refused", "unknown"):
                colour, x = _COLOURS[mark.kind], self._x(mark.at_s)
                if (round(x), colour) not in drawn:
                    drawn.add((round(x), colour))
                    y = top + 11 if mark.kind == "unknown" else top
                    self._line(group, (x, y, x, y + 9), colour, mark)

    # --- what goes through all lanes ------------------------------------------------------------------------------

    def _axis(self) -> None:
        end_s = self._told.end_s
        step = _step(end_s)
        y = self._lanes_end + _CLIENT_LANE
        for number in range(math.floor(end_s / step) + 1):
            x = self._x(number * step)
            self._line(self._root, (x, _TOP, x, y), "#e4e4e4")
            self._text(x, y + 12, f"{number * step:g}", anchor="middle")
        self._text(8, y + 12, "virtual s")

    def _line_through(self, mark: Mark) -> None:
        x = self._x(mark.at_s)
        ends = (x, _TOP - 10, x, self._lanes_end + _CLIENT_LANE - 4)
        shape = self._line(self._root, ends, _COLOURS[mark.kind], mark)
        shape.set("stroke-width", "2" if mark.kind == "violation" else "1")
        if mark.kind != "violation":
            shape.set("stroke-dasharray", "4 3")
            return
        anchor = "end" if x > _WIDTH / 2 else "start"
        shown = mark.label if len(mark.label) < 120 else mark.label[:119] + "…"
        self._text(x, _TOP - 12, shown, anchor=anchor, colour=_COLOURS["violation"])

    def _legend(self) -> None:
        top = self._lanes_end + _CLIENT_LANE + 30
        group = ET.SubElement(self._root, "g", {"class": "legend"})
        for number, (kind, words) in enumerate(_LEGEND):
            x, y = 8 + (number % 6) * 230.0, top + (number // 6) * 20
            if kind == "event":
                key = self._triangle(group, x + 7, y + 1)
            else:
                colour = _TERMS[0] if kind == LEADER else _COLOURS[kind]
                key = self._rect(group, (x, y, 14, 10), colour, stroke="#bbbbbb")
            key.set("class", f"key-{kind}")
            self._text(x + 20, y + 9, words, parent=group)

    # --- shapes ---------------------------------------------------------------------------------------------------

    def _x(self, at_s: float) -> float:
        return _LEFT + at_s * self._scale

    def _patterns(self) -> None:
        pattern = {"id": "paused", "width": "6", "height": "6", "patternUnits": "userSpaceOnUse"}
        dots = ET.SubElement(ET.SubElement(self._root, "defs"), "pattern", pattern)
        ET.SubElement(dots, "rect", {"width": "6", "height": "6", "fill": "#ffffff", "fill-opacity": "0.5"})
        ET.SubElement(dots, "circle", {"cx": "3", "cy": "3", "r": "1.5", "fill": "#222222"})

    @staticmethod
    def _triangle(parent: ET.Element, x: float, y: float) -> ET.Element:
        points = f"{x:.1f},{y:.1f} {x - 4:.1f},{y + 7:.1f} {x + 4:.1f},{y + 7:.1f}"
        return ET.SubElement(parent, "polygon", {"points": points, "fill": _POINT_COLOUR})

    @staticmethod
    def _rect(parent: ET.Element, box: _Four, fill: str, stroke: str = "none") -> ET.Element:
        texts = _numbers(("x", "y", "width", "height"), box)
        return ET.SubElement(parent, "rect", {**texts, "fill": fill, "stroke": stroke})

    @staticmethod
    def _line(parent: ET.Element, ends: _Four, colour: str, mark: Mark | None = None) -> ET.Element:
        texts = _numbers(("x1", "y1", "x2", "y2"), ends)
        shape = ET.SubElement(parent, "line", {**texts, "stroke": colour})
        if mark is not None:
            shape.set("class", mark.kind)
            shape.set("data-at", f"{mark.at_s:.6f}")
            ET.SubElement(shape, "title").text = f"{mark.kind} {mark.label}: {mark.at_s:.3f} s"
        return shape

    def _text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        parent: ET.Element | None = None,
        colour: str = "#222222",
        size: int = 11,
        anchor: str = "start",
    ) -> None:
        attributes = {
            "x": f"{x:.1f}",
            "y": f"{y:.1f}",
            "fill": colour,
            "font-size": str(size),
            "text-anchor": anchor,
        }
        ET.SubElement(self._root if parent is None else parent, "text", attributes).text = words


def _numbers(names: tuple[str, ...], values: _Four) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in zip(names, values, strict=True)}


def _colour(interval: Interval) -> str:
    if interval.kind == LEADER:
        term = int(interval.label.removeprefix("term "))
        return _TERMS[term % len(_TERMS)]
    return _COLOURS[interval.kind]


def _step(end_s: float) -> float:
    """Return the seconds between two lines of the axis: 1, 2 or 5 times a power of ten, for 10 to 25 lines."""
    step = 10.0 ** math.floor(math.log10(max(end_s, 1e-6) / 10))
    return next(step * factor for factor in (1, 2, 5, 10) if end_s / (step * factor) <= 25)
