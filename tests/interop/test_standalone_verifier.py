"""Two verifiers, one verdict: the program's own and the standalone one, on valid receipts and on 1,000 mutated ones.

The mutations know the structure: fields are swapped, parts are signed again under wrong keys, values are spelled
another way, votes are taken out, doubled and put in another order, whole parts are taken from other receipts.
"""

import base64
import dataclasses
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from node.bench.made_history import MadeHistory, member, signing_key, transactions, with_members
from protocol import codec, receipt_file, recovery
from protocol.change_proof import CrossingRecovery, FinalityProof, recovery_in
from protocol.configuration import Configuration
from protocol.errors import RemoteFault
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import NetworkId
from protocol.receipt_file import ReceiptFile
from protocol.recovery import Recovery, RecoverySignature, SignedRecovery
from protocol.signing import SigningKey
from tests.interop import standalone_verifier

MUTATIONS = 1_000
PROGRAM = Path(standalone_verifier.__file__)


def history(nonce: str, *, changes: int, voters: int = 4) -> MadeHistory:
    chain = MadeHistory.of(*(f"house {n}" for n in range(voters)), witnesses=("auditor",), nonce=nonce)
    chain.rotate(changes)
    chain.cut(*transactions(5, chain.network))
    chain.cut(*transactions(1, chain.network))
    chain.cut()
    return chain


def recovered() -> MadeHistory:
    """Return a history that lost a member after a change, and changed again in the next epoch."""
    chain = history("d", changes=1)
    chain.recover("house 3")
    chain.rotate(1)
    chain.cut(*transactions(5, chain.network))
    chain.cut(*transactions(1, chain.network))
    chain.cut()
    return chain


def crossed_over() -> MadeHistory:
    """Return a history whose last change before a recovery nobody had a certificate of, with an opening above it."""
    chain = history("e", changes=1)
    others = [one for one in chain.configuration.members if one.name != "newcomer 0"]
    chain.change(with_members(chain.configuration, [*others, member("newcomer 0")]))
    chain.cut()
    chain.recover_across("house 3")
    chain.cut(*transactions(5, chain.network))
    chain.cut(*transactions(1, chain.network))
    chain.cut()
    return chain


CHAINS = (
    recovered(),
    crossed_over(),
    history("a", changes=3),
    history("b", changes=0),
    history("a", changes=7),
    history("c", changes=1, voters=1),
)


def receipts(chain: MadeHistory) -> list[ReceiptFile]:
    """Return receipts of every form: told or not, certified itself, through votes above it, through a block above it."""
    first = len(chain.blocks) - 3
    above = chain.certificate(chain.blocks[first + 1])
    linked = chain.certificate(chain.blocks[first], voted=chain.blocks[first + 2])
    return [
        chain.receipt(first, 3),
        chain.receipt(first, 0, told=False),
        chain.receipt(first, 4, certificate=above),
        chain.receipt(first, 1, certificate=linked),
        chain.receipt(first + 1, 0),
    ]


VALID = [(chain, receipt) for chain in CHAINS for receipt in receipts(chain)]

WITH_RECOVERY = [(chain, receipt) for chain, receipt in VALID if chain in CHAINS[:2]]
"""A few of its receipts are of before; these are mutated as others are."""


def ours(data: bytes, network: NetworkId | None) -> tuple[Any, ...] | str:
    """Return what the program finds in a receipt, or the check that failed."""
    try:
        found = receipt_file.check(receipt_file.decode(data), network)
    except RemoteFault as fault:
        return str(fault)
    return found.network, found.index, found.leaf, found.txid, found.height, found.time_ms


def theirs(data: bytes, network: NetworkId | None) -> tuple[Any, ...] | str:
    """Return what the standalone verifier finds in a receipt, or the check that failed."""
    try:
        found = standalone_verifier.verify(data, network)
    except standalone_verifier.Bad as fault:
        return str(fault)
    return tuple(found.values())


@pytest.mark.parametrize("trusted", [True, False])
def test_both_accept_every_form_of_valid_receipt_and_find_the_same(trusted):
    for chain, receipt in VALID:
        data = receipt_file.encode(receipt)
        network = chain.network if trusted else None
        assert not isinstance(ours(data, network), str)
        assert theirs(data, network) == ours(data, network)


