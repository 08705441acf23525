"""State snapshots: at which heights, of which bytes, and whose word makes one believed (ledger.md 7.3).

A header's roots cover transactions, not state. So every signer that has applied a *snapshot height* signs a *state statement*:
the digest of what it holds there. Equal statements of a certificate quorum make a snapshot believed; one member's word never does,
and a snapshot may then be served by anybody.

    chunk        pack(key, value, key, value, …) of consecutive rows of state, cut by one rule, so that all members cut alike
    digest       SHA-256(pack("carechain/v1/state", tree size, peaks, rows, hashes of the chunks))
    manifest     the block of that height, its certificate, the tree after it, and the hashes of the chunks

Snapshot heights are `unit * m` where m has no bit set below its top three: 1 … 8, 10, 12, 14, 16, 20, 24, …. Between two of
them the ledger grows by an eighth at least, so that all snapshots ever made cost a constant multiple of the state.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from protocol import codec, limits, signing
from protocol.block import Block, Header, body_root, check_shape, config_hash_above, header_form
from protocol.codec import Bytes64, Size, wire
from protocol.configuration import Configuration
from protocol.errors import Invalid, Malformed
from protocol.finality import Certificate, check_certificate, linked_heights
from protocol.identifiers import Digest, Height, NetworkId, NodeId
from protocol.merkle import Frontier

_LEADING_BITS = 3
_COMPRESSION_LEVEL = 1
"""Rows are mostly hashes: what compresses does so at once."""
_ROW_OVERHEAD_BYTES = 16
"""What MessagePack adds to a key and a value at most, rounded up: rows without values still fill a chunk."""
_CHUNK_ITEMS_MAX = limits.SNAPSHOT_CHUNK_BYTES_MAX

DigestField = Annotated[Digest, Size(32)]
Row = tuple[bytes, bytes]


def is_snapshot_height(height: int, unit: int) -> bool:
    """Return whether a snapshot is made after the block at `height`, where `unit` blocks are the grid."""
    multiple, rest = divmod(height, unit)
    shift = max(0, multiple.bit_length() - _LEADING_BITS)
    return rest == 0 and multiple > 0 and (multiple >> shift) << shift == multiple


def newest_snapshot_height(first: int, last: int, unit: int) -> Height | None:
    """Return the highest snapshot height in first..last, both included; None where there is none."""
    multiple = last // unit
    shift = max(0, multiple.bit_length() - _LEADING_BITS)
    height = ((multiple >> shift) << shift) * unit
    return Height(height) if height >= max(first, 1) else None


def significance(height: int) -> int:
    """Return how fine a grid a snapshot height lies on, 1 for the coarsest: members that cannot make all make those."""
    odd = height // (height & -height)
    return odd.bit_length()


# --- statements -----------------------------------------------------------------------------------------------


@wire("state-statement")
@dataclass(frozen=True, slots=True)
class StateStatement:
    """A signer's word that its state after the block at `height` has this digest."""

    signer: Annotated[NodeId, Size(32)]
    epoch: int
    height: Height
    header_hash: DigestField
    state_digest: DigestField
    config_hash: DigestField
    signature: Bytes64

    @property
    def claim(self) -> "Claim":
        """What is stated."""
        return Claim(self.height, self.header_hash, self.state_digest)


@wire("state-statements")
@dataclass(frozen=True, slots=True)
class StateStatements:
    """What a member passes on: its own statements, newest first, and those that made it believe the snapshot it installed.

    Whoever brings a statement, its signature says whose word it is.
    """

    statements: Annotated[
        tuple[StateStatement, ...], Size(0, limits.SNAPSHOT_STATEMENTS_MAX + limits.MEMBERS_MAX)
    ]


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """The state after one block, by its digest; the higher block sorts later."""

    height: Height
    header_hash: Digest
    state_digest: Digest


def state(key: signing.SigningKey, block: Block, state_digest: Digest) -> StateStatement:
    """Return the signed statement of a signer that has computed the state after a certified block."""
    header = block.header
    config_hash = config_hash_above(header)
    fields = header.epoch, header.height, block.hash, state_digest, config_hash
    form = signing.signed_form("state-statement", header.net, *fields)
    return StateStatement(NodeId(key.public), *fields, key.sign(form))


def is_statement_valid(statement: StateStatement, network: NetworkId) -> bool:
    """Return whether the signature of a statement verifies."""
    form = signing.signed_form(
        "state-statement",
        network,
        statement.epoch,
        statement.height,
        statement.header_hash,
        statement.state_digest,
        statement.config_hash,
    )
    return signing.verify(statement.signer, form, statement.signature)


def believed(
    statements: Iterable[StateStatement], network: NetworkId, configuration: Configuration
) -> Claim | None:
    """Return the highest claim that a certificate quorum of distinct signers states equally; None where there is none.

    A signer that states two different things of one height counts for neither: at least one of them is no honest work.
    """
    signers: dict[Claim, set[NodeId]] = {}
    said: dict[tuple[NodeId, Height], set[Claim]] = {}
    for statement in statements:
        is_signer = statement.signer in configuration.signers
        if not is_signer or statement.config_hash != configuration.digest:
            continue
        if is_statement_valid(statement, network):
            signers.setdefault(statement.claim, set()).add(statement.signer)
            said.setdefault((statement.signer, statement.height), set()).add(statement.claim)
    agreed = [
        claim
        for claim, by in signers.items()
        if sum(len(said[signer, claim.height]) == 1 for signer in by) >= configuration.certificate_quorum
    ]
    return max(agreed, default=None)


