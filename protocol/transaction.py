"""The tagged union of transactions, their signed forms and their stateless checks (cryptography.md section 5).

Field order is the wire format: append only. Bodies hold hashes, random ids and public keys; never personal data.
Every kind is signed by the keys listed in its docstring; a signature names its key, and whether that key is the
*right* one for the vault is a question for `ledger_state`.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from protocol import codec, limits, signing
from protocol.codec import Bytes32, Bytes64, Size, wire
from protocol.cross_anchoring import ForeignCheckpoint
from protocol.errors import Invalid, Malformed
from protocol.governance import Ballot, Propose, Withdraw, check_action
from protocol.identifiers import ZERO, Digest, NetworkId, NodeId, PublicKey, Rid, Txid, Vid
from protocol.rejoining import Rejoin

VidField = Annotated[Vid, Size(32)]
RidField = Annotated[Rid, Size(32)]
TxidField = Annotated[Txid, Size(32)]
NodeField = Annotated[NodeId, Size(32)]
KeyField = Annotated[PublicKey, Size(32)]
DigestField = Annotated[Digest, Size(32)]

KIND_ACTOR, KIND_TEAM = 0, 1
RIGHTS = ("R", "W", "G")
PURPOSES = ("TREAT", "HPAYMT", "HOPERAT", "HRESCH", "PUBHLTH", "PATRQT")
"""HL7 v3-ActReason codes."""


@wire("VaultOpen")
@dataclass(frozen=True, slots=True)
class VaultOpen:
    """Open a vault (one patient, one category). Signed by auth key and the custodian's node key.

    `flags` bit 0 is break-glass and must be 0 in suite 0x00. `custodian` ZERO means the patient. `replicas` per chunk.
    """

    vid: VidField
    auth_pk: KeyField
    rec_pk: KeyField
    cat_pk: KeyField
    audit_pk: KeyField
    flags: int
    custodian: NodeField
    writers: Annotated[tuple[NodeField, ...], Size(0, limits.WRITERS_MAX)]
    replicas: int
    valid_until_ms: int


@wire("receipt")
@dataclass(frozen=True, slots=True)
class EnvelopeReceipt:
    """A share holder's word that it stores the envelope and saw the storage receipts (cryptography.md section 6)."""

    node: NodeField
    signature: Bytes64


@wire("RecordCommit")
@dataclass(frozen=True, slots=True)
class RecordCommit:
    """Add a record to a vault. Signed by the author facility's node key. `supersedes` ZERO means none."""

    vid: VidField
    rid: RidField
    epoch: int
    author_pk: NodeField
    env_hash: DigestField
    receipts: Annotated[tuple[EnvelopeReceipt, ...], Size(1, limits.RECEIPTS_MAX)]
    supersedes: RidField
    valid_until_ms: int


@wire("Grant")
@dataclass(frozen=True, slots=True)
class Grant:
    """Let a grantee read (R), write (W) or grant (G). Signed by the auth key; its txid is the grant's id (gid).

    `nbf`, `exp`, `rec_from`, `rec_to` are Unix milliseconds; `max_reads` 0 means no limit; `consent_hash` ZERO none.
    """

    vid: VidField
    grantee_pk: KeyField
    facility: NodeField
    kind: int
    rights: Annotated[str, Size(1, 3)]
    purposes: Annotated[tuple[Annotated[str, Size(1, 16)], ...], Size(1, limits.PURPOSES_MAX)]
    nbf: int
    exp: int
    rec_from: int
    rec_to: int
    max_reads: int
    epoch: int
    wrap_hash: DigestField
    consent_hash: DigestField
    valid_until_ms: int


@wire("Revoke")
@dataclass(frozen=True, slots=True)
class Revoke:
    """End a grant, at once and for ever. Signed by the auth or recovery key."""

    vid: VidField
    gid: TxidField
    valid_until_ms: int


@wire("EpochRotate")
@dataclass(frozen=True, slots=True)
class EpochRotate:
    """Start the next category epoch. Signed by the auth key. `epoch` is the new one, the old one plus 1."""

    vid: VidField
    epoch: int
    cat_pk: KeyField
    link_hash: DigestField
    wraps_hash: DigestField
    valid_until_ms: int


@wire("CustodyTransfer")
@dataclass(frozen=True, slots=True)
class CustodyTransfer:
    """Hand a vault to a new holder of its keys. Signed by the present auth key and by the new one.

    `new_custodian` ZERO means the patient. Recovery and audit keys move as well: a former custodian that kept a key
    which outranks auth, or one that opens new "who read" notes, would still be a custodian.
    """

    vid: VidField
    new_custodian: NodeField
    new_auth_pk: KeyField
    new_rec_pk: KeyField
    new_audit_pk: KeyField
    valid_until_ms: int


