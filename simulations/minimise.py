"""The smallest story that still fails: delta debugging over its events, then shorter durations.

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002), for the algorithm ddmin. Because all events are drawn in advance, one can be left out without moving the others. What a run does besides, delays and
time-outs, is drawn from streams that notice the difference, so a smaller story may fail no more where the same fault is
still possible: that costs size, never truth, since whatever is returned was seen to fail.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from simulations.story import Crash, Event, Lasting, Story

Fails = Callable[[Story], bool]
"""Whether a story fails in the way in question."""
_SHORTEST_S = 0.01


class _BudgetSpent(Exception):
    """Ends a search, and is no failure."""


@dataclass(slots=True)
class _Search:
    fails: Fails
    may_go_on: Callable[[int, Story], bool]
    best: Story
    runs: int = 0

    def adopt_if_fails(self, candidate: Story) -> bool:
        """Run a smaller story; keep it when it fails as well."""
        if not self.may_go_on(self.runs, self.best):
            raise _BudgetSpent
        self.runs += 1
        if self.fails(candidate):
            self.best = candidate
            return True
        return False


def minimise(
    story: Story, fails: Fails, may_go_on: Callable[[int, Story], bool], *, ended_s: float | None = None
) -> Story:
    """Return the smallest story found that fails; `story` itself must.

    `may_go_on` is asked before each run, with the number of runs so far and the best story: the budget, and progress.
    `ended_s` is when the violation was seen: what comes later is left out first.
    """
    search = _Search(fails, may_go_on, story)
    try:
        _cut_off(search, ended_s)
        _fewer_events(search)
        _simpler_events(search)
    except _BudgetSpent:
        return search.best
    return search.best


def category(violation: str) -> str:
    """Return what kind of violation a sentence tells: its words before the details.

    Two failures of one category are taken to be one bug; "at 3.2 s: log matching: two blocks …" is a "log matching".
    """
    parts = violation.split(": ")
    if parts[0].startswith("at ") and len(parts) > 1:
        del parts[0]
    words = parts[0].split()
    # "node 2 failed: KeyError: …": any node, but that error.
    if words[:1] == ["node"]:
        return " ".join(["node", *words[2:3], *parts[1:2]])
    return parts[0]


def _cut_off(search: _Search, ended_s: float | None) -> None:
    """Leave out what came after the violation, and end there."""
    story = search.best
    if ended_s is None or ended_s >= story.seconds:
        return
    kept = tuple(event for event in story.events if event.at_s <= ended_s)
    seconds = min(story.seconds, ended_s + 1)
    if not search.adopt_if_fails(dataclasses.replace(story, events=kept, seconds=seconds)) and len(
        kept
    ) < len(story.events):
        search.adopt_if_fails(dataclasses.replace(story, events=kept))


def _fewer_events(search: _Search) -> None:
    """Leave out events: ever smaller parts of the list, until no single one can be missed (ddmin)."""
    parts = 2
    while events := search.best.events:
        size = -(-len(events) // parts)
        if any(search.adopt_if_fails(smaller) for smaller in _without_parts(search.best, size)):
            parts = max(parts - 1, 2)
        elif size == 1:
            return
        else:
            parts = min(parts * 2, len(events))


def _without_parts(story: Story, size: int) -> list[Story]:
    events = story.events
    starts = range(0, len(events), size)
    # The last first: what happened long before a violation is more likely to matter than what just began.
    return [
        dataclasses.replace(story, events=events[:start] + events[start + size :])
        for start in reversed(starts)
    ]


def _simpler_events(search: _Search) -> None:
    """Make each event plainer and shorter as long as the story fails."""
    for index in range(len(search.best.events)):
        event = search.best.events[index]
        if isinstance(event, Crash) and event.in_write:
            search.adopt_if_fails(_with(search.best, index, dataclasses.replace(event, in_write=False)))
        while (shorter := _shorter(search.best.events[index])) is not None:
            if not search.adopt_if_fails(_with(search.best, index, shorter)):
                break


def _with(story: Story, index: int, event: Event) -> Story:
    events = (*story.events[:index], event, *story.events[index + 1 :])
    return dataclasses.replace(story, events=events)


def _shorter(event: Event) -> Event | None:
    """Return an event that lasts half as long, unless it has no duration or next to none."""
    if not isinstance(event, Lasting) or event.for_s is None or event.for_s <= _SHORTEST_S:
        return None
    return dataclasses.replace(event, for_s=round(event.for_s / 2, 3))
