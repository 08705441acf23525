from pathlib import Path

import pytest

import simulations
from simulations.runner import options_of, tell
from simulations.story import EVENT_KINDS
from simulations.story_text import parse

STORIES = sorted((Path(simulations.__file__).parent / "stories").glob("*.story"))
QUICK = ("08_disruptive_rejoin", "25_leaders_own_write_is_slow", "32_slow_disk")
"""Of the stories that whole nodes tell, which take seconds each, those that are always told."""


def marked(file: Path) -> object:
    story = parse(file.read_text(encoding="utf-8"))
    is_slow = story.load.clients > 100 or (story.tier == "b" and file.stem not in QUICK)
    return pytest.param(file, id=file.stem, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize("file", map(marked, STORIES))
def test_a_story_ends_as_it_expects(file: Path) -> None:
    story = parse(file.read_text(encoding="utf-8"))
    verdict = tell(story, options_of(story))
    assert verdict.violations == ()
    assert verdict.commits > 0
    # What it is about did happen.
    wanted = {event.kind for event in story.events} - {"add-voter", "remove-voter", "drift", "transfer"}
    assert wanted <= set(verdict.events)


@pytest.mark.parametrize("file", STORIES, ids=lambda file: file.stem)
def test_a_story_says_its_number_and_what_it_is_about(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    numbers = [part for part in file.stem.split("_") if part.isdecimal()]
    assert numbers
    assert first.startswith(f"# {int(numbers[0])}")
    assert all(number.lstrip("0") in first for number in numbers)


def test_the_stories_use_every_kind_of_event() -> None:
    told = {event.kind for file in STORIES for event in parse(file.read_text(encoding="utf-8")).events}
    assert set(EVENT_KINDS) - told <= {"heal", "link", "quality"}