@wire("Read")
@dataclass(frozen=True, slots=True)
class Read:
    """Announce the opening of records. Signed by actor key and facility node key. `gid` ZERO means the owner reads.

    `epk` is the reader's one-time X25519 key for released shares, `nonce` random, `who_hash` of the note that tells
    the patient who read, `cert_hash` ZERO for teams.
    """

    vid: VidField
    rids: Annotated[tuple[RidField, ...], Size(1, limits.READ_RIDS_MAX)]
    gid: TxidField
    purpose: Annotated[str, Size(1, 16)]
    actor_pk: KeyField
    cert_hash: DigestField
    epk: KeyField
    nonce: Bytes32
    who_hash: DigestField
    valid_until_ms: int


@wire("RecordErase")
@dataclass(frozen=True, slots=True)
class RecordErase:
    """Erase a record for good: whoever holds envelope or chunks deletes them. Signed by the auth key."""

    vid: VidField
    rid: RidField
    valid_until_ms: int


@wire("Accusation")
@dataclass(frozen=True, slots=True)
class Accusation:
    """Put evidence against a member on the ledger (`protocol.evidence`). Signed by the reporter's node key.

    Encoded, because what it convicts is a question of the configurations that were in force: `convictions` reads it.
    """

    reporter: NodeField
    evidence: Annotated[bytes, Size(1, limits.EVIDENCE_BYTES_MAX)]
    valid_until_ms: int


VaultTransaction = (
    VaultOpen | RecordCommit | Grant | Revoke | EpochRotate | CustodyTransfer | Read | RecordErase
)
"""What touches one vault, and is listed there."""
GovernanceTransaction = Propose | Ballot | Withdraw
Transaction = VaultTransaction | GovernanceTransaction | Accusation | ForeignCheckpoint | Rejoin

SIGNATURES = {
    VaultOpen: 2,
    RecordCommit: 1,
    Grant: 1,
    Revoke: 1,
    EpochRotate: 1,
    CustodyTransfer: 2,
    Read: 2,
    RecordErase: 1,
    Propose: 1,
    Ballot: 1,
    Withdraw: 1,
    Accusation: 1,
    ForeignCheckpoint: 1,
    Rejoin: 1,
}


@wire("signature")
@dataclass(frozen=True, slots=True)
class Signature:
    """One signature and the Ed25519 key that made it."""

    key: KeyField
    signature: Bytes64


@wire("tx")
@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """A transaction with its signatures, in the order its kind's docstring lists the keys."""

    transaction: Transaction
    signatures: Annotated[tuple[Signature, ...], Size(1, 2)]


def signing_bytes(transaction: Transaction, ledger: NetworkId) -> bytes:
    """Return enc("carechain/v1/tx/<Type>", ledger_id, field, …), nested values as their fields."""
    return signing.signed_form(
        "tx/" + codec.tag_of(type(transaction)), ledger, *codec.fields_plain(transaction)
    )


def txid_of(transaction: Transaction, ledger: NetworkId) -> Txid:
    """Return the transaction's id: SHA-256 of its signed bytes. Signatures do not change it."""
    return Txid(signing.sha256(signing_bytes(transaction, ledger)))


def sign(transaction: Transaction, ledger: NetworkId, *keys: signing.SigningKey) -> SignedTransaction:
    """Return the transaction signed by `keys`, in order."""
    form = signing_bytes(transaction, ledger)
    return SignedTransaction(transaction, tuple(Signature(key.public, key.sign(form)) for key in keys))


def encoded(signed: SignedTransaction, ledger: NetworkId) -> tuple[Txid, bytes]:
    """Return a signed transaction's id and its bytes, both from one walk over its fields."""
    plain = codec.to_plain(signed)
    return Txid(signing.sha256(_form(plain, ledger))), codec.pack_loaded(*plain)


def parse(raw: bytes, ledger: NetworkId) -> tuple[SignedTransaction, Txid]:
    """Decode a transaction that stands in a checked block.

    Raises:
        Malformed: not a transaction.
    """
    signed, form = _parse(raw, ledger)
    return signed, Txid(signing.sha256(form))


def _parse(raw: bytes, ledger: NetworkId) -> tuple[SignedTransaction, bytes]:
    """Return the transaction and its signed bytes, packed from the plain values as they came: half of the time."""
    plain = codec.load(raw)
    return codec.from_plain(plain, SignedTransaction), _form(plain, ledger)


def _form(plain: tuple[Any, ...], ledger: NetworkId) -> bytes:
    """Return the signed bytes of a transaction whose plain values have passed a typed reader or come from a writer."""
    kind, *fields = plain[1]
    return codec.pack_loaded("carechain/v1/tx/" + kind, ledger, *fields)


