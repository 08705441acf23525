"""Tickets: how a facility that was proposed finds the network, once (ledger.md 7.3).

A ticket is signed by a member, its *sponsor*, for one card's node key. It holds what nobody could look up before he is in:
the genesis configuration, the members in force with addresses, and the newest final block the sponsor knew. Nothing of it is
believed about the ledger: the joiner verifies the chain from genesis as everybody does, and finds that block in it.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from protocol import codec, limits
from protocol.codec import Bytes32, Bytes64, Size, wire
from protocol.configuration import Configuration, network_id
from protocol.errors import Malformed, Refused
from protocol.identifiers import Digest, Height, NetworkId, NodeId, peer_id
from protocol.signing import SigningKey, signed_form, verify

CHANNEL = "join"
CLOCK_OFF_MS_MAX = 300_000
"""A joiner whose clock is further from its sponsor's is refused: everything it would sign carries times."""
EXPIRES_MS_DEFAULT = 7 * 86_400_000
_FILE_BYTES_MAX = 1024 * 1024
_VERSION = 1
NodeField = Annotated[NodeId, Size(32)]


@wire("ticket")
@dataclass(frozen=True, slots=True)
class Ticket:
    """`candidate` alone may use it, once, before `expires_ms`. `addresses` end in /p2p/ID; times are Unix milliseconds."""

    id: Bytes32
    candidate: NodeField
    sponsor: NodeField
    genesis: Configuration
    members: Configuration
    addresses: Annotated[tuple[Annotated[str, Size(1, 256)], ...], Size(0, limits.MEMBERS_MAX)]
    height: Height
    block_hash: Annotated[Digest, Size(32)]
    issued_ms: int
    expires_ms: int
    signature: Bytes64

    @property
    def network(self) -> NetworkId:
        """The network it leads to."""
        return network_id(self.genesis)

    @property
    def contacts(self) -> dict[NodeId, tuple[str, ...]]:
        """Whom to connect with, and the addresses of their cards."""
        return {member.node: member.addresses for member in self.members.members}


@wire("redeem")
@dataclass(frozen=True, slots=True)
class Redeem:
    """Joiner to sponsor: take this ticket. `nonce` is the joiner's: who repeats it is the same joiner, started again."""

    ticket: Ticket
    nonce: Bytes32


@wire("redeemed")
@dataclass(frozen=True, slots=True)
class Redeemed:
    """Sponsor to joiner: its time, and why not; empty when the joiner is welcome."""

    now_ms: int
    refusal: Annotated[str, Size(0, 300)]


@dataclass(frozen=True, slots=True)
class Invitation:
    """A ticket as the joiner holds it: with the nonce under which the sponsor takes it, or has taken it."""

    ticket: Ticket
    nonce: bytes


def _form(ticket: Ticket) -> bytes:
    return signed_form("ticket", ticket.network, *codec.fields_plain(ticket)[:-1])


def sealed(ticket: Ticket, key: SigningKey) -> Ticket:
    """Return the ticket with its sponsor's signature in place of whatever stands there."""
    fields = codec.fields_plain(ticket)[:-1]
    plain = (codec.tag_of(Ticket), *fields, key.sign(_form(ticket)))
    return codec.from_plain(plain, Ticket)


def is_signed(ticket: Ticket) -> bool:
    """Return whether the signature is that of the sponsor it names, who is among its members."""
    return ticket.sponsor in ticket.members.by_node and verify(
        ticket.sponsor, _form(ticket), ticket.signature
    )


def check_ticket(ticket: Ticket, node: NodeId, now_ms: int) -> None:
    """Check what the joiner can before it has met anybody.

    Raises:
        Refused: it is altered, for another facility, expired, or the clock here cannot be right; what to do.
    """
    if not is_signed(ticket):
        raise Refused("the ticket was altered: its signature does not match; ask the sponsor for another")
    if ticket.candidate != node:
        raise Refused(
            f"the ticket is for {peer_id(ticket.candidate)} and this facility is {peer_id(node)}; "
            "ask for a ticket for this home's card.json"
        )
    if now_ms < ticket.issued_ms - CLOCK_OFF_MS_MAX:
        raise Refused(
            "this machine's clock is behind the time at which the ticket was made; set it by NTP and start again"
        )
    if now_ms > ticket.expires_ms:
        raise Refused(
            "the ticket has expired; ask the sponsor for another, or set this machine's clock if it is wrong"
        )


def ticket_text(ticket: Ticket, nonce: bytes = b"") -> str:
    """Return the JSON text of a ticket; with `nonce`, as the joiner keeps it in its home."""
    fields = {
        "version": _VERSION,
        "network": ticket.network.hex(),
        "for": peer_id(ticket.candidate),
        "ticket": base64.b64encode(codec.encode(ticket)).decode(),
    }
    return json.dumps({**fields, **({"nonce": nonce.hex()} if nonce else {})}, indent=2) + "\n"


def read_ticket(path: Path) -> tuple[Ticket, bytes]:
    """Return the ticket in a file, and the joiner's nonce beside it (empty in one that was mailed).

    Raises:
        Refused: no ticket, or its readable part is not what it says itself.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); name the ticket file") from None
    try:
        fields = json.loads(data) if len(data) <= _FILE_BYTES_MAX else None
        if not isinstance(fields, dict) or fields.get("version") != _VERSION:
            raise ValueError("no ticket of this version")
        ticket = codec.decode(base64.b64decode(fields["ticket"], validate=True), Ticket)
        nonce = bytes.fromhex(fields.get("nonce", ""))
        if (fields["network"], fields["for"]) != (ticket.network.hex(), peer_id(ticket.candidate)):
            raise ValueError("of another network or facility than it says")
    except (Malformed, KeyError, TypeError, ValueError, RecursionError, binascii.Error):
        raise Refused(f"{path} is not a ticket, or was altered; ask the sponsor for it again") from None
    return ticket, nonce