def test_both_refuse_a_receipt_of_another_network():
    data = receipt_file.encode(VALID[0][1])

    assert isinstance(ours(data, CHAINS[-1].network), str)
    assert isinstance(theirs(data, CHAINS[-1].network), str)


# --- mutations --------------------------------------------------------------------------------------------------

Plain = list[Any]
Dice = random.Random


def thawed(value: Any) -> Any:
    return [thawed(one) for one in value] if isinstance(value, tuple) else value


def lists_in(value: Any) -> list[Plain]:
    """Return every list within a plain value, the value first."""
    return [value, *(inner for one in value if isinstance(one, list) for inner in lists_in(one))]


def spelled(receipt: ReceiptFile, proof: bytes) -> bytes:
    return receipt_file._spelled(receipt, proof)


def change_a_value(dice: Dice, plain: Plain) -> None:
    """Alter one number, byte string, text or truth value somewhere."""
    values = [(one, at) for one in lists_in(plain) for at, v in enumerate(one) if not isinstance(v, list)]
    owner, at = dice.choice(values)
    value = owner[at]
    if isinstance(value, bytes) and value:
        where = dice.randrange(len(value))
        owner[at] = value[:where] + bytes([value[where] ^ 1 << dice.randrange(8)]) + value[where + 1 :]
    elif isinstance(value, int):
        owner[at] = dice.choice(
            [value + 1, max(value - 1, 0), 0, 2**64 - 1, bool(value), dice.getrandbits(40)]
        )
    else:
        owner[at] = dice.choice([b"", "x" * 70, None, 7, bytes(32)])


def swap_two(dice: Dice, plain: Plain) -> None:
    """Swap two items of one list: votes, members, fields, changes."""
    owner = dice.choice([one for one in lists_in(plain) if len(one) > 1])
    first, second = dice.sample(range(len(owner)), 2)
    owner[first], owner[second] = owner[second], owner[first]


def drop_one(dice: Dice, plain: Plain) -> None:
    owner = dice.choice([one for one in lists_in(plain) if one])
    del owner[dice.randrange(len(owner))]


def double_one(dice: Dice, plain: Plain) -> None:
    owner = dice.choice([one for one in lists_in(plain) if one])
    at = dice.randrange(len(owner))
    owner.insert(at, owner[at])


def move_a_part(dice: Dice, plain: Plain) -> None:
    """Replace one tagged list by another one of the same tag."""
    tagged = [(one, at) for one in lists_in(plain) for at, v in enumerate(one) if isinstance(v, list) and v]
    owner, at = dice.choice(tagged)
    same = [other[place] for other, place in tagged if other[place][0] == owner[at][0]]
    owner[at] = dice.choice(same)


STRUCTURAL = (change_a_value, swap_two, drop_one, double_one, move_a_part)


def structural(dice: Dice, _chain: MadeHistory, receipt: ReceiptFile) -> bytes:
    """Mutate the plain values of the proof and spell them canonically: both must look beyond the spelling."""
    plain = thawed(codec.to_plain(receipt.proof))
    for _ in range(dice.choice((1, 1, 1, 2))):
        dice.choice(STRUCTURAL)(dice, plain)
    return spelled(receipt, msgpack.packb(plain, use_bin_type=True))


def respelled(dice: Dice, _chain: MadeHistory, receipt: ReceiptFile) -> bytes:
    """Spell the same values in another way."""
    plain, proof = thawed(codec.to_plain(receipt.proof)), codec.encode(receipt.proof)
    match dice.randrange(4):
        case 0:  # text where bytes belong
            return spelled(receipt, msgpack.packb(plain, use_bin_type=False))
        case 1:  # a longer head for the outer list
            return spelled(receipt, b"\xdc\x00" + bytes([proof[0] & 15]) + proof[1:])
        case 2:  # something behind the end
            return spelled(receipt, proof + dice.choice((b"\x00", b"\xc0", proof)))
        case _:  # a longer head for the text of the tag
            return spelled(receipt, proof[:1] + b"\xd9" + bytes([proof[1] & 31]) + proof[2:])


