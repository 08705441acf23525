"""Vaults: which one a document goes into, how it is opened on the ledger, and which key may open a record.

A vault is one patient and one category. Its id is drawn once and its keys are derived from the patient's roots; both
are durable in the keystore before anything about it leaves this process, so that a crash at any point only means
submitting the same VaultOpen again.
"""

from dataclasses import dataclass, replace

from node.epochs import Epochs
from node.held_grants import HeldGrant, HeldGrants
from node.identity import Identity
from node.patients import LocalPatient, PatientRow, Patients
from node.ports import Clock, Entropy
from node.receipts import Submitter
from protocol import limits
from protocol.errors import Forbidden, LocalFault, Refused, Unavailable
from protocol.hpke import x25519_public
from protocol.identifiers import ZERO, PublicKey, Txid, Vid
from protocol.ledger_rows import Record, Vault
from protocol.patient_keys import PatientKeys
from protocol.signing import SigningKey
from protocol.transaction import VaultOpen, sign
from protocol.wallet import WalletVault
from storage.ledger_store import LedgerStore

NOT_YOURS = "there is no such record, or nothing that allows this facility to open it; ask for a grant"
"""The one sentence for every refused read: it must not tell whether the record exists."""
_MAY_NOT_WRITE = (
    "this facility may not add records of that category for this patient; ask for a grant with --write"
)


@dataclass(frozen=True, slots=True)
class VaultHandle:
    """Where a record of one patient and category goes, and the key to seal it to.

    `is_open` says whether the vault is on the ledger already, as this facility has applied it; if not, `ensure_open`
    must have returned before an envelope leaves.
    """

    vid: Vid
    category: str
    epoch: int
    category_public: PublicKey
    audit_public: PublicKey
    is_open: bool


@dataclass(frozen=True, slots=True, repr=False)
class ReadKey:
    """What a Read is signed with and a record is opened with. `gid` ZERO means that the owner's custodian reads."""

    gid: Txid
    actor: SigningKey
    category_secret: bytes
    audit_public: PublicKey

    def __repr__(self) -> str:
        return f"ReadKey({self.gid.hex()[:16]})"


