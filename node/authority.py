"""Who may sign for a patient: the custodian, with the roots in its keystore, or whoever brings the patient's wallet.

An `Authority` lives for one command (a wallet) or is derived when needed (custody); it is never stored.
"""

from dataclasses import dataclass

from node.patients import LocalPatient, PatientRow, Patients
from node.ports import Workers
from node.sealed_wallet import SealedWallet
from protocol.codec import pack
from protocol.configuration import Member
from protocol.errors import Forbidden, Refused
from protocol.hpke import x25519_public
from protocol.identifiers import ZERO, NodeId, PublicKey, Vid
from protocol.key_derivation import hkdf
from protocol.ledger_rows import Vault
from protocol.patient_keys import PatientKeys
from protocol.person import Person
from protocol.signing import SigningKey
from protocol.wallet import Wallet, WalletVault, open_wallet
from protocol.wraps import GrantContents, seal_grant
from storage.ledger_store import LedgerStore

_NEEDS_SIGNATURE = "this needs the patient's signature, and this facility does not hold the patient's keys; give --wallet FILE"


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """The keys of one patient and what they are for. `custodian` is this facility, or ZERO for a wallet.

    `patient` is the local handle, "" when this facility does not know the patient.
    """

    keys: PatientKeys
    person: Person
    vaults: tuple[WalletVault, ...]
    custodian: NodeId
    patient: str

    def __repr__(self) -> str:
        return f"Authority({len(self.vaults)} vaults)"

    def vault_of(self, category: str) -> WalletVault | None:
        """Return the vault of a category."""
        return next((vault for vault in self.vaults if vault.category == category), None)

    def vault(self, vid: Vid) -> WalletVault | None:
        """Return one of the patient's vaults."""
        return next((vault for vault in self.vaults if vault.vid == vid), None)

    def auth_key(self, vault: WalletVault) -> SigningKey:
        """Return the key that signs for a vault."""
        return SigningKey(self.keys.auth_seed(Vid(vault.vid), vault.generation))

    def holds(self, vault: WalletVault, state: Vault) -> bool:
        """Return whether this is the authority that the ledger names for the vault at present."""
        return state.auth_pk == self.auth_key(vault).public

    def is_current(self, vault: WalletVault, state: Vault) -> bool:
        """Return whether the vault's present category key is derived from these keys: not yet, in the midst of a handover."""
        return state.cat_pk == x25519_public(self.keys.category_secret(Vid(vault.vid), state.epoch))

    def audit_secrets(self, vault: WalletVault) -> tuple[bytes, ...]:
        """Return every secret that a "who read" note of the vault may be sealed to, the present one first."""
        return (self.keys.audit_secret(Vid(vault.vid)), *reversed(vault.audit_secrets))

    def wrap(
        self, vault: WalletVault, epoch: int, grantee: PublicKey, facility: Member, *, seed32: bytes
    ) -> bytes:
        """Return the category key of `epoch` sealed to a facility, with whom it is about and the handle for that facility.

        Raises:
            Invalid: the facility's key is unusable.
            Refused: the person's name or identifiers do not fit.
        """
        vid = Vid(vault.vid)
        # Derived, not drawn: the same in every vault, for ever, without a table that could be lost; unrelated to
        # everybody without the root.
        handle = hkdf(self.keys.root, pack("carechain/v1/handle", facility.node))
        secret = self.keys.category_secret(vid, epoch)
        contents = GrantContents(secret, epoch, vault.category, self.person, handle)
        return seal_grant(contents, vid, grantee, facility.kex, seed32=seed32)


class Authorities:
    """Finds the authority for a command."""

    def __init__(self, *, me: NodeId, patients: Patients, store: LedgerStore, workers: Workers) -> None:
        self._me = me
        self._patients = patients
        self._store = store
        self._workers = workers

    async def for_patient(self, text: str, wallet: SealedWallet | None) -> Authority:
        """Return the authority over the patient called `text` on the command line.

        With a wallet, `text` may be anything that does not name another patient.

        Raises:
            Forbidden: no wallet, and this facility does not hold the keys.
            Refused: no such patient, a wrong passphrase, or the wallet of somebody else.
        """
        if wallet is None:
            return self.custody(self._patients.resolve(text))
        authority = await self.of_wallet(wallet)
        try:
            patient = self._patients.resolve(text)
        except Refused:
            return authority  # a patient may use any facility's daemon with their own wallet
        row = self._patients.row(patient.handle)
        known = {vault.vid for vault in row.vaults} if row else set()
        if known and not known & {vault.vid for vault in authority.vaults}:
            raise Refused("the wallet is not that patient's; name the patient whose wallet it is")
        return authority

    def custody(self, patient: LocalPatient) -> Authority:
        """Return the authority over a patient in this facility's custody.

        Raises:
            Forbidden: the keys are not here.
        """
        row = self._patients.row(patient.handle)
        if row is None or row.keys is None or row.handover:
            raise Forbidden(_NEEDS_SIGNATURE)
        return self.of_row(patient.handle, row)

    def of_row(self, handle: str, row: PatientRow) -> Authority:
        """Return the authority that a row with roots gives."""
        assert row.keys is not None, "a row without roots gives no authority"
        return Authority(row.keys, row.person, row.vaults, self._me, handle)

    def of_vault(self, vid: Vid) -> Authority | None:
        """Return the authority over a vault in this facility's custody, as the ledger has it, or None."""
        owner, state = self._patients.owner_of(vid), self._store.vault(vid)
        row = self._patients.row(owner) if owner else None
        if owner is None or row is None or row.keys is None or row.handover:
            return None
        if state is None or not self._store.configurations.is_same(state.custodian, self._me):
            return None
        authority = self.of_row(owner, row)
        vault = authority.vault(vid)
        return authority if vault is not None and authority.holds(vault, state) else None

    async def of_wallet(self, wallet: SealedWallet) -> Authority:
        """Open a wallet for one command.

        Raises:
            Refused: no wallet, or the wrong passphrase.
        """
        try:
            passphrase = wallet.passphrase.decode()
        except UnicodeDecodeError:
            raise Refused("the wallet's passphrase is not UTF-8 text; correct the passphrase file") from None
        # Argon2id takes the better part of a second: beside the event loop.
        opened: Wallet = await self._workers.run(open_wallet, wallet.data, passphrase)
        owner = next((o for v in opened.vaults if (o := self._patients.owner_of(Vid(v.vid)))), "")
        return Authority(opened.keys, opened.person, opened.vaults, NodeId(ZERO), owner)