def check(raw: bytes, ledger: NetworkId, *, signatures: bool = True) -> tuple[SignedTransaction, Txid]:
    """Decode a signed transaction and make every check that needs no state; without `signatures` all but theirs.

    Raises:
        Malformed: not a transaction.
        Invalid: a signature, size or rule of the schema does not hold.
    """
    signed, form = check_unverified(raw, ledger)
    if signatures:
        _check_signatures(signed, form, ledger)
    return signed, Txid(signing.sha256(form))


def check_unverified(raw: bytes, ledger: NetworkId) -> tuple[SignedTransaction, bytes]:
    """Make all of `check` but signatures, raising as it does; return the transaction with its signed bytes."""
    _check_size(raw, limits.ACCUSATION_BYTES_MAX)
    signed, form = _parse(raw, ledger)
    transaction = signed.transaction
    if not isinstance(transaction, Accusation):
        _check_size(raw, limits.TRANSACTION_BYTES_MAX)
    check_schema(transaction)
    if len(signed.signatures) != SIGNATURES[type(transaction)]:
        kind = codec.tag_of(type(transaction))
        raise Invalid(f"{kind} carries {len(signed.signatures)} signatures")
    return signed, form


def _check_size(raw: bytes, most: int) -> None:
    if len(raw) > most:
        raise Invalid(f"a transaction of {len(raw)} bytes is over the limit of {most}")


def _check_signatures(signed: SignedTransaction, form: bytes, ledger: NetworkId) -> None:
    transaction = signed.transaction
    if not all(signing.verify(signature.key, form, signature.signature) for signature in signed.signatures):
        raise Invalid(f"a signature of a {codec.tag_of(type(transaction))} does not verify")
    if isinstance(transaction, RecordCommit) and not receipts_valid(transaction, ledger):
        raise Invalid("a receipt in a RecordCommit does not verify")


def check_schema(transaction: Transaction) -> None:
    """Check the rules a transaction must keep whatever the ledger's state.

    Raises:
        Invalid: one of them is broken.
    """
    match transaction:
        case VaultOpen():
            if transaction.flags != 0:
                raise Invalid("the break-glass flag needs the second key leg")
            if not 1 <= transaction.replicas <= limits.MEMBERS_MAX:
                raise Invalid("replicas out of range")
        case Grant():
            _check_grant(transaction)
        case Read():
            if transaction.purpose not in PURPOSES or len(set(transaction.rids)) != len(transaction.rids):
                raise Invalid("a Read needs a known purpose and distinct records")
        case RecordCommit():
            nodes = [receipt.node for receipt in transaction.receipts]
            if nodes != sorted(set(nodes)):
                raise Invalid("receipts must be of distinct members, sorted")
        case Propose():
            check_action(transaction.action)
        case _:
            pass  # the other kinds have no rule beyond their field types


def _check_grant(grant: Grant) -> None:
    if not grant.nbf < grant.exp <= grant.nbf + limits.GRANT_MS_MAX:
        raise Invalid("a grant ends after it begins and within five years")
    if grant.kind not in (KIND_ACTOR, KIND_TEAM):
        raise Invalid("unknown kind of grantee")
    if grant.rights != "".join(right for right in RIGHTS if right in grant.rights):
        raise Invalid("rights are R, W, G in this order")
    if any(purpose not in PURPOSES for purpose in grant.purposes) or list(grant.purposes) != sorted(
        set(grant.purposes)
    ):
        raise Invalid("purposes are known codes, sorted, each once")


def receipt_form(ledger: NetworkId, vid: Vid, rid: Rid, env_hash: Digest) -> bytes:
    """Return the bytes that an envelope receipt signs (cryptography.md section 6)."""
    return signing.signed_form("receipt", ledger, vid, rid, env_hash)


def receipts_valid(commit: RecordCommit, ledger: NetworkId) -> bool:
    """Return whether every receipt's signature verifies; whose they are is a question of state."""
    form = receipt_form(ledger, commit.vid, commit.rid, commit.env_hash)
    return all(signing.verify(receipt.node, form, receipt.signature) for receipt in commit.receipts)


__all__ = [
    "KIND_ACTOR",
    "KIND_TEAM",
    "PURPOSES",
    "ZERO",
    "Accusation",
    "Ballot",
    "CustodyTransfer",
    "EnvelopeReceipt",
    "EpochRotate",
    "GovernanceTransaction",
    "Grant",
    "Malformed",
    "Propose",
    "Read",
    "RecordCommit",
    "RecordErase",
    "Revoke",
    "Signature",
    "SignedTransaction",
    "Transaction",
    "VaultOpen",
    "VaultTransaction",
    "Withdraw",
    "check",
    "check_schema",
    "check_unverified",
    "encoded",
    "parse",
    "receipt_form",
    "receipts_valid",
    "sign",
    "signing_bytes",
    "txid_of",
]
