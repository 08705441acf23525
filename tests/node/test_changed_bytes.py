"""One byte changed anywhere in the files of a ledger database: it is named, and repaired with nobody asked for anything.

The daemon's loop in one process: open, follow the others, walk; what ends it has the database made anew (`node.daemon.serve`).
"""

import collections
import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import pytest
import trio
import trio.testing

from node.applier import Applier, Certified
from node.block_repair import BlockRepair
from node.damage_notice import DamageNotice
from node.ledger_audit import LedgerAudit
from node.rebuild import heal_ledger
from node.receipts import Receipts
from node.store_audit import Database, StoreAudit
from node.verification import Verification
from protocol.errors import Corruption
from protocol.passphrase import Hardness
from storage import table_file
from storage.chunk_store import ChunkStore
from storage.databases import LEDGER, open_ledger
from storage.envelope_store import EnvelopeStore
from storage.file_check import damaged_files
from storage.key_value import Batch
from storage.keyspace import APPLIED, BLOCK, CERTIFICATE, HARD_STATE, RECORD_QUEUE, SEQUENCE_END, STATE, TREE
from storage.keystore import Keystore
from storage.ledger_store import LedgerStore
from storage.leveldb import LevelDb
from storage.memory import MemoryStore
from tests.node.ledger_double import DoubleClock, InlineDisk, InlineWorkers, SeededEntropy, SilentLog
from tests.node.rotting_house import CERTIFICATES, CHAIN, HONEST, ME, MIDDLE, TIP, served_by_another
from tests.node.scripted_transport import ScriptedTransport, Stream
from tests.protocol.chain import CONFIGURATION, NETWORK

FLIPS = int(os.environ.get("CARECHAIN_FLIPS", "3"))
"""How many bytes are changed, of as many kinds of places, each in a fresh copy; hundreds by hand."""
COMMON = (APPLIED, BLOCK, CERTIFICATE, TREE, STATE)
"""What every member has."""
LIVES_MAX = 4
_FILTER = b"filter.leveldb.BuiltinBloomFilter2"
HOURS = 25 * 3_600.0
"""Longer than the time between two walks."""


def filled(home: Path, *, is_killed: bool) -> Path:
    """Make a ledger of three lives of a daemon: the whole chain applied, state, votes and own rows; the last one ended or was killed."""
    lives = [(1, 3), (4, MIDDLE), (MIDDLE + 1, TIP)]
    running = home.with_suffix(".running") if is_killed else home
    running.mkdir()
    for number, (first, last) in enumerate(lives):
        with contextlib.closing(open_ledger(running, create=not number)) as ledger:
            batch, draw = Batch(), random.Random(number)
            for row in range(40):
                batch.put(RECORD_QUEUE + bytes((row, number)) * 16, draw.randbytes(150))
            batch.put(HARD_STATE, b"a vote")
            store = LedgerStore(ledger, CONFIGURATION)
            ledger.write(batch, sync=True)
            applier = Applier(store, InlineDisk(ledger), Receipts())
            trio.run(applier.apply, Certified(CHAIN[first : last + 1], CERTIFICATES[last], is_stored=False))
            if is_killed and number == len(lives) - 1:
                shutil.copytree(running, home)
    return home


@dataclass(frozen=True)
class Ledger:
    """A home as it was left, stopped or killed, and the rows that every member has."""

    name: str
    home: Path
    rows: dict[bytes, bytes]


def common_rows(ledger: LevelDb) -> dict[bytes, bytes]:
    return {key: value for key, value in ledger.scan(b"", SEQUENCE_END) if key[:1] in COMMON}


