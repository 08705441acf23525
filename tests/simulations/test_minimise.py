from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from simulations.minimise import category, minimise
from simulations.story import Blackout, Crash, Cut, Event, Pause, Story

CRASHES: tuple[Event, ...] = tuple(Crash(float(at), at % 3, for_s=4.0, in_write=True) for at in range(1, 33))


def always(_: int, __: Story) -> bool:
    return True


def needs(*wanted: Event) -> Callable[[Story], bool]:
    return lambda story: set(wanted) <= set(story.events)


@given(st.sets(st.sampled_from(CRASHES), max_size=4))
def test_exactly_the_events_that_matter_are_left(wanted: set[Event]) -> None:
    smallest = minimise(Story(1, events=CRASHES), needs(*wanted), always)
    assert set(smallest.events) == wanted


def test_what_came_after_the_violation_goes_first() -> None:
    asked: list[Story] = []

    def fails(story: Story) -> bool:
        asked.append(story)
        return CRASHES[0] in story.events

    minimise(Story(1, seconds=60, events=CRASHES), fails, always, ended_s=2.5)
    assert len(asked[0].events) == 2
    assert asked[0].seconds == 3.5


def test_a_story_that_needs_its_length_keeps_it() -> None:
    story = Story(1, seconds=60, events=CRASHES)
    smallest = minimise(
        story, lambda each: each.seconds == 60 and CRASHES[1] in each.events, always, ended_s=5
    )
    assert smallest.seconds == 60
    assert smallest.events == (CRASHES[1],)


def test_durations_are_halved_and_crashes_made_plain_while_it_fails() -> None:
    story = Story(1, events=(Crash(1, 0, for_s=8, in_write=True), Pause(2, 1, for_s=4), Cut(3, "out", (1,))))

    def fails(each: Story) -> bool:
        lasts = [event.for_s for event in each.events if isinstance(event, Crash | Pause)]
        return len(each.events) == 3 and len(lasts) == 2 and (lasts[0] or 0) >= 1 and (lasts[1] or 0) >= 3

    smallest = minimise(story, fails, always)
    assert smallest.events == (Crash(1, 0, for_s=1), Pause(2, 1, for_s=4), Cut(3, "out", (1,)))


def test_the_budget_ends_the_search_with_the_best_so_far() -> None:
    seen: list[int] = []

    def may_go_on(runs: int, best: Story) -> bool:
        seen.append(len(best.events))
        return runs < 5

    smallest = minimise(Story(1, events=CRASHES), needs(CRASHES[7], CRASHES[20]), may_go_on)
    assert len(seen) == 6
    assert {CRASHES[7], CRASHES[20]} <= set(smallest.events)
    assert len(smallest.events) < len(CRASHES)


def test_a_story_that_fails_without_events_ends_without_events() -> None:
    assert minimise(Story(1, events=(Blackout(1),)), lambda _: True, always).events == ()


def test_violations_of_one_kind_are_one_bug() -> None:
    assert category("at 3.25 s: log matching: two blocks of height 4 and term 2") == "log matching"
    assert category("at 90 s: progress: 30 s after everything was healed") == "progress"
    assert category("at 1 s: node 2 failed: KeyError: 7") == category("at 9 s: node 0 failed: KeyError: 8")
    assert category("at 1 s: node 2 failed: KeyError: 7") != category("at 1 s: node 2 failed: OSError: 7")
    assert category("expectation: acked >= 3, but it was 1") == "expectation"
