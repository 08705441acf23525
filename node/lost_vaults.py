"""After a restore: what happened to our patients' vaults since the backup was made, read back from the ledger.

The key store is of the day of the backup; the ledger catches up. Two things are in between:

    a vault was opened         its id and category are in no key store any more. The patient's root is: its key is the one
                               on the ledger. The category stands in the manifest of any of its records.
    custody was handed over    the backup brought back roots that this facility had given up; they are deleted again.

A vault whose key none of our roots makes belongs to a patient who was registered after the backup: its records stay with the
members they were granted to, and are lost here. The log says how many there are.

Runs once, when a restored home (row `keyspace.RESTORED`) has caught up with what stood on the ledger then; a home that was never
restored pays nothing. It opens manifests of records in our own custody, and shows them to nobody.
"""

import dataclasses
from collections.abc import Iterable
from itertools import islice

from node.event_log import EventLog
from node.handover import forget_prepared
from node.opening import Opening
from node.patients import PatientRow, Patients
from node.ports import Clock, Disk, Workers
from node.vault_events import events_of
from protocol import codec
from protocol.errors import Corruption, Unavailable
from protocol.identifiers import NodeId, Vid
from protocol.ledger_rows import Vault, vault_key
from protocol.patient_keys import PatientKeys
from protocol.signing import SigningKey
from protocol.transaction import CustodyTransfer, Grant
from protocol.wallet import WalletVault
from storage.key_value import Batch, KeyValue
from storage.keyspace import RESTORED, ROTATION_DUE, prefix_range
from storage.keystore import Keystore
from storage.ledger_store import LedgerStore

_LOOK_MS = 1_000
_VAULTS_PER_TURN = 1_024
_RECORDS_TRIED = 16
_AFTER_RESTORE = "restored"
"""Stands where the id of a handover does: which one it was is not known any more."""


def mark_restored(batch: Batch, now_ms: int) -> None:
    """Stage that the key store of this home is older than its ledger will be."""
    batch.put(RESTORED, codec.pack(now_ms))


