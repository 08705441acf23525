"""kill -9 before each write, deletion and compaction between payloads, index and the row that names a record's chunks."""

import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from protocol import limits
from protocol.cid import cid_of
from protocol.identifiers import Cid, Rid
from storage.chunk_index import ChunkIndex
from storage.chunk_store import ChunkStore
from storage.databases import open_ledger, open_payloads
from storage.key_value import Batch, KeyValue
from storage.keyspace import SEQUENCE_END

RID = Rid(b"r" * 32)
FIRST = [random.Random(number).randbytes(size) for number, size in enumerate((700, limits.MIB - 50, 9_000))]
SECOND = [random.Random(10 + number).randbytes(limits.MIB - 50) for number in range(3)]
STEPS = range(14)
"""More than there are: the last ones are not killed."""


def named(chunks: list[bytes]) -> list[tuple[Cid, bytes]]:
    return [(cid_of(chunk), chunk) for chunk in chunks]


class Deadly:
    """A database of a process that ends, as by kill -9, before the n-th change of any of its databases."""

    def __init__(self, database: KeyValue, left: list[int]) -> None:
        self._database = database
        self._left = left

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._database.scan(start, stop, reverse=reverse)

    def write(self, batch: Batch, *, sync: bool) -> None:
        self._step()
        self._database.write(batch, sync=sync)

    def compact(self, start: bytes, stop: bytes) -> bool:
        self._step()
        return self._database.compact(start, stop)

    def _step(self) -> None:
        if not self._left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left[0] -= 1


def live(home: Path, steps: int, connection: Connection) -> None:
    """Store, name, store and delete; say each thing that is done."""
    left, said = [steps], connection.fileno()
    payloads, ledger = (
        Deadly(open_payloads(home, create=True), left),
        Deadly(open_ledger(home, create=True), left),
    )
    store = ChunkStore(payloads, ledger)  # type: ignore[arg-type]
    store.put_many(named(FIRST))
    os.write(said, b"1")
    batch = Batch()
    ChunkIndex.refer(batch, tuple(map(cid_of, FIRST)), RID)
    ledger.write(batch, sync=True)
    os.write(said, b"2")
    store.put_many(named(SECOND))
    os.write(said, b"3")
    store.delete([cid_of(FIRST[1]), cid_of(SECOND[0])])
    os.write(said, b"4")


def lived(home: Path, steps: int) -> tuple[bytes, bool]:
    """Return what a process said that ended before so many steps, and whether it was killed."""
    hearing, saying = os.pipe()
    # Not forked from here: the engine's thread would be missing in it.
    process = multiprocessing.get_context("forkserver").Process(
        target=live, args=(home, steps, writer := Connection(saying, readable=False))
    )
    process.start()
    writer.close()
    with os.fdopen(hearing, "rb") as heard:
        said = heard.read()
    process.join(60)
    return said, process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("steps", STEPS)
def test_what_was_told_is_there_after_kill_9_and_nothing_is_left_over(tmp_path: Path, steps: int) -> None:
    said, is_killed = lived(tmp_path, steps)
    assert is_killed == (said != b"1234")
    assert is_killed or steps > 6

    for _ in range(2):
        new = not (tmp_path / "ledger").exists()
        payloads, ledger = open_payloads(tmp_path, create=new), open_ledger(tmp_path, create=new)
        store = ChunkStore(payloads, ledger)
        here = {cid: store.get(cid) for cid in store.cids()}
        wanted = dict(named((FIRST if b"1" in said else []) + (SECOND if b"3" in said else [])))
        gone = {cid_of(FIRST[1]), cid_of(SECOND[0])} if b"3" in said else set()
        assert here.items() <= dict(named(FIRST + SECOND)).items()
        assert set(wanted) - gone <= set(here)
        assert set(here) & gone in ((set(),) if b"4" in said else (set(), gone))
        assert len(list(payloads.scan(b"", SEQUENCE_END))) == len(here) == store.statistics().chunks
        assert store.index.to_reclaim() == ()
        names = [list(store.index.references(cid_of(chunk))) for chunk in FIRST]
        assert names in (([[RID]] * 3,) if b"2" in said else ([[]] * 3, [[RID]] * 3))
        assert names == [[]] * 3 or b"1" in said
        payloads.close()
        ledger.close()
