"""A ledger database with damaged blocks is made anew by itself; with anything else damaged it is left as it is."""

from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
import trio

from node import rebuild
from node.applier import Applier, Certified
from node.home import Home
from node.identity import Identity
from node.rebuild import Databases, check_room_to_mend, is_of_ledger, mend_ledger, naming_cure
from node.receipts import Receipts
from protocol.block import genesis_block
from protocol.errors import Corruption, StorageFull
from protocol.identifiers import Height
from storage import table_file
from storage.databases import open_ledger
from storage.key_value import Batch
from storage.keyspace import APPLIED, BLOCK, HARD_STATE, LOST, SEQUENCE_END
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


def test_a_ledger_whose_manifest_is_damaged_is_left_to_the_command(home: Path) -> None:
    (manifest,) = (home / "ledger").glob("MANIFEST-*")
    manifest.write_bytes(b"?" + manifest.read_bytes()[1:])

    assert not mend_ledger(home, CONFIGURATION, SilentLog())

    assert asides(home) == []


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