class LostVaults:
    """One task per node; ends by itself."""

    def __init__(
        self,
        *,
        me: NodeId,
        rows: KeyValue,
        disk: Disk,
        store: LedgerStore,
        patients: Patients,
        keystore: Keystore,
        opening: Opening,
        workers: Workers,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._me = me
        self._rows = rows
        self._disk = disk
        self._store = store
        self._patients = patients
        self._keystore = keystore
        self._opening = opening
        self._workers = workers
        self._clock = clock
        self._log = log

    async def run(self) -> None:
        """Wait until this home has caught up, then put right what can be; return at once in one that was not restored."""
        row = self._rows.get(RESTORED)
        if row is None:
            return
        (restored_ms,) = codec.unpack(row)
        while not self._has_caught_up(restored_ms) or not await self._look():
            await self._clock.sleep_ms(_LOOK_MS)
        batch = Batch()
        batch.delete(RESTORED)
        await self._disk.commit(batch, sync=True)

    def _has_caught_up(self, restored_ms: int) -> bool:
        """Whether the ledger here is no older than the restore: a voter has asked all others, the rest go by block times."""
        is_voter = self._me in self._store.configuration.voters
        return (is_voter and not self._store.is_rebuilt()) or self._store.applied().time_ms >= restored_ms

    async def _look(self) -> bool:
        """Return whether all that can be put right is; False while something is on its way from other members."""
        try:
            for handle, row in self._patients.own():
                if row.keys is not None and await self._workers.run(self._was_handed_over, row, row.keys):
                    self._give_up(handle)
            lost = [vid for vid in await self._unknown() if not await self._adopt(vid)]
        except (Unavailable, Corruption) as error:
            self._log.debug("looking for vaults goes on later", reason=type(error).__name__)
            return False
        if lost:
            self._log.error(
                "vaults of patients who were registered after the backup cannot be opened here any more",
                count=len(lost),
            )
        return True

    # --- vaults that were opened ----------------------------------------------------------------------------------

    async def _unknown(self) -> list[Vid]:
        """Return the vaults on the ledger that are in our custody and in nobody's row."""
        unknown: list[Vid] = []
        rows = self._rows.scan(*prefix_range(self._store.state_prefix + vault_key(Vid(b""))))
        while portion := await self._workers.run(list, islice(rows, _VAULTS_PER_TURN)):
            in_custody = await self._workers.run(self._in_custody, portion)
            unknown += [vid for vid in in_custody if self._patients.owner_of(vid) is None]
        return unknown

    def _in_custody(self, rows: Iterable[tuple[bytes, bytes]]) -> list[Vid]:
        # The id stands in the row as it is: most vaults are somebody else's, and need not be decoded.
        ours = self._store.configurations.all_ids(self._me)
        vaults = (codec.decode(row, Vault) for _, row in rows if any(row.find(one) >= 0 for one in ours))
        return [vault.vid for vault in vaults if vault.custodian in ours]

    async def _adopt(self, vid: Vid) -> bool:
        """Give a vault back to the patient whose root its key comes from; return False when there is none.

        Raises:
            Unavailable: no record of it can be opened now, so that its category is unknown.
        """
        vault = self._store.vault(vid)
        assert vault is not None, "vaults are never removed"
        handle = await self._workers.run(self._owner_among, vault, tuple(self._patients.own()))
        row = self._patients.row(handle) if handle is not None else None
        if handle is None or row is None or row.keys is None:
            return False
        category = await self._category(vault, row.keys)
        row = self._patients.row(handle)
        assert row is not None, "patients are never removed"
        if category is not None:
            found = WalletVault(vault.vid, category, 0, 0, 0, ())
            self._patients.put(handle, dataclasses.replace(row, vaults=(*row.vaults, found)))
            await self._make_up_for_rotations(vault)
            self._log.info("found a vault that was opened after the backup", vault=vault.vid.hex()[:16])
        return True  # one without a record is given up: the next record of its category opens another

    @staticmethod
    def _owner_among(vault: Vault, patients: tuple[tuple[str, PatientRow], ...]) -> str | None:
        for handle, row in patients:
            if row.keys is not None and _auth_key(row.keys, vault.vid) == vault.auth_pk:
                return handle
        return None

    async def _category(self, vault: Vault, keys: PatientKeys) -> str | None:
        """Return the category that the records of a vault name, our own ones first; None when it has no records."""
        records = [self._store.record(rid) for rid in self._store.records_of(vault.vid)]
        standing = [
            record for record in records if record is not None and self._store.erasure(record.rid) is None
        ]
        standing.sort(key=lambda record: (record.author != self._me, record.height))
        trouble: Unavailable | None = None
        for record in standing[:_RECORDS_TRIED]:
            try:
                opened = await self._opening.open(record, keys.category_secret(vault.vid, record.epoch))
            except Corruption:
                continue  # its author sealed rubbish; another record says it too
            except Unavailable as away:
                trouble = away
            else:
                return opened.meta.category
        if trouble is not None:
            raise trouble
        return None

    async def _make_up_for_rotations(self, vault: Vault) -> None:
        """Ask for a new epoch if a grant ended in the present one: whoever watched for that did not know the vault."""
        now_ms = max(self._clock.now_ms(), self._store.applied().time_ms)
        ends = [0]
        for event in events_of(self._store, vault.vid):
            state = self._store.grant(event.receipt.txid) if isinstance(event.transaction, Grant) else None
            if state is not None and state.is_over(now_ms):
                ends.append(state.revoked_ms or state.grant.exp)
        if max(ends) >= vault.epoch_since_ms:
            batch = Batch()
            batch.put(ROTATION_DUE + vault.vid, codec.pack(max(ends)))
            await self._disk.commit(batch, sync=True)

    # --- custody that was handed over -----------------------------------------------------------------------------

    def _was_handed_over(self, row: PatientRow, keys: PatientKeys) -> bool:
        """Whether every vault of a patient has been transferred by the very keys that the backup brought back.

        Every one: in a handover that was interrupted, the others still need them.
        """
        if row.handover:
            return False  # under way in the backup already: `Handover` goes on with it
        vaults = [self._store.vault(Vid(vault.vid)) for vault in row.vaults]
        known = [vault for vault in vaults if vault is not None]
        return bool(known) and all(self._was_transferred(vault, keys) for vault in known)

    def _was_transferred(self, vault: Vault, keys: PatientKeys) -> bool:
        ours = _auth_key(keys, vault.vid)
        if vault.auth_pk == ours:
            return False
        return any(
            isinstance(event.transaction, CustodyTransfer) and ours in event.signers
            for event in events_of(self._store, vault.vid, newest_first=True)
        )

    def _give_up(self, handle: str) -> None:
        """Delete roots that this facility had given up before: the patient holds the keys."""
        row = self._patients.row(handle)
        assert row is not None, "patients are never removed"
        kept = tuple([dataclasses.replace(vault, audit_secrets=()) for vault in row.vaults])
        given_up = dataclasses.replace(row, root=b"", recovery_root=b"", vaults=kept, handover=_AFTER_RESTORE)
        self._patients.put(handle, given_up)
        self._patients.erase_former(handle)
        forget_prepared(self._keystore, handle)
        self._log.info("deleted keys that had been handed over after the backup", vaults=len(kept))


def _auth_key(keys: PatientKeys, vid: Vid) -> bytes:
    return SigningKey(keys.auth_seed(vid, 0)).public
