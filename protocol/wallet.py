"""A patient's wallet: the roots (`protocol/patient_keys.py`) with what their owner needs to use them, as one sealed file.

    enc("wallet-file", version, salt(16), AES-256-GCM(Argon2id(passphrase, salt), zero nonce, enc("wallet", …)))

aad = enc("carechain/v1/wallet", version, salt). Whoever opens a wallet is the patient, so nothing here has a `repr` that
shows more than its type.
"""

from dataclasses import dataclass
from typing import Annotated

from protocol import codec
from protocol.codec import Bytes32, Size, pack
from protocol.errors import LocalFault, Malformed, Refused, RemoteFault
from protocol.identifiers import Vid
from protocol.limits import MIB
from protocol.passphrase import SALT_BYTES, Hardness, key_of_passphrase
from protocol.patient_keys import PatientKeys
from protocol.person import Person
from protocol.sealing import aead_open, aead_seal

WALLET_VERSION = 1
HARDNESS = Hardness(operations=8, memory_bytes=64 * MIB)
"""Part of format 1: a wallet lives for decades away from the facility, so it cannot follow the keystore's defaults."""

_WALLET = "carechain/v1/wallet"


@codec.wire("wallet-vault")
@dataclass(frozen=True, slots=True, repr=False)
class WalletVault:
    """One vault of a patient, and where its keys stand.

    `first_epoch` is the first one derived from this wallet's root: after a handover the earlier ones are reached over the
    epoch links. `audit_secrets` are the ones of former roots, oldest first, handed over because the vault's notes were, and
    until its audit key changes still are, sealed to them.
    """

    vid: Bytes32
    category: Annotated[str, Size(1, 32)]
    generation: int
    epoch: int
    first_epoch: int
    audit_secrets: Annotated[tuple[Bytes32, ...], Size(0, 64)]

    def __repr__(self) -> str:
        return "WalletVault(hidden)"


@codec.wire("wallet")
@dataclass(frozen=True, slots=True, repr=False)
class Wallet:
    """Everything a patient needs to act for themselves, apart from the ledger and its attachments."""

    root: Bytes32
    recovery_root: Bytes32
    person: Person
    vaults: Annotated[tuple[WalletVault, ...], Size(0, 1024)]

    def __repr__(self) -> str:
        return "Wallet(hidden)"

    @property
    def keys(self) -> PatientKeys:
        """The derivations from this wallet's roots."""
        return PatientKeys(self.root, self.recovery_root)

    def audit_secrets(self, vault: WalletVault) -> tuple[bytes, ...]:
        """Return every secret that a "who read" note of the vault may be sealed to, this root's own first."""
        return (self.keys.audit_secret(Vid(vault.vid)), *reversed(vault.audit_secrets))


@codec.wire("wallet-file")
@dataclass(frozen=True, slots=True)
class _WalletFile:
    version: int
    salt: Annotated[bytes, Size(SALT_BYTES)]
    sealed: bytes


def seal_wallet(wallet: Wallet, passphrase: str, *, salt: bytes) -> bytes:
    """Return the wallet as a file: AES-256-GCM under Argon2id(passphrase, salt).

    `salt` is 16 fresh random bytes each time: it makes the key one of a kind, so the zero nonce is safe. Takes the better part of
    a second and tens of MiB by design.

    Raises:
        LocalFault: a field is over its bounds; the wallet could never be opened again.
    """
    assert len(salt) == SALT_BYTES, "an Argon2id salt is 16 bytes"
    plain = codec.encode(wallet)
    try:
        codec.decode(plain, Wallet)
    except Malformed as fault:
        raise LocalFault(str(fault)) from None
    sealed = aead_seal(key_of_passphrase(passphrase, salt, HARDNESS), plain, _wallet_binding(salt))
    return codec.encode(_WalletFile(WALLET_VERSION, salt, sealed))


def open_wallet(data: bytes, passphrase: str) -> Wallet:
    """Return the wallet in a file.

    Raises:
        Refused: no wallet file, one of a newer version, or the wrong passphrase (a damaged file looks the same).
    """
    try:
        file = codec.decode(data, _WalletFile)
    except Malformed:
        raise Refused("this file is not a carechain wallet") from None
    if file.version != WALLET_VERSION:
        raise Refused(f"this wallet has format {file.version}; this program reads format {WALLET_VERSION}")
    try:
        return codec.decode(
            aead_open(
                key_of_passphrase(passphrase, file.salt, HARDNESS), file.sealed, _wallet_binding(file.salt)
            ),
            Wallet,
        )
    except RemoteFault:
        raise Refused("wrong passphrase, or the wallet file is damaged") from None


def _wallet_binding(salt: bytes) -> bytes:
    return pack(_WALLET, WALLET_VERSION, salt)
