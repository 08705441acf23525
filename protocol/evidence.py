"""Evidence: what a member signed and no honest member signs, in a form that convicts it before anybody (ledger.md 1.2).

| kind | class | who lied |
|---|---|---|
| E1 | TwoHeaders | a leader that cut two blocks for one height and term |
| E2 | TwoAcknowledgements | a voter that followed two histories in one term |
| E3 | TwoVotes, ConflictingCertificates | signers that voted for two histories |
| E3b | FalseBase | a signer that stands upon a base that is not certified |
| E3c | FrozenVote | a signer that voted after it had promised to stand still |
| E4 | TwoGrants | a voter with two votes in one term, or one for two logs |
| E5a, E5b, E5c | HiddenTerm, HiddenLog, OtherTip | a candidate that hid part of its log, or a leader that dropped it |
| E6 | TwoTrees, OtherTree | a signer of checkpoints that do not agree |
| E7 | InvalidBlock | a leader that signed a block no validator takes |
| E8 | BrokenPromise | a leader that left out what it had promised to include |

Everything is self-contained: `check` needs the network and its configurations, no ledger, no clock. Two *stores* of one
node differ when it lost one, so most kinds compare statements of one incarnation.
"""

import zlib
from dataclasses import dataclass
from typing import assert_never

from protocol import codec, limits
from protocol.errors import Invalid, Malformed
from protocol.evidence_blocks import BrokenPromise, InvalidBlock
from protocol.evidence_certificates import Configurations, ConflictingCertificates, FalseBase
from protocol.evidence_freezes import FrozenVote
from protocol.evidence_statements import (
    HiddenLog,
    HiddenTerm,
    OtherTip,
    TwoAcknowledgements,
    TwoGrants,
    TwoHeaders,
    TwoVotes,
)
from protocol.evidence_trees import OtherTree, TwoTrees
from protocol.identifiers import ZERO, Digest, Height, NetworkId, NodeId

Evidence = (
    TwoHeaders
    | TwoAcknowledgements
    | TwoVotes
    | FrozenVote
    | FalseBase
    | ConflictingCertificates
    | TwoGrants
    | HiddenTerm
    | HiddenLog
    | OtherTip
    | TwoTrees
    | OtherTree
    | InvalidBlock
    | BrokenPromise
)

KINDS = ("E1", "E2", "E3", "E3b", "E3c", "E4", "E5a", "E5b", "E5c", "E6", "E7", "E8")
CLEARABLE = ("E3b", "E6")
"""Kinds that can name a signer of the other history, where two are certified."""


_COMPRESSED = b"\xc1"
"""The one byte with which no MessagePack begins (its specification calls it never used)."""
_LEVEL = 9


@dataclass(frozen=True, slots=True)
class Conviction:
    """Who is convicted of what, and at which height (0 where a kind has none).

    `claim` is what the member stood by, where certificates for it would clear it: a base, or the root of a tree; else ZERO.
    `cleared` is the member whose earlier claim this evidence certifies, or None.
    """

    kind: str
    nodes: tuple[NodeId, ...]
    height: Height
    claim: Digest
    cleared: NodeId | None = None


def encode(evidence: Evidence) -> bytes:
    """Return evidence as it is gossiped and handed in: its canonical form, compressed if that is too long.

    Of a header most is said by the one before it, so all evidence of headers and votes fits (`limits.EVIDENCE_BYTES_MAX`). What
    holds whole transactions may not, and is longer than `decode` takes then.
    """
    plain = codec.encode(evidence)
    if len(plain) <= limits.EVIDENCE_BYTES_MAX:
        return plain
    return _COMPRESSED + zlib.compress(plain, _LEVEL)


def decode(raw: bytes) -> Evidence:
    """Return the evidence that `raw` encodes.

    Raises:
        Malformed: none.
        Invalid: longer than evidence may be.
    """
    if len(raw) > limits.EVIDENCE_BYTES_MAX:
        raise Invalid(f"evidence of {len(raw)} bytes is over the limit of {limits.EVIDENCE_BYTES_MAX}")
    plain = _decompressed(raw[1:]) if raw.startswith(_COMPRESSED) else raw
    found: Evidence = codec.decode_union(plain, Evidence)
    return found


def _decompressed(data: bytes) -> bytes:
    """Return what `data` was made of, which must have been too long as it was: short evidence has one spelling."""
    reader = zlib.decompressobj()
    try:
        plain = reader.decompress(data, limits.EVIDENCE_UNPACKED_BYTES_MAX + 1)
    except zlib.error:
        raise Malformed("compressed evidence does not decompress") from None
    if len(plain) > limits.EVIDENCE_UNPACKED_BYTES_MAX:
        raise Invalid(f"evidence is over the limit of {limits.EVIDENCE_UNPACKED_BYTES_MAX} bytes unpacked")
    if not reader.eof or reader.unused_data or len(plain) <= limits.EVIDENCE_BYTES_MAX:
        raise Malformed("compressed evidence is cut short, followed by something, or need not be compressed")
    return plain


def check(evidence: Evidence, network: NetworkId, configurations: Configurations) -> Conviction:
    """Return who is convicted. `configurations` are those in force now and before, by their digests.

    Raises:
        Invalid: nobody is, and why.
        Malformed: a transaction, configuration or checkpoint in it is none.
    """
    conviction = _judge(evidence, network, configurations)
    members = {node for each in configurations.values() for node in each.by_node}
    if not set(conviction.nodes) <= members:
        raise Invalid("evidence against somebody who is no member")
    if not conviction.nodes and conviction.cleared is None:
        raise Invalid("nobody voted on both branches from below the parting")
    return conviction


def _judge(evidence: Evidence, network: NetworkId, configurations: Configurations) -> Conviction:
    match evidence:
        case TwoHeaders():
            return _one("E1", evidence.check(network), evidence.one.header.height)
        case TwoAcknowledgements():
            return _one("E2", evidence.check(network), evidence.one.height)
        case TwoVotes():
            return _one("E3", evidence.check(network), evidence.one.height)
        case FrozenVote():
            return _one("E3c", evidence.check(network), evidence.vote.height)
        case FalseBase():
            vote = evidence.vote
            return _one("E3b", evidence.check(network, configurations), vote.height, vote.base_hash)
        case ConflictingCertificates():
            return _conflict(evidence, network, configurations)
        case TwoGrants():
            return _one("E4", evidence.check(network))
        case HiddenTerm():
            return _one("E5a", evidence.check(network), evidence.acknowledgement.height)
        case HiddenLog():
            return _one("E5b", evidence.check(network), evidence.acknowledgement.height)
        case OtherTip():
            return _one("E5c", evidence.check(network), evidence.header.header.height)
        case TwoTrees():
            return _one("E6", evidence.check(network, configurations))
        case OtherTree():
            node = evidence.check(network, configurations)
            return _one("E6", node, evidence.certificate.height, evidence.root)
        case InvalidBlock():
            return _one("E7", evidence.check(network, configurations), evidence.header.header.height)
        case BrokenPromise():
            return _one("E8", evidence.check(network), evidence.promise.height)
        case _:
            assert_never(evidence)


def _one(kind: str, node: NodeId, height: int = 0, claim: bytes = ZERO) -> Conviction:
    return Conviction(kind, (node,), Height(height), Digest(claim))


def _conflict(
    evidence: ConflictingCertificates, network: NetworkId, configurations: Configurations
) -> Conviction:
    nodes = evidence.check(network, configurations)
    cleared = None if evidence.accused == ZERO else evidence.accused
    height = min(evidence.one.height, evidence.other.height)
    return Conviction("E3", nodes, height, Digest(ZERO), cleared)
