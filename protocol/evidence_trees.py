"""E6: two trees under one size, or two leaves under one index (ledger.md 1.2, 1.5)."""

from dataclasses import dataclass
from typing import Annotated

from protocol import limits, merkle
from protocol.checkpoint import SignedCheckpoint, log_key, origin_of
from protocol.codec import Size, wire
from protocol.evidence_certificates import Configurations, check_known
from protocol.evidence_statements import demand
from protocol.finality import Certificate
from protocol.identifiers import Digest, NetworkId, NodeId

NoteField = Annotated[bytes, Size(1, limits.EVIDENCE_NOTE_BYTES_MAX)]


@wire("placed-leaf")
@dataclass(frozen=True, slots=True)
class PlacedLeaf:
    """A leaf hash with its inclusion path, leaf to root (RFC 9162 section 2.1.3)."""

    leaf: Annotated[Digest, Size(32)]
    path: Annotated[tuple[Annotated[Digest, Size(32)], ...], Size(0, 64)]


@wire("two-trees")
@dataclass(frozen=True, slots=True)
class TwoTrees:
    """E6: two signed checkpoints (C2SP notes) of one member that no tree can have both."""

    signer: Annotated[NodeId, Size(32)]
    one: NoteField
    other: NoteField
    index: int
    leaves: Annotated[tuple[PlacedLeaf, ...], Size(0, 2)]

    def check(self, network: NetworkId, configurations: Configurations) -> NodeId:
        """Return the member."""
        heads = [signed_head(note, self.signer, network, configurations) for note in (self.one, self.other)]
        _check_differ(heads[0], heads[1], self.index, self.leaves)
        return self.signer


@wire("other-tree")
@dataclass(frozen=True, slots=True)
class OtherTree:
    """E6: a signed checkpoint of one member, and a certified header over another tree.

    Where two histories are certified this may be the word of an honest member of the other one. A certificate of it
    clears the member (`ConflictingCertificates.accused`), as with E3b.
    """

    signer: Annotated[NodeId, Size(32)]
    note: NoteField
    certificate: Certificate
    index: int
    leaves: Annotated[tuple[PlacedLeaf, ...], Size(0, 2)]

    @property
    def root(self) -> Digest:
        """The root in the checkpoint."""
        return SignedCheckpoint.parse(self.note).checkpoint.root

    def check(self, network: NetworkId, configurations: Configurations) -> NodeId:
        """Return the member."""
        head = signed_head(self.note, self.signer, network, configurations)
        header = self.certificate.header
        _check_differ(head, (header.tree_size, header.tree_root), self.index, self.leaves)
        check_known(self.certificate, network, configurations)
        return self.signer


def signed_head(
    note: bytes, signer: NodeId, network: NetworkId, configurations: Configurations
) -> tuple[int, Digest]:
    """Return (size, root) of a checkpoint of this network that a member's checkpoint key has signed.

    Raises:
        Invalid: none of the keys that the member has, or had, signed it.
        Malformed: it is no checkpoint.
    """
    signed = SignedCheckpoint.parse(note)
    demand(signed.checkpoint.origin == origin_of(network), "a checkpoint of another log")
    members = [each.by_node[signer] for each in configurations.values() if signer in each.by_node]
    keys = {log_key(network, member.checkpoint) for member in members}
    demand(bool(signed.signed_by(keys)), "the member has not signed this checkpoint")
    return signed.checkpoint.size, signed.checkpoint.root


def _check_differ(
    one: tuple[int, Digest], other: tuple[int, Digest], index: int, leaves: tuple[PlacedLeaf, ...]
) -> None:
    """Raise Invalid unless two tree heads (size, root) cannot both be heads of one tree that only grows."""
    if not leaves:
        # Two sizes are what growing is: then only two leaves at one index show that it was not growing.
        demand(one[0] == other[0], "two trees of two sizes")
        demand(one[1] != other[1], "one tree twice")
        return
    demand(len(leaves) == 2 and leaves[0].leaf != leaves[1].leaf, "not two different leaves")
    for (size, root), placed in zip((one, other), leaves, strict=True):
        merkle.verify_inclusion(placed.leaf, index, size, placed.path, root)
