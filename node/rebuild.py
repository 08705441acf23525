"""Opens the databases of a home, and makes a damaged one anew: as an operator says (`run --rebuild payloads|ledger`), or unasked.

The new database is made in a directory of its own, with what could be rescued of the damaged one, and takes its place
only when it is complete: after a crash in between the command is repeated. What other members hold comes back from them
while the daemon runs: blocks by catch-up, chunks and envelopes by repair. The damaged one is kept beside it.

A damaged ledger needs no command: whatever ended the daemon, the ledger is made anew and the daemon goes on. Where only blocks and
their certificates are damaged, all else is carried over, votes among it (`mend_ledger`); else as by the command: this voter
signs nothing until it has caught up and begun anew (`heal_ledger`).
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from node.event_log import EventLog
from node.home import Home
from node.identity import Identity
from node.ports import Entropy
from node.queued_record import QueuedRecord
from node.repair import look_again
from node.sealed_rows import SealedRows
from protocol import codec
from protocol.block import genesis_block
from protocol.configuration import Configuration
from protocol.errors import CarechainError, Corruption, StorageFull, Unreadable
from protocol.identifiers import Cid
from storage import databases, disk_reserve
from storage.chunk_index import ChunkIndex
from storage.chunk_store import ChunkStore
from storage.directories import asides, directory_bytes, move_aside, newest_aside, sync_directory
from storage.file_check import damaged_files
from storage.key_value import Batch
from storage.keyspace import RECORD_QUEUE, SEQUENCE_END
from storage.ledger_store import LedgerStore
from storage.leveldb import LevelDb
from storage.mend import Damage, lost_heights, mend
from storage.rescue import rescue_own_rows, rescue_payloads

_BEING_MADE = "rebuilding"
_MENDED = ".mended"
_CHUNKS_PER_WRITE = 8
ASIDES_PER_DAY = 3
"""A disk that damages its tables faster than that is no disk to go on with."""
_DAY_MS = 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class Databases:
    """The two databases of a running node, and the chunks in them."""

    payloads: LevelDb
    ledger: LevelDb
    chunks: ChunkStore


@contextlib.contextmanager
def opened(
    home: Home, identity: Identity, entropy: Entropy, rebuild: str | None, log: EventLog
) -> Iterator[Databases]:
    """Open both databases; make the one to `rebuild` anew first.

    Raises:
        Corruption: one does not open, or is missing from a home that had it; the sentence names the command that mends it.
    """
    for name in (databases.PAYLOADS, databases.LEDGER):
        _finish_replacing(home.path, name)
    is_new = not any((home.path / name).exists() for name in (databases.PAYLOADS, databases.LEDGER))
    if rebuild == databases.LEDGER:
        _rebuild_ledger(home.path, log)
    with contextlib.closing(databases.open_ledger(home.path, create=is_new)) as ledger:
        own = SealedRows(ledger, identity.fingerprint, entropy)
        if rebuild == databases.PAYLOADS:
            _rebuild_payloads(home.path, ledger, own, log)
        with contextlib.closing(_open_payloads(home.path, ledger, own, log, create=is_new)) as payloads:
            yield Databases(payloads, ledger, ChunkStore(payloads, ledger))


def mend_ledger(home: Path, genesis: Configuration, log: EventLog) -> bool:
    """Make the ledger anew without the damaged blocks in it; return whether the daemon may serve again.

    False when nothing is damaged, or more than blocks; true also when a block that ended the daemon is only to be fetched
    yet. The home's lock is held, and the database is closed. What is lost is noted in the new one; `block_repair` fetches it.
    """
    is_to_be_fetched = False
    try:
        check_room_to_mend(home)
        with (
            contextlib.closing(databases.open_ledger(home, create=False)) as damaged,
            contextlib.closing(databases.open_ledger(_workshop(home), create=True)) as fresh,
        ):
            damage = mend(damaged, fresh, genesis_block(genesis))
            is_to_be_fetched = bool(lost_heights(damaged))
            damage.is_met = damage.is_met or bool(damaged_files(home / databases.LEDGER))
    except (Corruption, StorageFull, OSError) as reason:
        # Nothing was changed. The daemon ends as it was about to, and what it says names the command.
        log.debug("the ledger database cannot be mended", reason=str(reason))
        damage = Damage()
    if damage.is_met:
        _replace(home, databases.LEDGER)
        log.warning(
            "made a new ledger database without the damaged blocks in it; the damaged one is kept beside it: check the disk",
            database=databases.LEDGER,
            blocks=len(damage.blocks),
            count=len(damage.blocks) + len(damage.certificates),
        )
    shutil.rmtree(home / _BEING_MADE, ignore_errors=True)
    return damage.is_met or is_to_be_fetched


def heal_ledger(
    home: Path, genesis: Configuration, fault: Corruption, log: EventLog, *, has_others: bool, now_ms: int
) -> bool:
    """Make the ledger whole unasked, whose `fault` ended the daemon; return whether the daemon may serve again.

    False where people have to look first: files are gone (a disk that is not mounted?), everything can be read and is wrong
    (the program's doing?), nobody else has it, it was done often today, or there is no room. The home's lock is held, and the
    database is closed.
    """
    if mend_ledger(home, genesis, log):
        return True
    if not (home / databases.LEDGER / "CURRENT").exists():
        return False
    if not _is_unreadable(home):
        # What could not be read was merged away meanwhile, or wrong in memory only.
        return isinstance(fault, Unreadable)
    if not has_others:
        return False
    if not _may_be_made_anew(home, databases.LEDGER, log, now_ms=now_ms):
        return False
    _rebuild_ledger(home, log)
    return True


def _may_be_made_anew(home: Path, name: str, log: EventLog, *, now_ms: int) -> bool:
    since_ns = (now_ms - _DAY_MS) * 1_000_000
    # When it was moved aside: a renamed directory is a changed one.
    if sum(path.stat().st_ctime_ns >= since_ns for path in asides(home / name)) >= ASIDES_PER_DAY:
        log.error("a database was made anew several times today: check disk and memory", database=name)
        return False
    try:
        check_room_to_mend(home, name)
    except StorageFull as full:
        log.warning("a database cannot be made anew", database=name, problem=str(full))
        return False
    return True


def _is_unreadable(home: Path) -> bool:
    try:
        with contextlib.closing(databases.open_ledger(home, create=False)) as ledger:
            for _ in ledger.scan(b"", SEQUENCE_END):
                pass
    except Unreadable:
        return True
    except (Corruption, StorageFull, OSError):
        return False  # the daemon ends with what it has said before
    return False


def check_room_to_mend(home: Path, name: str = databases.LEDGER) -> None:
    """Check that a database fits on the disk a second time, with the disk's reserve left.

    Raises:
        StorageFull: it does not.
    """
    adding = directory_bytes(home / name) if (home / name).exists() else 0
    try:
        disk_reserve.check_reserve(home, adding=adding)
    except StorageFull:
        raise StorageFull(
            f"the {name} database holds damaged bytes and the disk has no room to make it anew beside itself: make room, "
            "then start the daemon again"
        ) from None


def _replace(home: Path, name: str) -> None:
    """Put the complete new database in the place of the damaged one, which is kept beside it."""
    # Under a name of its own only when it is complete, so that a crash from here on loses nothing (`_finish_replacing`).
    (home / _BEING_MADE / name).rename(home / f"{name}{_MENDED}")
    sync_directory(home)
    move_aside(home / name)
    _finish_replacing(home, name)
    shutil.rmtree(home / _BEING_MADE, ignore_errors=True)


def _finish_replacing(home: Path, name: str) -> None:
    """Put a new database in the place of the one that was moved aside for it; where none was, it is made again."""
    mended = home / f"{name}{_MENDED}"
    if (home / name).exists():
        shutil.rmtree(mended, ignore_errors=True)
    elif mended.exists():
        mended.rename(home / name)
        sync_directory(home)


def is_of_ledger(error: Corruption) -> bool:
    """Whether a corruption that ended the daemon, with its cure named, is the ledger database's."""
    return f"{databases.REBUILD[databases.LEDGER]}" in str(error)


def naming_cure(error: Corruption) -> Corruption:
    """Return a corruption that ended the daemon, with the command that mends it if it names none.

    Whatever ends a daemon was read from the ledger database: a damaged chunk only ever costs an answer.
    """
    text = str(error)
    if "--rebuild" in text or "restore" in text:
        return error
    return type(error)(f"{text}; run `{databases.REBUILD[databases.LEDGER]}`")


def _rebuild_ledger(home: Path, log: EventLog) -> None:
    """Make a ledger that holds this facility's own rows only, and says that its voter has to catch up."""
    damaged = _damaged(home, databases.LEDGER)
    with contextlib.closing(databases.open_ledger(_workshop(home), create=True)) as ledger:
        LedgerStore.mark_rebuilt(ledger)
        rescued = rescue_own_rows(damaged, ledger) if damaged is not None else 0
    _replace(home, databases.LEDGER)
    log.warning(
        "made a new ledger database: own rows were rescued, blocks come from peers; records and file notes that lay in "
        "damaged parts are lost here, see carechain record list",
        database=databases.LEDGER,
        count=rescued,
    )


def _open_payloads(home: Path, ledger: LevelDb, own: SealedRows, log: EventLog, *, create: bool) -> LevelDb:
    """Open the payload database; where its files are damaged, make it anew from all that is whole in them.

    Raises:
        Corruption: it does not open, and people have to look first: as `heal_ledger`.
    """
    try:
        return databases.open_payloads(home, create=create)
    except Unreadable:
        if not _may_be_made_anew(home, databases.PAYLOADS, log, now_ms=int(time.time() * 1_000)):
            raise
        log.warning("the payload database does not open", database=databases.PAYLOADS)
        _rebuild_payloads(home, ledger, own, log)
        return databases.open_payloads(home, create=False)


def _rebuild_payloads(home: Path, ledger: LevelDb, own: SealedRows, log: EventLog) -> None:
    """Make a payload database that holds what is whole in the damaged one; without room for it only what nobody else may have.

    What no record names any more stays away: it was to be deleted.
    """
    damaged = _damaged(home, databases.PAYLOADS)
    unfinal = _chunks_of_queue(own)
    wanted = set(unfinal)
    with contextlib.suppress(StorageFull):
        check_room_to_mend(home, databases.PAYLOADS)
        wanted.update(cid for cid, _ in ChunkIndex(ledger).named())
    rescued, lost = 0, set(unfinal)
    with contextlib.closing(databases.open_payloads(_workshop(home), create=True)) as payloads:
        chunks = ChunkStore(payloads, ledger)
        portion: list[tuple[Cid, bytes]] = []
        for chunk in rescue_payloads(damaged, wanted) if damaged is not None and wanted else ():
            lost.discard(chunk[0])
            portion.append(chunk)
            if len(portion) == _CHUNKS_PER_WRITE:
                rescued += chunks.put_many(portion, trusted=True)
                portion = []
        rescued += chunks.put_many(portion, trusted=True)
    batch = Batch()
    look_again(batch)
    ledger.write(batch, sync=True)
    _replace(home, databases.PAYLOADS)
    log.warning(
        "made a new payload database from what is whole in the damaged one; the other chunks come from peers",
        database=databases.PAYLOADS,
        count=rescued,
    )
    if lost:
        log.error(
            "chunks of records that are not final could not be rescued; add the files again that carechain record list "
            "does not show as final in a few minutes",
            database=databases.PAYLOADS,
            count=len(lost),
        )


def _chunks_of_queue(own: SealedRows) -> frozenset[Cid]:
    cids: set[Cid] = set()
    for rid in own.keys(RECORD_QUEUE):
        with contextlib.suppress(CarechainError):  # a damaged row: nobody will ever ask for its chunks
            row = own.get(RECORD_QUEUE + rid)
            cids.update(codec.decode(row, QueuedRecord).cids if row is not None else ())
    return frozenset(cids)


def _damaged(home: Path, name: str) -> Path | None:
    """Return the database to rescue from: the one in place, else (after a crash in a rebuild) the last moved aside."""
    return home / name if (home / name).exists() else newest_aside(home / name)


def _workshop(home: Path) -> Path:
    shutil.rmtree(home / _BEING_MADE, ignore_errors=True)
    return home / _BEING_MADE
