"""Cards and genesis configurations as JSON files that people can read, compare and mail.

What counts is the value, never the text: both are rebuilt as protocol values, whose canonical encoding is what is
signed and hashed. Re-indenting a file changes nothing; changing a value is found by signature or network id.
"""

import json
from pathlib import Path
from typing import Any

from protocol import codec
from protocol.configuration import CARD_VERSION, KINDS, ROLES, Card, Configuration, Member, network_id
from protocol.errors import Malformed, Refused
from protocol.identifiers import NodeId, PublicKey, peer_id

FILE_BYTES_MAX = 1024 * 1024
"""64 members with 16 addresses each stay below 500 KiB."""
_MEMBER_KEYS = ("name", "kind", "role", "node", "kex", "team", "governance", "checkpoint", "addresses")


def card_text(card: Card) -> str:
    """Return the JSON text of a card."""
    return _text({"version": card.version, **_member_object(card.member), "signature": card.signature.hex()})


def parse_card(text: str, *, source: str) -> Card:
    """Return the card that `text` spells, checked. `source` names the file in a refusal.

    Raises:
        Refused: not a card, of another version, or altered.
    """
    fields = _object(text, source, "card", {"version", "signature", "peer_id", *_MEMBER_KEYS})
    if fields.get("version") != CARD_VERSION:
        raise Refused(f"{source} is not a card of version {CARD_VERSION}; make it again with carechain init")
    try:
        plain = ("card", fields["version"], _member_plain(fields), _hex(fields["signature"]))
        card = codec.from_plain(plain, Card)
    except (Malformed, KeyError, TypeError, ValueError):
        raise Refused(f"{source} is not a card; ask the facility for its card.json again") from None
    card.check()
    if fields.get("peer_id", peer_id(card.member.node)) != peer_id(card.member.node):
        raise Refused(
            f"the card of {card.member.name} was altered: its peer id does not match; ask the facility for its card again"
        )
    return card


def read_card(path: Path) -> Card:
    """Return the card in a file. Raises Refused as `parse_card` does, or when the file cannot be read."""
    return parse_card(_read(path, "card"), source=str(path))


def genesis_text(genesis: Configuration) -> str:
    """Return the JSON text of a genesis configuration."""
    return _text(
        {
            "network": network_id(genesis).hex(),
            "version": genesis.version,
            "min_b": genesis.min_b,
            "suites": list(genesis.suites),
            "nonce": genesis.nonce.hex(),
            "members": [_member_object(member) for member in genesis.members],
        }
    )


def parse_genesis(text: str, *, source: str) -> Configuration:
    """Return the genesis configuration that `text` spells; its network id is checked against its content.

    Raises:
        Refused: not a genesis configuration, or a value was altered.
    """
    fields = _object(text, source, "genesis", {"network", "version", "min_b", "suites", "nonce", "members"})
    try:
        members = tuple(_member_plain(member) for member in fields["members"])
        plain = (
            "configuration",
            fields["version"],
            members,
            fields["min_b"],
            tuple(fields["suites"]),
            _hex(fields["nonce"]),
            0,
        )
        genesis = codec.from_plain(plain, Configuration)
        # from_plain takes any integer; the encoding of a negative one, which nothing canonical has, fails here.
        codec.unpack(codec.encode(genesis))
        network = _hex(fields["network"])
    except (Malformed, KeyError, TypeError, ValueError, OverflowError):
        raise Refused(f"{source} is not a genesis configuration; ask for the genesis.json again") from None
    if network_id(genesis) != network:
        raise Refused(
            f"{source} was altered: its content is not of network {network.hex()[:16]}; ask for the genesis.json again"
        )
    _check_members(genesis, source)
    return genesis


def read_genesis(path: Path) -> Configuration:
    """Return the genesis configuration in a file. Raises Refused as `parse_genesis` does, or when it cannot be read."""
    return parse_genesis(_read(path, "genesis"), source=str(path))


def _check_members(genesis: Configuration, source: str) -> None:
    nodes = [member.node for member in genesis.members]
    names = {member.name for member in genesis.members}
    known = all(member.role in ROLES and member.kind in KINDS for member in genesis.members)
    if nodes != sorted(set(nodes)) or len(names) != len(nodes) or not known or not genesis.voters:
        raise Refused(f"{source} breaks a rule for founding members; make it again with carechain genesis")


def _member_object(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "kind": member.kind,
        "role": member.role,
        "peer_id": peer_id(member.node),
        "node": member.node.hex(),
        "kex": member.kex.hex(),
        "team": member.team.hex(),
        "governance": member.governance.hex(),
        "checkpoint": member.checkpoint.hex(),
        "addresses": list(member.addresses),
    }


# Any: JSON values are untyped until codec.from_plain has checked every one of them.
def _member_plain(fields: dict[str, Any]) -> tuple[Any, ...]:
    keys = (
        NodeId(_hex(fields["node"])),
        *(PublicKey(_hex(fields[name])) for name in ("kex", "team", "governance", "checkpoint")),
    )
    return ("member", fields["name"], fields["kind"], fields["role"], *keys, tuple(fields["addresses"]))


def _hex(value: Any) -> bytes:
    if not isinstance(value, str) or not value.isascii():
        raise TypeError("expected hexadecimal text")
    return bytes.fromhex(value)


def _object(text: str, source: str, what: str, known: set[str]) -> dict[str, Any]:
    try:
        fields = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise Refused(f"{source} is not JSON; ask for the {what} file again") from None
    if not isinstance(fields, dict):
        raise Refused(f"{source} is not a {what} file; name another")
    if not set(fields) <= known:
        raise Refused(f"{source} is not a {what} file of this version; name another or update carechain")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _read(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise Refused(f"{path} is too large for a {what} file; name another")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); name the {what} file") from None
    except UnicodeDecodeError:
        raise Refused(f"{path} is not a {what} file; name another") from None


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
