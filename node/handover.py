"""Handing custody to the patient, so that no crash loses the keys and nothing is kept that should not be.

    prepare    new roots, durable here; the wallet file for them goes to the client, which stores it
    complete   for every vault CustodyTransfer, then EpochRotate under the new root, wraps for the remaining grantees;
               a grant back; only then the facility's copies of both roots are deleted

Nothing changes on the ledger before the client says that the wallet is stored. Both steps can be repeated: `prepare`
gives a wallet of the same roots, `complete` continues where it was, and the daemon continues by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import trio

from node.authority import Authority
from node.consent import Consent
from node.event_log import EventLog
from node.patients import LocalPatient, PatientRow, Patients
from node.ports import Clock, Entropy, Workers
from node.receipts import Submitter
from node.rotation import Rotation
from node.vaults import Vaults
from protocol import codec
from protocol.codec import Bytes32, Size, wire
from protocol.configuration import Member
from protocol.errors import CarechainError, Forbidden, NotFinal, Refused, Unavailable
from protocol.hpke import x25519_public
from protocol.identifiers import ZERO, NodeId, Vid
from protocol.ledger_rows import Vault
from protocol.passphrase import SALT_BYTES
from protocol.patient_keys import PatientKeys
from protocol.signing import SigningKey
from protocol.transaction import CustodyTransfer, sign
from protocol.wallet import Wallet, WalletVault, seal_wallet
from storage.keystore import Keystore
from storage.ledger_store import LedgerStore

GRANT_BACK_MS = 365 * 86_400_000
_PREFIX = "handover/"
_ID_BYTES = 16
_ANSWER_S = 8.5
_RETRY_MS = 2_000
_CHANGED = (
    "the patient's vaults changed since the wallet was made; repeat the handover with a new wallet file"
)
_NOT_FINAL = "the handover is under way and not final yet: keep the wallet file; it is completed by itself"


@wire("handover-row")
@dataclass(frozen=True, slots=True, repr=False)
class HandoverRow:
    """A handover that is prepared or under way: the new roots, and the vaults as they stand in the wallet."""

    id: Annotated[str, Size(_ID_BYTES * 2)]
    root: Bytes32
    recovery_root: Bytes32
    salt: Annotated[bytes, Size(SALT_BYTES)]
    vaults: Annotated[tuple[WalletVault, ...], Size(0, 1024)]
    grants_back: bool

    def __repr__(self) -> str:
        return f"HandoverRow({len(self.vaults)} vaults)"


class Handover:
    """Prepares and completes handovers; `run` completes what was interrupted."""

    def __init__(
        self,
        *,
        me: Member,
        patients: Patients,
        vaults: Vaults,
        consent: Consent,
        rotation: Rotation,
        keystore: Keystore,
        store: LedgerStore,
        submitter: Submitter,
        workers: Workers,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self._me = me
        self._patients = patients
        self._vaults = vaults
        self._consent = consent
        self._rotation = rotation
        self._keystore = keystore
        self._store = store
        self._submitter = submitter
        self._workers = workers
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._turn = trio.Lock()  # handovers are rare: one at a time, also against `run`

    async def run(self) -> None:
        """Complete handovers that were interrupted, until cancelled."""
        while True:
            for name in tuple(self._keystore.names(_PREFIX)):
                handle = name.removeprefix(_PREFIX)
                row = self._patients.row(handle)
                if row is None or not row.handover:
                    continue  # prepared only: nothing happens before the wallet is stored
                try:
                    async with self._turn:
                        await self._finish(handle)
                except CarechainError as error:
                    # Without a quorum it goes on later; anything else shows in the log until somebody acts.
                    self._log.warning("a handover is not complete", reason=type(error).__name__)
            await self._clock.sleep_ms(_RETRY_MS)

    # --- the two steps ------------------------------------------------------------------------------------------

    async def prepare(self, patient: LocalPatient, *, passphrase: bytes) -> dict[str, object]:
        """Return {"handover": id, "wallet": bytes of the wallet file, "patient"}; no bytes once the handover is done.

        Raises:
            Refused: the passphrase is empty or no text.
            Forbidden: this facility does not hold the patient's keys.
            NotFinal: a vault made here is not on the ledger yet.
        """
        text = _passphrase(passphrase)
        row = self._patients.row(patient.handle)
        if row is not None and row.keys is None and row.handover:
            # Done before; the roots are gone, so the wallet cannot be made again.
            return {"handover": row.handover, "wallet": b"", "patient": patient.handle}
        if row is None or row.keys is None:
            raise Forbidden("this facility does not hold the patient's keys, so it cannot hand them over")
        if not row.handover:
            for vault in row.vaults:
                await self._vaults.ensure_open(Vid(vault.vid))
        handover = self._prepared(patient.handle, row)
        keys = PatientKeys(handover.root, handover.recovery_root)
        wallet = Wallet(keys.root, keys.recovery_root, row.person, handover.vaults)
        # Argon2id takes the better part of a second: beside the event loop.
        sealed = await self._workers.run(lambda: seal_wallet(wallet, text, salt=handover.salt))
        return {"handover": handover.id, "wallet": sealed, "patient": patient.handle}

    async def complete(self, handover_id: str, *, grant: bool = True) -> dict[str, object]:
        """Transfer custody, grant back if wished, delete the facility's keys; return {"patient", "vaults", "grants"}.

        Raises:
            Refused: no such handover, or the wallet is outdated. Nothing has changed then, and the wallet is useless.
            NotFinal: under way; the wallet must be kept.
        """
        found = next(((h, r) for h, r in self._patients.own() if self._is_of(h, r, handover_id)), None)
        if found is None:
            raise Refused("there is no such handover; start it again with carechain patient handover")
        handle, row = found
        if row.keys is None:
            return {"patient": handle, "vaults": len(row.vaults), "grants": []}
        with trio.move_on_after(_ANSWER_S):
            async with self._turn:
                self._begin(handle, grants_back=grant)
                try:
                    return await self._finish(handle)
                except CarechainError as error:
                    # Whatever it is: a refusal would make the client delete the wallet, and custody may have moved.
                    self._log.warning("a handover is not complete", reason=type(error).__name__)
                    raise NotFinal(_NOT_FINAL, (handover_id,)) from None
        raise NotFinal(_NOT_FINAL, (handover_id,))

    # --- details ------------------------------------------------------------------------------------------------

    def _prepared(self, handle: str, row: PatientRow) -> HandoverRow:
        """Return the handover's row, made or renewed; once it is under way it stays as it is."""
        known = self._row(handle)
        if known is not None and row.handover:
            return known
        assert row.keys is not None, "checked by the caller"
        vaults = tuple(self._wallet_vaults(row, row.keys))
        if known is not None and known.vaults == vaults:
            return known
        handover = HandoverRow(
            known.id if known else self._entropy.bytes(_ID_BYTES).hex(),
            known.root if known else self._entropy.bytes(32),
            known.recovery_root if known else self._entropy.bytes(32),
            # Other contents under the same passphrase need another salt: the wallet's nonce is fixed.
            self._entropy.bytes(SALT_BYTES),
            vaults,
            grants_back=False,
        )
        # Persist before the wallet leaves: what the patient holds must be what the ledger will name.
        self._keystore.put(_PREFIX + handle, codec.encode(handover))
        return handover

    def _wallet_vaults(self, row: PatientRow, keys: PatientKeys) -> Iterator[WalletVault]:
        for vault in row.vaults:
            state = self._store.vault(Vid(vault.vid))
            if state is not None:
                first = state.epoch + 1
                former = keys.audit_secret(state.vid)
                yield WalletVault(vault.vid, vault.category, 0, first, first, (*vault.audit_secrets, former))

    def _begin(self, handle: str, *, grants_back: bool) -> None:
        """Mark the handover as under way: from here on nobody else uses the old keys, and nothing refuses any more."""
        row, handover = self._patients.row(handle), self._row(handle)
        assert row is not None, "found by the caller"
        if handover is None or row.keys is None:
            raise Refused(_CHANGED)
        if row.handover:
            return
        if tuple(self._wallet_vaults(row, row.keys)) != handover.vaults or len(handover.vaults) != len(
            row.vaults
        ):
            raise Refused(_CHANGED)
        self._keystore.put(_PREFIX + handle, codec.encode(replace(handover, grants_back=grants_back)))
        self._patients.put(handle, replace(row, handover=handover.id))

    async def _finish(self, handle: str) -> dict[str, object]:
        """Do what is left of a handover under way.

        Raises:
            Unavailable: not now; doing it again continues.
        """
        row, handover = self._patients.row(handle), self._row(handle)
        assert row is not None, "found by the caller"
        if row.keys is None or handover is None:
            return {"patient": handle, "vaults": len(row.vaults), "grants": []}
        new = PatientKeys(handover.root, handover.recovery_root)
        authority = Authority(new, row.person, handover.vaults, NodeId(ZERO), handle)
        await self._transfer_all(handover.vaults, row.keys, authority)
        granted = await self._grant_back(authority) if handover.grants_back and handover.vaults else {}
        # Only now, with every vault and grant final: without these roots the facility cannot go on.
        kept = tuple([replace(vault, audit_secrets=()) for vault in row.vaults])
        self._patients.put(handle, replace(row, root=b"", recovery_root=b"", vaults=kept))
        self._patients.erase_former(handle)
        self._keystore.delete(_PREFIX + handle)
        self._log.info("custody was handed over", vaults=len(kept))
        return {
            "patient": handle,
            "vaults": len(kept),
            "grants": granted.get("grants", []),
            "handover": handover.id,
        }

    async def _transfer_all(
        self, vaults: tuple[WalletVault, ...], old: PatientKeys, authority: Authority
    ) -> None:
        """Transfer all vaults at once; raise what the first that failed raised, once all have been tried."""
        failures: list[CarechainError] = []

        async def transfer(vault: WalletVault) -> None:
            try:
                await self._transfer(vault, old, authority)
            except CarechainError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for vault in vaults:
                nursery.start_soon(transfer, vault)
        if failures:
            raise failures[0]

    async def _transfer(self, vault: WalletVault, old: PatientKeys, authority: Authority) -> None:
        vid = Vid(vault.vid)
        async with self._rotation.turn(vid):
            state = self._vault(vid)
            old_auth, new_auth = SigningKey(old.auth_seed(vid, 0)), authority.auth_key(vault)
            if state.auth_pk == old_auth.public:
                transfer = CustodyTransfer(
                    vid, NodeId(ZERO), new_auth.public, SigningKey(authority.keys.recovery_seed(vid)).public,
                    x25519_public(authority.keys.audit_secret(vid)), self._submitter.valid_until(),
                )  # fmt: skip
                await self._submitter.submit(sign(transfer, self._submitter.ledger, old_auth, new_auth))
        state = self._vault(vid)
        if not authority.holds(vault, state):
            raise Unavailable("a vault could not be transferred; it is tried again")
        # Judged by the key, not by the number: a rotation that was under way may have counted one epoch more.
        if state.cat_pk != x25519_public(authority.keys.category_secret(vid, state.epoch)):
            older = old.category_secret(vid, state.epoch)
            await self._rotation.rotate(authority, vault, after_ms=state.epoch_since_ms, older=older)

    async def _grant_back(self, authority: Authority) -> dict[str, object]:
        categories = [vault.category for vault in authority.vaults]
        wish = self._consent.wish(
            to=self._me.name, categories=categories, purposes=(), expires_ms=GRANT_BACK_MS, write=False
        )
        try:
            return await self._consent.grant_as(authority, wish)
        except (Refused, Forbidden) as error:
            # The patient can grant with the wallet; the custody is theirs already, and must stay so.
            self._log.warning("the grant back was refused", reason=type(error).__name__)
            return {}

    def _vault(self, vid: Vid) -> Vault:
        state = self._store.vault(vid)
        assert state is not None, "the wallet holds vaults that are on the ledger"
        return state

    def _row(self, handle: str) -> HandoverRow | None:
        row = self._keystore.get(_PREFIX + handle)
        return codec.decode(row, HandoverRow) if row is not None else None

    def _is_of(self, handle: str, row: PatientRow, handover_id: str) -> bool:
        if row.handover:
            return row.handover == handover_id
        prepared = self._row(handle)
        return prepared is not None and prepared.id == handover_id