def signed_again(dice: Dice, chain: MadeHistory, receipt: ReceiptFile) -> bytes:
    """Alter a vote and sign it again: under its own key, another signer's, a removed one's or a stranger's."""
    certificate = receipt.proof.certificate
    at = dice.randrange(len(certificate.votes))
    vote = certificate.votes[at]
    fields: dict[str, Any] = {
        "epoch": vote.epoch + dice.randrange(2),
        "incarnation": vote.incarnation + dice.randrange(3),
        "height": vote.height + dice.choice((0, 0, 1, -1)),
        "base_height": max(vote.base_height + dice.choice((0, 1, 50)), 0),
    }
    names = [*(member.name for member in chain.genesis.members), "newcomer 0", "newcomer 1", "stranger"]
    key = chain.keys[vote.signer] if dice.random() < 0.5 else signing_key(dice.choice(names))
    forged = signed_vote(key, chain.network, replace(vote, **fields))
    votes = [*certificate.votes[:at], forged, *certificate.votes[at + 1 :]]
    if dice.random() < 0.7:
        votes.sort(key=lambda one: one.signer)
    return with_certificate(receipt, replace(certificate, votes=tuple(votes)))


def consented_again(dice: Dice, chain: MadeHistory, receipt: ReceiptFile) -> bytes:
    """Alter a recovery and have any organisations consent to it, under their keys or others."""
    changes = list(receipt.proof.changes)
    found = [at for at, one in enumerate(changes) if recovery_in(one) is not None]
    if not found:
        return structural(dice, chain, receipt)
    change = changes[found[0]]
    before = recovery_in(change)
    assert before is not None
    asked = replace(before, **dice.choice(list(_asked_otherwise(before))))
    signed = SignedRecovery(asked, _consents(dice, chain, asked, chain.in_force(asked.base_height + 1)))
    if isinstance(change, CrossingRecovery):
        passed = chain.in_force(change.headers[0].height)
        earlier = _consents(dice, chain, asked, passed if dice.random() < 0.9 else change.configuration)
        changes[found[0]] = replace(change, signed=signed, earlier=earlier)
    else:
        changes[found[0]] = signed
    return receipt_file.encode(replace(receipt, proof=replace(receipt.proof, changes=tuple(changes))))


def _consents(
    dice: Dice, chain: MadeHistory, asked: Recovery, before: Configuration
) -> tuple[RecoverySignature, ...]:
    """Return consents of most of those who have a say, once in a while of others, under other keys, or not sorted."""
    left = [one for one in before.members if dice.random() < 0.9]
    signers = [one.name if dice.random() < 0.97 else "stranger" for one in left]
    consents = [
        recovery.consent(signing_key(f"{name} governance"), chain.network, asked, one.node)
        for name, one in zip(signers, left, strict=True)
        if one.role in ("voter", "witness") and (one.node not in asked.lost or dice.random() < 0.1)
    ]
    if dice.random() < 0.1:
        consents.reverse()
    return tuple(consents)


def _asked_otherwise(asked: Recovery) -> Iterator[dict[str, Any]]:
    yield from ({}, {}, {}, {"reason": "another"}, {"epoch": asked.epoch + 1}, {"epoch": 0}, {"lost": ()})
    yield from ({"base_height": asked.base_height - 1}, {"base_height": 0}, {"term": asked.term + 1})


def signed_vote(key: SigningKey, network: NetworkId, vote: CommitVote) -> CommitVote:
    form = codec.pack("carechain/v1/commit-vote", network, *codec.fields_plain(vote)[1:-1])
    return replace(vote, signer=key.public, signature=key.sign(form))  # type: ignore[arg-type]


def with_certificate(receipt: ReceiptFile, certificate: Certificate) -> bytes:
    return receipt_file.encode(replace(receipt, proof=replace(receipt.proof, certificate=certificate)))


def other_voters(dice: Dice, chain: MadeHistory, receipt: ReceiptFile) -> bytes:
    """Have any set of members vote, sorted or not: too few, too many, just enough, or people who do not sign."""
    height = receipt.proof.certificate.height
    nodes = dice.sample(sorted(chain.keys), dice.randrange(1, len(chain.keys) + 1))
    if dice.random() < 0.3:
        nodes = list(chain.configuration.signers[: chain.configuration.certificate_quorum])
    votes = [chain.vote(node, chain.blocks[height]) for node in nodes]
    if dice.random() < 0.8:
        votes.sort(key=lambda one: one.signer)
    return with_certificate(receipt, Certificate(chain.blocks[height].header, (), tuple(votes)))


