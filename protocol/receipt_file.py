"""A receipt as a file: anyone can check, with nothing but the network id, that a transaction is in the certified history.

Text in the shape of a C2SP tlog-proof: what, where, the path to a root, an empty line, and the signed thing that binds
the root.

    carechain/receipt@v1
    index 73894                     position among all transactions since genesis, from 0
    transaction <base64>            its bytes; or `leaf <base64>`, their RFC 9162 leaf hash, for who has them elsewhere
    <base64>                        inclusion path, the leaf's sibling first (RFC 9162 section 2.1.3)

    proof 3412                      bytes of what follows: a canonical FinalityProof in lines of 64 base64 characters
    …

The path leads to the certified block's own `tx_root`, not to the root of the whole tree: that header exists as soon as
the transaction is final, its path has at most ten hashes however long the history, and it holds height and time as
well. The index is recomputed from `tree_size`, which counts what stands before the block.

**Proven**: the bytes are in the history that the network's signers made final, at this index, height and time (the
leader's clock, within the voters' bounds). **Not proven**: whether the ledger accepted or refused what it says (that
follows from all of the history before: ask a member, or replay it), and that this history is the only one: fewer
liars than the network tolerates cannot make two, more can (ledger.md 1.3).

Every byte is recomputed or covered by a signature, and `decode` takes one spelling only.
"""

import base64
import binascii
from dataclasses import dataclass

from protocol import codec, limits, signing
from protocol.block import Block
from protocol.change_proof import FinalityProof, InForce
from protocol.configuration import network_id
from protocol.errors import Invalid, Malformed
from protocol.identifiers import Digest, Height, NetworkId, Txid
from protocol.merkle import inclusion_proof, leaf_hash, root_of_leaves, verify_inclusion

FIRST_LINE = "carechain/receipt@v1"
_ARMOUR_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """A receipt. `transaction` is empty when only its `leaf` is told."""

    index: int
    leaf: Digest
    transaction: bytes
    path: tuple[Digest, ...]
    proof: FinalityProof

    def __repr__(self) -> str:
        return f"ReceiptFile(index={self.index}, height={self.proof.header.height})"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a checked receipt proves. `txid` and `kind` are None when the receipt tells only a leaf."""

    network: NetworkId
    epoch: int
    height: Height
    time_ms: int
    index: int
    leaf: Digest
    txid: Txid | None
    kind: str | None
    in_force: InForce


def make(block: Block, position: int, proof: FinalityProof, *, told: bool) -> ReceiptFile:
    """Return the receipt of the transaction at `position` in a block; `told` says whether it holds the transaction's bytes."""
    leaves = block.leaves()
    path = inclusion_proof(
        position, len(leaves), lambda level, at: root_of_leaves(leaves[at << level : (at + 1) << level])
    )
    transaction = block.transactions[position] if told else b""
    return ReceiptFile(block.header.tree_size + position, leaves[position], transaction, path, proof)


def encode(receipt: ReceiptFile) -> bytes:
    """Return a receipt's one spelling as a file."""
    return _spelled(receipt, codec.encode(receipt.proof))


def _spelled(receipt: ReceiptFile, proof: bytes) -> bytes:
    told = (
        f"transaction {_text(receipt.transaction)}" if receipt.transaction else f"leaf {_text(receipt.leaf)}"
    )
    lines = [FIRST_LINE, f"index {receipt.index}", told, *map(_text, receipt.path), "", f"proof {len(proof)}"]
    armour = _text(proof)
    lines += [armour[at : at + _ARMOUR_CHARACTERS] for at in range(0, len(armour), _ARMOUR_CHARACTERS)]
    return ("\n".join(lines) + "\n").encode()


def decode(data: bytes) -> ReceiptFile:
    """Parse a receipt; nothing is verified but its form.

    Raises:
        Malformed: cut short, or any other bytes than the one spelling of a receipt.
    """
    if len(data) > limits.RECEIPT_FILE_BYTES_MAX:
        raise Malformed(f"{len(data)} bytes are too many for a receipt")
    if not data.startswith(FIRST_LINE.encode() + b"\n"):
        raise Malformed("not a receipt of this version")
    head, _, armour = data.partition(b"\n\n")
    _, *lines = head.split(b"\n")
    told, *armoured = armour.split(b"\n")
    size = _number(told, b"proof ")
    text = b"".join(armoured)
    if len(text) < (size + 2) // 3 * 4:
        raise Malformed(f"the file is cut short: it holds {len(text) * 3 // 4} of {size} bytes of its proof")
    proof = _bytes(text)
    if len(lines) < 2:
        raise Malformed("not a receipt: it lacks its index or its transaction")
    transaction = leaf = b""
    if lines[1].startswith(b"leaf "):
        leaf = _bytes(lines[1][5:])
    elif lines[1].startswith(b"transaction "):
        transaction = _bytes(lines[1][12:])
        leaf = leaf_hash(transaction)
    path = tuple([Digest(_bytes(line)) for line in lines[2:]])
    if len(leaf) != 32 or any(len(one) != 32 for one in path):
        raise Malformed("the leaf and the path of a receipt are hashes of 32 bytes")
    try:
        opened = codec.decode(proof, FinalityProof)
    except Malformed as error:
        raise Malformed(f"its proof is not spelled as a proof is: {error}") from None
    receipt = ReceiptFile(_number(lines[0], b"index "), Digest(leaf), transaction, path, opened)
    if _spelled(receipt, proof) != data:  # `codec.decode` has spelled the proof again
        raise Malformed(
            "not the one spelling of a receipt: something was added, left out or written another way"
        )
    return receipt


def check(receipt: ReceiptFile, trusted: NetworkId | None = None) -> Finding:
    """Check everything about a receipt; return what it proves.

    Without `trusted` the network is the one that the file itself brings: whoever made the file may have made that too.

    Raises:
        Malformed: the transaction is not one.
        Invalid: which check failed.
    """
    network = network_id(receipt.proof.genesis)
    if trusted is not None and network != trusted:
        raise Invalid(f"a receipt of another network: {network.hex()}")
    in_force = receipt.proof.check()
    header = receipt.proof.header
    position = receipt.index - header.tree_size
    if not 0 <= position < header.n_tx:
        raise Invalid(f"no transaction of block {header.height} has index {receipt.index}")
    verify_inclusion(receipt.leaf, position, header.n_tx, receipt.path, header.tx_root)
    txid, kind = _identity(receipt.transaction, network) if receipt.transaction else (None, None)
    return Finding(
        network,
        header.epoch,
        header.height,
        header.time_ms,
        receipt.index,
        receipt.leaf,
        txid,
        kind,
        in_force,
    )


def _identity(raw: bytes, network: NetworkId) -> tuple[Txid, str]:
    """Return a transaction's id and kind, also of a kind that this version does not know: the block's signers did."""
    match codec.unpack(raw):
        case ("tx", (str(kind), *fields), _):
            return Txid(signing.sha256(signing.signed_form(f"tx/{kind}", network, *fields))), kind
    raise Malformed("what the receipt tells is no transaction")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: bytes) -> bytes:
    try:
        return base64.b64decode(text)
    except binascii.Error:
        raise Malformed("the file was altered: a line of it is not base64") from None


def _number(line: bytes, name: bytes) -> int:
    """Return the number in a line that begins with `name`; leading zeros are found by spelling it again."""
    digits = line.removeprefix(name)
    if not line.startswith(name) or not digits.isdigit() or len(digits) > 20:
        raise Malformed(f"the file is cut short or altered: no line with its {name.decode().strip()}")
    return int(digits)
