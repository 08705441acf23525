from xml.etree import ElementTree as ET

import pytest

from simulations.history import Happening
from simulations.plot import draw_svg
from simulations.runner import Options, Verdict, simulate
from simulations.timeline import Interval, Mark, timeline

SVG = "{http://www.w3.org/2000/svg}"

KNOWN: tuple[Happening, ...] = (
    (0.0, "start", ("0",)),
    (0.0, "start", ("1",)),
    (0.0, "start", ("2",)),
    (1.0, "leader", ("0", "1")),
    (2.0, "applied", ("0", "1", "aa", "1")),
    (2.0, "applied", ("1", "1", "aa", "1")),
    (2.5, "ack", ("bb", "1", "0")),
    (3.0, "cut", ("out", "1")),
    (3.5, "cut", ("both", "1", "2")),
    (4.0, "slow", ("2", "500")),
    (5.0, "crash", ("0",)),
    (5.5, "end", ("cut", "both", "1", "2")),
    (6.0, "leader", ("1", "3")),
    (6.5, "pause", ("1",)),
    (7.0, "end", ("slow", "2")),
    (7.2, "start", ("0",)),
    (7.5, "end", ("pause", "1")),
    (7.6, "clock", ("2", "3600000", "None")),
    (8.0, "heal", ()),
    (9.0, "violation", ("log matching: <two> blocks & more",)),
)


def verdict(happenings: tuple[Happening, ...], **changes: object) -> Verdict:
    values: dict[str, object] = {
        "options": Options(seed=77, virtual_s=10, voters=2, observers=1),
        "history_sha256": "00",
        "virtual_seconds": 10.0,
        "real_seconds": 1.0,
        "commits": 3,
        "leader_changes": 2,
        "acked": 1,
        "events": {},
        "violations": (),
        "happenings": happenings,
    }
    return Verdict(**{**values, **changes})  # type: ignore[arg-type]


def lanes(svg: str) -> dict[int, list[ET.Element]]:
    root = ET.fromstring(svg)
    groups = root.findall(f"{SVG}g[@class='lane']")
    return {int(group.attrib["data-node"]): list(group) for group in groups}


def spans(svg: str, node: int) -> list[tuple[str, float, float, str]]:
    return [
        (
            each.attrib["class"],
            float(each.attrib["data-from"]),
            float(each.attrib["data-to"]),
            each.attrib["data-label"],
        )
        for each in lanes(svg)[node]
        if "data-from" in each.attrib
    ]


def test_each_node_has_a_lane_with_exactly_its_intervals() -> None:
    svg = draw_svg(verdict(KNOWN))
    assert sorted(lanes(svg)) == [0, 1, 2]
    assert spans(svg, 0) == [("leader", 1, 5, "term 1"), ("down", 5, 7.2, "")]
    assert sorted(spans(svg, 1)) == [
        ("cut", 3, 8, "out 1"),
        ("cut", 3.5, 5.5, "both 1 2"),
        ("leader", 6, 10, "term 3"),
        ("pause", 6.5, 7.5, ""),
    ]
    assert sorted(spans(svg, 2)) == [("cut", 3.5, 5.5, "both 1 2"), ("slow", 4, 7, "500")]


def test_a_shape_lies_where_its_time_is() -> None:
    svg = draw_svg(verdict(KNOWN))
    down = next(each for each in lanes(svg)[0] if each.attrib.get("class") == "down")
    leads = next(each for each in lanes(svg)[1] if each.attrib.get("class") == "leader")
    scale = float(down.attrib["width"]) / 2.2
    assert float(leads.attrib["width"]) == pytest.approx(4 * scale, abs=0.2)
    assert float(leads.attrib["x"]) - float(down.attrib["x"]) == pytest.approx(scale, abs=0.2)
    assert float(down.attrib["y"]) < float(leads.attrib["y"])


def test_ticks_marks_and_lines_are_at_their_moment() -> None:
    svg = draw_svg(verdict(KNOWN, violations=("x",)))
    root = ET.fromstring(svg)
    found = {
        (each.attrib["class"], float(each.attrib["data-at"]))
        for each in root.iter()
        if "data-at" in each.attrib
    }
    assert {("applied", 2), ("ack", 2.5), ("clock", 7.6), ("heal", 8), ("violation", 9)} == found
    assert "log matching: <two> blocks & more" in [text.text for text in root.iter(f"{SVG}text")]


def test_the_title_names_the_seed_and_the_legend_every_kind() -> None:
    root = ET.fromstring(draw_svg(verdict(KNOWN)))
    assert (root.findtext(f"{SVG}title") or "").startswith("seed 77, tier b, mixed: no violation")
    legend = next(each for each in root.iter(f"{SVG}g") if each.attrib.get("class") == "legend")
    keys = {each.attrib["class"] for each in legend if "class" in each.attrib}
    assert {"key-down", "key-leader", "key-cut", "key-slow", "key-violation"} <= keys


def test_the_picture_refers_to_nothing_outside() -> None:
    svg = draw_svg(verdict(KNOWN))
    assert "href" not in svg
    assert svg.count("http") == 1  # its namespace


def test_an_end_without_words_closes_the_oldest_of_its_kind() -> None:
    told = timeline(
        (
            (1, "cut", ("in", "0")),
            (2, "cut", ("in", "1")),
            (3, "end", ("cut",)),
            (3.5, "end", ("20720", "1")),
        ),
        nodes=2,
        end_s=4,
    )
    assert told.intervals == (Interval(0, "cut", 1, 3, "in 0"), Interval(1, "cut", 2, 4, "in 1"))


def test_a_node_that_ends_by_itself_is_down_until_it_starts() -> None:
    told = timeline(
        ((1, "failed", ("0",)), (1, "crash", ("0",)), (2, "start", ("0",)), (3, "bit-rot", ("1", "spared"))),
        nodes=2,
        end_s=4,
    )
    assert told.intervals == (Interval(0, "down", 1, 2),)
    assert told.marks == (Mark(1, "bit-rot", 3, "spared"),)


@pytest.mark.parametrize("tier", ["a", "b"])
def test_a_run_of_either_tier_is_drawn(tier: str) -> None:
    options = Options(seed=5, virtual_s=10, scenario="leader-crash", tier=tier, keeps_history=True)  # type: ignore[arg-type]
    told = simulate(options)
    shown = spans(draw_svg(told), 0) + spans(draw_svg(told), 1) + spans(draw_svg(told), 2)
    crashes = [words for _, kind, words in told.happenings if kind == "crash"]
    assert len([each for each in shown if each[0] == "down"]) == len(crashes) > 0
    assert len([each for each in shown if each[0] == "leader"]) == told.leader_changes
