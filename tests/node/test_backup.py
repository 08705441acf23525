"""A backup of one member's services, restored into a home; row for row."""

import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from node.backup import Backup, BackupSources, HomeFiles
from node.home import Home
from node.identity import Identity
from node.queued_record import QueuedRecord
from node.restore import Restored, restore
from protocol import codec
from protocol.errors import NotFinal, Refused, Unavailable
from protocol.hpke import x25519_public
from protocol.identifiers import Rid
from storage import databases, keyspace
from storage.backup_file import BackupReader, Kind
from storage.chunk_store import ChunkStore
from storage.key_value import Batch, KeyValue
from storage.keystore import Keystore
from tests.node.record_house import Facility, houses

SECRET = bytes(range(32))
NOW_MS = 1_900_000_000_000
PDF = b"%PDF-1.4 " + random.Random(1).randbytes(5_000)


def files_of(folder: Path) -> HomeFiles:
    """Return the small files of a home, made for this."""
    home = Home(folder)
    folder.mkdir()
    for path in (home.config, home.card, home.genesis):
        path.write_text(f"the {path.name} of the home")
    home.recovery_key.write_text("not to be copied")
    return HomeFiles.of(home)


def backup_of(facility: Facility, folder: Path) -> Backup:
    facility.member.keystore.set_recovery_key(x25519_public(SECRET))
    sources = BackupSources(
        files=files_of(folder / "original"), rows=facility.member.rows, own=facility.sealed, chunks=facility.chunks,
        holder=facility.holder, keystore=facility.member.keystore, store=facility.store,
    )  # fmt: skip
    member = facility.member
    return Backup(
        sources,
        facility.me,
        workers=member.workers,
        clock=member.clock,
        entropy=member.entropy,
        log=member.log,
    )


async def made(backup: Backup, file: Path, *, with_payloads: bool = False) -> dict[str, Any]:
    stream = await backup.begin(with_payloads=with_payloads)
    with file.open("wb") as opened:
        async for piece in backup.pieces(stream):
            opened.write(piece)
    return stream.summary()


