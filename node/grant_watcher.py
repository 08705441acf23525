"""Acts on certified grants: opens those given to this facility, forgets those that ended, and sees to new epochs.

It reads every applied block above its own mark. What a block asks for becomes a row in the same batch as the mark, so
that nothing is lost in a crash; the rows are then worked off, again and again until it succeeds:

    Grant, EpochRotate   row WRAP_DUE       fetch the wrap, open it, keep the key in the keystore
    Revoke, expiry       at once            delete key, wrap and row
    Revoke, expiry in    row ROTATION_DUE   EpochRotate with wraps for the remaining grantees
    a vault in custody
    EpochRotate of one   row ROTATION_DUE   another one if a grant became final while this one was on its way, unserved
"""

import heapq
from collections.abc import Awaitable, Callable

import trio

from node.applier import AppliedHeight
from node.attachments import Attachments
from node.authority import Authorities
from node.epochs import Epochs
from node.event_log import EventLog
from node.held_grants import HeldGrant, HeldGrants
from node.identity import Identity
from node.patients import Patients
from node.ports import Clock, Disk
from node.rotation import EpochWraps, Rotation
from protocol import codec
from protocol.block import Block
from protocol.codec import pack, unpack
from protocol.errors import CarechainError, Corruption, Forbidden, Unavailable
from protocol.identifiers import Digest, Height, NodeId, PublicKey, Txid, Vid
from protocol.ledger_rows import GrantState
from protocol.transaction import EpochRotate, Grant, Revoke, Transaction, VaultOpen, parse
from protocol.wraps import open_grant
from storage.key_value import Batch, KeyValue
from storage.keyspace import ROTATION_DUE, WATCH_MARK, WRAP_DUE, prefix_range
from storage.ledger_store import LedgerStore

_MARK = WATCH_MARK + b"grants"
_BLOCKS_PER_MARK = 64
"""A crash reads at most so many blocks again; each of them may be taken twice without harm."""
_RETRY_MS = 1_000
_AFTER_DAMAGE_MS = 10_000
_KINDS = tuple(codec.pack(kind)[1:] for kind in ("VaultOpen", "Grant", "Revoke", "EpochRotate"))
_KIND_WITHIN = 32
_VID_BYTES = 32
_SERVED = b"/served"
"""Ends the key of a row that asks whether a new epoch serves every grantee; the row of a Revoke stands beside it."""


