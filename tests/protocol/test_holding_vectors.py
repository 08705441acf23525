"""Golden bytes of what members say about the chunks they hold: changing one is a change of the protocol."""

import hashlib
import json
from pathlib import Path

from protocol import codec, possession
from protocol import range_digest as ranges
from protocol.identifiers import Cid, NodeId

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "holding.json").read_text())
CIDS = tuple(sorted(Cid(hashlib.sha256(bytes([number])).digest()) for number in range(3)))
NODE, NONCE = NodeId(b"n" * 32), b"o" * 32


def built() -> dict[str, str]:
    rule = ranges.rule_of((NODE, NodeId(b"m" * 32)))
    proof = possession.proof(NONCE, NODE, CIDS[0], b"a chunk")
    messages = {
        "prove": possession.Prove(NONCE, CIDS),
        "proofs": possession.Proofs((proof, b"", proof)),
        "standing": possession.Standing(5, 1, 4, 2, 3, 8, 1_800_000_000_000),
        "compare-range": ranges.CompareRange(rule, CIDS[0][:1], ranges.digest_of(CIDS[:1])),
        "alike": ranges.Alike(),
        "not-now": ranges.NotNow(),
        "held-cids": ranges.HeldCids(CIDS),
    }
    parts = ranges.parts_of(CIDS, 0)
    return {name: codec.encode(message).hex() for name, message in messages.items()} | {
        "range-parts, SHA-256": hashlib.sha256(codec.encode(ranges.RangeParts(parts))).hexdigest(),
        "digest of the whole": ranges.digest_of_parts(parts).hex(),
    }


def test_every_message_keeps_its_bytes() -> None:
    assert built() == VECTORS
