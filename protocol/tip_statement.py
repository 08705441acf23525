"""What a signer says of itself once a second: how far it is, and which process says so (ledger.md 7.3).

Two processes with one key cannot both be right. Each says which incarnation and session it is; whoever hears a later one
under its own key ends. Signed, so that nobody else can make a signer end.
"""

from dataclasses import dataclass
from typing import Annotated

from protocol import signing
from protocol.codec import Bytes32, Bytes64, Size, wire
from protocol.identifiers import Height, NetworkId, NodeId


@dataclass(frozen=True, slots=True, order=True)
class Session:
    """One run of a signer's process. Of two, the greater is the later one.

    `number` counts the starts that other members remember; `nonce`, drawn at the start, tells two of one number apart.
    """

    incarnation: int
    number: int
    nonce: bytes


@wire("tip-statement")
@dataclass(frozen=True, slots=True)
class TipStatement:
    """A signer's newest heights and time. `vote_height` and `vote_hash` are those of its last commit vote, 0 and ZERO for none."""

    signer: Annotated[NodeId, Size(32)]
    epoch: int
    incarnation: int
    session: int
    nonce: Bytes32
    certified_height: Height
    vote_height: Height
    vote_hash: Bytes32
    time_ms: int
    signature: Bytes64

    @property
    def of(self) -> Session:
        """Which process has said it."""
        return Session(self.incarnation, self.session, self.nonce)


@wire("farewell")
@dataclass(frozen=True, slots=True)
class Farewell:
    """The last word of the session with this nonce. Not signed: it counts only from the signer itself."""

    nonce: Bytes32


@wire("presence")
@dataclass(frozen=True, slots=True)
class Presence:
    """The word of a process that may not sign, or not yet: it runs. Not signed, and counts only from the member itself."""

    nonce: Bytes32


def state_tip(
    key: signing.SigningKey,
    network: NetworkId,
    session: Session,
    *,
    epoch: int,
    certified_height: Height,
    vote_height: Height,
    vote_hash: bytes,
    time_ms: int,
) -> TipStatement:
    """Return a signed statement of `session`, at Unix time `time_ms` by its own clock."""
    place = session.incarnation, session.number, session.nonce
    form = signing.signed_form(
        "tip-statement", network, epoch, *place, certified_height, vote_height, vote_hash, time_ms
    )
    return TipStatement(
        NodeId(key.public), epoch, *place, certified_height, vote_height, vote_hash, time_ms, key.sign(form)
    )


def tip_valid(statement: TipStatement, network: NetworkId) -> bool:
    """Return whether the signature of a statement verifies."""
    form = signing.signed_form(
        "tip-statement",
        network,
        statement.epoch,
        statement.incarnation,
        statement.session,
        statement.nonce,
        statement.certified_height,
        statement.vote_height,
        statement.vote_hash,
        statement.time_ms,
    )
    return signing.verify(statement.signer, form, statement.signature)