class Vaults:
    """Finds, makes and opens vaults, and hands out keys for reading."""

    def __init__(
        self,
        *,
        identity: Identity,
        patients: Patients,
        held: HeldGrants,
        epochs: Epochs,
        store: LedgerStore,
        submitter: Submitter,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._me = identity.node_id
        self._node = SigningKey(identity.node)
        self._team = SigningKey(identity.team)
        self._patients = patients
        self._held = held
        self._epochs = epochs
        self._store = store
        self._submitter = submitter
        self._clock = clock
        self._entropy = entropy

    # --- writing ------------------------------------------------------------------------------------------------

    def handle(self, patient: LocalPatient, category: str) -> VaultHandle:
        """Return where a record goes, making the vault's id and keys when it is the first of its category. No ledger needed.

        Raises:
            Forbidden: the patient's keys are not here, and neither is a grant that allows writing.
            Unavailable: the patient is being handed over.
        """
        row = self._patients.row(patient.handle)
        vault = row.vault_of(category) if row else None
        if row is not None and row.keys is not None and self._is_free(row, vault):
            vault = self._make(patient.handle, row, category)
        if vault is not None:
            return self._handle_of(Vid(vault.vid), category, row.keys if row else None)
        for grant in self._held.of_patient(patient.handle):
            if grant.category == category and "W" in grant.rights and grant.exp > self.now_ms():
                return self._handle_of(Vid(grant.vid), category, None)
        raise Forbidden(_MAY_NOT_WRITE)

    async def writable(self, patient: LocalPatient, category: str, *, timeout_ms: int = 8_000) -> VaultHandle:
        """Return `handle` of a vault that is open on the ledger.

        Raises:
            Forbidden, Unavailable: as `handle`.
            NotFinal: the vault could not be opened in time; its keys are safe, calling again continues.
        """
        handle = self.handle(patient, category)
        if handle.is_open:
            return handle
        await self.ensure_open(handle.vid, timeout_ms=timeout_ms)
        return self.handle(patient, category)

    async def ensure_open(self, vid: Vid, *, timeout_ms: int = 8_000) -> None:
        """Open an own vault on the ledger unless it is; idempotent over retries, restarts and concurrent callers.

        Raises:
            NotFinal: not in time. Calling again continues.
            Refused: the ledger refuses it, or somebody else opened a vault under this id.
        """
        owner = self._patients.owner_of(vid)
        row = self._patients.row(owner) if owner else None
        state = self._store.vault(vid)
        if state is not None:
            if row is not None and self._is_taken(row, state):
                raise Refused("another facility opened a vault under this id; add the record again")
            return
        if row is None or row.keys is None:
            raise Forbidden(_MAY_NOT_WRITE)
        keys = row.keys
        auth = SigningKey(keys.auth_seed(vid, 0))
        opening = VaultOpen(
            vid,
            auth.public,
            SigningKey(keys.recovery_seed(vid)).public,
            x25519_public(keys.category_secret(vid, 0)),
            x25519_public(keys.audit_secret(vid)),
            0,
            self._me,
            (self._me,),
            limits.REPLICAS_DEFAULT,
            self._submitter.valid_until(),
        )
        signed = sign(opening, self._submitter.ledger, auth, self._node)
        receipt = await self._submitter.submit(signed, timeout_ms=timeout_ms)
        vault = self._store.vault(vid)
        # "vault exists": an earlier attempt of ours became final meanwhile. Ids are random, so it can be nobody else's.
        if vault is None or vault.auth_pk != auth.public:
            raise Refused(f"the vault could not be opened ({receipt.verdict}); try again")

    # --- reading ------------------------------------------------------------------------------------------------

    def vaults_of(self, patient: LocalPatient) -> dict[str, tuple[Vid, ...]]:
        """Return category → vaults of a patient that this facility may read at present, those on the ledger only."""
        found: dict[str, set[Vid]] = {}
        row = self._patients.row(patient.handle)
        for vault in row.vaults if row else ():
            state = self._store.vault(Vid(vault.vid))
            if row is not None and row.keys is not None and state is not None and self._owns(state, row.keys):
                found.setdefault(vault.category, set()).add(state.vid)
        for grant in self._held.of_patient(patient.handle):
            if grant.exp > self.now_ms() and "R" in grant.rights:
                found.setdefault(grant.category, set()).add(Vid(grant.vid))
        return {category: tuple(sorted(found[category])) for category in sorted(found)}

    async def key_for(self, record: Record, *, purpose: str | None = None) -> ReadKey:
        """Return what opens a record: the owner's keys while in custody, else a live grant (for `purpose`, if given).

        Raises:
            Forbidden: neither; the sentence is `NOT_YOURS` whatever the reason.
            Unavailable: allowed, but a key on the way to the record's epoch has not arrived yet.
        """
        vid = record.vid
        vault = self._store.vault(vid)
        if vault is None:
            raise Forbidden(NOT_YOURS)
        owner = self._patients.owner_of(vid)
        row = self._patients.row(owner) if owner else None
        if row is not None and row.keys is not None and self._owns(vault, row.keys):
            actor = SigningKey(row.keys.auth_seed(vid, 0))
            secret = row.keys.category_secret(vid, record.epoch)
            return ReadKey(Txid(ZERO), actor, secret, vault.audit_pk)
        for grant in self._held.of_vault(vid):
            if self._allows(grant, record, purpose):
                secret = await self._epochs.older_secret(
                    vid, record.epoch, known_epoch=grant.epoch, known_secret=grant.category_secret
                )
                return ReadKey(Txid(grant.gid), self._team, secret, vault.audit_pk)
        raise Forbidden(NOT_YOURS)

    def now_ms(self) -> int:
        """Return the later of ledger time and our own clock: what grants are judged by (cryptography.md section 7)."""
        return max(self._clock.now_ms(), self._store.applied().time_ms)

    # --- details ------------------------------------------------------------------------------------------------

    def _make(self, handle: str, row: PatientRow, category: str) -> WalletVault:
        if row.handover:
            raise Unavailable("this patient is being handed over; finish the handover, or repeat it, first")
        vault = WalletVault(self._entropy.bytes(32), category, 0, 0, 0, ())
        # Persist before the id is used: records in a vault whose id was lost could never be found again.
        kept = tuple([known for known in row.vaults if known.category != category])
        self._patients.put(handle, replace(row, vaults=(*kept, vault)))
        return vault

    def _is_free(self, row: PatientRow, vault: WalletVault | None) -> bool:
        """Whether the category needs a vault: it has none, or somebody else took the id that we drew for it."""
        state = self._store.vault(Vid(vault.vid)) if vault is not None else None
        return vault is None or (state is not None and self._is_taken(row, state))

    @staticmethod
    def _is_taken(row: PatientRow, state: Vault) -> bool:
        """Whether somebody else opened a vault under an id of ours: who orders a VaultOpen sees it before it stands.

        Sealing to the key on the ledger would then be sealing to theirs. During a handover the keys rightly differ.
        """
        if row.keys is None or row.handover:
            return False
        return state.auth_pk != SigningKey(row.keys.auth_seed(state.vid, 0)).public

    def _handle_of(self, vid: Vid, category: str, keys: PatientKeys | None) -> VaultHandle:
        vault = self._store.vault(vid)
        if vault is not None:
            return VaultHandle(vid, category, vault.epoch, vault.cat_pk, vault.audit_pk, is_open=True)
        if keys is None:
            raise LocalFault("a vault that is not ours is not on the ledger")
        category_public = x25519_public(keys.category_secret(vid, 0))
        audit_public = x25519_public(keys.audit_secret(vid))
        return VaultHandle(vid, category, 0, category_public, audit_public, is_open=False)

    def _owns(self, vault: Vault, keys: PatientKeys) -> bool:
        in_custody = self._store.configurations.is_same(vault.custodian, self._me)
        return in_custody and vault.auth_pk == SigningKey(keys.auth_seed(vault.vid, 0)).public

    def _allows(self, grant: HeldGrant, record: Record, purpose: str | None) -> bool:
        state = self._store.grant(Txid(grant.gid))
        if state is None or not state.is_live(self.now_ms()) or "R" not in grant.rights:
            return False
        in_period = state.grant.rec_from <= record.time_ms <= state.grant.rec_to
        return in_period and (purpose is None or purpose in grant.purposes)
