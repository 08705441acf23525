from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from storage import keyspace
from storage.keyspace import FORMAT, TABLE, prefix_range, sequence_key


def test_no_prefix_begins_another_of_its_database_or_the_format_key() -> None:
    for one, other in permutations(TABLE, 2):
        if one.database == other.database:
            assert not other.prefix.startswith(one.prefix), (one, other)
    for rows in TABLE:
        assert not rows.prefix or not FORMAT.startswith(rows.prefix), rows


def test_every_prefix_stands_in_the_table() -> None:
    named = {value for name, value in vars(keyspace).items() if name.isupper() and isinstance(value, bytes)}
    assert named - {FORMAT, keyspace.SEQUENCE_END} == {rows.prefix for rows in TABLE} - {b""}


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_sequence_keys_sort_as_numbers(one: int, other: int) -> None:
    assert (sequence_key(one) < sequence_key(other)) == (one < other)


@given(
    st.binary(min_size=1, max_size=5).filter(lambda prefix: prefix.strip(b"\xff") != b""),
    st.binary(max_size=5),
)
def test_a_prefix_range_holds_exactly_the_keys_with_that_prefix(prefix: bytes, key: bytes) -> None:
    start, stop = prefix_range(prefix)
    assert start <= prefix + key < stop
    assert (start <= key < stop) == key.startswith(prefix)
