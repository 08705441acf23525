"""What the chunk store held, day by day."""

from hypothesis import given
from hypothesis import strategies as st

from storage.growth import (
    DAY_MS,
    KEPT_MS,
    SPAN_MS_MIN,
    Sample,
    forget_all,
    forget_old,
    growth,
    put_sample,
    samples,
    sequence_older_than,
)
from storage.key_value import Batch
from storage.keyspace import GROWTH
from storage.memory import MemoryStore

NOW = 500 * DAY_MS


def stored(*kept: Sample) -> MemoryStore:
    rows, batch = MemoryStore(), Batch()
    for sample in kept:
        put_sample(batch, sample)
    rows.write(batch, sync=True)
    return rows


@given(
    st.lists(st.builds(Sample, *[st.integers(0, 2**60)] * 4), max_size=5, unique_by=lambda one: one.time_ms)
)
def test_samples_come_back_in_order(kept: list[Sample]) -> None:
    assert samples(stored(*kept)) == tuple(sorted(kept, key=lambda sample: sample.time_ms))


def test_a_sample_that_cannot_be_read_is_left_out() -> None:
    rows, batch = stored(Sample(1, 2, 3, 4)), Batch()
    batch.put(GROWTH + b"\0" * 8, b"no sample")
    rows.write(batch, sync=True)

    assert samples(rows) == (Sample(1, 2, 3, 4),)


def test_growth_is_told_per_day_over_the_last_month() -> None:
    long_ago, then = Sample(NOW - 100 * DAY_MS, 0, 0, 0), Sample(NOW - 10 * DAY_MS, 1, 1_000, 1)

    found = growth((long_ago, then), Sample(NOW, 2, 6_000, 2))

    assert found is not None
    assert (found.bytes_per_day, found.span_ms) == (500, 10 * DAY_MS)


def test_nothing_is_concluded_from_less_than_an_hour() -> None:
    now = Sample(NOW, 1, 1, 1)

    assert growth((), now) is None
    assert growth((Sample(NOW - SPAN_MS_MIN + 1, 0, 0, 0),), now) is None


def test_a_payload_is_known_to_be_old_only_from_a_sample_that_is() -> None:
    known = (Sample(NOW - 3 * DAY_MS, 0, 0, 7), Sample(NOW - 2 * DAY_MS, 0, 0, 9), Sample(NOW, 0, 0, 20))

    assert sequence_older_than(known, NOW - DAY_MS) == 9
    assert sequence_older_than(known, NOW - 4 * DAY_MS) == 0


def test_old_samples_are_forgotten_and_all_of_them_on_demand() -> None:
    rows = stored(Sample(NOW - KEPT_MS - 1, 0, 0, 0), Sample(NOW, 0, 0, 0))

    batch = Batch()
    forget_old(batch, samples(rows), NOW)
    rows.write(batch, sync=True)
    assert [sample.time_ms for sample in samples(rows)] == [NOW]

    batch = Batch()
    forget_all(batch, rows)
    rows.write(batch, sync=True)
    assert samples(rows) == ()
