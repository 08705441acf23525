"""A damaged ledger database is made anew by itself: with all else that it held where only blocks are damaged, else refilled."""

import hashlib
import shutil
import time
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
import trio

from node import rebuild
from node.applier import Applier, Certified
from node.home import Home
from node.identity import Identity
from node.rebuild import Databases, check_room_to_mend, heal_ledger, is_of_ledger, mend_ledger, naming_cure
from node.receipts import Receipts
from protocol.block import genesis_block
from protocol.errors import Corruption, StorageFull, Unreadable
from protocol.identifiers import Cid, Height, Rid
from storage import table_file
from storage.chunk_index import ChunkIndex
from storage.chunk_store import ChunkStore
from storage.databases import open_ledger, open_payloads
from storage.file_check import damaged_files
from storage.key_value import Batch
from storage.keyspace import APPLIED, BLOCK, HARD_STATE, LOST, REBUILT, RECORD_QUEUE, SEQUENCE_END
from storage.ledger_store import LedgerStore
from storage.mend import clear_lost, lost_heights, put_lost
from tests.node.ledger_double import InlineDisk, LedgerDouble, SeededEntropy, SilentLog
from tests.node.rotting_house import CERTIFICATES, CHAIN, MIDDLE, TIP
from tests.protocol.chain import CONFIGURATION
from tests.protocol.ledgers import configuration

HIT = (MIDDLE + TIP) // 2
"""The height whose row is damaged: table blocks around it hold blocks of the ledger only."""


def key(prefix: bytes, height: int) -> bytes:
    return prefix + height.to_bytes(8, "big")


def rows_of(home: Path) -> dict[bytes, bytes]:
    with closing(open_ledger(home, create=False)) as ledger:
        return dict(ledger.scan(b"", SEQUENCE_END))


