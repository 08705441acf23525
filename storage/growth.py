"""How much the chunk store held, day by day: what growth is told from, and how old a payload is at least.

A sample is a row of the ledger database: time, chunks, bytes of ciphertext, and the sequence that the next payload gets.
Sequences only grow, so a payload below the sequence of a sample is older than the sample.
"""

from dataclasses import dataclass

from protocol import codec
from protocol.errors import Malformed
from storage.key_value import Batch, KeyValue
from storage.keyspace import GROWTH, prefix_range, sequence_key

DAY_MS = 24 * 3600 * 1000
KEPT_MS = 400 * DAY_MS
WINDOW_MS = 30 * DAY_MS
"""Growth is told over the last month: one busy day says little, and two years ago says nothing."""
SPAN_MS_MIN = 3600 * 1000
"""From less than an hour nothing is concluded."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the store held at a time (Unix ms)."""

    time_ms: int
    chunks: int
    bytes: int
    next_sequence: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes of ciphertext that came in a day, less those that went, over `span_ms`."""

    bytes_per_day: int
    span_ms: int


def put_sample(batch: Batch, sample: Sample) -> None:
    """Stage a sample."""
    row = codec.pack(sample.chunks, sample.bytes, sample.next_sequence)
    batch.put(GROWTH + sequence_key(sample.time_ms), row)


def forget_old(batch: Batch, samples: tuple[Sample, ...], now_ms: int) -> None:
    """Stage that samples beyond the time they are kept for are forgotten."""
    for sample in samples:
        if sample.time_ms < now_ms - KEPT_MS:
            batch.delete(GROWTH + sequence_key(sample.time_ms))


def forget_all(batch: Batch, rows: KeyValue) -> None:
    """Stage that all samples are forgotten: sequences begin anew, and old ones would make new payloads look old."""
    for key, _ in rows.scan(*prefix_range(GROWTH)):
        batch.delete(key)


def samples(rows: KeyValue) -> tuple[Sample, ...]:
    """Return all samples, the oldest first; one that cannot be read is left out."""
    found = []
    for key, row in rows.scan(*prefix_range(GROWTH)):
        try:
            chunks, size, sequence = codec.unpack(row)
        except (Malformed, ValueError):
            continue  # figures for people: one sample less is still a figure
        found.append(Sample(int.from_bytes(key[len(GROWTH) :], "big"), chunks, size, sequence))
    return tuple(found)


def growth(known: tuple[Sample, ...], now: Sample) -> Growth | None:
    """Return how the store has grown up to now, or None when there is no sample old enough to say."""
    within = [sample for sample in known if now.time_ms - WINDOW_MS <= sample.time_ms]
    if not within or now.time_ms - within[0].time_ms < SPAN_MS_MIN:
        return None
    span_ms = now.time_ms - within[0].time_ms
    return Growth((now.bytes - within[0].bytes) * DAY_MS // span_ms, span_ms)


def sequence_older_than(known: tuple[Sample, ...], time_ms: int) -> int:
    """Return the sequence below which every payload was stored before a time; 0 when nothing is known that far back."""
    return max((sample.next_sequence for sample in known if sample.time_ms <= time_ms), default=0)
