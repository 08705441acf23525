"""Who is using a database: calls under way, which closing waits for, and scans, which read on between their calls.

A compaction replaces tables, and the engine keeps the former ones in the directory for as long as a scan that began
before may read them. Whoever deletes for good has to know.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import LocalFault


class Callers:
    """Counts calls and scans of one database, called `name`. Safe to use from several threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Entered for every row that is read: a plain lock costs a fifth of the condition that stands upon it.
        self._lock = threading.Lock()
        self._gate = threading.Condition(self._lock)
        self._calls = 0
        self._closed = False
        self.scans = 0
        """Those that have begun and not ended."""
        self.scans_begun = 0
        """All there have been."""

    def enter(self) -> None:
        """Begin a call; `leave` ends it.

        Raises:
            LocalFault: the database is closed.
        """
        with self._lock:
            if self._closed:
                raise LocalFault(f"database {self._name} is closed")
            self._calls += 1

    def leave(self) -> None:
        """End a call."""
        with self._lock:
            self._calls -= 1
            if self._closed:
                self._gate.notify_all()

    @contextmanager
    def scanning(self) -> Iterator[None]:
        """Count a scan for as long as the block lasts."""
        with self._lock:
            self.scans += 1
            self.scans_begun += 1
        try:
            yield
        finally:
            with self._lock:
                self.scans -= 1

    def close(self) -> bool:
        """Let nobody in from now on and wait until all have left; return False when that was so before."""
        with self._gate:
            if self._closed:
                return False
            self._closed = True
            self._gate.wait_for(lambda: self._calls == 0)
            return True
