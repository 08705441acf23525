"""The shape of a structured logger: an event in plain words and named values beside it.

structlog's bound loggers have this shape; so has the recording logger of the tests and of the simulation. Values
are never personal data: peer ids, counts, addresses, exception class names.
"""

from typing import Any, Protocol


class EventLog(Protocol):
    """Takes events. The values are Any because structlog renders whatever it is given."""

    def debug(self, event: str, **values: Any) -> Any:
        """Record what only a developer wants to know."""
        ...

    def info(self, event: str, **values: Any) -> Any:
        """Record what an operator may want to know."""
        ...

    def warning(self, event: str, **values: Any) -> Any:
        """Record what an operator should look at."""
        ...

    def error(self, event: str, **values: Any) -> Any:
        """Record what went wrong inside this process."""
        ...
