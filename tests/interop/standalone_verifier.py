"""A second verifier of carechain receipts, written from the format alone: standard library and PyNaCl, nothing of carechain.

    python standalone_verifier.py FILE [NETWORK-ID]

Prints what the receipt proves and exits with 0, or says which check failed and exits with 1. NETWORK-ID is the hex
SHA-256 of the genesis configuration; without it only the receipt's own network is known. Not copied from carechain on
purpose: two programs that share a mistake would agree about it.
"""

import base64
import hashlib
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

FILE_MAX, PROOF_MAX, DEPTH_MAX = 28 << 20, 20 << 20, 500
BYTES, NUMBERS = {0xC4: 1, 0xC5: 2, 0xC6: 4}, {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
TEXTS, LISTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}, {0xDC: 2, 0xDD: 4}
SIZES = BYTES | NUMBERS | TEXTS | LISTS
ZERO = bytes(32)
Parsed = dict[str, Any]


class Bad(Exception):
    """The receipt does not hold; the text says which check failed."""


def demand(rule: bool, sentence: str) -> None:
    """Raise Bad unless a rule holds."""
    if not rule:
        raise Bad(sentence)


def spell(value: Any) -> bytes:
    """Return the shortest form of nil, a truth value, an unsigned number, bytes, text, or a list of such."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return bytes([value]) if value < 0x80 else counted(value, NUMBERS)
    if isinstance(value, bytes):
        return counted(len(value), BYTES) + value
    if isinstance(value, str):
        raw = value.encode()
        few = bytes([0xA0 + len(raw)]) if len(raw) < 32 else b""
        return (few or counted(len(raw), TEXTS)) + raw
    few = bytes([0x90 + len(value)]) if len(value) < 16 else b""
    return (few or counted(len(value), LISTS)) + b"".join(map(spell, value))


def counted(count: int, codes: dict[int, int]) -> bytes:
    """Return the first code whose number of bytes suffices for `count`, and `count` in so many."""
    code = next(code for code, size in codes.items() if count < 1 << 8 * size)
    return bytes([code]) + count.to_bytes(codes[code], "big")


def read(data: bytes) -> Any:
    """Return the one value that `data` spells, refusing every other spelling of it."""
    value, end = item(data, 0, 0)
    demand(end == len(data) and spell(value) == data, "not the canonical spelling of its value")
    return value


def item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """Return the value at a place, and where the next one is."""
    demand(at < len(data) and depth < DEPTH_MAX, "the data ends within a value, or is too deep")
    code, at = data[at], at + 1
    if code < 0x80:
        return code, at
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code], at
    count = code & (0x0F if code < 0xA0 else 0x1F)  # of short lists and texts
    if code >= 0xC0:
        demand(code in SIZES and at + SIZES[code] <= len(data), "a value that has no place in a receipt")
        size = SIZES[code]
        count, at = int.from_bytes(data[at : at + size], "big"), at + size
        if code in NUMBERS:
            return count, at
    if code < 0xA0 or code in LISTS:
        values = []
        for _ in range(count):
            value, at = item(data, at, depth + 1)
            values.append(value)
        return values, at
    raw, at = data[at : at + count], at + count
    demand(at <= len(data), "the data ends within a value")
    try:
        return raw if code in BYTES else raw.decode(), at
    except UnicodeDecodeError:
        raise Bad("a text is not UTF-8") from None


# Tag, then fields: numbers, or of so many bytes, texts of least to most characters, tagged lists; * is a list of such.
GRAMMAR = """
member name=str:1:64 kind=str:1:16 role=str:1:16 node=32 kex=32 team=32 governance=32 checkpoint=32 addresses=str:1:256*0:16
configuration version members=member*1:64 min_b suites=int*1:8 nonce=32 number
header net=32 epoch height prev_hash=32 term leader=32 time_ms n_tx tx_root=32 tree_size tree_root=32 config_hash=32 next_config_hash=32 app_version
commit-vote signer=32 epoch incarnation height header_hash=32 base_height base_hash=32 signature=64
certificate header=header links=header*0:64 votes=commit-vote*1:64
configuration-change certificate=certificate configuration=configuration
recovery epoch base_height base_hash=32 term time_ms before=32 configuration=configuration lost=32*0:64 discarded=32*0:4096 reason=str:1:500
recovery-signature node=32 signature=64
signed-recovery recovery=recovery signatures=recovery-signature*0:64
finality-proof genesis=configuration changes=configuration-change|signed-recovery*0:99999999 ancestors=header*0:4096 certificate=certificate
"""
SHAPES = {
    line.split()[0]: [word.partition("=") for word in line.split()[1:]] for line in GRAMMAR.split("\n")[1:-1]
}


def shaped(value: Any, shape: str) -> Any:
    """Return a value that has a shape; a tagged list as a dictionary that keeps the list itself under `plain`."""
    if "*" in shape:
        one, bounds = shape.split("*")
        least, most = map(int, bounds.split(":"))
        demand(type(value) is list and least <= len(value) <= most, "a list of another length")
        return [shaped(each, one) for each in value]
    if shape.startswith("str"):
        least, most = map(int, shape.split(":")[1:])
        demand(type(value) is str and least <= len(value) <= most, "a text of another length")
    elif shape in ("", "int"):
        demand(type(value) is int, "a field that is no number")
    elif shape.isdigit():
        demand(type(value) is bytes and len(value) == int(shape), "bytes of another length")
    else:
        demand(type(value) is list and value != [] and value[0] in shape.split("|"), f"not a {shape}")
        fields = SHAPES[value[0]]
        demand(len(value) == len(fields) + 1, f"a {value[0]} with other fields")
        named = zip(fields, value[1:], strict=True)
        return {"plain": value} | {name: shaped(each, kind) for (name, _, kind), each in named}
    return value


def sha256(data: bytes) -> bytes:
    """Return the SHA-256 digest."""
    return hashlib.sha256(data).digest()


def quorum(configuration: Parsed) -> tuple[set[bytes], int]:
    """Return who signs, and how many of them make a certificate."""
    signers = [m["node"] for m in configuration["members"] if m["role"] in ("voter", "witness")]
    liars = max((len(signers) - 1) // 3, configuration["min_b"])
    return set(signers), (len(signers) + liars) // 2 + 1


def check_certificate(
    certificate: Parsed, network: bytes, above: int, epoch: int, *configurations: Parsed
) -> None:
    """Check that a block is final under each of `configurations`, of which the first is in force for it."""
    header, votes = certificate["header"], certificate["votes"]
    demand(header["net"] == network, "a block of another network")
    demand(header["height"] > above and header["epoch"] == epoch, "a block out of order, or of another epoch")
    named = [sha256(spell(one["plain"])) for one in configurations]
    named += [ZERO] * (2 - len(named))
    demand([header["config_hash"], header["next_config_hash"]] == named, "a block of another configuration")
    signers = [vote["signer"] for vote in votes]
    demand(all(one < other for one, other in pairwise(signers)), "votes not sorted, or one twice")
    needed: set[bytes] = set()
    for members, least in map(quorum, configurations):
        counted = members & set(signers)
        demand(len(counted) >= least, f"{len(counted)} votes where {least} are needed")
        needed |= counted if len(counted) == least else set()
    demand(needed == set(signers), "a vote that is not needed, or of somebody who does not sign")
    chain = [header, *certificate["links"]]
    hashes = linked(chain)
    for vote in votes:
        step = vote["height"] - header["height"]
        demand(0 <= step < len(chain) and vote["header_hash"] == hashes[step], "a vote for something else")
        demand(vote["epoch"] == epoch, "a vote of another epoch")
        demand(vote["base_height"] < header["height"], "a vote that stands upon the block itself")
        check_signature(vote["signer"], ["commit-vote", network, *vote["plain"][2:-1]], vote["signature"])
    demand(max(vote["height"] for vote in votes) == chain[-1]["height"], "a header that nothing signs")


def check_recovery(signed: Parsed, network: bytes, above: int, epoch: int, before: Parsed) -> None:
    """Check that the organisations of the configuration before consent to the beginning of an epoch."""
    recovery, (signers, least) = signed["recovery"], quorum(before)
    left, nodes = signers - set(recovery["lost"]), [one["node"] for one in signed["signatures"]]
    demand(recovery["base_height"] >= above and recovery["epoch"] > epoch, "a recovery out of order")
    demand(recovery["configuration"]["plain"] != before["plain"], "a recovery that changes nothing")
    demand(recovery["before"] == sha256(spell(before["plain"])), "a recovery of another configuration")
    lost, members = list(recovery["lost"]), {member["node"] for member in before["members"]}
    demand(lost == sorted(set(lost) & members), "a stranger, or somebody twice, declared lost")
    demand(nodes == sorted(set(nodes)) and set(nodes) <= left, "consents of others, or not sorted")
    demand(len(nodes) >= max(len(left) * 2 // 3 + 1, least), "too few consents to a recovery")
    keys = {member["node"]: member["governance"] for member in before["members"]}
    for one in signed["signatures"]:
        check_signature(keys[one["node"]], ["recovery", network, recovery["plain"][1:]], one["signature"])


def check_signature(key: bytes, form: list[Any], signature: bytes) -> None:
    """Check an Ed25519 signature of a form, whose first part is its domain."""
    try:
        VerifyKey(key).verify(spell(["carechain/v1/" + form[0], *form[1:]]), signature)
    except CryptoError:
        raise Bad(f"a signature of a {form[0]} does not verify") from None


def linked(chain: list[Parsed]) -> list[bytes]:
    """Return the hashes of headers, each of which names the one before."""
    hashes = [sha256(spell(["carechain/v1/header", *header["plain"][1:]])) for header in chain]
    for below, digest, above in zip(chain, hashes, chain[1:], strict=False):
        follows = above["prev_hash"] == digest and above["height"] == below["height"] + 1
        demand(follows, "headers that are no chain")
    return hashes


def check_path(leaf: bytes, index: int, size: int, path: list[bytes], root: bytes) -> None:
    """Check an inclusion path from its end: the top sibling is beside the largest power of two below `size` (RFC 9162)."""
    sides = []
    while size > 1:
        left = 1 << (size - 1).bit_length() - 1
        sides.append(index >= left)
        index, size = (index - left, size - left) if index >= left else (index, left)
    demand(len(sides) == len(path), "an inclusion path of another length")
    for is_right, sibling in zip(reversed(sides), path, strict=True):
        leaf = sha256(b"\x01" + (sibling + leaf if is_right else leaf + sibling))
    demand(leaf == root, "the inclusion path does not lead to the block")


def verify(data: bytes, trusted: bytes | None = None) -> Parsed:
    """Return what a receipt proves, or raise Bad."""
    what, raw, position, path, packed = parsed(data)
    leaf = raw if what == "leaf" else sha256(b"\x00" + raw)
    demand(all(len(one) == 32 for one in (leaf, *path)), "a hash of another length")
    proof = shaped(read(packed), "finality-proof")
    network = sha256(spell(proof["genesis"]["plain"]))
    demand(trusted in (None, network), "a receipt of another network")
    header = check_proof(proof, network)
    at = position - header["tree_size"]
    demand(0 <= at < header["n_tx"], "no transaction of the block has this index")
    check_path(leaf, at, header["n_tx"], path, header["tx_root"])
    txid = identity(raw, network) if what == "transaction" else None
    told = {name: header[name] for name in ("height", "time_ms")}
    return {"network": network, "index": position, "leaf": leaf, "txid": txid} | told


def parsed(data: bytes) -> tuple[str, bytes, int, list[bytes], bytes]:
    """Return the parts of the file: what is told, its bytes, the index, the path, and the proof."""
    demand(len(data) <= FILE_MAX, "too long for a receipt")
    try:
        head, _, armour = data.decode("ascii").partition("\n\n")
        _, index, told, *path = head.split("\n")
        what, raw, position = told.split(" ")[0], told.split(" ")[1], int(index.split(" ")[1])
        blobs = [base64.b64decode(one) for one in (raw, *path, "".join(armour.split("\n")[1:]))]
    except (ValueError, IndexError):  # UnicodeDecodeError and binascii.Error are ValueErrors
        raise Bad("not a receipt, or cut short") from None
    raw, *path, proof = [base64.b64encode(one).decode() for one in blobs]
    lines = ["carechain/receipt@v1", f"index {position}", f"{what} {raw}", *path, ""]
    lines += [f"proof {len(blobs[-1])}"]
    lines += [proof[at : at + 64] for at in range(0, len(proof), 64)]
    demand("\n".join([*lines, ""]).encode() == data, "not the one spelling of a receipt")
    demand(what in ("leaf", "transaction") and raw != "" and len(blobs[-1]) <= PROOF_MAX, "no receipt")
    return what, blobs[0], position, blobs[1:-1], blobs[-1]


def check_proof(proof: Parsed, network: bytes) -> Parsed:
    """Check that the proof makes its first header final; return it."""
    in_force, height, epoch = proof["genesis"], 0, 0
    for change in proof["changes"]:
        if "recovery" in change:
            check_recovery(change, network, height, epoch, in_force)
            told = change["recovery"]
            in_force, height, epoch = told["configuration"], told["base_height"] + 1, told["epoch"]
        else:
            certificate, following = change["certificate"], change["configuration"]
            check_certificate(certificate, network, height, epoch, in_force, following)
            in_force, height = following, certificate["header"]["height"]
    check_certificate(proof["certificate"], network, height, epoch, in_force)
    chain = [*proof["ancestors"], proof["certificate"]["header"]]
    linked(chain)
    demand(all(header["net"] == network for header in chain), "a header of another network")
    return dict(chain[0])


def identity(raw: bytes, network: bytes) -> bytes:
    """Return a transaction's id: the hash of what its signatures sign."""
    match read(raw):
        case ["tx", [str(kind), *fields], _]:
            return sha256(spell([f"carechain/v1/tx/{kind}", network, *fields]))
    raise Bad("what the receipt tells is no transaction")


def main(arguments: list[str]) -> int:
    """Verify the file that is named; say what it proves, or why it proves nothing."""
    try:
        found = verify(Path(arguments[0]).read_bytes(), bytes.fromhex("".join(arguments[1:])) or None)
    except Bad as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    for name, value in found.items():
        sys.stdout.write(f"{name} {value.hex() if isinstance(value, bytes) else value}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