@pytest.fixture(scope="module", params=["stopped", "killed"])
def ledger(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Ledger:
    folder = tmp_path_factory.mktemp("ledger")
    home = filled(folder / "home", is_killed=request.param == "killed")
    shutil.copytree(home, folder / "read")
    with contextlib.closing(open_ledger(folder / "read", create=False)) as read:
        return Ledger(request.param, home, common_rows(read))


# --- where a byte is ------------------------------------------------------------------------------------------------


def places(directory: Path) -> dict[str, list[tuple[Path, int]]]:
    """Return every byte of a database that is not the engine's own log, by what it belongs to."""
    found: dict[str, list[tuple[Path, int]]] = collections.defaultdict(list)
    for file in sorted(directory.iterdir()):
        if not file.name.startswith("LO"):
            for position, kind in enumerate(kinds(file)):
                found[kind].append((file, position))
    return found


def kinds(file: Path) -> Iterator[str]:
    """Return what each byte of a file belongs to."""
    data = file.read_bytes()
    if file.suffix == ".ldb":
        return kinds_in_table(data)
    if file.suffix == ".log" or file.name.startswith("MANIFEST"):
        return kinds_in_log("log" if file.suffix else "manifest", data)
    return iter([file.name] * len(data))


def kinds_in_log(name: str, data: bytes) -> Iterator[str]:
    left = header = 0
    for position in range(len(data)):
        if not left and not header:
            header, left = 7, int.from_bytes(data[position + 4 : position + 6], "little")
        yield f"{name} {'header' if header else 'payload'}"
        header, left = (header - 1, left) if header else (0, left - 1)


def kinds_in_table(data: bytes) -> Iterator[str]:
    footer = len(data) - 48
    meta, position = table_file.varint(data, footer)
    _, position = table_file.varint(data, position)
    index, position = table_file.varint(data, position)
    _, padding = table_file.varint(data, position)
    filters, _ = table_file.varint(data, data.index(_FILTER, meta) + len(_FILTER))
    ends = {
        filters: "keys",
        meta: "filter",
        index: "meta index",
        footer: "index",
        padding: "footer",
        len(data) - 8: "padding",
        len(data): "magic",
    }
    named = [
        f"table {kind}"
        for start, (end, kind) in zip((0, *ends), ends.items(), strict=False)
        for _ in range(start, end)
    ]
    for change in table_file.intact_changes(data, lambda _first, _last: True):
        for at in range(
            start := data.find(change.value or b"", 0, filters), start + len(change.value or b"")
        ):
            named[at] = f"table row of {change.key[:1].decode()}"
    return iter(named)


def changed(file: Path, position: int, draw: random.Random) -> None:
    """Change one bit in place, as a disk does: an open table is mapped into memory."""
    with file.open("r+b") as opened:
        opened.seek(position)
        byte = opened.read(1)[0]
        opened.seek(position)
        opened.write(bytes([byte ^ 1 << draw.randrange(8)]))


# --- the daemon's loop ------------------------------------------------------------------------------------------------


class Member:
    """Whoever serves a home. What it has said of damage: in its log, in an audit, or as it ended."""

    def __init__(self, home: Path, honest: Stream) -> None:
        self.home = home
        self.log = SilentLog()
        self.transport = ScriptedTransport(ME, (HONEST,))
        self.transport.streams[HONEST] = honest
        self.problems: list[str] = []
        self.ends: list[str] = []

    @property
    def has_named(self) -> bool:
        spoken = any(level in {"warning", "error"} for level, _, _ in self.log.events)
        return spoken or bool(self.problems) or bool(self.ends)

    @property
    def outcome(self) -> str:
        said = {event for level, event, _ in self.log.events if level in {"warning", "error"}}
        if any("own rows were rescued" in event for event in said):
            return "refilled"
        return "mended" if list(self.home.glob("ledger.damaged-*")) else "of no consequence"

    async def serve(self, change: Callable[[], None] | None = None) -> None:
        """Serve for longer than a day, after every end again; `change` happens to the files while it serves."""
        for _ in range(LIVES_MAX):
            fault = None
            try:
                with contextlib.closing(open_ledger(self.home, create=False)) as rows:
                    fault = await self._live(rows, change)
            except Corruption as error:
                fault = error
            if fault is None:
                return
            self.ends.append(str(fault))
            now_ms = int(time.time() * 1_000)
            assert heal_ledger(self.home, CONFIGURATION, fault, self.log, has_others=True, now_ms=now_ms), (
                fault
            )
            change = None
        raise AssertionError(f"it does not come to rest: {self.ends}")

    async def _live(self, rows: LevelDb, change: Callable[[], None] | None) -> Corruption | None:
        store, disk, damage = LedgerStore(rows, CONFIGURATION), InlineDisk(rows), DamageNotice(is_whole=False)
        database = Database(LEDGER, rows, "", partial(damaged_files, self.home / LEDGER))
        repair = BlockRepair(
            store=store, rows=rows, disk=disk, transport=self.transport,
            verification=Verification(NETWORK, InlineWorkers(), self.log), workers=InlineWorkers(),
            clock=DoubleClock(), log=self.log, damage=damage, check_room=lambda: None,
            damaged_files=database.damaged_files,
        )  # fmt: skip
        await follow(store, disk)
        fault = None
        try:
            with trio.move_on_after(HOURS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(repair.run)
                    await trio.sleep(HOURS / 25)
                    if change is not None:
                        change()
                        self.problems = await audited(database, store, damage)
        except* Corruption as group:
            (first,) = group.exceptions
            assert isinstance(first, Corruption)
            fault = first
        return fault


async def follow(store: LedgerStore, disk: InlineDisk) -> None:
    """Bring a ledger up to the others, as catch-up does."""
    applier = Applier(store, disk, Receipts())
    for last, certificate in CERTIFICATES.items():
        first = applier.mark.height + 1
        if first <= last:
            await applier.apply(Certified(CHAIN[first : last + 1], certificate, is_stored=False))


async def audited(database: Database, store: LedgerStore, damage: DamageNotice) -> list[str]:
    """Return what `audit verify --full` says."""
    rows, workers = database.rows, InlineWorkers()
    findings = (ledger_audit := LedgerAudit(store, workers, damage)).begin()
    async for _ in ledger_audit.verify(findings):
        pass
    keystore = Keystore.create(MemoryStore(), "x", SeededEntropy("keys").bytes, hardness=Hardness(1, 8192))
    whole = StoreAudit(
        chunks=ChunkStore(MemoryStore(), rows), envelopes=EnvelopeStore(rows), keystore=keystore, store=store,
        databases=(database,), workers=workers, damage=damage,
    )  # fmt: skip
    async for _ in whole.verify(findings.problems):
        pass
    return findings.problems.sentences()


async def assert_whole(member: Member, truth: dict[bytes, bytes]) -> None:
    """Blocks, certificates, tree, state and mark are those of every other member, and an audit has nothing to say."""
    with contextlib.closing(open_ledger(member.home, create=False)) as rows:
        assert common_rows(rows) == truth
        files = partial(damaged_files, member.home / LEDGER)
        database = Database(LEDGER, rows, "", files)
        assert await audited(database, LedgerStore(rows, CONFIGURATION), DamageNotice()) == []


# --- what is changed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_running", [False, True])
async def test_a_changed_byte_is_named_and_repaired_wherever_it_is(
    ledger: Ledger, is_running: bool, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    draw, honest = random.Random(f"{ledger.name} {is_running}"), await served_by_another()
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    # What is in a log is in memory as well while it runs, and soon in a table; after a crash it is as when it was stopped.
    everywhere = [
        kind for kind in sorted(places(ledger.home / LEDGER)) if not is_running or "log" not in kind
    ]
    draw.shuffle(everywhere)
    for number, kind in enumerate(islice(cycle(everywhere), FLIPS)):
        home = Path(shutil.copytree(ledger.home, tmp_path / str(number)))
        member = Member(home, honest)

        def change(home: Path = home, kind: str = kind) -> None:
            changed(*draw.choice(places(home / LEDGER)[kind]), draw)

        if is_running:
            await member.serve(change)
        else:
            change()
        # Also what the engine had in its cache is read from the disk at the next start.
        await member.serve()

        assert member.has_named, kind
        await assert_whole(member, ledger.rows)
        outcomes[kind, member.outcome] += 1
        shutil.rmtree(home)
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{ledger.name}, {'running' if is_running else 'at rest'}: {kind:20} {outcome:18} {count:4}")