def forget_prepared(keystore: Keystore, handle: str) -> None:
    """Delete what is left here of a handover that was prepared: its keys are the patient's."""
    keystore.delete(_PREFIX + handle)


class PatientDesk:
    """What the routes call `patients`: the registry, and the handover out of it."""

    def __init__(self, patients: Patients, handover: Handover, name: Callable[[NodeId], str]) -> None:
        self._patients = patients
        self._handover = handover
        self._name_of = name
        self.register = patients.register

    async def list(self) -> dict[str, object]:
        """Return {"patients": […]}: own patients, then those who granted this facility access."""
        return {
            "patients": [
                {
                    "patient": patient.handle,
                    "name": patient.person.name,
                    "custody": patient.custody,
                    "granted_by": [self._name(node) for node in patient.granted_by],
                    "categories": list(patient.categories),
                }
                for patient in self._patients.all()
            ]
        }

    async def prepare_handover(self, patient: str, *, passphrase: bytes) -> dict[str, object]:
        """As `Handover.prepare`, for the patient whose handle begins with `patient`."""
        return await self._handover.prepare(self._patients.resolve(patient), passphrase=passphrase)

    async def complete_handover(self, handover: str, *, grant: bool) -> dict[str, object]:
        """As `Handover.complete`."""
        return await self._handover.complete(handover, grant=grant)

    def _name(self, node: NodeId) -> str:
        return "the patient" if node == ZERO else self._name_of(node)


def _passphrase(passphrase: bytes) -> str:
    try:
        text = passphrase.decode()
    except UnicodeDecodeError:
        raise Refused("the wallet's passphrase is not UTF-8 text; choose another") from None
    if not text:
        raise Refused("the wallet's passphrase is empty; choose one")
    return text
