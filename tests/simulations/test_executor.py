from collections.abc import Callable

import pytest
import trio

from protocol.identifiers import NodeId
from simulations import determinism
from simulations.executor import Executor, check_events, rounds_of
from simulations.network import GOOD
from simulations.story import (
    AddVoter,
    Blackout,
    Bridge,
    Clog,
    Crash,
    Cut,
    Drift,
    Event,
    Flap,
    Heal,
    LinkQuality,
    Pause,
    SetClock,
    SetQuality,
    SlowDisk,
    Transfer,
)
from simulations.story_text import StoryError
from simulations.world import World


def seen(
    *events: Event, at: tuple[float, ...], look: str, seed: int = 1, observers: int = 0
) -> tuple[list[object], World]:
    """Return what an expression over `world` and `executor` gave at some times of a run of three voters, and the world."""
    found: list[object] = []

    async def main() -> World:
        world = World(seed, voters=3, observers=observers)
        world.history.kept = []

        async def story() -> None:
            executor = Executor(world)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(executor.run, events, 20.0)
                for when in at:
                    await trio.sleep_until(when)
                    found.append(LOOKS[look](world))
                nursery.cancel_scope.cancel()
            await executor.heal()
            found.append(LOOKS[look](world))

        await world.run(story)
        return world

    with determinism.fake_signatures():
        return found, determinism.run(seed, main)


def _cuts(world: World) -> list[str]:
    nodes = world.nodes
    return [
        f"{a.index}{b.index}"
        for a in nodes
        for b in nodes
        if a is not b and world.network.is_cut(NodeId(a.id), NodeId(b.id))
    ]


LOOKS: dict[str, Callable[[World], object]] = {
    "cuts": _cuts,
    "up": lambda world: [node.index for node in world.nodes if node.life is not None and node.life.is_up],
    "sync_ms": lambda world: [node.disk_speed.sync_ms for node in world.nodes],
    "quality": lambda world: world.network.quality,
    "paused": lambda world: [node.index for node in world.nodes if node.is_paused],
    "leader": lambda world: next((node.index for node in world.nodes if node is world.leader()), None),
    "offset": lambda world: [
        round((node.clock.now_ms() - world.nodes[2].clock.now_ms()) / 60_000) for node in world.nodes
    ],
}


@pytest.mark.parametrize(
    ("direction", "cut"), [("out", ["01", "02"]), ("in", ["10", "20"]), ("both", ["01", "02", "10", "20"])]
)
def test_a_cut_separates_one_side_in_its_direction_and_ends(direction: str, cut: list[str]) -> None:
    found, _ = seen(Cut(1, direction, (0,), for_s=2), at=(0.5, 2, 3.5), look="cuts")  # type: ignore[arg-type]
    assert found == [[], cut, [], []]


def test_cuts_overlap_and_what_has_no_end_is_healed() -> None:
    events = (Cut(1, "out", (0,), for_s=2), Cut(2, "out", (0, 1)))
    found, _ = seen(*events, at=(1.5, 2.5, 3.5), look="cuts")
    assert found == [["01", "02"], ["01", "02", "12"], ["02", "12"], []]


def test_a_bridge_is_all_that_joins_two_halves() -> None:
    found, _ = seen(Bridge(1, 1, for_s=2), at=(2, 4), look="cuts")
    assert found == [["02", "20"], [], []]


def test_a_link_flaps_and_stays_joined() -> None:
    found, _ = seen(Flap(1, 0, 1, 0.5, for_s=2), at=(1.2, 1.7, 2.2, 5), look="cuts")
    assert found == [["01", "10"], [], ["01", "10"], [], []]


def test_a_crash_lasts_its_time_and_a_blackout_takes_all() -> None:
    events = (Crash(1, 2, for_s=1), Blackout(4, for_s=1), Crash(6, 0, in_write=True))
    found, _ = seen(*events, at=(1.5, 2.5, 4.5, 5.5, 8), look="up")
    assert found == [[0, 1], [0, 1, 2], [], [0, 1, 2], [1, 2], [0, 1, 2]]


def test_a_slow_disk_and_a_quality_end_with_healing() -> None:
    found, _ = seen(SlowDisk(1, 0, 500, for_s=1), SlowDisk(1, 1, 100), at=(1.5, 2.5), look="sync_ms")
    assert found == [[500, 100, 2], [2, 100, 2], [2, 2, 2]]
    found, _ = seen(SetQuality(1, (("loss", 0.25),)), at=(0.5, 1.5), look="quality")
    assert [quality.loss for quality in found] == [0, 0.25, 0]  # type: ignore[attr-defined]
    assert found[-1] == GOOD


def test_a_node_stands_still_and_its_clock_is_set() -> None:
    found, _ = seen(Pause(1, 0, for_s=1), Pause(3, 1), at=(1.5, 2.5, 3.5), look="paused")
    assert found == [[0], [], [1], []]
    found, _ = seen(SetClock(1, 0, 3_600_000), Drift(1, 1, 0.001), at=(0.5, 1.5), look="offset")
    assert found == [[0, 0, 0], [60, 0, 0], [0, 0, 0]]


def test_the_leader_is_who_leads_then_and_hands_over_when_asked() -> None:
    found, world = seen(Transfer(4, "follower"), at=(3, 8), look="leader")
    assert None not in found
    assert found[0] != found[1]
    found, world = seen(Crash(4, "leader"), Cut(0, "out", ("leader",)), at=(3, 5), look="leader")
    crashed = [words for _, kind, words in world.history.kept or () if kind == "crash"]
    assert crashed == [(str(found[0]),)]
    assert ("cut", ("out",)) in [(kind, words) for _, kind, words in world.history.kept or ()]


def test_links_are_recorded_with_their_nodes_and_their_end() -> None:
    events = (Clog(1, 0, 1, for_s=1), LinkQuality(1, 1, 2, (("loss", 1.0),), for_s=2), Clog(5, 0, 0))
    _, world = seen(*events, at=(6,), look="up")
    told = [(round(at_s), kind, words) for at_s, kind, words in world.history.kept or ()]
    assert (1, "clog", ("0", "1")) in told
    assert (2, "end", ("clog", "0", "1")) in told
    assert (3, "end", ("link", "1", "2")) in told
    assert not any(at_s == 5 and kind == "clog" for at_s, kind, _ in told)


def test_what_whole_nodes_cannot_do_is_refused_before_anything_runs() -> None:
    with pytest.raises(StoryError, match="whole nodes cannot change voters yet"):
        check_events((Crash(1, 0), AddVoter(2, 1)))


def test_rounds_end_with_their_healing() -> None:
    one, two, three = Crash(1, 0), Crash(5, 1), Crash(9, 2)
    assert rounds_of((one, Heal(4), two, three), 12) == [((one,), 4), ((two, three), 12)]
    assert rounds_of((), 12) == [((), 12)]
