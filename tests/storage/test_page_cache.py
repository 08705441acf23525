"""What of a database's tables the kernel keeps in memory while a bulk copy writes it."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from protocol import limits
from storage import databases
from storage.databases import PAYLOADS, open_payloads
from storage.key_value import Batch
from storage.page_cache import PageCache

PAGE = mmap.PAGESIZE


def cached_bytes(path: Path) -> int:
    """Return how much of a file is in the page cache (mincore, Linux)."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
        address = ctypes.c_char.from_buffer(mapped)
        resident = ctypes.create_string_buffer(-(-size // PAGE))
        code = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(size), resident
        )
        del address
        assert code == 0, os.strerror(ctypes.get_errno())
    return PAGE * sum(state & 1 for state in resident.raw)


def table(folder: Path, number: int) -> Path:
    path = folder / f"{number:06}.ldb"
    with path.open("wb") as file:
        file.write(bytes(limits.MIB))
        file.flush()
        os.fsync(file.fileno())
    return path


def test_the_newest_tables_stay_and_the_others_are_let_go_once(tmp_path: Path) -> None:
    tables = [table(tmp_path, number) for number in range(9, 13)]  # 000009 sorts before 000010 by number only
    pages = PageCache(tmp_path, 2 * limits.MIB)
    pages.wrote(255 * limits.MIB)
    assert [cached_bytes(path) for path in tables] == [limits.MIB] * 4
    pages.wrote(limits.MIB)
    assert [cached_bytes(path) for path in tables] == [0, 0, limits.MIB, limits.MIB]
    tables[0].read_bytes()  # somebody wants it again
    tables.append(table(tmp_path, 13))
    pages.wrote(256 * limits.MIB)
    assert [cached_bytes(path) for path in tables] == [limits.MIB, 0, 0, limits.MIB, limits.MIB]


def test_a_payload_database_keeps_as_much_as_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "_PAYLOAD_PAGES", 16 * limits.MIB)
    store = open_payloads(tmp_path, create=True)
    for number in range(280):
        batch = Batch()
        batch.put(number.to_bytes(8), number.to_bytes(4) * (limits.MIB // 4))
        store.write(batch, sync=False)
    store.flush()
    tables = sorted((tmp_path / PAYLOADS).glob("*.ldb"))
    cached = sum(cached_bytes(path) for path in tables)
    assert sum(path.stat().st_size for path in tables) >= 280 * limits.MIB
    assert cached < 96 * limits.MIB
    assert store.get((0).to_bytes(8)) == bytes(limits.MIB)
    store.close()


def test_a_large_store_gets_larger_tables(tmp_path: Path) -> None:
    payloads = tmp_path / PAYLOADS
    payloads.mkdir()
    sizes = []
    for stored in (0, 64 * 1024, 200 * 1024, 4 * 1024 * 1024):
        with (payloads / "000005.ldb").open("wb") as file:
            file.truncate(stored * limits.MIB)  # a hole: nothing of it is on the disk
        sizes.append(databases._payload_buffer(payloads) // limits.MIB)
    assert sizes == [16, 16, 25, 64]