class GrantWatcher:
    """One task per node; the only writer of held grants, epoch rows and due rows."""

    def __init__(
        self,
        *,
        identity: Identity,
        rows: KeyValue,
        disk: Disk,
        store: LedgerStore,
        applied: AppliedHeight,
        attachments: Attachments,
        epochs: Epochs,
        held: HeldGrants,
        patients: Patients,
        authorities: Authorities,
        rotation: Rotation,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._me = identity.node_id
        self._kex_secret = identity.kex
        self._rows = rows
        self._disk = disk
        self._store = store
        self._applied = applied
        self._attachments = attachments
        self._epochs = epochs
        self._held = held
        self._patients = patients
        self._authorities = authorities
        self._rotation = rotation
        self._clock = clock
        self._log = log
        self._expiring: list[tuple[int, Txid]] = []  # a heap: grants in vaults of our custody, by expiry
        self._work = trio.Event()
        self._asked: dict[bytes, int] = {}  # due row → how often it was asked for while it stands
        self.seen = AppliedHeight(Height(self._read_mark()))

    async def run(self) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            for task in (self._follow, self._work_off, self._expire):
                nursery.start_soon(self._steadily, task)

    async def _steadily(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task, again when stored bytes are damaged or the disk is full: an operator mends that, not a crash."""
        while True:
            try:
                await task()
            except (Corruption, Unavailable) as error:
                self._log.error("watching grants was interrupted and begins again", reason=str(error))
                await self._clock.sleep_ms(_AFTER_DAMAGE_MS)

    # --- reading blocks -----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        height = self.seen.value
        while True:
            reached = await self._applied.wait_above(height)
            while height < reached:
                batch, ended = Batch(), list[Grant]()
                last = min(reached, height + _BLOCKS_PER_MARK)
                for block in self._store.blocks(Height(height + 1), Height(last)):
                    self._read_block(block, batch, ended)
                    await trio.lowlevel.checkpoint()
                # Before the mark: forgetting twice is harmless, forgetting never is not.
                if ended:
                    await self._attachments.forget([grant.wrap_hash for grant in ended])
                batch.put(_MARK, pack(last))
                await self._disk.commit(batch, sync=False)
                height = Height(last)
                self.seen.advance(height)
                self._wake()

    def _read_block(self, block: Block, batch: Batch, ended: list[Grant]) -> None:
        for raw in block.transactions:
            # Most transactions are records and reads: told apart by their tag, without parsing them.
            if not any(kind in raw[:_KIND_WITHIN] for kind in _KINDS):
                continue
            signed, txid = parse(raw, block.header.net)
            receipt = self._store.receipt(txid)
            if receipt is not None and receipt.is_accepted and receipt.height == block.height:
                self._take(signed.transaction, txid, receipt.time_ms, batch, ended)

    def _take(
        self, transaction: Transaction, txid: Txid, time_ms: int, batch: Batch, ended: list[Grant]
    ) -> None:
        match transaction:
            case VaultOpen():
                self._epochs.stage(batch, transaction)
            case EpochRotate():
                self._epochs.stage(batch, transaction)
                for grant in self._held.of_vault(transaction.vid):
                    self._ask(batch, WRAP_DUE + grant.gid)
                if self._authorities.of_vault(transaction.vid) is not None:
                    self._ask(batch, ROTATION_DUE + transaction.vid + _SERVED, pack(0))
            case Grant():
                if self._is_mine(transaction.facility):
                    self._ask(batch, WRAP_DUE + txid)
                if self._authorities.of_vault(transaction.vid) is not None:
                    heapq.heappush(self._expiring, (transaction.exp, txid))
            case Revoke():
                state = self._store.grant(transaction.gid)
                if state is not None:
                    ended.append(state.grant)
                    if self._is_mine(state.grant.facility):
                        self._forget(transaction.gid, batch)
                if self._authorities.of_vault(transaction.vid) is not None:
                    self._ask(batch, ROTATION_DUE + transaction.vid, pack(time_ms))
            case _:
                pass  # records, reads and handovers change no key that is held here by a grant

    # --- grants that ended --------------------------------------------------------------------------------------

    def _forget(self, gid: Txid, batch: Batch) -> None:
        self._held.drop(gid)
        batch.delete(WRAP_DUE + gid)
        self._log.info("a grant to this facility ended", grant=gid.hex()[:16])

    def _remember_expiries(self) -> None:
        self._expiring.clear()
        for _, row in self._patients.own():
            for vault in row.vaults if row.keys is not None else ():
                state = self._store.vault(Vid(vault.vid))
                for gid in state.grants if state is not None else ():
                    grant = self._store.grant(gid)
                    if grant is not None:
                        heapq.heappush(self._expiring, (grant.grant.exp, gid))

    async def _expire(self) -> None:
        self._remember_expiries()
        while True:
            batch, ended = Batch(), list[Digest]()
            now_ms = self._now_ms()
            for held in self._held:
                if held.exp <= now_ms:
                    self._forget(Txid(held.gid), batch)
                    state = self._store.grant(Txid(held.gid))
                    if state is not None:
                        ended.append(state.grant.wrap_hash)
            while self._expiring and self._expiring[0][0] <= now_ms:
                exp, gid = heapq.heappop(self._expiring)
                state = self._store.grant(gid)
                vault = self._store.vault(state.grant.vid) if state is not None else None
                if (
                    state is not None
                    and vault is not None
                    and not state.revoked_ms
                    and vault.epoch_since_ms <= exp
                ):
                    self._ask(batch, ROTATION_DUE + vault.vid, pack(exp))
            if ended:
                await self._attachments.forget(ended)
            if batch.writes:
                await self._disk.commit(batch, sync=True)
                self._wake()
            await self._clock.sleep_ms(_RETRY_MS)

    # --- working off --------------------------------------------------------------------------------------------

    def _ask(self, batch: Batch, key: bytes, value: bytes = b"") -> None:
        batch.put(key, value)
        self._asked[key] = self._asked.get(key, 0) + 1

    def _wake(self) -> None:
        self._work.set()

    async def _work_off(self) -> None:
        while True:
            self._work = trio.Event()
            due = [*self._rows.scan(*prefix_range(WRAP_DUE)), *self._rows.scan(*prefix_range(ROTATION_DUE))]
            asked = {key: self._asked.get(key) for key, _ in due}
            done = [key for key, value in due if await self._try(key, value)]
            batch = Batch()
            for key in done:
                # Asked for again while it was worked off: the row stays, and so does the newer request.
                if self._asked.get(key) == asked[key]:
                    self._asked.pop(key, None)
                    batch.delete(key)
            if batch.writes:
                await self._disk.commit(batch, sync=False)
            if len(batch.writes) < len(due):
                await self._clock.sleep_ms(_RETRY_MS)
            else:
                await self._work.wait()

    async def _try(self, key: bytes, value: bytes) -> bool:
        """Return whether what a due row asks for is done for good: it succeeded, or can never succeed."""
        is_wrap = key.startswith(WRAP_DUE)
        what = "a grant could not be opened" if is_wrap else "an epoch could not be changed"
        try:
            if is_wrap:
                await self._open(Txid(key[len(WRAP_DUE) :]))
            else:
                due = key[len(ROTATION_DUE) :]
                vid, asks_served = Vid(due[:_VID_BYTES]), due[_VID_BYTES:] == _SERVED
                await self._rotate(
                    vid, await self._unserved_ms(vid) if asks_served else int(unpack(value)[0])
                )
        except (Unavailable, Corruption) as error:
            self._log.debug(what, reason=type(error).__name__)
            return False
        except CarechainError as error:
            # The granter sealed something else, or the right ended meanwhile: trying again changes nothing.
            self._log.warning(what, reason=type(error).__name__)
        return True

    async def _open(self, gid: Txid) -> None:
        """Open a grant's wrap, and the wraps of the epochs since; nothing to do for one that ended."""
        state = self._store.grant(gid)
        vault = self._store.vault(state.grant.vid) if state is not None else None
        if state is None or vault is None or state.revoked_ms or state.grant.exp <= self._now_ms():
            return
        held = self._held.get(gid) or await self._open_wrap(
            gid, state, state.grant.wrap_hash, state.grant.epoch, None
        )
        epoch = held.epoch
        # Asked anew each time: an epoch that began while a wrap was fetched met no held grant in `_take`, and asked for none.
        while epoch < self._epoch(vault.vid):
            epoch += 1
            listing = await self._attachments.get(Digest(self._epochs.row(vault.vid, epoch).wraps_hash))
            found = [wrap.wrap_hash for wrap in codec.decode(listing, EpochWraps).wraps if wrap.gid == gid]
            if found:
                held = await self._open_wrap(gid, state, Digest(found[0]), epoch, held)

    def _epoch(self, vid: Vid) -> int:
        vault = self._store.vault(vid)
        return vault.epoch if vault is not None else 0

    async def _open_wrap(
        self, gid: Txid, state: GrantState, wrap_hash: Digest, epoch: int, former: HeldGrant | None
    ) -> HeldGrant:
        grant = state.grant
        wrap = await self._attachments.get(wrap_hash)
        category_public = PublicKey(self._epochs.row(grant.vid, epoch).cat_pk)
        contents = open_grant(
            wrap, grant.vid, epoch, grant.grantee_pk, self._kex_secret, category_public=category_public
        )
        vault = self._store.vault(grant.vid)
        assert vault is not None, "a granted vault is on the ledger"
        # While the wrap was fetched, the grant may have ended: its key must not come back.
        latest = self._store.grant(gid)
        if latest is None or latest.revoked_ms:
            raise Forbidden("the grant ended")
        held = HeldGrant(
            gid, grant.vid, contents.category, epoch, contents.category_secret, contents.person, contents.handle,
            former.patient if former else self._patients.handle_for(contents.handle, grant.vid),
            grant.exp, grant.rights, grant.purposes, vault.custodian,
        )  # fmt: skip
        self._held.hold(held)
        self._log.info("opened a grant", grant=gid.hex()[:16], epoch=epoch)
        return held

    async def _rotate(self, vid: Vid, after_ms: int) -> None:
        authority = self._authorities.of_vault(vid)
        vault = authority.vault(vid) if authority is not None else None
        if authority is not None and vault is not None:
            await self._rotation.rotate(authority, vault, after_ms=after_ms)

    def _is_mine(self, facility: NodeId) -> bool:
        return self._store.configurations.is_same(facility, self._me)

    async def _unserved_ms(self, vid: Vid) -> int:
        """Return when the present epoch of a vault began if it leaves out a grantee, else 0.

        A Grant that the ledger takes between the making of an EpochRotate and the EpochRotate itself is of the epoch
        before and has no wrap of the new one: its grantee could read nothing that comes.
        """
        state = self._store.vault(vid)
        if state is None or state.epoch == 0:
            return 0
        members, present = self._store.configuration.by_node, self._store.configurations.present
        owed = {
            gid
            for gid, grant in self._rotation.remaining(state)
            if grant.grant.epoch < state.epoch and present(grant.grant.facility) in members
        }
        if not owed:
            return 0
        listing = await self._attachments.get(Digest(self._epochs.row(vid, state.epoch).wraps_hash))
        served = {wrap.gid for wrap in codec.decode(listing, EpochWraps).wraps}
        return state.epoch_since_ms if owed - served else 0

    def _now_ms(self) -> int:
        return max(self._clock.now_ms(), self._store.applied().time_ms)

    def _read_mark(self) -> int:
        row = self._disk.read(_MARK)
        return int(unpack(row)[0]) if row is not None else 0