def supporters(
    statements: Iterable[StateStatement], claim: Claim, network: NetworkId, configuration: Configuration
) -> tuple[StateStatement, ...]:
    """Return the valid statements of a claim, one for each signer: what another member needs to believe it as well."""
    stated = {
        one.signer: one
        for one in statements
        if one.claim == claim and one.signer in configuration.signers and is_statement_valid(one, network)
    }
    return tuple(stated.values())


# --- chunks ---------------------------------------------------------------------------------------------------


def take_chunk(
    rows: Iterator[Row], chunk_bytes: int = limits.SNAPSHOT_CHUNK_BYTES
) -> tuple[bytes, int] | None:
    """Return the next chunk of the rows (in key order), and how many rows it holds; None after the last.

    It ends with the row that makes it `chunk_bytes` long: the same for all members, or their chunks differ.
    """
    items: list[bytes] = []
    size = 0
    for key, value in rows:
        items += (key, value)
        size += len(key) + len(value) + _ROW_OVERHEAD_BYTES
        if size >= chunk_bytes:
            break
    return (codec.pack(*items), len(items) // 2) if items else None


def chunk_rows(chunk: bytes) -> list[Row]:
    """Return the rows of a chunk whose hash has been checked.

    Raises:
        Malformed: it is none; whoever stated its hash did not cut it by the rule.
    """
    items = codec.unpack_byte_strings(chunk, _CHUNK_ITEMS_MAX)
    if len(items) % 2:
        raise Malformed("a chunk of state ends in a key")
    return list(zip(items[::2], items[1::2], strict=True))


def compressed(chunk: bytes) -> bytes:
    """Return a chunk as it is stored and sent."""
    return zlib.compress(chunk, _COMPRESSION_LEVEL)


def inflated(data: bytes, digest: Digest) -> bytes:
    """Return the chunk with this hash out of its compressed form.

    Raises:
        Invalid: it is another one, damaged, or inflates beyond a chunk.
    """
    inflater = zlib.decompressobj()
    try:
        chunk = inflater.decompress(data, limits.SNAPSHOT_CHUNK_BYTES_MAX)
    except zlib.error:
        raise Invalid("a chunk of state does not inflate") from None
    if not inflater.eof or inflater.unused_data or hashlib.sha256(chunk).digest() != digest:
        raise Invalid("a chunk of state is not the one that its hash names")
    return chunk


# --- manifests ------------------------------------------------------------------------------------------------


@wire("snapshot-manifest")
@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """What an installer needs besides the chunks: `block` stands at the snapshot height.

    `certificate` is for it, or for a descendant: then `links` are the headers above the block, up to the certificate's.
    `tree_size` and `peaks` are the tree of transactions after the block, `rows` counts the rows in all chunks.
    """

    block: Annotated[bytes, Size(1, limits.BLOCK_BYTES_MAX + limits.MIB)]
    height: Height
    links: Annotated[tuple[Header, ...], Size(0, limits.UNCERTIFIED_BLOCKS_MAX)]
    certificate: Certificate
    tree_size: int
    peaks: Annotated[tuple[DigestField, ...], Size(0, 64)]
    rows: int
    chunks: Annotated[tuple[DigestField, ...], Size(0, limits.SNAPSHOT_CHUNKS_MAX)]

    @property
    def frontier(self) -> Frontier:
        """The tree of transactions after the block."""
        return Frontier(self.tree_size, self.peaks)

    @property
    def state_digest(self) -> Digest:
        """What the statements sign: everything an installer takes that the header does not cover."""
        return state_digest(self.frontier, self.rows, self.chunks)


def state_digest(frontier: Frontier, rows: int, chunks: tuple[Digest, ...]) -> Digest:
    """Return the digest of a state and of the tree beside it."""
    return signing.sha256(codec.pack("carechain/v1/state", frontier.size, frontier.peaks, rows, chunks))


def check_manifest(
    manifest: SnapshotManifest, claim: Claim, network: NetworkId, configuration: Configuration
) -> Block:
    """Check that a manifest is that of a believed claim; return its block.

    Raises:
        Invalid: its block, certificate, tree or chunks are not those of the claim.
        Malformed: it holds no block.
    """
    block = Block.decode(manifest.block)
    if block.hash != claim.header_hash or not block.height == claim.height == manifest.height:
        raise Invalid("the block of a snapshot is another one than the statements name")
    following = block.next_configuration() if block.is_configuration and not manifest.links else None
    final = check_certificate(manifest.certificate, network, configuration, following)
    if list(linked_heights(block.header, manifest.links))[-1] != final:
        raise Invalid("the certificate of a snapshot is for another block than its headers lead to")
    if not signing.verify(block.header.leader, header_form(block.header), block.signature):
        raise Invalid("the block of a snapshot is not signed by its leader")
    check_shape(block)
    if body_root(block.special, block.leaves()) != block.header.tx_root:
        raise Invalid("the block of a snapshot does not hash to its tx_root")
    if manifest.tree_size != block.header.tree_size + block.header.n_tx:
        raise Invalid("the tree of a snapshot is not that after its block")
    if len(manifest.peaks) != manifest.tree_size.bit_count() or manifest.state_digest != claim.state_digest:
        raise Invalid("the chunks of a snapshot are not those that the statements sign")
    return block


def links_above(blocks: tuple[Block, ...], height: Height) -> tuple[Header, ...] | None:
    """Return the headers from above `height` up to the last of `blocks`, which has the certificate.

    None where there are too many of them, or where they end in a configuration block, whose certificate nobody can check
    without its body, or lead into another epoch.
    """
    links = tuple([block.header for block in blocks if block.height > height])
    is_checkable = not links or not (blocks[-1].is_configuration or links[-1].epoch > blocks[0].header.epoch)
    return links if is_checkable and len(links) <= limits.UNCERTIFIED_BLOCKS_MAX else None
