"""What every test may rely on, however the tests were started."""

import signal

import pytest

# A shell starts background jobs with interrupts ignored, and children inherit that: what is to be interrupted here must hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first: whoever shares the files out to processes should end with short ones."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
