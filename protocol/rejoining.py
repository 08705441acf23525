"""A signer that has forgotten what it signed begins anew (ledger.md 7.3).

    store lost, or an older copy ─► Rejoin, with a random nonce ─► certified without its vote ─► signs under the new number

Nothing that it signed before names a block that holds its Rejoin, or one above: the nonce was not drawn yet. So whatever it
had promised can only be for blocks below, where those who certified the Rejoin have decided without it. Evidence compares
statements of one incarnation. Who still signs under the old number is another process with the same key, and has to end.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated

from protocol import codec
from protocol.codec import Bytes32, Size, wire
from protocol.configuration import Configuration
from protocol.errors import Refused
from protocol.identifiers import Height, NodeId

INCARNATION_PREFIX = b"u"
"""What the keys of all rows about incarnations begin with; the member's node id follows."""

NodeField = Annotated[NodeId, Size(32)]


@wire("Rejoin")
@dataclass(frozen=True, slots=True)
class Rejoin:
    """Begin the next incarnation of a signer. Signed by its node key, and the only thing that it signs meanwhile."""

    member: NodeField
    incarnation: int
    nonce: Bytes32
    valid_until_ms: int


@wire("incarnation")
@dataclass(frozen=True, slots=True)
class Incarnation:
    """How often a member has begun anew, and the height of the block that says so: under this number it signs nothing below."""

    number: int
    height: Height
    time_ms: int


NEVER = Incarnation(0, Height(0), 0)
"""What holds for a member that has forgotten nothing yet."""


def incarnation_of(get: Callable[[bytes], bytes | None], member: NodeId) -> Incarnation:
    """Return a member's incarnation in the state that `get` reads."""
    row = get(INCARNATION_PREFIX + member)
    return codec.decode(row, Incarnation) if row is not None else NEVER


def record(
    get: Callable[[bytes], bytes | None],
    writes: dict[bytes, bytes | None],
    rejoin: Rejoin,
    *,
    height: Height,
    time_ms: int,
) -> None:
    """Write that a member has begun anew, at a height and its block's time.

    Raises:
        Refused: it is not the next number: somebody else with this key was faster, or an old transaction comes late.
    """
    before = incarnation_of(get, rejoin.member)
    if rejoin.incarnation != before.number + 1:
        raise Refused(f"the next incarnation is {before.number + 1}")
    writes[INCARNATION_PREFIX + rejoin.member] = codec.encode(
        Incarnation(rejoin.incarnation, height, time_ms)
    )


def can_rejoin(configuration: Configuration, member: NodeId) -> bool:
    """Return whether the others can order and certify a block without `member`; else only section 7.4 could go on."""
    voters, signers = set(configuration.voters) - {member}, set(configuration.signers) - {member}
    return len(voters) >= configuration.raft_quorum and len(signers) >= configuration.certificate_quorum


def can_return_with(configuration: Configuration, member: NodeId, connected: Collection[NodeId]) -> bool:
    """Return whether a member that has lost its ledger comes back with the help of those that it is connected with.

    Who signs begins anew by a transaction that they order and certify, or by asking all other voters; who does not only
    needs somebody to follow.
    """
    voters, signers = set(configuration.voters) - {member}, set(configuration.signers) - {member}
    if member not in configuration.signers:
        return not signers.isdisjoint(connected)
    if voters and voters.issubset(connected):
        return True
    return (
        len(voters.intersection(connected)) >= configuration.raft_quorum
        and len(signers.intersection(connected)) >= configuration.certificate_quorum
    )
