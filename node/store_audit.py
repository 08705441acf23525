"""`audit verify --full`: everything that lies on the disks of this facility, read back and checked.

Work goes to the worker threads in small portions, so that the node goes on and can be stopped meanwhile.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from node.damage_notice import DamageNotice
from node.ledger_audit import Problems
from node.ports import Workers
from protocol.cid import cid_text
from protocol.errors import Corruption
from protocol.identifiers import Cid, Digest, Rid
from storage import scrub
from storage.chunk_store import ChunkStore
from storage.envelope_store import EnvelopeStore
from storage.key_value import KeyValue
from storage.keyspace import SEQUENCE_END
from storage.keystore import Keystore
from storage.ledger_store import LedgerStore

T = TypeVar("T")

_CHUNKS_PER_TURN = 32
_ENVELOPES_PER_TURN = 512
_ROWS_PER_TURN = 2_048
_ROW_BYTES_PER_TURN = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Database:
    """One database, with its name and the command that makes it anew.

    `damaged_files` names those in which bytes are damaged though every row can be read (`storage.file_check`).
    """

    name: str
    rows: KeyValue
    rebuild: str
    damaged_files: Callable[[], tuple[str, ...]] = tuple


class StoreAudit:
    """Reads back chunks, envelopes, attachments, keys and every row of every database."""

    def __init__(
        self,
        *,
        chunks: ChunkStore,
        envelopes: EnvelopeStore,
        keystore: Keystore,
        store: LedgerStore,
        databases: tuple[Database, ...],
        workers: Workers,
        damage: DamageNotice | None = None,
    ) -> None:
        """`damage` hears of rows that cannot be read, so that what can be is repaired."""
        self._damage = damage or DamageNotice()
        self._chunks = chunks
        self._envelopes = envelopes
        self._keystore = keystore
        self._store = store
        self._databases = databases
        self._workers = workers

    async def verify(self, problems: Problems) -> AsyncIterator[tuple[str, int]]:
        """Verify everything; yield (part, things read) now and then."""
        async for done in self._verify_chunks(problems):
            yield "chunks", done
        async for done in self._verify_envelopes(problems):
            yield "envelopes", done
        yield "keys", self._verify_keys(problems)
        for database in self._databases:
            async for done in self._verify_rows(database, problems):
                yield f"rows of {database.name}", done

    # --- chunks and envelopes -----------------------------------------------------------------------------------

    async def _verify_chunks(self, problems: Problems) -> AsyncIterator[int]:
        done, cids = 0, self._chunks.cids()
        while True:
            portion = self._portion(cids, _CHUNKS_PER_TURN, problems, "the index of chunks")
            if not portion:
                break
            for sentence in await self._workers.run(self._damaged_chunks, portion):
                problems.add(sentence)
            done += len(portion)
            yield done
        for sequence, cid in self._chunks.index.quarantined():
            if not self._chunks.has(cid):
                problems.add(
                    f"chunk {cid_text(cid)} (payload {sequence}) is in quarantine and not repaired yet"
                )

    def _damaged_chunks(self, cids: list[Cid]) -> list[str]:
        sentences = []
        for cid in cids:
            try:
                self._chunks.get(cid)
            except Corruption as error:
                sentences.append(str(error))
        return sentences

    async def _verify_envelopes(self, problems: Problems) -> AsyncIterator[int]:
        done, records = 0, self._envelopes.records()
        while portion := self._portion(records, _ENVELOPES_PER_TURN, problems, "the list of envelopes"):
            for sentence in await self._workers.run(self._damaged_envelopes, portion):
                problems.add(sentence)
            done += len(portion)
            yield done
        digests = self._envelopes.attachments()
        while attachments := self._portion(digests, _ENVELOPES_PER_TURN, problems, "the list of attachments"):
            for sentence in await self._workers.run(self._damaged_attachments, attachments):
                problems.add(sentence)
            done += len(attachments)
            yield done

    def _damaged_envelopes(self, records: list[tuple[Rid, Digest]]) -> list[str]:
        sentences = []
        for rid, digest in records:
            try:
                self._envelopes.envelope_of(rid)
                record = self._store.record(rid)
            except Corruption as error:
                sentences.append(f"record {rid.hex()}: {error}")
                continue
            if record is not None and record.env_hash != digest:
                sentences.append(f"record {rid.hex()}: its envelope is not the one that the ledger names")
        return sentences

    def _damaged_attachments(self, digests: list[Digest]) -> list[str]:
        sentences = []
        for digest in digests:
            try:
                self._envelopes.attachment(digest)
            except Corruption as error:
                sentences.append(str(error))
        return sentences

    # --- keys and rows ------------------------------------------------------------------------------------------

    def _verify_keys(self, problems: Problems) -> int:
        done = 0
        try:
            for name in self._keystore.names():
                done += 1
                try:
                    self._keystore.get(name)
                except Corruption as error:
                    problems.add(str(error))
        except Corruption as error:
            problems.add(f"the names in the key store cannot be listed: {error}")
        return done

    async def _verify_rows(self, database: Database, problems: Problems) -> AsyncIterator[int]:
        """Walk a database in portions; on damage, let the scrub name the rows around it."""
        done, start = 0, b""
        try:
            await self._workers.run(database.rows.flush)
            while True:
                read, last = await self._workers.run(_walk, database.rows, start)
                if not read:
                    break
                done += read
                start = last + b"\0"
                yield done
        except Corruption:
            self._damage.tell()
            found = await self._workers.run(scrub.verify_rows, database.rows, database.name, database.rebuild)
            for problem in found:
                problems.add(problem.sentence)
        for file in await self._workers.run(database.damaged_files):
            self._damage.tell()
            problems.add(
                f"database {database.name}: {file} holds damaged bytes, though every row can be read"
            )

    @staticmethod
    def _portion(things: Iterator[T], count: int, problems: Problems, what: str) -> list[T]:
        try:
            return list(islice(things, count))
        except Corruption as error:
            problems.add(f"{what} cannot be read further: {error}")
            return []


def _walk(rows: KeyValue, start: bytes) -> tuple[int, bytes]:
    """Read rows from a key on, up to a portion; return how many and the last key."""
    read, size, last = 0, 0, start
    for key, value in rows.scan(start, SEQUENCE_END):
        last = key
        read += 1
        size += len(key) + len(value)
        if read >= _ROWS_PER_TURN or size >= _ROW_BYTES_PER_TURN:
            break
    return read, last
