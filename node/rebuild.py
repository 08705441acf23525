"""Opens the databases of a home, and makes a damaged one anew first (`run --rebuild payloads|ledger`, `mend_ledger`).

The new database is made in a directory of its own, with what could be rescued of the damaged one, and takes its place
only when it is complete: after a crash in between the command is repeated. What other members hold comes back from them
while the daemon runs: blocks by catch-up, chunks and envelopes by repair. The damaged one is kept beside it.

A ledger in which only blocks and their certificates are damaged needs no command: whatever ended the daemon, it is mended, and
the daemon goes on (`storage.mend`).
"""

import contextlib
import shutil
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
from protocol.errors import CarechainError, Corruption, StorageFull
from protocol.identifiers import Cid
from storage import databases, disk_reserve
from storage.chunk_store import ChunkStore
from storage.directories import directory_bytes, move_aside, newest_aside, sync_directory
from storage.key_value import Batch
from storage.keyspace import RECORD_QUEUE
from storage.ledger_store import LedgerStore
from storage.leveldb import LevelDb
from storage.mend import Damage, lost_heights, mend
from storage.rescue import rescue_own_rows, rescue_payloads

_BEING_MADE = "rebuilding"
_MENDED = "ledger.mended"
_CHUNKS_PER_WRITE = 8


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
    _finish_mending(home.path)
    is_new = not any((home.path / name).exists() for name in (databases.PAYLOADS, databases.LEDGER))
    if rebuild == databases.LEDGER:
        _rebuild_ledger(home.path, log)
    with contextlib.closing(databases.open_ledger(home.path, create=is_new)) as ledger:
        if rebuild == databases.PAYLOADS:
            own = SealedRows(ledger, identity.fingerprint, entropy)
            _rebuild_payloads(home.path, ledger, own, log)
        with contextlib.closing(databases.open_payloads(home.path, create=is_new)) as payloads:
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
    except (Corruption, StorageFull, OSError) as reason:
        # Nothing was changed. The daemon ends as it was about to, and what it says names the command.
        log.debug("the ledger database cannot be mended", reason=str(reason))
        damage = Damage()
    if damage.is_met:
        # Under a name of its own only when it is complete, so that a crash from here on loses nothing (`_finish_mending`).
        (home / _BEING_MADE / databases.LEDGER).rename(home / _MENDED)
        sync_directory(home)
        move_aside(home / databases.LEDGER)
        _finish_mending(home)
        log.warning(
            "made a new ledger database without the damaged blocks in it; the damaged one is kept beside it: check the disk",
            database=databases.LEDGER,
            blocks=len(damage.blocks),
            count=len(damage.blocks) + len(damage.certificates),
        )
    shutil.rmtree(home / _BEING_MADE, ignore_errors=True)
    return damage.is_met or is_to_be_fetched


def check_room_to_mend(home: Path) -> None:
    """Check that the ledger database fits on the disk a second time, with the disk's reserve left.

    Raises:
        StorageFull: it does not.
    """
    try:
        disk_reserve.check_reserve(home, adding=directory_bytes(home / databases.LEDGER))
    except StorageFull:
        raise StorageFull(
            "the ledger database holds damaged bytes and the disk has no room to make it anew beside itself: make room, "
            "then start the daemon again"
        ) from None


def _finish_mending(home: Path) -> None:
    """Put a mended database in the place of the one that was moved aside for it; where none was, it is made again."""
    if (home / databases.LEDGER).exists():
        shutil.rmtree(home / _MENDED, ignore_errors=True)
    elif (home / _MENDED).exists():
        (home / _MENDED).rename(home / databases.LEDGER)
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
    return Corruption(f"{text}; run `{databases.REBUILD[databases.LEDGER]}`")


def _rebuild_ledger(home: Path, log: EventLog) -> None:
    """Make a ledger that holds this facility's own rows only, and says that its voter has to catch up."""
    damaged = _damaged(home, databases.LEDGER)
    with contextlib.closing(databases.open_ledger(_workshop(home), create=True)) as ledger:
        LedgerStore.mark_rebuilt(ledger)
        rescued = rescue_own_rows(damaged, ledger) if damaged is not None else 0
    _put_in_place(home, databases.LEDGER)
    log.warning(
        "made a new ledger database: own rows were rescued, blocks come from peers; records and file notes that lay in "
        "damaged parts are lost here, see carechain record list",
        database=databases.LEDGER,
        count=rescued,
    )


def _rebuild_payloads(home: Path, ledger: LevelDb, own: SealedRows, log: EventLog) -> None:
    """Make a payload database that holds the chunks of records that are not final: nobody else may have those."""
    damaged = _damaged(home, databases.PAYLOADS)
    wanted = _chunks_of_queue(own)
    rescued = 0
    with contextlib.closing(databases.open_payloads(_workshop(home), create=True)) as payloads:
        chunks = ChunkStore(payloads, ledger)
        portion: list[tuple[Cid, bytes]] = []
        for chunk in rescue_payloads(damaged, wanted) if damaged is not None and wanted else ():
            portion.append(chunk)
            if len(portion) == _CHUNKS_PER_WRITE:
                rescued += chunks.put_many(portion, trusted=True)
                portion = []
        rescued += chunks.put_many(portion, trusted=True)
    batch = Batch()
    look_again(batch)
    ledger.write(batch, sync=True)
    _put_in_place(home, databases.PAYLOADS)
    log.warning(
        "made a new payload database: chunks come from peers", database=databases.PAYLOADS, count=rescued
    )
    if rescued < len(wanted):
        log.error(
            "chunks of records that are not final could not be rescued; add the files again that carechain record list "
            "does not show as final in a few minutes",
            database=databases.PAYLOADS,
            count=len(wanted) - rescued,
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


def _put_in_place(home: Path, name: str) -> None:
    move_aside(home / name)
    # A crash here leaves the database missing: the start says so, and the rebuild is done again from the one moved aside.
    (home / _BEING_MADE / name).rename(home / name)
    sync_directory(home)
    shutil.rmtree(home / _BEING_MADE, ignore_errors=True)
