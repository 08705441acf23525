"""Small limits, drawn per seed: a window of one, frames of one block, a cache that forgets at once.

What is rare at the real sizes (a full window, a block read back from disk, a refusal with too few hints) then happens all
the time. Half of the seeds change nothing. The values are put into `protocol.limits` for the time of a run.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from random import Random

from protocol import limits
from protocol.limits import KIB

_CHANCE = 0.35
"""That a seed which changes limits changes one of them."""
_DRAWS: tuple[tuple[str, Callable[[Random], int]], ...] = (
    ("APPEND_BLOCKS_MAX", lambda rng: rng.choice((1, 2, 5))),
    ("APPEND_BYTES_MAX", lambda rng: rng.choice((1, 2 * KIB))),
    ("IN_FLIGHT_APPENDS_MAX", lambda rng: rng.choice((1, 2))),
    ("IN_FLIGHT_BLOCKS_MAX", lambda rng: rng.choice((1, 2, 8))),
    ("IN_FLIGHT_BYTES_MAX", lambda rng: rng.choice((1, 4 * KIB))),
    ("CERTIFICATES_CACHED", lambda rng: rng.choice((1, 2))),
    ("UNCERTIFIED_BLOCKS_MAX", lambda rng: rng.choice((2, 4, 8))),
    ("LOG_CACHE_BYTES_MAX", lambda rng: rng.choice((0, 2 * KIB))),
    ("READS_PENDING_MAX", lambda rng: rng.choice((1, 3))),
    ("REFUSAL_HINTS_MAX", lambda rng: rng.choice((1, 2))),
    ("OWN_ACKNOWLEDGEMENTS_CACHED", lambda _: 1),
    ("FRAME_SIGNATURES_CACHED", lambda _: 1),
    ("HEARTBEAT_TICKS", lambda rng: rng.choice((1, 3, 5))),
)
_ELECTION_TICKS = ((8, 10), (10, 30), (20, 21), (30, 90))
_BLOCK_TRANSACTIONS = (1, 3, 1000)


def draw(rng: Random) -> dict[str, int]:
    """Return the limits that a seed changes, by name."""
    if rng.random() < 0.5:
        return {}
    changed = {name: pick(rng) for name, pick in _DRAWS if rng.random() < _CHANCE}
    if rng.random() < _CHANCE:
        changed["ELECTION_TICKS_MIN"], changed["ELECTION_TICKS_MAX"] = rng.choice(_ELECTION_TICKS)
    if rng.random() < _CHANCE:
        changed["BLOCK_TRANSACTIONS_MAX"] = rng.choice(_BLOCK_TRANSACTIONS)
    return changed


@contextlib.contextmanager
def in_force(changed: Mapping[str, int]) -> Iterator[None]:
    """Put limits in the place of the real ones, and these back afterwards."""
    before = {name: getattr(limits, name) for name in changed}
    try:
        for name, value in changed.items():
            setattr(limits, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(limits, name, value)


def describe(changed: Mapping[str, int]) -> str:
    """Return the changed limits in one line."""
    return " ".join(f"{name.lower()}={value}" for name, value in sorted(changed.items())) or "as they are"
