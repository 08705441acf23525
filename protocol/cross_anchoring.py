"""Another network's newest certified header, recorded on our ledger (ledger.md 8).

A second past of that network would then have to be told to us as well: whoever is shown one compares it with what our
members recorded, each for itself and at a time that our own signers certified. The record is a member's word, not a
proof: the member's light client has checked the header, the ledger only that the same member never goes back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from protocol import codec, limits
from protocol.codec import Size, wire
from protocol.errors import Refused
from protocol.identifiers import Digest, Height, NetworkId, NodeId

FOREIGN_PREFIX = b"f"
"""What the keys of all members' records begin with; the member's node id follows."""

DigestField = Annotated[Digest, Size(32)]


@wire("ForeignCheckpoint")
@dataclass(frozen=True, slots=True)
class ForeignCheckpoint:
    """Record the newest certified header of another network. Signed by the member's node key.

    `tree_size` and `tree_root` are those in the header, of everything before its block.
    """

    member: Annotated[NodeId, Size(32)]
    foreign: Annotated[NetworkId, Size(32)]
    epoch: int
    height: Height
    tree_size: int
    tree_root: DigestField
    header_hash: DigestField
    valid_until_ms: int


@wire("foreign-head")
@dataclass(frozen=True, slots=True)
class ForeignHead:
    """The last that one member recorded of one network, and the time of our block that holds it."""

    foreign: Annotated[NetworkId, Size(32)]
    epoch: int
    height: Height
    tree_size: int
    tree_root: DigestField
    header_hash: DigestField
    time_ms: int


@wire("foreign-heads")
@dataclass(frozen=True, slots=True)
class ForeignHeads:
    """What one member recorded of all networks, sorted by their ids."""

    heads: Annotated[tuple[ForeignHead, ...], Size(0, limits.FOREIGN_NETWORKS_MAX)]


def foreign_key(member: NodeId) -> bytes:
    """Return the row of what a member recorded."""
    return FOREIGN_PREFIX + member


def record(
    get: Callable[[bytes], bytes | None],
    writes: dict[bytes, bytes | None],
    checkpoint: ForeignCheckpoint,
    *,
    network: NetworkId,
    time_ms: int,
) -> None:
    """Write what a member recorded on the ledger of `network`, at block time. Rows are read by `get`, written to `writes`.

    Raises:
        Refused: it goes back, contradicts what the member said before, is about our own network, or one too many.
    """
    if checkpoint.foreign == network:
        raise Refused("a checkpoint of this network itself")
    row = get(foreign_key(checkpoint.member))
    heads = {one.foreign: one for one in codec.decode(row, ForeignHeads).heads} if row is not None else {}
    before = heads.get(checkpoint.foreign)
    if before is not None:
        _check_forward(before, checkpoint)
    elif len(heads) == limits.FOREIGN_NETWORKS_MAX:
        raise Refused(f"more than {limits.FOREIGN_NETWORKS_MAX} other networks")
    heads[checkpoint.foreign] = ForeignHead(
        checkpoint.foreign,
        checkpoint.epoch,
        checkpoint.height,
        checkpoint.tree_size,
        checkpoint.tree_root,
        checkpoint.header_hash,
        time_ms,
    )
    rows = ForeignHeads(tuple(heads[network] for network in sorted(heads)))
    writes[foreign_key(checkpoint.member)] = codec.encode(rows)


def _check_forward(before: ForeignHead, checkpoint: ForeignCheckpoint) -> None:
    if (
        checkpoint.epoch < before.epoch
        or checkpoint.height < before.height
        or checkpoint.tree_size < before.tree_size
    ):
        raise Refused("it goes back behind what the member recorded before")
    if checkpoint.height == before.height and checkpoint.header_hash != before.header_hash:
        raise Refused("it contradicts what the member recorded of that height")
    if checkpoint.tree_size == before.tree_size and checkpoint.tree_root != before.tree_root:
        raise Refused("it contradicts what the member recorded of that tree")
    if checkpoint.height == before.height:
        raise Refused("it is on record already")
