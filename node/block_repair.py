"""Damage in the ledger database: found by a slow walk, blocks fetched from any member by hash, and the tables made anew.

    walk ── damage ──► survey ── blocks and certificates only ──► fetch what is lost ──► end serving: `rebuild.mend_ledger`
      ▲                  │ more than that ──► wait for members to catch up from ──► end serving: `rebuild.heal_ledger`
      │                  │ more, and its bytes can be read: said in the status, with the command    │ (node.daemon)
      └── once a day ────┴──────────────────────────────── serve again ◄────────────────────────────┘

A block fetched again is written again: its newer row stands above the damaged one, and readers have it at once. But LevelDB
keeps the damaged table, and ends all writing when a merge of tables meets it. So the database is made anew as soon as its
blocks are whole, at a moment of our own choosing. When a merge was faster, the same is done then, and what is lost, noted
in the new database, is fetched at the next start, before this node takes part in anything.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from node.block_server import CHANNEL
from node.block_window import Window, check_window, windows
from node.damage_notice import DamageNotice
from node.event_log import EventLog
from node.ports import Clock, Disk, PeerTransport, Workers
from node.verification import Verification
from protocol import codec
from protocol.block import Block
from protocol.catchup import BlocksFrom, Segment
from protocol.errors import (
    CarechainError,
    Corruption,
    Invalid,
    RemoteFault,
    StorageFull,
    Unavailable,
    Unreadable,
)
from protocol.finality import Certificate, check_certificate
from protocol.identifiers import Digest, Height, NodeId
from protocol.recovery_block import configuration_set_by
from protocol.rejoining import can_return_with
from storage import databases, keyspace, mend
from storage.key_value import Batch, KeyValue
from storage.ledger_store import LedgerStore
from storage.mend_walk import Walk, decoded

_WALK_EVERY_S = 24 * 3_600.0
_PAUSE_S = 0.5
"""Between portions of 1 MiB: 2 MiB/s, 170 GiB a day."""
_PORTIONS_PER_MARK = 64
_RETRY_MS, _CERTIFICATE_TRIES = 5_000, 12
_FETCH_S = 30.0
_FIRST_S, _FIRST_RETRY_MS = 10.0, 500
_LOOK_AGAIN_S = 60.0
_WAITING = (
    "the ledger database holds damaged bytes that no other member has; it is made anew by itself as soon as enough others are "
    f"connected to catch up from, or now by `{databases.REBUILD[databases.LEDGER]}`; check the disk"
)


class BlockRepair:
    """The background task (`run`). `trouble` is a sentence for the operator, "" when there is nothing to say."""

    def __init__(
        self,
        *,
        store: LedgerStore,
        rows: KeyValue,
        disk: Disk,
        transport: PeerTransport,
        verification: Verification,
        workers: Workers,
        clock: Clock,
        log: EventLog,
        damage: DamageNotice,
        check_room: Callable[[], None],
        damaged_files: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`damaged_files` names what is damaged in the database's files though every row can be read."""
        self._store = store
        self._network = store.network
        self._rows = rows
        self._disk = disk
        self._transport = transport
        self._verification = verification
        self._workers = workers
        self._clock = clock
        self._log = log
        self._damage = damage
        self._check_room = check_room
        self._damaged_files = damaged_files
        self._turn = 0
        self.trouble = ""

    async def run(self) -> None:
        """Repair until cancelled. A walk begins, or goes on, at every start and once a day; who meets damage has it looked into.

        Raises:
            Unreadable: the database has to be made anew, which only who opened it can do; everything is fetched, where that can be.
        """
        is_met = False
        while True:
            await self._refill_all()
            if is_met or await self._walk():
                await self._look_into()
                # What was met may be wrong in a table whose checksums are right; and it may have cut the walk short.
                await self._walk_through()
                # Whoever goes on meeting what cannot be mended must not have everything read again and again.
                await trio.sleep(_LOOK_AGAIN_S)
            is_met = False
            with trio.move_on_after(_WALK_EVERY_S):
                await self._damage.wait()
                is_met = True

    async def refill_first(self) -> None:
        """Fetch what is lost before anything else; not for long: members that have it may be away, and who asks is answered.

        A voter takes no part before `DamageNotice.whole`, however long that takes.
        """
        with trio.move_on_after(_FIRST_S):
            while not await self.refill():
                await self._clock.sleep_ms(_FIRST_RETRY_MS)

    async def after(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task that reads every block, once no block is missing."""
        await self._damage.whole.wait()
        await task()

    # --- finding --------------------------------------------------------------------------------------------------

    async def _walk(self) -> bool:
        """Walk over the whole database, from where the last walk was broken off; return whether damage was met."""
        row = self._disk.read(keyspace.LEDGER_WALK)
        walk = Walk(self._rows, self._store, codec.unpack(row)[0] if row is not None else b"")
        portions, is_more = 0, True
        while is_more:
            with trio.move_on_after(_PAUSE_S):
                await self._damage.wait()
                return True
            try:
                is_more = await self._read_portion(walk)
            except Corruption:
                return True
            portions += 1
            if portions % _PORTIONS_PER_MARK == 0 or not is_more:
                await self._keep_mark(walk.at if is_more else None)
        return bool(await self._workers.run(self._damaged_files))

    async def _walk_through(self) -> None:
        """Walk over the whole database once, whoever meets more damage meanwhile; bytes that cannot be read end it."""
        walk = Walk(self._rows, self._store)
        with contextlib.suppress(Corruption):  # `_look_into` has said what can be said of it
            is_more = True
            while is_more:
                is_more = await self._read_portion(walk)
                await trio.sleep(_PAUSE_S)

    async def _read_portion(self, walk: Walk) -> bool:
        """Read on, and have fetched what is wrong; return whether there is more. Raises Corruption as `Walk.read_portion`."""
        portion = await self._workers.run(walk.read_portion)
        wrong = (*portion.blocks, *portion.certificates)
        if wrong:
            self._log.warning(
                "blocks that do not fit the chain, and certificates that do not hold, are fetched again",
                blocks=len(portion.blocks),
                count=len(wrong),
            )
            await self._note_lost(portion.blocks, portion.certificates)
            await self._refill_all()
        return portion.is_more

    async def _keep_mark(self, at: bytes | None) -> None:
        batch = Batch()
        if at is None:
            batch.delete(keyspace.LEDGER_WALK)
        else:
            batch.put(keyspace.LEDGER_WALK, codec.pack(at))
        await self._disk.commit(batch, sync=False)

    async def _look_into(self) -> None:
        """Find out all that is damaged, fetch what is lost where that is all, and end with Unreadable for the tables to be made anew."""
        survey = mend.Survey(self._rows)
        try:
            while await self._workers.run(survey.read_portion):
                pass
        except Corruption as fault:
            self._say("the ledger holds damaged bytes that no other member has", fault)
            # What can be read, and is wrong, did not come from the disk: people have to look.
            if isinstance(fault, Unreadable) and await self._is_to_be_helped() and self._has_room():
                raise
            return
        damage, files = survey.damage, await self._workers.run(self._damaged_files)
        if not damage.is_met and not files:
            return
        self._log.warning(
            "the ledger holds damaged bytes: the blocks in them are served to nobody and fetched from other members",
            blocks=len(damage.blocks),
            count=len(damage.blocks) + len(damage.certificates),
            files=files,
        )
        await self._note_lost(damage.blocks)
        await self._refill_all()
        if self._has_room():
            raise Unreadable(
                "database ledger holds damaged bytes; its blocks are fetched, and it is made anew"
            )

    async def _is_to_be_helped(self) -> bool:
        """Return True once enough others are connected to catch up from and to begin anew with, False where there are none."""
        me = self._transport.me
        while set(self._store.configuration.voters) - {me}:
            connected = {peer.node for peer in self._transport.peers() if peer.connected}
            if can_return_with(self._store.configuration, me, connected):
                return True
            self.trouble = _WAITING
            await trio.sleep(_LOOK_AGAIN_S)
        return False

    def _has_room(self) -> bool:
        try:
            self._check_room()
        except StorageFull as full:
            self._say("the ledger database cannot be made anew", full)
            return False
        return True

    def _say(self, event: str, problem: CarechainError) -> None:
        if self.trouble != str(problem):
            self.trouble = str(problem)
            self._log.error(event, problem=self.trouble)

    async def _note_lost(self, heights: Iterable[Height], certificates: Iterable[Height] = ()) -> None:
        """Note what is to be fetched; certificates that do not hold go at once, so that none of them is given to anybody."""
        batch = Batch()
        for height in heights:
            if height > 0:  # genesis is made from the configuration, when the tables are
                mend.put_lost(batch, height)
        for height in certificates:
            mend.drop_certificate(batch, height)
        await self._disk.commit(batch, sync=True)

    # --- fetching -------------------------------------------------------------------------------------------------

    async def _refill_all(self) -> None:
        """Fetch until every block is here. A certificate may never come: then that of a newer block, in a while, is as good."""
        tries = 0
        while not await self.refill() or (mend.lost_heights(self._rows) and tries < _CERTIFICATE_TRIES):
            await self._clock.sleep_ms(_RETRY_MS)
            tries += 1

    async def refill(self) -> bool:
        """Fetch what is noted as lost, as far as somebody has it; return whether every block is here."""
        await self._clear([height for height in mend.lost_heights(self._rows) if self._is_on_its_way(height)])
        before = [height for height in mend.lost_heights(self._rows) if not self._has(height)]
        if before:
            self.trouble = f"{len(before)} blocks were damaged on this disk and are being fetched from other members; check the disk"
        for window in windows(mend.lost_heights(self._rows)):
            await self._refill_window(window)
        missing = [height for height in mend.lost_heights(self._rows) if not self._has(height)]
        if missing:
            return False
        if before:
            self.trouble = ""
            self._log.warning("damaged blocks were fetched again from other members", count=len(before))
        self._damage.whole.set()
        return True

    def _has(self, height: Height) -> bool:
        try:
            return self._holds(Window(height, height, self._hash_of(height)))
        except Corruption:
            return False

    async def _refill_window(self, heights: Sequence[Height]) -> None:
        try:
            window = Window(heights[0], heights[-1], self._hash_of(heights[-1]))
        except Corruption:
            # First of all that one, which says which block this is.
            await self._note_lost((Height(heights[-1] + 1),))
            return
        if not await self._workers.run(self._holds, window) or not all(map(self._is_certified, heights)):
            await self._ask_for(window)
        if await self._workers.run(self._holds, window):
            await self._clear([height for height in heights if self._is_certified(height)])

    def _is_on_its_way(self, height: Height) -> bool:
        """Whether a block lies below an installed snapshot and comes with that history."""
        try:
            self._store.check_history(height)
        except Unavailable:
            return True
        return False

    def _hash_of(self, height: Height) -> Digest:
        """Return the hash that the chain says a block has: the next block's word, or the applied mark's for the last.

        Raises:
            Corruption: the next block is damaged as well.
        """
        history = self._store.history
        if history is not None and height == history.height:
            return Digest(history.hash)  # what follows is still on its way here (`node.history`)
        mark = self._store.applied()
        if height >= mark.height:
            return Digest(mark.hash)
        return Digest(self._store.header(Height(height + 1)).prev_hash)

    def _holds(self, window: Window) -> bool:
        known = window.hash
        try:
            for height in range(window.last, window.first - 1, -1):
                block = decoded(self._store.block(Height(height)).raw, Height(height))
                if block.hash != known:
                    return False
                known = Digest(block.header.prev_hash)
        except (Corruption, Unavailable):
            return False
        return True

    def _is_certified(self, height: Height) -> bool:
        """Whether no certificate has to be fetched: any later one says as much, but that a configuration block has its own.

        The block that begins an epoch has none.
        """
        try:
            certificate = self._store.certificate_at_or_above(height)
            block = self._store.block(height)
        except Unavailable:
            return True  # it comes with the history
        except Corruption:
            return True  # where certificates are damaged too, making the database anew says which of them is to be fetched
        if certificate is None or certificate.height == height:
            return certificate is not None
        return block.is_recovery or not block.is_configuration

    async def _ask_for(self, window: Window) -> None:
        """Fetch the blocks of a window from the first member that has them, and store them."""
        connected = [peer.node for peer in self._transport.peers() if peer.connected]
        self._turn += 1
        start = self._turn % len(connected) if connected else 0
        for peer in connected[start:] + connected[:start]:
            try:
                fetched, certificates = await self._fetch(peer, window)
                await self._workers.run(check_window, fetched, window, self._store)
            except Unavailable as reason:
                self._log.debug("fetching blocks elsewhere", peer=peer.hex()[:16], reason=str(reason))
            except RemoteFault as fault:
                self._verification.reject(peer, fault)
            else:
                batch = Batch()
                mend.put_fetched(batch, fetched, self._held(fetched, certificates))
                await self._disk.commit(batch, sync=True)
                return

    async def _fetch(self, peer: NodeId, window: Window) -> tuple[list[Block], list[Certificate]]:
        fetched: list[Block] = []
        certificates: list[Certificate] = []
        request = codec.encode(BlocksFrom(window.first))
        with trio.move_on_after(_FETCH_S):
            async with self._transport.fetch(peer, CHANNEL, request) as frames:
                async for frame in frames:
                    segment = codec.decode(frame, Segment)
                    wanted = window.last - window.first + 1 - len(fetched)
                    fetched += map(Block.decode, segment.blocks[:wanted])
                    if segment.certificate is not None:
                        certificates.append(segment.certificate)
                    if len(segment.blocks) >= wanted:
                        return fetched, certificates
        raise Unavailable("it has not all of these blocks, or was too slow")

    def _held(self, fetched: list[Block], certificates: list[Certificate]) -> list[Certificate]:
        """Return the certificates, among those that came with blocks that are the chain's, that are for one of them."""
        held = []
        for certificate in certificates:
            block = next((block for block in fetched if block.height == certificate.height), None)
            if block is None:
                continue
            following = configuration_set_by(block) if block.is_configuration else None
            with contextlib.suppress(
                Invalid
            ):  # of what could not be asked for by hash, only what holds is taken
                if (
                    check_certificate(
                        certificate, self._network, self._store.configuration_at(block.height), following
                    )
                    == block.hash
                ):
                    held.append(certificate)
        return held

    async def _clear(self, heights: Iterable[Height]) -> None:
        batch = Batch()
        for height in heights:
            mend.clear_lost(batch, height)
        if batch.writes:
            await self._disk.commit(batch, sync=False)
