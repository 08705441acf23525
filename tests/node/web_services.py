"""A daemon's services for tests of the HTTP seam: tiny, real objects that stream bytes and record what they were asked."""

import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, cast

import structlog
import trio
from starlette.requests import ClientDisconnect

from node.home import Home
from node.services import Services
from node.small_files import SmallFile
from node.telemetry import Metrics
from node.web.server import Listening, bind_http, serve_api
from protocol.errors import Corruption, Erased, Forbidden, NotFinal, Refused, StorageFull, Unavailable

RECORD = "ab" * 32
TRANSACTION = "cd" * 32
PIECE = bytes(range(256)) * 256


class Calls:
    """Answers every call of every noun; `asked` holds what came in."""

    def __init__(self, pieces: int = 4) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.starts: list[int] = []
        self.pieces = pieces
        self.received = 0
        self.cut_off = threading.Event()
        self.closed = threading.Event()
        self.largest_piece = 0
        self.breaks_after: int | None = None
        self.damaged = 0
        self.sha256: str | None = None
        self.refusal: Exception | None = None

    def report(self) -> dict[str, Any]:
        return {
            "facility": "A",
            "network": "12" * 32,
            "role": "voter",
            "leader": None,
            "term": 3,
            "height": 7,
            "certified_height": 6,
            "ordered_height": 7,
            "history_height": 6,
            "tree_size": 5,
            "tree_root": "34" * 32,
            "voters": ["A", "B"],
            "quorum": 2,
            "release_gate": False,
            "addresses": [],
            "http": None,
            "problems": ["the clock is off by 3 s; set it"],
            "peers": [{"name": "B", "peer_id": "12D3", "connected": True, "address": "", "found_by": "mdns"}],
        }

    def members(self) -> dict[str, Any]:
        return {
            "members": [{"name": "A\x1b[31m", "kind": "lab", "role": "voter", "peer_id": "12D3"}],
            "proposals": [],
        }

    async def propose(self, wish: Any, *, expires_ms: int, accept_risk: bool) -> dict[str, Any]:
        about = (wish.name, wish.card, wish.role, wish.leaves) if wish.min_b is None else (wish.min_b,)
        self.asked.append(("propose", (*about, expires_ms, accept_risk)))
        return self._proposal()

    async def leave(self, *, expires_ms: int, accept_risk: bool) -> dict[str, Any]:
        self.asked.append(("leave", (expires_ms, accept_risk)))
        return self._proposal()

    async def rotate(self, keys: list[str], *, expires_ms: int) -> dict[str, Any]:
        self.asked.append(("rotate", (keys, expires_ms)))
        return self._proposal()

    async def vote(self, proposal: str, *, is_yes: bool, accept_risk: bool) -> dict[str, Any]:
        self.asked.append(("vote", (proposal, is_yes, accept_risk)))
        return self._proposal()

    async def withdraw(self, proposal: str) -> dict[str, Any]:
        self.asked.append(("withdraw", proposal))
        return self._proposal()

    def ticket(self, facility: str, *, expires_ms: int) -> dict[str, Any]:
        self.asked.append(("ticket", (facility, expires_ms)))
        return {"facility": facility, "ticket": "{}\n"}

    @staticmethod
    def _proposal() -> dict[str, Any]:
        standing = {
            "signers": 4,
            "certificate_quorum": 3,
            "liars": 1,
            "crashes_ordering": 1,
            "crashes_finality": 1,
        }
        return {
            "proposal": TRANSACTION, "action": "remove B", "proposer": "A", "state": "open", "yes": 1, "no": 0,
            "needed": 3, "expires": "2030", "risk": "it costs", "before": standing, "after": standing,
        }  # fmt: skip

    async def figures(self) -> dict[str, Any]:
        return {
            "chunks": 1,
            "bytes": 2,
            "under_replicated": 0,
            "corrupt": 0,
            "padding_overhead": 0.04,
            "padding_overhead_max": 0.1,
            "databases": {
                "payloads": {
                    "compacting": True,
                    "levels": [
                        {"level": 0, "files": 5, "bytes": 1, "read_bytes": 0, "written_bytes": 8 << 20},
                        {
                            "level": 1,
                            "files": 2,
                            "bytes": 1,
                            "read_bytes": 8 << 20,
                            "written_bytes": 16 << 20,
                        },
                    ],
                }
            },
        }

    async def scrub(self, *, rate: int | None) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(("scrub", rate))
        walk = {"chunks": 1, "of_chunks": 2, "bytes": 1, "of_bytes": 2, "bad": 0, "repaired": 0, "rate": rate}
        yield {"progress": {"part": "chunks", **walk}}
        if self.breaks_after is not None:
            raise Unavailable("stopping")
        left = self.damaged
        yield {
            "result": {
                **walk, "ok": not left, "chunks": 2, "bad": 1, "corrupt": left, "away": ["B"] if left else [],
                "damaged": ["bafk"] * left, "problems": [],
            }
        }  # fmt: skip

    async def repair(self) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(("repair", None))
        yield {"progress": {"part": "records", "done": 1}}
        left = self.damaged
        helpless = [{"facility": "B", "reason": "not connected"}] if left else []
        yield {
            "result": {
                "ok": not left, "records": 1, "fetched": 1, "sent": 0, "lacking": left, "chunks": 1, "bytes": 2,
                "under_replicated": 0, "corrupt": 0, "unhelpful": helpless, "problems": [],
            }
        }  # fmt: skip

    async def reclaim(self) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(("reclaim", None))
        yield {"progress": {"part": "tables", "done": 0, "total": 1}}
        left = self.damaged
        yield {
            "result": {
                "ok": not left, "reclaimed_bytes": 5, "file_bytes": 9, "bytes": 2, "chunks": 1, "abandoned": 1,
                "unreclaimed": left, "quarantined": 0,
            }
        }  # fmt: skip

    async def register(self, source: bytes | None, **fields: Any) -> dict[str, Any]:
        self.asked.append(("register", (source, fields)))
        return {"patient": "p1", "known": False}

    async def prepare_handover(self, patient: str, *, passphrase: bytes) -> dict[str, Any]:
        self.asked.append(("prepare", (patient, passphrase)))
        return {"handover": "h1", "wallet": b"sealed wallet"}

    async def complete_handover(self, handover: str, *, grant: bool) -> dict[str, Any]:
        self.asked.append(("complete", (handover, grant)))
        if self.refusal is not None:
            raise self.refusal
        return {"transaction": TRANSACTION}

    async def add(self, stream: AsyncIterator[bytes], **fields: Any) -> dict[str, Any]:
        self.asked.append(("add", fields))
        match fields["patient"]:
            case "nobody":
                raise Refused("no patient matches 'nobody'; register the patient first")
            case "full":
                raise StorageFull("the disk's reserve is reached; free some space")
        try:
            async for piece in stream:
                self.received += len(piece)
                self.largest_piece = max(self.largest_piece, len(piece))
        except ClientDisconnect:
            self.cut_off.set()
            raise
        rows = [
            {
                "record": RECORD,
                "kind": "document",
                "category": "labs",
                "state": "final",
                "transaction": TRANSACTION,
            }
        ]
        if fields["patient"] == "queued":
            rows[0]["state"] = "received"
            raise NotFinal("safely queued, not final yet", (RECORD,), {"records": rows})
        return {"records": rows}

    async def add_many(self, files: tuple[SmallFile, ...], **fields: Any) -> dict[str, Any]:
        self.asked.append(("add_many", fields))
        outcomes: list[dict[str, Any]] = []
        for file in files:
            self.received += len(file.data)
            row = {"record": RECORD, "kind": "document", "category": "labs", "state": "final"}
            outcomes.append(
                {"error": "the file is not what it says"} if file.data == b"bad" else {"records": [row]}
            )
        if fields["patient"] == "queued":
            raise NotFinal("safely queued, not final yet", (RECORD,), {"files": outcomes})
        return {"files": outcomes}

    async def read(
        self, record: str, *, purpose: str, user: str | None, start: int
    ) -> tuple[dict[str, Any], AsyncIterator[bytes]]:
        self.asked.append(("read", (record, purpose, user)))
        self.starts.append(start)
        if record == "hidden":
            raise Forbidden("this record is not open to this facility")
        if record == "gone":
            raise Erased("the record was erased")
        if record == "damaged":
            raise Corruption("a chunk fails its check")
        if record == "bug":
            raise ValueError("Jane Doe")
        data = PIECE * self.pieces
        digest = self.sha256 or hashlib.sha256(data).hexdigest()
        start = start if start < len(data) else 0
        told = {
            "record": RECORD,
            "sha256": digest,
            "bytes": len(data),
            "transaction": TRANSACTION,
            "start": start,
        }
        return told, self._stream(start // len(PIECE))

    async def export(
        self, patient: str, *, purpose: str, user: str | None
    ) -> AsyncIterator[tuple[dict[str, Any], AsyncIterator[bytes]]]:
        self.asked.append(("export", (patient, purpose)))
        if patient == "nobody":
            raise Refused("no patient matches")
        data = PIECE * self.pieces
        for record, kind, part_of in ((RECORD, "original", None), ("ef" * 32, "view", RECORD)):
            told = {"record": record, "kind": kind, "part_of": part_of, "bytes": len(data)}
            yield {**told, "sha256": self.sha256 or hashlib.sha256(data).hexdigest()}, self._stream()
        if self.refusal is not None:
            raise self.refusal

    async def _stream(self, first: int = 0) -> AsyncIterator[bytes]:
        try:
            for number in range(first, self.pieces):
                if number == self.breaks_after:
                    raise Unavailable("no replica answers")
                yield PIECE
        finally:
            self.closed.set()

    async def list(self, patient: str = "", wallet: Any = None) -> dict[str, Any]:
        self.asked.append(("list", (patient, wallet)))
        row = {
            "record": RECORD,
            "category": "labs",
            "kind": "document",
            "state": "final",
            "transaction": TRANSACTION,
            "bytes": 1,
        }
        return {"records": [row], "patients": [], "grants": []}

    async def status(self, record: str) -> dict[str, Any]:
        return await self.list(record)

    async def erase(self, record: str, **fields: Any) -> dict[str, Any]:
        self.asked.append(("erase", (record, fields)))
        entry = {"record": RECORD, "kind": "document", "category": "labs", "day": "2026-11-20"}
        if record == "known" or fields["listed"]:
            if self.refusal is not None:
                raise self.refusal
            word = {"record": RECORD, "facility": "A", "chunks": 2}
            away = {"record": RECORD, "facility": "B", "reason": "not connected: it deletes when it is back"}
            rows = [{**entry, "state": "erased", "erased": "2026-11-23T05:02:40Z"}]
            return {
                "record": RECORD,
                "records": rows,
                "erased": True,
                "attestations": [word],
                "pending": [away],
            }
        return {"record": RECORD, "records": [{**entry, "state": "final"}], "erased": False}

    async def grant(self, **fields: Any) -> dict[str, Any]:
        self.asked.append(("grant", fields))
        rows = [
            {"grant": "aa" * 32, "category": name, "transaction": TRANSACTION}
            for name in fields["categories"]
        ]
        return {"grant": "bb" * 32, "grants": rows}

    async def revoke(self, grant: str, *, wallet: Any) -> dict[str, Any]:
        self.asked.append(("revoke", (grant, wallet)))
        return {"grant": grant}

    async def log(self, patient: str, *, wallet: Any) -> dict[str, Any]:
        self.asked.append(("log", (patient, wallet)))
        return {
            "entries": [
                {"action": "read", "facility": "B", "time": 1_700_000_000_000, "record": RECORD, "height": 3}
            ]
        }

    async def verify(self, *, full: bool) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(("verify", full))
        yield {"progress": {"part": "ledger", "done": 1, "total": 2}}
        if self.breaks_after is not None:
            raise Unavailable("stopping")
        yield {
            "result": {
                "ok": not full,
                "height": 3,
                "tree_root": "00",
                "problems": ["record x"] if full else [],
            }
        }

    @property
    def services(self) -> Services:
        # Any: the seam is under test, not the services behind it, which need a whole node.
        me = cast("Any", self)
        return Services(*[me] * len(fields(Services)))


@contextmanager
def serving(home: Home, calls: Calls, *, http: str | None = None) -> Iterator[Listening]:
    """Serve `calls` on the socket of `home` from a thread of its own, as a daemon would from its process."""
    ready, listening, stop = threading.Event(), [], []

    async def serve() -> None:
        with trio.CancelScope() as scope:
            stop.append((trio.lowlevel.current_trio_token(), scope))
            async with trio.open_nursery() as nursery:
                bound = bind_http(http) if http else None
                listening.append(await nursery.start(_start(calls, home, bound)))
                ready.set()

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(10)
        yield listening[0]
    finally:
        token, scope = stop[0]
        token.run_sync_soon(scope.cancel)
        thread.join(10)
        assert not thread.is_alive()
        structlog.reset_defaults()


def _start(calls: Calls, home: Home, bound: Any) -> Callable[..., Any]:
    async def start(*, task_status: Any) -> None:
        await serve_api(calls.services, home, bound, metrics=Metrics(), task_status=task_status)

    return start
