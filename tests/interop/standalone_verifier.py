"""A second verifier of carechain receipts, written from the format alone: standard library and PyNaCl, nothing of carechain.

    python standalone_verifier.py FILE [NETWORK-ID]

Prints what the receipt proves, or says which check failed and exits with 1. NETWORK-ID is the hex SHA-256 of the genesis
configuration; without it the network is the receipt's own. Two programs that share a mistake would agree about it.
"""

import base64
import sys
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

FILE_MAX, PROOF_MAX, DEPTH_MAX = 28 << 20, 20 << 20, 500
BYTES, NUMBERS = {0xC4: 1, 0xC5: 2, 0xC6: 4}, {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
TEXTS, LISTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}, {0xDC: 2, 0xDD: 4}
SIZES = BYTES | NUMBERS | TEXTS | LISTS
Parsed = dict[str, Any]
Place = tuple[bytes, int, int]  # network, height of the last change, epoch


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
        return counted(value, NUMBERS, 0x00, 0x80)
    if isinstance(value, bytes):
        return counted(len(value), BYTES) + value
    if isinstance(value, str):
        return counted(len(value.encode()), TEXTS, 0xA0, 32) + value.encode()
    return counted(len(value), LISTS, 0x90, 16) + b"".join(map(spell, value))


def counted(count: int, codes: dict[int, int], first: int = 0, few: int = 0) -> bytes:
    """Return one byte from `first` on if `count` is below `few`, else the first code that suffices, and as many bytes."""
    if count < few:
        return bytes([first + count])
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
    return raw if code in BYTES else raw.decode(errors="replace"), at  # then it is spelled otherwise


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
crossing-recovery headers=header*1:64 configuration=configuration earlier=recovery-signature*0:64 signed=signed-recovery
finality-proof genesis=configuration changes=configuration-change|signed-recovery|crossing-recovery*0:99999999 ancestors=header*0:4096 certificate=certificate
"""
ROWS = map(str.split, GRAMMAR.split("\n")[1:-1])
SHAPES = {tag: [word.partition("=") for word in words] for tag, *words in ROWS}


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


def quorum(configuration: Parsed) -> tuple[set[bytes], int]:
    """Return who signs, and how many of them make a certificate."""
    signers = [m["node"] for m in configuration["members"] if m["role"] in ("voter", "witness")]
    liars = max((len(signers) - 1) // 3, configuration["min_b"])
    return set(signers), (len(signers) + liars) // 2 + 1


def check_place(header: Parsed, place: Place, *configurations: Parsed) -> None:
    """Check where a header stands: under the first of `configurations`, of which it sets the second if there is one."""
    demand((header["net"], header["epoch"]) == (place[0], place[2]), "a block of another network or epoch")
    demand(header["height"] > place[1], "a block out of order")
    named = [sha256(spell(one["plain"])).digest() for one in configurations] + [bytes(32)]
    demand([header["config_hash"], header["next_config_hash"]] == named[:2], "another configuration")


def check_certificate(certificate: Parsed, place: Place, *configurations: Parsed) -> None:
    """Check that a block is final under each of `configurations`, of which the first is in force for it."""
    header, votes, (network, _, epoch) = certificate["header"], certificate["votes"], place
    check_place(header, place, *configurations)
    signers = [vote["signer"] for vote in votes]
    demand(all(one < other for one, other in pairwise(signers)), "votes not sorted, or one twice")
    needed: set[bytes] = set()
    for members, least in map(quorum, configurations):
        counted = members & set(signers)
        demand(len(counted) >= least, f"{len(counted)} votes where {least} are needed")
        needed |= counted if len(counted) == least else set()
    demand(needed == set(signers), "a vote that is not needed, or of somebody who does not sign")
    chain = [header, *certificate["links"]]
    heights = dict(zip(linked(chain), [one["height"] for one in chain], strict=True))
    for vote in votes:
        demand(heights.get(vote["header_hash"]) == vote["height"], "a vote for something else")
        demand(vote["epoch"] == epoch, "a vote of another epoch")
        demand(vote["base_height"] < header["height"], "a vote that stands upon the block itself")
        check_signature(vote["signer"], ["commit-vote", network, *vote["plain"][2:-1]], vote["signature"])
    demand(max(vote["height"] for vote in votes) == chain[-1]["height"], "a header that nothing signs")


def check_recovery(signed: Parsed, place: Place, before: Parsed) -> None:
    """Check that the organisations of the configuration before consent to the beginning of an epoch."""
    recovery, (network, above, epoch) = signed["recovery"], place
    demand(recovery["base_height"] >= above and recovery["epoch"] > epoch, "a recovery out of order")
    demand(recovery["configuration"]["plain"] != before["plain"], "a recovery that changes nothing")
    demand(recovery["before"] == sha256(spell(before["plain"])).digest(), "a recovery from elsewhere")
    lost, members = list(recovery["lost"]), {member["node"] for member in before["members"]}
    demand(lost == sorted(set(lost) & members), "a stranger, or somebody twice, declared lost")
    check_consents(recovery, signed["signatures"], network, before)


def check_consents(recovery: Parsed, signatures: list[Parsed], network: bytes, before: Parsed) -> None:
    """Check that enough of the organisations that are not lost have signed with their governance keys."""
    (signers, least), nodes = quorum(before), [one["node"] for one in signatures]
    left = signers - set(recovery["lost"])
    demand(nodes == sorted(set(nodes)) and set(nodes) <= left, "consents of others, or not sorted")
    demand(len(nodes) >= max(len(left) * 2 // 3 + 1, least), "too few consents to a recovery")
    keys = {member["node"]: member["governance"] for member in before["members"]}
    for one in signatures:
        check_signature(keys[one["node"]], ["recovery", network, recovery["plain"][1:]], one["signature"])


def check_signature(key: bytes, form: list[Any], signature: bytes) -> None:
    """Check an Ed25519 signature of a form, whose first part is its domain."""
    try:
        VerifyKey(key).verify(spell(["carechain/v1/" + form[0], *form[1:]]), signature)
    except CryptoError:
        raise Bad(f"a signature of a {form[0]} does not verify") from None


def linked(chain: list[Parsed]) -> list[bytes]:
    """Return the hashes of headers, each of which names the one before."""
    hashes = [sha256(spell(["carechain/v1/header", *header["plain"][1:]])).digest() for header in chain]
    steps = [(above["prev_hash"], above["height"] - below["height"]) for below, above in pairwise(chain)]
    demand(steps == [(digest, 1) for digest in hashes[:-1]], "headers that are no chain")
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
        leaf = sha256(b"\x01" + (sibling + leaf if is_right else leaf + sibling)).digest()
    demand(leaf == root, "the inclusion path does not lead to the block")


def verify(data: bytes, trusted: bytes | None = None) -> Parsed:
    """Return what a receipt proves, or raise Bad."""
    what, raw, position, path, packed = parsed(data)
    leaf = raw if what == "leaf" else sha256(b"\x00" + raw).digest()
    demand(all(len(one) == 32 for one in (leaf, *path)), "a hash of another length")
    proof = shaped(read(packed), "finality-proof")
    network = sha256(spell(proof["genesis"]["plain"])).digest()
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
    told = f"carechain/receipt@v1\nindex {position}\n{what} {raw}"
    lines = [told, *path, "", f"proof {len(blobs[-1])}"]
    lines += [proof[at : at + 64] for at in range(0, len(proof), 64)]
    demand("\n".join([*lines, ""]).encode() == data, "not the one spelling of a receipt")
    demand(what in ("leaf", "transaction") and raw != "" and len(blobs[-1]) <= PROOF_MAX, "no receipt")
    return what, blobs[0], position, blobs[1:-1], blobs[-1]


def check_proof(proof: Parsed, network: bytes) -> Parsed:
    """Check that the proof makes its first header final; return it."""
    in_force, height, epoch = proof["genesis"], 0, 0
    for change in proof["changes"]:
        place, following = (network, height, epoch), change.get("configuration")
        if "certificate" in change:
            check_certificate(change["certificate"], place, in_force, following)
            in_force, height = following, change["certificate"]["header"]["height"]
            continue
        told = (signed := change.get("signed", change))["recovery"]
        if "headers" in change:  # of a configuration block that the recovery makes final, up to its base
            check_place(change["headers"][0], place, in_force, following)
            base = (change["headers"][-1]["height"], linked(change["headers"])[-1])
            demand(base == (told["base_height"], told["base_hash"]), "a recovery of another base")
            check_consents(told, change["earlier"], network, in_force)
            in_force, height = following, change["headers"][0]["height"]
        check_recovery(signed, (network, height, epoch), in_force)
        in_force, height, epoch = told["configuration"], told["base_height"] + 1, told["epoch"]
    check_certificate(proof["certificate"], (network, height, epoch), in_force)
    linked(chain := [*proof["ancestors"], proof["certificate"]["header"]])
    demand(all(header["net"] == network for header in chain), "a header of another network")
    return dict(chain[0])


def identity(raw: bytes, network: bytes) -> bytes:
    """Return a transaction's id: the hash of what its signatures sign."""
    match read(raw):
        case ["tx", [str(kind), *fields], _]:
            return sha256(spell([f"carechain/v1/tx/{kind}", network, *fields])).digest()
    raise Bad("what the receipt tells is no transaction")


def main(arguments: list[str]) -> None:
    """Verify the file that is named; say what it proves, or why it proves nothing."""
    try:
        found = verify(Path(arguments[0]).read_bytes(), bytes.fromhex("".join(arguments[1:])) or None)
    except Bad as fault:
        sys.exit(str(fault))
    for name, value in found.items():
        sys.stdout.write(f"{name} {value.hex() if isinstance(value, bytes) else value}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
