import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalFault
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
