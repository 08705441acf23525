"""The rows of ledger state: what `ledger_state.apply` writes and everybody else reads. Keys are one letter and an id."""

from dataclasses import dataclass
from typing import Annotated

from protocol.codec import Size, wire
from protocol.identifiers import Height, NodeId, PublicKey, Rid, Txid, Vid
from protocol.transaction import Grant

ACCEPTED = "accepted"
GRANTS_PER_VAULT_MAX = 256
"""Live grants of one vault; the custodian revokes before granting more."""

Bytes32 = Annotated[bytes, Size(32)]
TxidField = Annotated[Txid, Size(32)]
KeyField = Annotated[PublicKey, Size(32)]
NodeField = Annotated[NodeId, Size(32)]


@wire("vault")
@dataclass(frozen=True, slots=True)
class Vault:
    """A vault's present keys. `epoch_since_ms` is the block time of the last EpochRotate (or of VaultOpen)."""

    vid: Annotated[Vid, Size(32)]
    auth_pk: KeyField
    rec_pk: KeyField
    cat_pk: KeyField
    audit_pk: KeyField
    custodian: NodeField
    writers: tuple[NodeField, ...]
    replicas: int
    epoch: int
    epoch_since_ms: int
    grants: Annotated[tuple[TxidField, ...], Size(0, GRANTS_PER_VAULT_MAX)]


@wire("record")
@dataclass(frozen=True, slots=True)
class Record:
    """A committed record; `time_ms` is its block's."""

    rid: Annotated[Rid, Size(32)]
    vid: Annotated[Vid, Size(32)]
    epoch: int
    author: NodeField
    env_hash: Bytes32
    height: Height
    time_ms: int
    txid: TxidField


@wire("erasure")
@dataclass(frozen=True, slots=True)
class Erasure:
    """The tombstone of a record, beside its row: when and by which transaction it was erased."""

    rid: Annotated[Rid, Size(32)]
    vid: Annotated[Vid, Size(32)]
    height: Height
    time_ms: int
    txid: TxidField


@wire("granted")
@dataclass(frozen=True, slots=True)
class GrantState:
    """A grant and what became of it. `revoked_ms` 0 while it is live."""

    grant: Grant
    height: Height
    revoked_ms: int
    reads: int

    def is_live(self, time_ms: int) -> bool:
        """Return whether the grant holds at a ledger time."""
        return self.grant.nbf <= time_ms and not self.is_over(time_ms)

    def is_over(self, time_ms: int) -> bool:
        """Return whether the grant has ended for good, by revocation or by time; one that begins later has not."""
        return bool(self.revoked_ms) or time_ms >= self.grant.exp


@wire("outcome")
@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a transaction: where it stands, and "accepted" or "refused: reason"."""

    txid: TxidField
    height: Height
    index: int
    time_ms: int
    verdict: Annotated[str, Size(1, 200)]

    @property
    def is_accepted(self) -> bool:
        """Whether the transaction took effect."""
        return self.verdict == ACCEPTED


def vault_key(vid: Vid) -> bytes:
    """Return the row of a vault."""
    return b"v" + vid


def record_key(rid: Rid) -> bytes:
    """Return the row of a record."""
    return b"r" + rid


def vault_record_key(vid: Vid, rid: Rid) -> bytes:
    """Return the row that lists a record under its vault."""
    return b"w" + vid + rid


def erasure_key(rid: Rid) -> bytes:
    """Return the row of a record's tombstone."""
    return b"x" + rid


def newer_version_key(older: Rid, newer: Rid) -> bytes:
    """Return the row that lists the version which supersedes a record."""
    return b"o" + older + newer


def older_version_key(newer: Rid) -> bytes:
    """Return the row that holds the id of the version which a record supersedes."""
    return b"p" + newer


def grant_key(gid: Txid) -> bytes:
    """Return the row of a grant."""
    return b"g" + gid


def receipt_key(txid: Txid) -> bytes:
    """Return the row of a transaction's receipt, which is also the replay index."""
    return b"t" + txid


def event_key(vid: Vid, tree_index: int) -> bytes:
    """Return the row that lists an accepted transaction under the vault it touches, in ledger order."""
    return b"e" + vid + tree_index.to_bytes(8, "big")


def origin_key(node: bytes) -> bytes:
    """Return the row of a facility whose node key has changed: under each id that it has or had stands its first one."""
    return b"s" + node


def nonce_key(nonce: bytes) -> bytes:
    """Return the row of a Read's nonce."""
    return b"n" + nonce
