"""Virtual time of tier A: one heap of what is going to happen. No tasks, no scheduler, nothing to await."""

import hashlib
import heapq
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from simulations.history import Happening

_TAIL = 400
_Entry = tuple[float, int, Callable[..., None], tuple[Any, ...]]  # Any: an action's own arguments


class Agenda:
    """Actions by the virtual second they are due; equal times in the order of asking."""

    __slots__ = ("_heap", "_sequence", "done", "is_stopped", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.done = 0
        """Actions carried out so far."""
        self.is_stopped = False
        self._heap: list[_Entry] = []
        self._sequence = 0

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:  # Any: passed on
        """Call `action` at a virtual time, at once if that has passed."""
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, action, arguments))

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:  # Any: passed on
        """Call `action` after a while."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + seconds, self._sequence, action, arguments))

    def stop(self) -> None:
        """Let `run_until` return after the action that runs now."""
        self.is_stopped = True

    def run_until(self, when: float) -> None:
        """Carry out what is due up to a virtual time, or until stopped."""
        heap, pop, done = self._heap, heapq.heappop, 0
        while heap and not self.is_stopped and heap[0][0] <= when:
            due, _, action, arguments = pop(heap)
            if due > self.now:  # noqa: PLR1730 - max() costs a call for each event
                self.now = due
            action(*arguments)
            done += 1
        self.done += done
        if not self.is_stopped:
            self.now = max(self.now, when)


class CoreHistory:
    """What `simulations.history.History` is in tier B: one line per event with its virtual time, hashed as it grows."""

    def __init__(self, agenda: Agenda) -> None:
        self.counts: Counter[str] = Counter()
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self.kept: list[Happening] | None = None
        """Everything from the moment when this becomes a list: what a picture is drawn from."""
        self._agenda = agenda
        self._digest = hashlib.sha256()

    def record(self, kind: str, *values: str | int | bytes) -> None:
        """Add an event; ids and hashes are shortened to 8 bytes."""
        words = [value.hex()[:16] if isinstance(value, bytes) else str(value) for value in values]
        line = " ".join([str(round(self._agenda.now * 1e6)), kind, *words])
        self._digest.update(line.encode() + b"\n")
        self.counts[kind] += 1
        self.tail.append(line)
        if self.kept is not None:
            self.kept.append((self._agenda.now, kind, tuple(words)))

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of all lines so far."""
        return self._digest.hexdigest()
