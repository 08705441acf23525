"""The grammar of stories: one line an event, words in the order of the event's fields, then `every`, `for`, `in-write`.

    world tier=b seed=7 nodes=3 observers=1 seconds=60 settle=30        once
    quality delay_ms=0.3 loss=0.1                                       at most once: the quality at the start
    load clients=3 mean_s=0.5                                           at most once
    at SECONDS KIND WORDS… [every SECONDS] [for SECONDS] [in-write]     in any order; kept in order of time
    expect MEASURE <=|>=|== NUMBER

`#` begins a comment. `parse` refuses what it does not understand with the number of the line.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from simulations.network import GOOD, Quality
from simulations.story import (
    EVENT_KINDS,
    Changes,
    Comparison,
    Cut,
    Direction,
    DiskLies,
    Event,
    Expectation,
    Flap,
    Heal,
    LinkQuality,
    Load,
    RemoveVoter,
    Role,
    SetQuality,
    Story,
    Target,
)

_ROLES: Final = get_args(Role)
_CHANCES: Final = ("loss", "duplicate", "reorder")
_QUALITIES: Final = tuple(field.name for field in dataclasses.fields(Quality))
_TRAILING: Final = ("every_s", "for_s", "in_write")
_WORLD: Final = ("tier", "seed", "nodes", "witnesses", "observers", "seconds", "settle")
_NODES_MAX: Final = 99


class StoryError(ValueError):
    """A story that cannot be understood, or cannot be carried out. The message begins with the line, where there is one."""


class _Words:
    """The words of one line, taken from the left."""

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def take(self, what: str) -> str:
        if not self._words:
            raise StoryError(f"{what} is missing")
        return self._words.pop(0)

    def take_if(self, word: str) -> bool:
        if self._words[:1] == [word]:
            del self._words[0]
            return True
        return False

    def take_while(self, belongs: Callable[[str], bool]) -> list[str]:
        taken: list[str] = []
        while self._words and belongs(self._words[0]):
            taken.append(self._words.pop(0))
        return taken

    def end(self) -> None:
        if self._words:
            raise StoryError(f"{' '.join(self._words)!r} is too much")


@dataclass(slots=True)
class _Draft:
    world: dict[str, str] | None = None
    quality: Quality | None = None
    load: Load | None = None
    events: list[tuple[int, Event]] = field(default_factory=list)
    expect: list[Expectation] = field(default_factory=list)


def parse(text: str) -> Story:
    """Return the story that a text tells.

    Raises:
        StoryError: a line is not understood, contradicts the world, or a line is missing.
    """
    draft = _Draft()
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if words:
            try:
                _line(draft, number, _Words(words))
            except StoryError as error:
                raise StoryError(f"line {number}: {error}") from None
    if draft.world is None:
        raise StoryError("there is no line that begins with 'world'")
    draft.events.sort(key=lambda numbered: numbered[1].at_s)
    story = _world(draft.world, draft)
    for number, event in draft.events:
        try:
            _check_event(story, event)
        except StoryError as error:
            raise StoryError(f"line {number}: {error}") from None
    check(story)
    return story


def check(story: Story) -> None:
    """Refuse a story that cannot be carried out.

    Raises:
        StoryError: a number is out of range, or an event names a node that does not exist or a tier that cannot do it.
    """
    if not 1 <= story.nodes <= _NODES_MAX or not 0 <= story.observers <= _NODES_MAX:
        raise StoryError("a world has 1 to 99 nodes and up to 99 observers")
    if not 0 <= story.witnesses <= (_NODES_MAX if story.tier == "b" else 0):
        raise StoryError("a world has up to 99 witnesses in tier b, and none in tier a")
    if story.seconds <= 0 or story.settle_s <= 0 or story.load.mean_s <= 0 or story.load.clients < 0:
        raise StoryError("seconds, settle and mean_s are above 0, and clients not below 0")
    _check_quality(tuple(dataclasses.asdict(story.quality).items()))
    for event in story.events:
        _check_event(story, event)
    if len({event.node for event in story.events if isinstance(event, DiskLies)}) > 1:
        raise StoryError("at most one disk may lie: with two, acknowledged transactions may be lost")


def format_story(story: Story) -> str:
    """Return a story as text that `parse` reads; comments are not kept."""
    world = (
        f"world tier={story.tier} seed={story.seed} nodes={story.nodes} "
        f"{f'witnesses={story.witnesses} ' if story.witnesses else ''}observers={story.observers} "
        f"seconds={number_text(story.seconds)} settle={number_text(story.settle_s)}"
    )
    lines = [world]
    if story.quality != GOOD:
        changes = tuple(
            (name, getattr(story.quality, name))
            for name in _QUALITIES
            if getattr(story.quality, name) != getattr(GOOD, name)
        )
        lines.append(f"quality {_changes_text(changes)}")
    if story.load != Load():
        lines.append(f"load clients={story.load.clients} mean_s={number_text(story.load.mean_s)}")
    lines.extend(format_event(event) for event in story.events)
    lines.extend(f"expect {e.measure} {e.comparison} {e.value}" for e in story.expect)
    return "\n".join(lines) + "\n"


def format_event(event: Event) -> str:
    """Return an event as its line."""
    words = ["at", number_text(event.at_s), event.kind]
    values = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
    words.extend(_FIELDS[name].text(values[name]) for name in _positional(type(event)))
    if "every_s" in values:
        words.extend(("every", number_text(values["every_s"])))
    if values.get("for_s") is not None:
        words.extend(("for", number_text(values["for_s"])))
    if values.get("in_write"):
        words.append("in-write")
    return " ".join(words)


def number_text(number: float) -> str:
    """Return the shortest text that reads as the same number."""
    text = repr(float(number))
    return text.removesuffix(".0")


def change_quality(quality: Quality, changes: Changes) -> Quality:
    """Return a quality with some of its fields changed."""
    return dataclasses.replace(quality, **dict(changes))


# --- lines ------------------------------------------------------------------------------------------------------------


def _line(draft: _Draft, number: int, words: _Words) -> None:
    match words.take("a word"):
        case "world" if draft.world is None:
            draft.world = _pairs(words, _WORLD)
        case "quality" if draft.quality is None:
            draft.quality = change_quality(GOOD, _changes(words))
        case "load" if draft.load is None:
            given = _pairs(words, ("clients", "mean_s"))
            load = Load()
            draft.load = Load(
                _whole(given.get("clients", str(load.clients))),
                _number(given.get("mean_s", str(load.mean_s))),
            )
        case "at":
            draft.events.append((number, _event(words)))
        case "expect":
            draft.expect.append(_expectation(words))
        case "world" | "quality" | "load" as again:
            raise StoryError(f"there is a line {again!r} already")
        case other:
            raise StoryError(f"a line begins with world, quality, load, at or expect, not with {other!r}")
    words.end()


def _world(given: dict[str, str], draft: _Draft) -> Story:
    tier = given.get("tier", "b")
    if tier not in ("a", "b"):
        raise StoryError(f"the tier is a or b, not {tier!r}")
    if "seed" not in given:
        raise StoryError("the line 'world' names no seed")
    default = Story(0)
    return Story(
        seed=_whole(given["seed"]),
        tier="a" if tier == "a" else "b",
        nodes=_whole(given.get("nodes", str(default.nodes))),
        witnesses=_whole(given.get("witnesses", str(default.witnesses))),
        observers=_whole(given.get("observers", str(default.observers))),
        seconds=_number(given.get("seconds", str(default.seconds))),
        settle_s=_number(given.get("settle", str(default.settle_s))),
        quality=draft.quality or GOOD,
        load=draft.load or Load(),
        events=tuple(event for _, event in draft.events),
        expect=tuple(draft.expect),
    )


def _event(words: _Words) -> Event:
    at_s = _number(words.take("the time"))
    name = words.take("what happens")
    kind = EVENT_KINDS.get(name)
    if kind is None:
        raise StoryError(f"nothing is called {name!r}; there are {', '.join(EVENT_KINDS)}")
    has = {f.name for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {"at_s": at_s}  # Any: a table of fields, whose types the constructors know
    for each in _positional(kind):
        values[each] = _FIELDS[each].read(words)
    if "every_s" in has:
        if not words.take_if("every"):
            raise StoryError(f"{name} says 'every' how many seconds")
        values["every_s"] = _number(words.take("the number of seconds"))
    if "for_s" in has and words.take_if("for"):
        values["for_s"] = _number(words.take("the number of seconds"))
    if "in_write" in has:
        values["in_write"] = words.take_if("in-write")
    event: Event = kind(**values)
    return event


def _expectation(words: _Words) -> Expectation:
    measure = words.take("a measure")
    comparison = words.take("a comparison")
    for known in get_args(Comparison):
        if comparison == known:
            return Expectation(measure, known, _whole(words.take("a number")))
    raise StoryError(f"a comparison is <=, >= or ==, not {comparison!r}")


# --- words ------------------------------------------------------------------------------------------------------------


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        raise StoryError(f"{word!r} is no number") from None
    if not math.isfinite(number):
        raise StoryError(f"{word!r} is no number")
    return number


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise StoryError(f"{word!r} is no whole number") from None


def _milliseconds(words: _Words) -> float:
    word = words.take("a time with 'ms'")
    if not word.endswith("ms"):
        raise StoryError(f"{word!r} has no 'ms' at its end")
    return _number(word.removesuffix("ms"))


def _target(word: str) -> Target:
    for role in _ROLES:
        if word == role:
            return role  # type: ignore[no-any-return]
    try:
        return int(word)
    except ValueError:
        raise StoryError(f"{word!r} is no node: a number, leader or follower") from None


def _direction(words: _Words) -> Direction:
    word = words.take("the direction")
    for known in get_args(Direction):
        if word == known:
            return known  # type: ignore[no-any-return]
    raise StoryError(f"a cut goes out, in or both, not {word!r}")


def _side(words: _Words) -> tuple[Target, ...]:
    taken = words.take_while(lambda word: word != "for")
    if not taken:
        raise StoryError("the nodes of one side are missing")
    return tuple(map(_target, taken))


def _pairs(words: _Words, names: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words.take_while(lambda word: "=" in word):
        name, _, value = word.partition("=")
        if name not in names or name in pairs:
            raise StoryError(f"{word!r}: the names here are {', '.join(names)}, each at most once")
        pairs[name] = value
    return pairs


def _changes(words: _Words) -> Changes:
    pairs = _pairs(words, _QUALITIES)
    if not pairs:
        raise StoryError(f"which quality? There are {', '.join(_QUALITIES)}")
    return tuple((name, _number(value)) for name, value in pairs.items())


def _changes_text(changes: Changes) -> str:
    return " ".join(f"{name}={number_text(value)}" for name, value in changes)


@dataclass(frozen=True, slots=True)
class _Field:
    """How a field of an event is read from words and written as words."""

    read: Callable[[_Words], Any]  # Any: each field has its type
    text: Callable[[Any], str] = str


_FIELDS: Final = {
    "direction": _Field(_direction),
    "side": _Field(_side, lambda side: " ".join(map(str, side))),
    "node": _Field(lambda words: _target(words.take("the node"))),
    "peer": _Field(lambda words: _target(words.take("the other node"))),
    "changes": _Field(_changes, _changes_text),
    "offset_ms": _Field(lambda words: round(_milliseconds(words)), lambda offset: f"{offset:+d}ms"),
    "sync_ms": _Field(_milliseconds, lambda value: f"{number_text(value)}ms"),
    "drift": _Field(lambda words: _number(words.take("the drift")), number_text),
}


def _positional(kind: type[Event]) -> list[str]:
    names = [f.name for f in dataclasses.fields(kind)]
    return [name for name in names if name != "at_s" and name not in _TRAILING]


# --- sense ------------------------------------------------------------------------------------------------------------


def _check_event(story: Story, event: Event) -> None:
    if not 0 <= event.at_s <= story.seconds:
        raise StoryError(f"{number_text(event.at_s)} s is not within the story's {story.seconds:g} s")
    named = [getattr(event, name) for name in ("node", "peer") if hasattr(event, name)]
    if isinstance(event, Cut):
        named.extend(event.side)
    for target in named:
        if isinstance(target, int) and not 0 <= target < story.members:
            raise StoryError(f"there is no node {target}: the last is {story.members - 1}")
    times = [getattr(event, name, None) for name in ("for_s", "every_s", "sync_ms")]
    if any(time is not None and time < 0 for time in times) or (
        isinstance(event, Flap) and event.every_s <= 0
    ):
        raise StoryError("no time is below 0, and nothing flaps every 0 seconds")
    if isinstance(event, LinkQuality | SetQuality):
        _check_quality(event.changes)
    if isinstance(event, RemoveVoter) and story.tier == "b":
        raise StoryError("only tier a removes voters")
    if isinstance(event, Heal) and event.at_s == story.seconds:
        raise StoryError("everything is healed at the end anyway")


def _check_quality(changes: Changes) -> None:
    if any(value < 0 for _, value in changes):
        raise StoryError("no quality is below 0")
    if any(value > 1 for name, value in changes if name in _CHANCES):
        raise StoryError(f"{', '.join(_CHANCES)} are chances: at most 1")