def asides(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if path.name != "ledger")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose ledger holds the whole chain, applied, in two tables."""
    for first, last in ((1, MIDDLE), (MIDDLE + 1, TIP)):
        with closing(open_ledger(tmp_path, create=first == 1)) as ledger:
            store = LedgerStore(ledger, CONFIGURATION)
            batch = Batch()
            batch.put(HARD_STATE, b"a vote")
            ledger.write(batch, sync=False)
            applier = Applier(store, InlineDisk(ledger), Receipts())
            trio.run(applier.apply, Certified(CHAIN[first : last + 1], CERTIFICATES[last], is_stored=False))
    return tmp_path


def flip(home: Path, row: bytes) -> None:
    """Change one bit in the newest stored value of a row."""
    for table in sorted((home / "ledger").glob("*.ldb"), reverse=True):
        whole = bytearray(table.read_bytes())
        for change in table_file.intact_changes(bytes(whole), lambda _first, _last: True):
            if change.key == row and change.value:
                whole[whole.index(change.value) + len(change.value) // 2] ^= 4
                table.write_bytes(whole)
                return
    raise AssertionError("no table holds the row")


def test_29_a_ledger_with_a_damaged_block_is_made_anew_with_all_other_rows(home: Path) -> None:
    before, log = rows_of(home), SilentLog()
    flip(home, key(BLOCK, HIT))

    assert mend_ledger(home, CONFIGURATION, log)

    after = rows_of(home)
    noted = [row for row in after if row[:1] == LOST]
    lost = {key(BLOCK, int.from_bytes(row[1:], "big")) for row in noted}
    assert key(BLOCK, HIT) in lost
    assert {row: value for row, value in after.items() if row not in noted} == {
        row: value for row, value in before.items() if row not in lost
    }
    assert asides(home) == ["ledger.damaged-1"]
    assert [level for level, _, _ in log.events] == ["warning"]


def test_what_has_been_fetched_already_is_in_the_new_database(home: Path) -> None:
    before = rows_of(home)
    flip(home, key(BLOCK, HIT))
    with closing(open_ledger(home, create=False)) as ledger:
        batch = Batch()
        for height in range(1, TIP + 1):
            batch.put(key(BLOCK, height), CHAIN[height].raw)
        ledger.write(batch, sync=True)

    assert mend_ledger(home, CONFIGURATION, SilentLog())

    assert rows_of(home) == before
    assert not mend_ledger(home, CONFIGURATION, SilentLog())


def test_an_undamaged_ledger_is_left_alone(home: Path) -> None:
    before = rows_of(home)

    assert not mend_ledger(home, CONFIGURATION, SilentLog())

    assert (rows_of(home), asides(home)) == (before, [])


@pytest.mark.parametrize("row", [HARD_STATE, APPLIED])
def test_a_ledger_with_more_than_blocks_damaged_is_left_as_it_is(home: Path, row: bytes) -> None:
    flip(home, key(BLOCK, HIT))
    flip(home, row)
    before = {file.name: file.read_bytes() for file in (home / "ledger").glob("*.ldb")}

    assert not mend_ledger(home, CONFIGURATION, SilentLog())

    after = {file.name: file.read_bytes() for file in (home / "ledger").glob("*.ldb")}
    assert after.items() >= before.items()
    assert asides(home) == []


UNREADABLE = Unreadable("a row cannot be read")
NOW_MS = int(time.time() * 1_000)


def healed(home: Path, *, fault: Corruption = UNREADABLE, has_others: bool = True) -> bool:
    return heal_ledger(home, CONFIGURATION, fault, SilentLog(), has_others=has_others, now_ms=NOW_MS)


def damage_manifest(home: Path) -> None:
    (manifest,) = (home / "ledger").glob("MANIFEST-*")
    manifest.write_bytes(b"?" + manifest.read_bytes()[1:])


@pytest.mark.parametrize("place", ["state", "manifest", "list"])
def test_a_ledger_with_more_than_blocks_damaged_is_refilled_by_others_and_keeps_what_only_it_has(
    home: Path, place: str
) -> None:
    own = {key(RECORD_QUEUE, number): b"a sealed record" for number in range(300)}
    with closing(open_ledger(home, create=False)) as ledger:
        batch = Batch()
        for row, value in own.items():
            batch.put(row, value)
        ledger.write(batch, sync=True)
    if place == "state":
        flip(home, APPLIED)
    elif place == "manifest":
        damage_manifest(home)
    else:
        (home / "ledger" / "CURRENT").write_bytes(b"MANIFEST-000099\n")
    assert not healed(home, has_others=False)

    assert healed(home)

    assert rows_of(home) == {**own, REBUILT: b""}
    assert asides(home) == ["ledger.damaged-1"]
    assert damaged_files(home / "ledger") == ()


def test_a_damaged_filter_costs_no_row(home: Path) -> None:
    before = rows_of(home)
    table = max((home / "ledger").glob("*.ldb"))
    whole = bytearray(table.read_bytes())
    whole[whole.index(b"filter.leveldb") - 8] ^= 1
    table.write_bytes(whole)
    assert damaged_files(home / "ledger") == (table.name,)
    assert rows_of(home) == before

    assert healed(home, has_others=False)

    assert (rows_of(home), damaged_files(home / "ledger")) == (before, ())


def test_files_that_are_gone_are_left_to_an_operator(home: Path) -> None:
    (home / "ledger" / "CURRENT").unlink()

    assert not healed(home)

    assert asides(home) == []


@pytest.mark.parametrize(
    ("fault", "goes_on"), [(UNREADABLE, True), (Corruption("a row does not decode"), False)]
)
def test_what_can_all_be_read_again_is_served_again_unless_it_was_understood_and_wrong(
    home: Path, fault: Corruption, goes_on: bool
) -> None:
    before = rows_of(home)

    assert healed(home, fault=fault) is goes_on

    assert (rows_of(home), asides(home)) == (before, [])


def test_a_disk_that_damages_the_ledger_again_and_again_is_left_to_an_operator(home: Path) -> None:
    for _ in range(rebuild.ASIDES_PER_DAY):
        damage_manifest(home)
        assert healed(home)
    damage_manifest(home)

    assert not healed(home)
    tomorrow = int(time.time() * 1_000) + 25 * 3_600_000
    assert heal_ledger(home, CONFIGURATION, UNREADABLE, SilentLog(), has_others=True, now_ms=tomorrow)


def test_a_block_that_ended_the_daemon_and_is_only_to_be_fetched_is_no_reason_to_end(home: Path) -> None:
    with closing(open_ledger(home, create=False)) as ledger:
        batch = Batch()
        put_lost(batch, Height(5))
        batch.delete(key(BLOCK, 5))
        ledger.write(batch, sync=True)

    assert mend_ledger(home, CONFIGURATION, SilentLog())
    assert asides(home) == []

    with closing(open_ledger(home, create=False)) as ledger:
        batch = Batch()
        clear_lost(batch, Height(5))
        ledger.write(batch, sync=True)
    assert not mend_ledger(home, CONFIGURATION, SilentLog())


def test_a_damaged_genesis_is_made_again_for_its_own_network_only(home: Path) -> None:
    flip(home, key(BLOCK, 0))

    assert not mend_ledger(home, configuration("another"), SilentLog())
    assert asides(home) == []
    assert mend_ledger(home, CONFIGURATION, SilentLog())

    assert rows_of(home)[key(BLOCK, 0)] == genesis_block(CONFIGURATION).raw


def test_the_newest_applied_block_is_known_by_its_proof_until_it_is_fetched(home: Path) -> None:
    with closing(open_ledger(home, create=False)) as ledger:
        batch = Batch()
        batch.delete(key(BLOCK, TIP))
        ledger.write(batch, sync=True)

        store = LedgerStore(ledger, CONFIGURATION)

        assert (store.header(Height(TIP)), store.hash(Height(TIP))) == (CHAIN[TIP].header, CHAIN[TIP].hash)
        with pytest.raises(Corruption, match="missing"):
            store.block(Height(TIP))


def test_when_a_merge_of_tables_has_met_the_damage_the_ledger_is_mended_all_the_same(home: Path) -> None:
    before = rows_of(home)
    flip(home, key(BLOCK, HIT))
    with pytest.raises(Corruption) as ended, closing(open_ledger(home, create=False)) as ledger:
        ledger.compact(b"", SEQUENCE_END)
    assert is_of_ledger(naming_cure(ended.value))

    assert mend_ledger(home, CONFIGURATION, SilentLog())

    after = rows_of(home)
    assert {row for row in before if row not in after} == {
        key(BLOCK, int.from_bytes(row[1:], "big")) for row in after if row[:1] == LOST
    }


def test_without_room_for_a_second_database_nothing_is_begun(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(home, key(BLOCK, HIT))
    monkeypatch.setattr(rebuild, "directory_bytes", lambda _path: 2**62)

    with pytest.raises(StorageFull, match="make room"):
        check_room_to_mend(home)
    assert not mend_ledger(home, CONFIGURATION, SilentLog())
    flip(home, APPLIED)
    assert not healed(home)

    assert asides(home) == []


@pytest.mark.parametrize("is_moved_aside", [False, True])
def test_a_crash_while_the_databases_change_places_leaves_the_old_or_the_new(
    home: Path, is_moved_aside: bool
) -> None:
    flip(home, key(BLOCK, HIT))
    assert mend_ledger(home, CONFIGURATION, SilentLog())
    new, old = home / "ledger", home / "ledger.damaged-1"
    new.rename(home / "ledger.mended")
    if not is_moved_aside:
        old.rename(home / "ledger")
    (home / "payloads").mkdir()
    identity = LedgerDouble(1).members[0].identity

    if is_moved_aside:
        (home / "payloads").rmdir()
        with pytest.raises(Corruption, match="payloads"), _opened(home, identity):
            pass
        assert key(BLOCK, HIT) not in rows_of(home)
    else:
        with pytest.raises(Corruption, match="payloads"), _opened(home, identity):
            pass
        assert mend_ledger(home, CONFIGURATION, SilentLog())
    assert "ledger.mended" not in asides(home)
    with closing(open_ledger(home, create=False)) as ledger:
        assert HIT in lost_heights(ledger)


def _opened(home: Path, identity: Identity) -> AbstractContextManager[Databases]:
    return rebuild.opened(Home(home), identity, SeededEntropy("rebuild"), None, SilentLog())


# --- payloads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def chunks(home: Path) -> dict[Cid, bytes]:
    """Chunks in tables and in the log, each named by a record but for the first, which was to be deleted."""
    stored = {Cid(hashlib.sha256(data).digest()): data for data in (bytes([n]) * 9_000 for n in range(60))}
    first, *named = stored
    with (
        closing(open_ledger(home, create=False)) as ledger,
        closing(open_payloads(home, create=True)) as payloads,
    ):
        store, batch = ChunkStore(payloads, ledger), Batch()
        ChunkIndex.refer(batch, named, Rid(bytes(32)))
        ledger.write(batch, sync=True)
        for cid, data in stored.items():
            store.put_many([(cid, data)])
            if cid == named[40]:
                payloads.flush()
        shutil.copytree(home / "payloads", home / "killed")
    shutil.rmtree(home / "payloads")
    (home / "killed").rename(home / "payloads")
    del stored[first]
    return stored


def rot(home: Path, pattern: str) -> None:
    (file,) = (path for path in (home / "payloads").glob(pattern) if path.stat().st_size)
    whole = bytearray(file.read_bytes())
    whole[3] ^= 1
    file.write_bytes(whole)


@pytest.mark.parametrize("pattern", ["CURRENT", "MANIFEST-*", "*.log"])
def test_a_payload_database_that_does_not_open_is_made_anew_from_what_is_whole_in_it(
    home: Path, chunks: dict[Cid, bytes], pattern: str
) -> None:
    rot(home, pattern)
    identity = LedgerDouble(1).members[0].identity

    with _opened(home, identity) as found:
        here = {cid: found.chunks.get(cid) for cid in found.chunks.cids()}

    assert here.items() <= chunks.items()
    assert len(here) >= (len(chunks) - 1 if pattern == "*.log" else len(chunks))
    assert asides(home) == ["payloads", "payloads.damaged-1"]
    with _opened(home, identity) as again:
        assert set(again.chunks.cids()) == set(here)


def test_a_payload_database_is_left_to_an_operator_where_it_is_gone_or_has_no_room(
    home: Path, chunks: dict[Cid, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = LedgerDouble(1).members[0].identity
    rot(home, "MANIFEST-*")
    with monkeypatch.context() as full:
        full.setattr(rebuild, "directory_bytes", lambda _path: 2**62)
        with pytest.raises(Unreadable, match="--rebuild payloads"), _opened(home, identity):
            pass
    shutil.rmtree(home / "payloads")
    with pytest.raises(Corruption, match="--rebuild payloads"), _opened(home, identity):
        pass

    assert asides(home) == []
    assert chunks
