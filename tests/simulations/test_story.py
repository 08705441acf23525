import dataclasses
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.network import GOOD, Quality
from simulations.story import (
    EVENT_KINDS,
    AddVoter,
    BitRot,
    Blackout,
    Bridge,
    Clog,
    Crash,
    Cut,
    DiskError,
    DiskFull,
    DiskLies,
    Drift,
    Event,
    Expectation,
    Flap,
    Heal,
    LinkQuality,
    Load,
    Pause,
    RemoveVoter,
    SetClock,
    SetQuality,
    SlowDisk,
    Story,
    Transfer,
    halves,
)
from simulations.story_text import StoryError, format_story, parse

WORLD = "world tier=a seed=7 nodes=3 observers=1 seconds=60\n"

LINES: dict[str, Event] = {
    "at 3.2 cut out 0 1 for 4": Cut(3.2, "out", (0, 1), for_s=4),
    "at 4 cut both leader": Cut(4, "both", ("leader",)),
    "at 5 crash leader for 1.5 in-write": Crash(5, "leader", for_s=1.5, in_write=True),
    "at 6 crash 3": Crash(6, 3),
    "at 7 blackout for 2": Blackout(7, for_s=2),
    "at 9 slow 2 500ms for 3.2": SlowDisk(9, 2, 500, for_s=3.2),
    "at 10 pause 1 for 4": Pause(10, 1, for_s=4),
    "at 11 clock 2 +3600000ms": SetClock(11, 2, 3_600_000),
    "at 11 clock 2 -5ms": SetClock(11, 2, -5),
    "at 11 drift 2 0.0001": Drift(11, 2, 0.0001),
    "at 12 disk-error follower": DiskError(12, "follower"),
    "at 13 disk-full 1 for 3": DiskFull(13, 1, for_s=3),
    "at 14 disk-lies 1": DiskLies(14, 1),
    "at 15 bit-rot 2": BitRot(15, 2),
    "at 16 clog 0 1 for 2": Clog(16, 0, 1, for_s=2),
    "at 16 link 0 1 loss=0.5 delay_ms=80 for 2": LinkQuality(
        16, 0, 1, (("loss", 0.5), ("delay_ms", 80)), for_s=2
    ),
    "at 17 flap 0 1 every 0.1 for 3": Flap(17, 0, 1, 0.1, for_s=3),
    "at 18 bridge 2 for 5": Bridge(18, 2, for_s=5),
    "at 19 transfer 1": Transfer(19, 1),
    "at 20 add-voter 3": AddVoter(20, 3),
    "at 21 remove-voter 2": RemoveVoter(21, 2),
    "at 22 quality loss=0.3": SetQuality(22, (("loss", 0.3),)),
    "at 23 heal": Heal(23),
}


@pytest.mark.parametrize(("line", "event"), LINES.items())
def test_a_line_is_an_event_and_an_event_is_its_line(line: str, event: Event) -> None:
    story = parse(WORLD + line)
    assert story.events == (event,)
    assert format_story(story).splitlines()[-1] == line


def test_every_kind_of_event_has_a_line() -> None:
    assert {type(event) for event in LINES.values()} == set(get_args(Event))
    assert len(EVENT_KINDS) == len(get_args(Event))


