"""How many messages are on their way to one peer: as many as do not wait for each other.

What waits in a queue, at the other end or here, makes a copy no faster, and a transaction waits behind it. So the number
follows how long an answer takes, as in LEDBAT (RFC 6817) and TCP Vegas: on a long way many are sent before the first answer,
where processors or disks are the limit one or two keep them busy. How long one takes alone is looked at again and again.
"""

_GROWS_BELOW, _SHRINKS_ABOVE = 1.5, 2.0
"""Times as long as alone."""
_LOOK_AFTER = 64
"""Answers between two times that the way is left empty: what was measured once may be the memory of a worse moment."""


class SendWindow:
    """`size` messages may be on their way, 1 to `most`. Whoever sends one says so, and how it ended."""

    def __init__(self, most: int) -> None:
        self.size = 1
        self._most = most
        self._on_way = 0
        self._alone_ms = 0
        self._since_look = 0

    def sent(self) -> bool:
        """Count a message; return whether it is alone on its way, for `answered`."""
        self._on_way += 1
        return self._on_way == 1

    def answered(self, took_ms: int, *, alone: bool) -> None:
        """Take the answer to a message; `alone` is what `sent` returned for it."""
        self._on_way -= 1
        self._since_look += 1
        if alone:
            self._alone_ms = took_ms
        if self._since_look >= _LOOK_AFTER:
            self._since_look, self.size = 0, 1
        elif took_ms <= self._alone_ms * _GROWS_BELOW:
            self.size = min(self.size + 1, self._most)
        elif took_ms > self._alone_ms * _SHRINKS_ABOVE:
            self.size = max(self.size - 1, 1)

    def lost(self) -> None:
        """Hear that a message was not answered."""
        self._on_way -= 1
        self.size = 1
