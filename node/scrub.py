"""The background scrub: every chunk is read back and checked once in a period, and what is bad is fetched anew.

    due, or asked for ──► portion ──► good: noted    ──► pause ──► portion … ──► end: one more try for what is still bad
                              └────── bad: quarantined, fetched from another member, stored

A walk that is due goes as slowly as the period allows. One that a person asks for begins at the first chunk, goes as fast
as asked, or as other work leaves it, and is joined by whoever asks again. Both go on after a restart. A portion is some
milliseconds of one worker thread, and after each of them the scrub rests for at least as long as it took, three times
as long while the ledger moves: transactions wait for a portion at most, never for the walk (storage.md 4).
"""

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import trio

from node.applier import AppliedHeight
from node.event_log import EventLog
from node.ports import Clock, Disk, PeerTransport, Workers
from node.retrieval import Retrieval
from protocol import limits
from protocol.errors import Corruption, StorageFull, Unavailable
from protocol.identifiers import Cid, Height
from storage.chunk_store import ChunkStore
from storage.key_value import Batch, KeyValue
from storage.scrub_walk import (
    Portion,
    ScrubWalk,
    last_walk,
    put_readings,
    put_walk,
    read_portion,
    walk_going_on,
)

_READ_WITHIN_S = limits.SCRUB_PERIOD_S * 3 // 4
"""A walk that is due is planned to end early: the node may be switched off at night."""
_RATE_MIN = limits.MIB
_REST = 1.0
_REST_BUSY = 3.0
"""Pauses, as multiples of what a portion took."""
_LOOK_S = 3_600.0
"""How often it is looked whether a walk is due: the wall clock may be set."""
_RETRY_S = 600.0
_KEEP_MS = 2_000
"""What a crash makes the walk read again."""
_TOLD_S = 0.2


def pause_ms(size: int, took_ms: int, rate: int, *, is_busy: bool) -> int:
    """Return how long to rest after a portion of `size` bytes: what the rate (bytes/s, 0 for none) and other work ask for."""
    by_rate = math.ceil(size * 1000 / rate) - took_ms if rate else 0
    return max(by_rate, math.ceil(max(took_ms, 1) * (_REST_BUSY if is_busy else _REST)))


