from pathlib import Path

import pytest

from protocol.errors import Corruption
from storage.databases import (
    KEYS,
    LEDGER,
    PAYLOADS,
    REBUILD,
    SNAPSHOTS,
    open_keys,
    open_ledger,
    open_payloads,
    open_snapshots,
)
from storage.key_value import Batch

OPENERS = [(PAYLOADS, open_payloads), (LEDGER, open_ledger), (KEYS, open_keys)]


@pytest.mark.parametrize(("name", "open_database"), OPENERS)
def test_every_database_opens_and_names_its_cure(tmp_path: Path, name: str, open_database) -> None:
    with pytest.raises(Corruption, match=f"database {name} does not open.*{REBUILD[name] or 'from a copy'}"):
        open_database(tmp_path, create=False)
    open_database(tmp_path, create=True).close()
    open_database(tmp_path, create=False).close()

    assert (tmp_path / name / "CURRENT").exists()
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_the_format_row_never_shares_a_table_with_payloads(tmp_path: Path) -> None:
    database = open_payloads(tmp_path, create=True)
    tables = list((tmp_path / PAYLOADS).glob("*.ldb"))
    database.close()

    assert len(tables) == 1


def test_a_damaged_database_of_snapshots_is_replaced_by_an_empty_one(tmp_path: Path) -> None:
    database = open_snapshots(tmp_path)
    batch = Batch()
    batch.put(b"c", b"chunk")
    database.write(batch, sync=True)
    database.close()
    (tmp_path / SNAPSHOTS / "CURRENT").write_bytes(b"damaged")

    again = open_snapshots(tmp_path)
    found = again.get(b"c")
    again.close()

    assert found is None