@contextmanager
def unseen(_total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _done: None


def restored(home: Path, file: Path, secret: bytes = SECRET, passphrase: str | None = None) -> Restored:
    return restore(
        Home(home), file, secret, passphrase=passphrase, entropy=os.urandom, now_ms=NOW_MS, started=unseen
    )


@asynccontextmanager
async def hospital_of(voters: int) -> AsyncIterator[tuple[Facility, str]]:
    async with houses(voters) as (hospital, *_):
        yield hospital, await hospital.admit()


def rows_of(database: KeyValue) -> dict[bytes, bytes]:
    return dict(database.scan(b"", keyspace.SEQUENCE_END))


@contextmanager
def opened(home: Path) -> Iterator[tuple[KeyValue, KeyValue, KeyValue]]:
    """Open ledger, payloads and keys of a restored home."""
    with contextlib.ExitStack() as stack:
        yield (
            stack.enter_context(contextlib.closing(databases.open_ledger(home, create=False))),
            stack.enter_context(contextlib.closing(databases.open_payloads(home, create=False))),
            stack.enter_context(contextlib.closing(databases.open_keys(home, create=False))),
        )


async def test_a_restored_home_holds_ledger_keys_and_own_rows_and_has_forgotten_what_it_signed(
    autojump_clock, tmp_path: Path
) -> None:
    async with hospital_of(3) as (hospital, patient):
        await hospital.add(PDF, patient=patient)
        batch = Batch()
        batch.put(keyspace.HARD_STATE, b"a vote that may have been followed by another one")
        batch.put(keyspace.CHUNK_RECLAIM + keyspace.sequence_key(7), b"of payloads that are not here")
        batch.put(keyspace.LOG_WITNESS + bytes(32), b"what it cosigned, perhaps more since")
        hospital.member.rows.write(batch, sync=True)
        summary = await made(backup_of(hospital, tmp_path), tmp_path / "b")
        before = rows_of(hospital.member.rows)
        secrets = rows_of(hospital.member.secrets)
        height = hospital.store.applied().height

    outcome = restored(tmp_path / "h", tmp_path / "b")

    assert summary == {"height": height, "chunks": 0, "left_out": 0}
    assert (outcome.height, outcome.chunks, outcome.contents.facility) == (height, 0, "hospital")
    with opened(tmp_path / "h") as (ledger, _, keys):
        after = rows_of(ledger)
        assert rows_of(keys) == secrets
    assert after.pop(keyspace.REBUILT) == b""
    assert after.pop(keyspace.RESTORED) == codec.pack(NOW_MS)
    elsewhere = {
        keyspace.CHUNK,
        keyspace.CHUNK_CURSOR,
        keyspace.CHUNK_RECLAIM,
        keyspace.HARD_STATE,
        keyspace.LOG_WITNESS,
    }
    repair_mark = keyspace.WATCH_MARK + b"repair"
    assert after == {
        key: value for key, value in before.items() if key[:1] not in elsewhere and key != repair_mark
    }


async def test_exactly_the_files_of_a_home_come_back_private(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(3) as (hospital, _):
        backup = backup_of(hospital, tmp_path)
        (tmp_path / "original" / "shares").mkdir()
        (tmp_path / "original" / "shares" / "000001.ldb").write_text("a share")
        await made(backup, tmp_path / "b")

    restored(tmp_path / "h", tmp_path / "b")

    home = Home(tmp_path / "h")
    names = {path.name for path in home.path.iterdir()}
    assert names == {"config.toml", "card.json", "genesis.json", "keys", "ledger", "payloads", "lock"}
    assert home.config.read_text() == "the config.toml of the home"
    assert home.config.stat().st_mode & 0o777 == 0o600
    assert home.path.stat().st_mode & 0o777 == 0o700


async def test_custody_wallets_open_with_a_new_passphrase_when_the_old_one_is_lost(
    autojump_clock, tmp_path: Path
) -> None:
    async with hospital_of(3) as (hospital, patient):
        row, identity = hospital.patients.row(patient), hospital.member.identity
        identity.store(hospital.member.keystore)
        await made(backup_of(hospital, tmp_path), tmp_path / "b")

    restored(tmp_path / "h", tmp_path / "b", passphrase="battery staple")

    with opened(tmp_path / "h") as (_, _, keys):
        keystore = Keystore.unlock(keys, "battery staple", os.urandom)
        stored = keystore.get(f"patient/{patient}")
        assert stored == codec.encode(row)
        assert Identity.load(keystore) == identity


async def test_chunks_that_nobody_else_need_have_are_in_it(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(3) as (hospital, patient):
        await hospital.add(PDF, patient=patient)
        hospital.ledger.has_quorum = False
        with pytest.raises(NotFinal) as queued:
            await hospital.add(b"%PDF-1.5", patient=patient)
        summary = await made(backup_of(hospital, tmp_path), tmp_path / "b")
        row = hospital.sealed.get(keyspace.RECORD_QUEUE + bytes.fromhex(queued.value.ids[0]))
        assert row is not None
        cids = codec.decode(row, QueuedRecord).cids

    outcome = restored(tmp_path / "h", tmp_path / "b")

    assert summary["chunks"] == outcome.chunks == len(cids)
    with opened(tmp_path / "h") as (ledger, payloads, _):
        assert set(ChunkStore(payloads, ledger).cids()) == set(cids)


async def test_chunks_that_no_other_member_has_confirmed_are_in_it(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(3) as (hospital, patient):
        (entry,) = (await hospital.add(PDF, patient=patient))["records"]
        rid = Rid(bytes.fromhex(entry["record"]))
        placed = hospital.holder.placed(rid)
        assert placed is not None
        others = [node for node in hospital.store.configuration.storing if node != hospital.me]
        batch = Batch()
        batch.put(keyspace.UNDER_REPLICATED + rid, codec.pack(*others))
        hospital.member.rows.write(batch, sync=True)
        summary = await made(backup_of(hospital, tmp_path), tmp_path / "b")

    assert summary["chunks"] == len(placed.cids)


@pytest.mark.parametrize("voters", [1, 3])
async def test_all_chunks_are_in_it_when_asked_for_or_when_nobody_else_stores(
    autojump_clock, tmp_path: Path, voters: int
) -> None:
    async with hospital_of(voters) as (hospital, patient):
        await hospital.add(PDF, patient=patient)
        cids = set(hospital.chunks.cids())
        await made(backup_of(hospital, tmp_path), tmp_path / "b", with_payloads=voters > 1)

    outcome = restored(tmp_path / "h", tmp_path / "b")

    assert outcome.chunks == len(cids) > 0
    assert outcome.contents.with_payloads
    with opened(tmp_path / "h") as (ledger, payloads, _):
        chunks = ChunkStore(payloads, ledger)
        assert {cid for cid in cids if chunks.get(cid) is not None} == cids


async def test_a_damaged_chunk_is_left_out_and_counted(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(3) as (hospital, patient):
        await hospital.add(PDF, patient=patient)
        total = len(set(hospital.chunks.cids()))
        key, value = next(hospital.payloads.scan(b"", keyspace.SEQUENCE_END))
        batch = Batch()
        batch.put(key, value[:-1] + bytes([value[-1] ^ 1]))
        hospital.payloads.write(batch, sync=True)

        summary = await made(backup_of(hospital, tmp_path), tmp_path / "b", with_payloads=True)

    assert (summary["chunks"], summary["left_out"]) == (total - 1, 1)


async def test_what_is_written_while_a_backup_is_made_is_not_in_it(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(3) as (hospital, patient):
        backup = backup_of(hospital, tmp_path)
        before = rows_of(hospital.member.rows)
        stream = await backup.begin(with_payloads=False)
        await hospital.add(PDF, patient=patient)
        pieces = [piece async for piece in backup.pieces(stream)]
        assert rows_of(hospital.member.rows) != before
    (tmp_path / "b").write_bytes(b"".join(pieces))

    with (tmp_path / "b").open("rb") as file:
        entries = list(BackupReader(file, SECRET).entries())

    rows = {entry.key: entry.value for entry in entries if entry.kind is Kind.LEDGER_ROW}
    assert rows == {key: value for key, value in before.items() if key[:1] not in b"cCH"}


class Hooked:
    """Rows that do something as soon as a snapshot of them has been taken."""

    def __init__(self, rows: KeyValue, then: Callable[[], None]) -> None:
        self._rows = rows
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        for number, row in enumerate(self._rows.scan(start, stop, reverse=reverse)):
            if number == 0:
                self._then()
            yield row


async def test_the_keys_are_never_older_than_the_rows_that_need_them(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(3) as (hospital, _):
        keystore = hospital.member.keystore
        backup = backup_of(hospital, tmp_path)
        rows = cast("KeyValue", Hooked(hospital.member.rows, lambda: keystore.put("late", b"but in time")))
        backup = Backup(
            replace(backup._sources, rows=rows), hospital.me, workers=hospital.workers, clock=hospital.clock,
            entropy=hospital.member.entropy, log=hospital.member.log,
        )  # fmt: skip
        await made(backup, tmp_path / "b")

    restored(tmp_path / "h", tmp_path / "b")

    with opened(tmp_path / "h") as (_, _, keys):
        assert Keystore.recover(keys, SECRET, os.urandom).get("late") == b"but in time"


async def test_without_a_recovery_key_there_is_no_backup(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(1) as (hospital, _):
        backup = backup_of(hospital, tmp_path)
        batch = Batch()
        batch.delete(keyspace.RECOVERY)
        hospital.member.secrets.write(batch, sync=True)

        with pytest.raises(Refused, match="--new-recovery-key"):
            await backup.begin(with_payloads=False)


async def test_two_backups_are_not_made_at_once(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(1) as (hospital, _):
        backup = backup_of(hospital, tmp_path)
        pieces = backup.pieces(await backup.begin(with_payloads=False))
        assert await anext(pieces)

        with pytest.raises(Unavailable, match="another backup"):
            await backup.begin(with_payloads=False)
        await pieces.aclose()
        assert await backup.begin(with_payloads=False)


async def test_a_new_recovery_key_needs_the_passphrase(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(1) as (hospital, _):
        backup = backup_of(hospital, tmp_path)
        other = x25519_public(bytes(32))
        with pytest.raises(Refused, match="passphrase"):
            await backup.set_recovery_key(other, "not the passphrase")

        assert hospital.member.keystore.recovery_key() == x25519_public(SECRET)


async def test_of_two_backups_that_begin_together_one_goes_on(autojump_clock, tmp_path: Path) -> None:
    async with hospital_of(3) as (hospital, _):
        backup = backup_of(hospital, tmp_path)
        streams = [await backup.begin(with_payloads=False) for _ in range(2)]
        first, second = (backup.pieces(stream) for stream in streams)
        await anext(first)

        with pytest.raises(Unavailable, match="another backup"):
            await anext(second)
        with pytest.raises(Unavailable, match="another backup"):
            await backup.begin(with_payloads=False)

        await first.aclose()
        await second.aclose()
        assert await backup.begin(with_payloads=False)