class Scrub:
    """Owns the rows of `keyspace.SCRUB_WALK`. `walk` is the one that goes on, `last` the last that came to its end.

    `trouble` is empty, or why it cannot go on now.
    """

    def __init__(
        self,
        *,
        applied: AppliedHeight,
        rows: KeyValue,
        disk: Disk,
        chunks: ChunkStore,
        retrieval: Retrieval,
        transport: PeerTransport,
        workers: Workers,
        clock: Clock,
        log: EventLog,
        check_room: Callable[[], None],
    ) -> None:
        self._applied = applied
        self._disk = disk
        self._chunks = chunks
        self._retrieval = retrieval
        self._transport = transport
        self._workers = workers
        self._clock = clock
        self._log = log
        self._check_room = check_room
        self._asked = trio.Event()
        self._ended = trio.Event()
        self._batch = Batch()
        self._kept_ms = 0
        self._seen = Height(0)
        self.walk = walk_going_on(rows)
        self.last = last_walk(rows)
        self.trouble = ""
        self._bad = set(self.damaged())

    # --- what a person asks for -----------------------------------------------------------------------------------

    def begin(self, rate: int | None = None) -> None:
        """Have everything read now: a new walk, or the one that was asked for and goes on. None leaves the rate as it is."""
        walk, self.trouble = self.walk, ""
        if walk is not None and walk.is_asked:
            self.walk, self._ended = replace(walk, rate=walk.rate if rate is None else rate), trio.Event()
        else:
            self._begin(is_asked=True, rate=rate or 0)
        self._asked.set()

    async def follow(self) -> AsyncIterator[ScrubWalk]:
        """Yield how far the walk has come, a few times a second, until it ends or meets trouble. Leaving does not end it."""
        while (walk := self.walk) is not None and not self.trouble:
            yield walk
            with trio.move_on_after(_TOLD_S):
                await self._ended.wait()

    def rate_of(self, walk: ScrubWalk) -> int:
        """Return how many bytes a second a walk reads at most; 0 when only other work limits it."""
        if walk.is_asked:
            return walk.rate
        return max(_RATE_MIN, walk.bytes_total // _READ_WITHIN_S)

    def due_ms(self) -> int:
        """Return when the next walk is due (Unix ms); 0 when none has ever come to its end."""
        return self.last.started_ms + limits.SCRUB_PERIOD_S * 1000 if self.last is not None else 0

    def damaged(self) -> tuple[Cid, ...]:
        """Return the chunks in quarantine that nothing has replaced yet."""
        found = (cid for _, cid in self._chunks.index.quarantined() if not self._chunks.has(cid))
        return tuple(dict.fromkeys(found))

    # --- the task -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Walk when a walk is due or asked for, until cancelled."""
        while True:
            # Whoever asks from now on, while it reads or while it waits, is heard.
            self._asked, self.trouble = trio.Event(), ""
            if self._ended.is_set():
                self._ended = trio.Event()
            if self.walk is None and self._clock.now_ms() >= self.due_ms():
                self._begin(is_asked=False, rate=0)
            try:
                await self._read_all()
            except (StorageFull, Corruption) as damage:
                self.trouble = str(damage)
                self._ended.set()
                self._log.error("the scrub cannot go on", problem=str(damage))
            with trio.move_on_after(_RETRY_S if self.trouble else _LOOK_S):
                await self._asked.wait()

    def _begin(self, *, is_asked: bool, rate: int) -> None:
        statistics = self._chunks.statistics()
        self.walk = ScrubWalk(
            self._clock.now_ms(), is_asked, rate, b"", statistics.chunks, statistics.bytes, 0, 0, 0, 0, 0
        )
        self._ended = trio.Event()

    async def _read_all(self) -> None:
        while (walk := self.walk) is not None:
            if walk.is_asked and not walk.position:
                # What only the write buffer and its log hold becomes a table: every byte on the disk is read. Where the
                # database takes no more writes, what can be read is read all the same.
                with contextlib.suppress(StorageFull, Corruption):
                    await self._workers.run(self._chunks.flush)
            started_ms = self._clock.now_ms()
            portion = await self._workers.run(read_portion, self._chunks, walk.position)
            took_ms = self._clock.now_ms() - started_ms
            await self._mend(portion.bad if portion.cids else self.damaged())
            if not self._is_going(walk):
                continue  # a person asked meanwhile, and everything is read from the first chunk on
            if not portion.cids:
                await self._end()
                return
            await self._take(portion, started_ms)
            await self._rest(self._pause_ms(portion.bytes, took_ms) / 1000)

    def _is_going(self, walk: ScrubWalk) -> bool:
        """Whether `walk`, further on or at another rate, is still the one."""
        now = self.walk
        return now is not None and (now.started_ms, now.is_asked) == (walk.started_ms, walk.is_asked)

    async def _take(self, portion: Portion, now_ms: int) -> None:
        """Note a portion; write the notes down now and then."""
        assert self.walk is not None, "only this task ends it"
        repaired = self._repaired()
        self.walk = replace(
            self.walk,
            position=portion.cids[-1],
            chunks=self.walk.chunks + len(portion.cids),
            bytes=self.walk.bytes + portion.bytes,
            bad=self.walk.bad + len(portion.bad),
            repaired=self.walk.repaired + repaired,
        )
        put_readings(self._batch, self._chunks.index, portion, now_ms)
        if portion.bad or now_ms - self._kept_ms >= _KEEP_MS:
            self._kept_ms = now_ms
            await self._keep()

    async def _keep(self) -> None:
        assert self.walk is not None, "only this task ends it"
        put_walk(self._batch, self.walk)
        await self._write()

    async def _write(self) -> None:
        batch, self._batch = self._batch, Batch()
        # Not synchronised: what is lost in a crash is read again.
        await self._disk.commit(batch, sync=False)

    async def _end(self) -> None:
        assert self.walk is not None, "only this task ends it"
        repaired = min(self.walk.repaired + self._repaired(), self.walk.bad)
        ended = replace(self.walk, repaired=repaired, ended_ms=max(self._clock.now_ms(), 1))
        self.last, self.walk = ended, None
        self._ended.set()
        put_walk(self._batch, ended)
        await self._write()
        tell = self._log.warning if ended.bad else self._log.info
        tell("scrubbed", chunks=ended.chunks, bytes=ended.bytes, bad=ended.bad, repaired=ended.repaired)

    async def _rest(self, seconds: float) -> None:
        """Rest, until a person asks for something: another rate is not to wait for a pause of the old one."""
        with trio.move_on_after(seconds):
            await self._asked.wait()
            self._asked = trio.Event()

    def _pause_ms(self, size: int, took_ms: int) -> int:
        is_busy, self._seen = self._applied.value != self._seen, self._applied.value
        rate = self.rate_of(self.walk) if self.walk is not None else 0
        return pause_ms(size, took_ms, rate, is_busy=is_busy)

    # --- mending --------------------------------------------------------------------------------------------------

    async def _mend(self, bad: tuple[Cid, ...]) -> None:
        """Set bad chunks aside and fetch them anew; what nobody has now is left to the repair in the background."""
        for cid in bad:
            self._bad.add(cid)
            await self._workers.run(self._chunks.quarantine, cid)
            try:
                fetched = await self._retrieval.fetch((cid,), self._transport.me)
            except Unavailable:
                continue
            await self._workers.run(self._store, list(fetched.items()))

    def _store(self, chunks: list[tuple[Cid, bytes]]) -> None:
        self._check_room()
        self._chunks.put_many(chunks, trusted=True)

    def _repaired(self) -> int:
        """Return how many bad chunks are here again since it was last asked, whoever has brought them."""
        back = {cid for cid in self._bad if self._chunks.has(cid)}
        self._bad -= back
        return len(back)
