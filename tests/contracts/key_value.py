"""What every `KeyValue` must do. A module that subclasses this provides the fixture `store`."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.errors import LocalFault
from storage.key_value import Batch, KeyValue

KEYS = st.binary(min_size=1, max_size=3)
WRITES = st.dictionaries(KEYS, st.none() | st.binary(max_size=8), max_size=8)
END = b"\xff" * 9


def batch_of(writes: dict[bytes, bytes | None]) -> Batch:
    batch = Batch()
    for key, value in writes.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    return batch


def put(store: KeyValue, **values: bytes) -> None:
    store.write(batch_of({key.encode(): value for key, value in values.items()}), sync=True)


class KeyValueContract:
    def test_a_new_store_is_empty(self, store: KeyValue) -> None:
        assert store.get(b"a") is None
        assert list(store.scan(b"", END)) == []

    def test_a_written_value_is_read_back(self, store: KeyValue) -> None:
        put(store, a=b"1", empty=b"")

        assert store.get(b"a") == b"1"
        assert store.get(b"empty") == b""

    def test_the_last_write_to_a_key_wins(self, store: KeyValue) -> None:
        batch = Batch()
        batch.put(b"a", b"1")
        batch.delete(b"a")
        batch.put(b"b", b"1")
        batch.put(b"b", b"2")
        store.write(batch, sync=False)

        assert store.get(b"a") is None
        assert store.get(b"b") == b"2"

    def test_deleting_an_absent_key_is_no_error(self, store: KeyValue) -> None:
        store.write(batch_of({b"absent": None}), sync=True)

        assert store.get(b"absent") is None

    def test_an_empty_batch_changes_nothing(self, store: KeyValue) -> None:
        put(store, a=b"1")
        store.write(Batch(), sync=True)

        assert list(store.scan(b"", END)) == [(b"a", b"1")]

    def test_scan_is_ordered_and_excludes_its_stop(self, store: KeyValue) -> None:
        store.write(
            batch_of({b"\x00": b"0", b"b": b"2", b"a": b"1", b"a\x00": b"3", b"\xfe": b"4"}), sync=True
        )

        assert [key for key, _ in store.scan(b"", END)] == [b"\x00", b"a", b"a\x00", b"b", b"\xfe"]
        assert [key for key, _ in store.scan(b"a", b"b")] == [b"a", b"a\x00"]
        assert [key for key, _ in store.scan(b"a", b"b", reverse=True)] == [b"a\x00", b"a"]

    def test_a_scan_backwards_finds_a_last_key_that_is_its_start(self, store: KeyValue) -> None:
        put(store, a=b"1", g=b"2")

        assert list(store.scan(b"g", b"h", reverse=True)) == [(b"g", b"2")]
        assert list(store.scan(b"b", b"h", reverse=True)) == [(b"g", b"2")]
        assert list(store.scan(b"b", b"g", reverse=True)) == []

    def test_scan_of_an_empty_or_inverted_range_yields_nothing(self, store: KeyValue) -> None:
        put(store, a=b"1", b=b"2")

        assert list(store.scan(b"a", b"a")) == []
        assert list(store.scan(b"b", b"a")) == []
        assert list(store.scan(b"b", b"a", reverse=True)) == []

    @pytest.mark.parametrize("reverse", [False, True])
    def test_scan_shows_the_state_at_its_first_step(self, store: KeyValue, reverse: bool) -> None:
        put(store, a=b"1", b=b"2", c=b"3")
        scan = store.scan(b"", END, reverse=reverse)
        put(store, d=b"4")
        rows = [next(scan)]
        store.write(batch_of({b"a": None, b"b": b"changed", b"c": None, b"e": b"5"}), sync=True)
        rows.extend(scan)

        expected = [(b"a", b"1"), (b"b", b"2"), (b"c", b"3"), (b"d", b"4")]
        assert rows == (expected[::-1] if reverse else expected)

    def test_an_abandoned_scan_does_no_harm(self, store: KeyValue) -> None:
        put(store, a=b"1", b=b"2")
        scan = store.scan(b"", END)
        next(scan)
        put(store, c=b"3")
        store.close()

        assert scan is not None

    def test_flush_and_compact_keep_what_is_there(self, store: KeyValue) -> None:
        put(store, a=b"1", b=b"2", c=b"3", d=b"4")
        store.flush()
        store.flush()
        store.write(batch_of({b"b": None, b"c": None}), sync=False)
        store.compact(b"a", b"d")
        store.compact(b"b", b"c")
        store.compact(b"", END)

        assert list(store.scan(b"", END)) == [(b"a", b"1"), (b"d", b"4")]

    def test_a_closed_store_refuses_every_call(self, store: KeyValue) -> None:
        store.close()
        store.close()

        with pytest.raises(LocalFault):
            store.get(b"a")
        with pytest.raises(LocalFault):
            store.write(batch_of({b"a": b"1"}), sync=True)
        with pytest.raises(LocalFault):
            list(store.scan(b"", END))
        with pytest.raises(LocalFault):
            store.flush()

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(batches=st.lists(WRITES, max_size=6), start=KEYS, stop=KEYS, reverse=st.booleans())
    def test_it_behaves_as_a_sorted_dictionary(
        self,
        store: KeyValue,
        batches: list[dict[bytes, bytes | None]],
        start: bytes,
        stop: bytes,
        reverse: bool,
    ) -> None:
        store.write(batch_of(dict.fromkeys([key for key, _ in store.scan(b"", END)])), sync=False)
        model: dict[bytes, bytes] = {}
        for writes in batches:
            store.write(batch_of(writes), sync=False)
            model.update({key: value for key, value in writes.items() if value is not None})
            for key, value in writes.items():
                if value is None:
                    model.pop(key, None)

        expected = sorted((key, value) for key, value in model.items() if start <= key < stop)
        assert list(store.scan(start, stop, reverse=reverse)) == (expected[::-1] if reverse else expected)
        assert all(store.get(key) == value for key, value in model.items())