def crossed(dice: Dice, _chain: MadeHistory, receipt: ReceiptFile) -> bytes:
    """Take one part of the receipt, or of its proof, from another receipt."""
    other = dice.choice(VALID)[1]
    part = dice.choice([field.name for field in dataclasses.fields(ReceiptFile)])
    if part == "proof":
        names = [field.name for field in dataclasses.fields(FinalityProof)]
        changed: dict[str, Any] = {
            name: getattr(other.proof, name) for name in dice.sample(names, dice.choice((1, 2)))
        }
        return receipt_file.encode(replace(receipt, proof=replace(receipt.proof, **changed)))
    taken: dict[str, Any] = {part: getattr(other, part)}
    return receipt_file.encode(replace(receipt, **taken))


def in_the_text(dice: Dice, _chain: MadeHistory, receipt: ReceiptFile) -> bytes:
    """Alter the text: a character, a line, its end."""
    data = receipt_file.encode(receipt)
    lines = data.split(b"\n")
    at = dice.randrange(len(data))
    match dice.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
        case 2:
            swapped = dice.sample(range(len(lines)), 2)
            lines[swapped[0]], lines[swapped[1]] = lines[swapped[1]], lines[swapped[0]]
        case 3:
            del lines[dice.randrange(len(lines))]
        case 4:
            lines.insert(
                dice.randrange(len(lines)),
                dice.choice((b"", b"note 1", lines[3], base64.b64encode(bytes(32)))),
            )
        case _:
            return data[:at] + dice.choice((b" ", b"\n", b"=", b"A", b"\r", "…".encode())) + data[at:]
    return b"\n".join(lines)


Mutation = Callable[[Dice, MadeHistory, ReceiptFile], bytes]
KINDS: tuple[Mutation, ...] = (
    structural,
    structural,
    respelled,
    signed_again,
    other_voters,
    crossed,
    in_the_text,
    consented_again,
)


def test_both_agree_on_a_thousand_mutated_receipts():
    dice = random.Random(20_260_107)
    verdicts: Counter[tuple[str, bool]] = Counter()
    for number in range(MUTATIONS):
        mutate = KINDS[number % len(KINDS)]
        pool = WITH_RECOVERY if mutate is consented_again else VALID
        chain, receipt = pool[number % len(pool)]
        data = mutate(dice, chain, receipt)
        network = dice.choice((None, chain.network))
        found = ours(data, network)
        other = theirs(data, network)
        assert isinstance(found, str) == isinstance(other, str), (number, mutate.__name__, found, other)
        assert isinstance(found, str) or found == other, (number, mutate.__name__)
        verdicts[mutate.__name__, isinstance(found, str)] += 1
    refused = sum(count for (_, is_refused), count in verdicts.items() if is_refused)
    # Some mutations change nothing, or make another valid receipt: a certificate of other votes, another path's leaf.
    assert refused > 0.8 * MUTATIONS
    assert all(verdicts[kind.__name__, True] for kind in KINDS)
    assert verdicts["consented_again", False]


def test_the_standalone_verifier_is_small_and_imports_nothing_of_this_project():
    text = PROGRAM.read_text()
    imported = {
        line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
    }

    assert len(text.splitlines()) <= 300
    assert imported <= set(sys.stdlib_module_names) | {"nacl"}


def test_the_standalone_verifier_runs_by_itself(tmp_path):
    chain, receipt = VALID[0]
    file = tmp_path / "receipt"
    file.write_bytes(receipt_file.encode(receipt))
    command = [sys.executable, "-I", str(PROGRAM), str(file)]

    good = subprocess.run([*command, chain.network.hex()], capture_output=True, text=True, check=False)
    bad = subprocess.run([*command, "00" * 32], capture_output=True, text=True, check=False)

    assert (good.returncode, good.stderr) == (0, "")
    assert f"height {receipt.proof.header.height}" in good.stdout
    assert (bad.returncode, bad.stdout, bad.stderr) == (1, "", "a receipt of another network\n")
