import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Corruption, LocalFault
from storage.key_value import KeyValue
from storage.memory import MemoryStore
from tests.contracts.key_value import END, WRITES, KeyValueContract, batch_of


class TestMemoryStore(KeyValueContract):
    @pytest.fixture
    def store(self) -> KeyValue:
        return MemoryStore()


@given(batches=st.lists(st.tuples(WRITES.filter(bool), st.booleans()), max_size=8), data=st.data())
def test_a_crash_leaves_what_was_synchronised_and_a_prefix_of_the_rest(
    batches: list[tuple[dict[bytes, bytes | None], bool]], data: st.DataObject
) -> None:
    store = MemoryStore()
    for writes, sync in batches:
        store.write(batch_of(writes), sync=sync)
    keep = data.draw(st.integers(0, store.unsynced))
    lost = store.unsynced - keep
    store.crash(keep)

    expected = MemoryStore()
    for writes, _ in batches[: len(batches) - lost]:
        expected.write(batch_of(writes), sync=True)
    assert list(store.reopened().scan(b"", END)) == list(expected.scan(b"", END))


def test_a_flush_makes_everything_durable() -> None:
    store = MemoryStore()
    store.write(batch_of({b"a": b"1"}), sync=False)
    store.flush()
    assert store.unsynced == 0
    store.crash(0)
    assert store.get(b"a") == b"1"


def test_reopening_takes_the_disk_away_from_the_old_store() -> None:
    store = MemoryStore()
    store.write(batch_of({b"a": b"1"}), sync=True)
    store.close()
    assert store.reopened().get(b"a") == b"1"
    with pytest.raises(LocalFault):
        store.get(b"a")


def test_a_damaged_row_is_never_read_as_data_until_it_is_written_anew() -> None:
    store = MemoryStore()
    store.write(batch_of({b"a": b"1", b"b": b"2", b"c": b"3"}), sync=True)
    store.damage([b"b"])
    with pytest.raises(Corruption):
        store.get(b"b")
    with pytest.raises(Corruption):
        list(store.scan(b"", END))
    assert list(store.scan(b"", b"b")) == [(b"a", b"1")]
    assert store.get(b"c") == b"3"
    assert store.undamaged().get(b"b") == b"2"
    store = store.reopened()
    assert store.damaged == {b"b"}
    store.write(batch_of({b"b": b"4"}), sync=True)
    assert store.get(b"b") == b"4"
    assert store.damaged == frozenset()


def test_damage_that_was_written_over_comes_back_when_the_write_is_lost() -> None:
    store = MemoryStore()
    store.write(batch_of({b"a": b"1"}), sync=True)
    store.damage([b"a"])
    store.write(batch_of({b"a": b"2"}), sync=False)
    assert store.get(b"a") == b"2"
    store.crash(0)
    with pytest.raises(Corruption):
        store.get(b"a")


def test_a_scan_meets_damage_also_in_the_copy_that_a_write_makes_it_take() -> None:
    store = MemoryStore()
    store.write(batch_of({b"a": b"1", b"b": b"2"}), sync=True)
    store.damage([b"b"])
    scan = store.scan(b"", END)
    assert next(scan) == (b"a", b"1")
    store.write(batch_of({b"c": b"3"}), sync=True)
    with pytest.raises(Corruption):
        next(scan)


def test_a_cache_that_overflows_makes_the_oldest_batches_durable() -> None:
    store = MemoryStore()
    for number in range(5):
        store.write(batch_of({bytes([number]): b"x"}), sync=False)
    store.settle(2)
    assert store.unsynced == 2
    store.crash(0)
    assert [key[0] for key, _ in store.scan(b"", END)] == [0, 1, 2]
