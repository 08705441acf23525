"""Requests to a witness: the specification's example, every refusal with its status, and growth that is judged right."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import merkle
from protocol.checkpoint import Checkpoint, KeyKind, NoteKey, SignedCheckpoint, sign_checkpoint
from protocol.errors import Malformed
from protocol.identifiers import Digest
from protocol.log_witness import (
    NOTHING,
    REQUEST_BYTES_MAX,
    AddCheckpoint,
    Declined,
    KnownLog,
    Witnessed,
    check_growth,
    check_signed,
)
from protocol.merkle import Frontier
from protocol.signing import SigningKey
from tests.protocol.chain import filled, key

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "checkpoint.json").read_text())
ORIGIN = "log.example/one"
SIGNERS = tuple(key(f"log {n}") for n in range(3))
LEAVES = [Digest(filled(f"leaf {n}")) for n in range(40)]


LOG = KnownLog(ORIGIN, tuple(NoteKey(ORIGIN, KeyKind.LOG, secret.public) for secret in SIGNERS), 2)


def subtree(level: int, index: int) -> Digest:
    return merkle.root_of_leaves(LEAVES[index << level : (index + 1) << level])


def root(size: int) -> Digest:
    return Frontier().append(LEAVES[:size]).root()


def request(old: int, size: int, signers: tuple[SigningKey, ...] = SIGNERS[:2]) -> AddCheckpoint:
    checkpoint = Checkpoint(ORIGIN, size, root(size))
    note = SignedCheckpoint(checkpoint, tuple(sign_checkpoint(one, checkpoint) for one in signers))
    return AddCheckpoint(old, merkle.consistency_proof(old, size, subtree) if old <= size else (), note)


def declined(added: AddCheckpoint, record: Witnessed = NOTHING, log: KnownLog | None = LOG) -> Declined:
    with pytest.raises(Declined) as refusal:  # noqa: PT012  (either of the two judges)
        check_signed(added, log)
        check_growth(added, record)
    return refusal.value


def test_the_example_of_the_specification_comes_back_as_it_is() -> None:
    body = VECTORS["add_checkpoint"].encode()
    parsed = AddCheckpoint.parse(body)
    assert (parsed.old, len(parsed.proof), parsed.note.checkpoint.size) == (20_852_014, 4, 20_852_163)
    assert parsed.encode() == body


@given(st.integers(0, 40), st.integers(0, 40))
def test_growth_is_accepted_and_becomes_the_record(one: int, other: int) -> None:
    old, new = sorted((one, other))
    added = AddCheckpoint.parse(request(old, new).encode())
    check_signed(added, LOG)
    assert check_growth(added, Witnessed(old, root(old))) == Witnessed(new, root(new))


def test_an_unknown_log_is_404_and_one_that_has_not_signed_403() -> None:
    good = request(0, 5)
    assert declined(good, log=None).status == 404
    assert declined(request(0, 5, SIGNERS[:1])).status == 403
    assert declined(request(0, 5, (key("stranger"), SIGNERS[0]))).status == 403
    twice = replace(good, note=replace(good.note, signatures=good.note.signatures[:1] * 2))
    assert declined(twice).status == 403
    moved = replace(good, note=replace(good.note, checkpoint=Checkpoint(ORIGIN, 6, root(6))))
    assert declined(moved).status == 403


def test_an_old_size_above_the_new_is_400() -> None:
    assert declined(request(6, 5), Witnessed(6, root(6))).status == 400


@pytest.mark.parametrize("old", [0, 4, 6])
def test_another_old_size_than_the_one_on_record_is_409_with_the_size(old: int) -> None:
    refusal = declined(request(old, 8), Witnessed(5, root(5)))
    assert (refusal.status, refusal.size) == (409, 5)


def test_a_smaller_checkpoint_is_never_accepted_after_a_larger() -> None:
    assert declined(request(3, 5), Witnessed(8, root(8))).status == 409
    assert declined(request(5, 5), Witnessed(8, root(8))).status == 409
    assert declined(request(8, 5), Witnessed(8, root(8))).status == 400


def test_another_root_for_the_size_on_record_is_409() -> None:
    refusal = declined(request(5, 5), Witnessed(5, Digest(filled("another history"))))
    assert (refusal.status, refusal.size) == (409, 5)


def test_a_proof_that_does_not_hold_is_422() -> None:
    good, record = request(5, 8), Witnessed(5, root(5))
    for proof in ((), good.proof[:-1], (*good.proof, good.proof[0]), good.proof[::-1]):
        assert declined(replace(good, proof=proof), record).status == 422
    assert declined(good, Witnessed(5, Digest(filled("another history")))).status == 422
    assert declined(replace(request(0, 5), proof=good.proof)).status == 422
    assert declined(replace(request(5, 5), proof=good.proof), record).status == 422


def test_an_empty_tree_has_one_root() -> None:
    checkpoint = Checkpoint(ORIGIN, 0, Digest(filled("no root of nothing")))
    note = SignedCheckpoint(checkpoint, tuple(sign_checkpoint(one, checkpoint) for one in SIGNERS))
    assert declined(AddCheckpoint(0, (), note)).status == 409


GOOD = request(5, 8).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        GOOD[4:],
        GOOD.replace(b"old 5\n", b"old 05\n"),
        GOOD.replace(b"old 5\n", b"old  5\n"),
        GOOD.replace(b"old 5\n", b"old 5 \n"),
        GOOD.replace(b"old 5\n", b"old -5\n"),
        GOOD.replace(b"old 5\n", b"Old 5\n"),
        GOOD.replace(b"old 5\n", b"old 5\r\n"),
        GOOD.replace(b"old 5\n", "old ٥\n".encode()),
        GOOD.replace(b"old 5\n", b"old 5\nAAAA\n"),
        GOOD.replace(b"old 5\n", b"old 5\n" + b"A" * 43 + b"=\n" * 1 + (b"A" * 43 + b"=\n") * 63),
        GOOD.replace(b"old 5\n", b"old 5\n\n"),
        GOOD.replace(b"\n", b"\r\n"),
        GOOD + b"\n",
        GOOD + b"x" * REQUEST_BYTES_MAX,
    ],
)
def test_any_other_body_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        AddCheckpoint.parse(body)