def test_a_story_with_everything_is_read_in_order_of_time() -> None:
    story = parse(
        """
        # what a person may write
        world tier=b seed=9 nodes=5 observers=0 seconds=12.5 settle=10   # the world
        quality loss=0.1 delay_ms=3
        load clients=2 mean_s=0.25
        at 9 crash 4
        at 2 heal
        expect leader_changes >= 1
        """
    )
    assert story == Story(
        seed=9,
        tier="b",
        nodes=5,
        observers=0,
        seconds=12.5,
        settle_s=10,
        quality=Quality(delay_ms=3, loss=0.1),
        load=Load(2, 0.25),
        events=(Heal(2), Crash(9, 4)),
        expect=(Expectation("leader_changes", ">=", 1),),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no line that begins with 'world'"),
        ("world tier=b", "names no seed"),
        ("world tier=c seed=1", "tier is a or b"),
        ("world seed=1 sed=2", "line 1: 'sed=2'"),
        (WORLD + "at 1 explode 2", "line 2: nothing is called 'explode'; there are cut, bridge"),
        (WORLD + "at 1 crash", "line 2: the node is missing"),
        (WORLD + "at 1 crash bob", "line 2: 'bob' is no node"),
        (WORLD + "\n\nat 1 crash 4", "line 4: there is no node 4: the last is 3"),
        (WORLD + "at 61 crash 1", "line 2: 61 s is not within"),
        (WORLD + "at nan crash 1", "line 2: 'nan' is no number"),
        (WORLD + "at 1 crash 1 for ever", "line 2: 'ever' is no number"),
        (WORLD + "at 1 crash 1 in-write for 3", "line 2: 'for 3' is too much"),
        (WORLD + "at 1 cut sideways 1", "line 2: a cut goes out, in or both"),
        (WORLD + "at 1 cut out for 3", "line 2: the nodes of one side are missing"),
        (WORLD + "at 1 flap 0 1 for 3", "line 2: flap says 'every' how many seconds"),
        (WORLD + "at 1 flap 0 1 every 0", "line 2: no time is below 0"),
        (WORLD + "at 1 slow 1 5s", "line 2: '5s' has no 'ms'"),
        (WORLD + "at 1 quality", "line 2: which quality"),
        (WORLD + "at 1 quality loss=2", "line 2: loss, duplicate, reorder are chances"),
        (WORLD + "quality loss=-1", "no quality is below 0"),
        (WORLD + WORLD, "line 2: there is a line 'world' already"),
        (WORLD + "expect acked > 3", "line 2: a comparison is"),
        (WORLD + "at 60 heal", "line 2: everything is healed at the end"),
        (WORLD + "at 1 disk-lies 0\nat 1 disk-lies 1", "at most one disk may lie"),
        ("world seed=1\nat 1 remove-voter 2", "line 2: only tier a removes voters"),
        ("world seed=1 nodes=0", "1 to 99 nodes"),
        ("hello", "line 1: a line begins with world"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(StoryError) as caught:
        parse(text)
    assert complaint in str(caught.value)


def test_expectations_are_bounds() -> None:
    assert Expectation("acked", ">=", 3).holds(3)
    assert not Expectation("acked", "<=", 3).holds(4)
    assert Expectation("acked", "==", 3).holds(3)


def test_a_bridge_joins_two_halves_of_the_others() -> None:
    assert halves(range(5), 2) == ((0, 1), (3, 4))
    assert halves(range(4), 0) == ((1,), (2, 3))


times = st.floats(0, 60, allow_nan=False)
lasting = st.none() | times
targets = st.integers(0, 4) | st.sampled_from(("leader", "follower"))
changes = st.dictionaries(
    st.sampled_from([f.name for f in dataclasses.fields(Quality)]), st.floats(0, 1), min_size=1
).map(lambda pairs: tuple(pairs.items()))
FIELDS = {
    "at_s": times.filter(lambda at: at < 60),
    "for_s": lasting,
    "every_s": st.floats(0.001, 10),
    "in_write": st.booleans(),
    "direction": st.sampled_from(("out", "in", "both")),
    "side": st.lists(targets, min_size=1, max_size=4).map(tuple),
    "node": targets,
    "peer": targets,
    "changes": changes,
    "offset_ms": st.integers(-(10**10), 10**10),
    "drift": st.floats(-1, 1),
    "sync_ms": st.floats(0, 10_000),
}
events = st.one_of(
    [
        st.builds(kind, **{f.name: FIELDS[f.name] for f in dataclasses.fields(kind)})
        for kind in get_args(Event)
        if kind is not DiskLies
    ]
)
stories = st.builds(
    Story,
    seed=st.integers(0, 2**64),
    tier=st.just("a"),
    nodes=st.integers(3, 5),
    observers=st.integers(2, 3),
    seconds=st.just(60.0),
    settle_s=st.floats(0.5, 100),
    quality=st.builds(Quality, loss=st.floats(0, 1), delay_ms=st.floats(0, 100)),
    load=st.builds(Load, st.integers(0, 5), st.floats(0.01, 10)),
    events=st.lists(events, max_size=8).map(lambda each: tuple(sorted(each, key=lambda event: event.at_s))),
    expect=st.lists(
        st.builds(
            Expectation,
            st.sampled_from(("acked", "commits")),
            st.sampled_from(("<=", ">=", "==")),
            st.integers(0, 99),
        ),
        max_size=2,
    ).map(tuple),
)


@given(stories)
def test_a_story_is_what_is_read_from_its_text(story: Story) -> None:
    assert parse(format_story(story)) == story


def test_a_good_network_is_not_worth_a_line() -> None:
    assert format_story(Story(1, quality=GOOD)).count("\n") == 1
