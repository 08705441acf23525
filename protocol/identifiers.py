"""Names for the kinds of bytes and integers that travel through the system.

All byte identifiers are 32 bytes: random (`Vid`, `Rid`), SHA-256 digests (`Digest`, `Txid`, `NetworkId`) or raw
Ed25519 / X25519 public keys (`NodeId`, `PublicKey`).
"""

from typing import NewType

NodeId = NewType("NodeId", bytes)
"""A member's Ed25519 node public key; its libp2p peer id is derived from it (`peer_id`)."""
PublicKey = NewType("PublicKey", bytes)
"""A raw Ed25519 or X25519 public key."""
Digest = NewType("Digest", bytes)
"""A SHA-256 digest."""
NetworkId = NewType("NetworkId", bytes)
"""SHA-256 of the canonical genesis configuration; also the ledger id."""
Txid = NewType("Txid", bytes)
"""SHA-256 of a transaction's signed bytes. A grant's id (gid) is its transaction's id."""
Vid = NewType("Vid", bytes)
"""A vault: one patient and one category. Random, unlinkable."""
Rid = NewType("Rid", bytes)
"""A record. Random."""
Cid = NewType("Cid", bytes)
"""SHA-256 of a stored chunk; the multihash part of its CIDv1 (see `protocol.cid`)."""
Height = NewType("Height", int)
"""Position of a block in the chain and of the same entry in the Raft log; genesis is 0."""
Term = NewType("Term", int)
"""A Raft term; genesis is of term 0."""

ZERO = bytes(32)
"""Stands for "none" in 32-byte wire fields."""

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER_ID_PREFIX = bytes.fromhex("002408011220")  # identity multihash, protobuf PublicKey{type: Ed25519}


def peer_id(node: NodeId) -> str:
    """Return the libp2p peer id (base58btc of the identity multihash) of a node key."""
    number = int.from_bytes(_PEER_ID_PREFIX + node, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" + digits  # the prefix begins with one zero byte


def node_of_peer_id(text: str) -> NodeId:
    """Return the node key inside an Ed25519 peer id.

    Raises:
        ValueError: not an Ed25519 peer id.
    """
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    raw = number.to_bytes(38, "big") if number.bit_length() <= 304 else b""
    if not raw.startswith(_PEER_ID_PREFIX) or peer_id(NodeId(raw[6:])) != text:
        raise ValueError(f"not an Ed25519 peer id: {text[:64]}")
    return NodeId(raw[6:])
