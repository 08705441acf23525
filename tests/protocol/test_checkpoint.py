"""Checkpoints against published notes (Go's sumdb/note, C2SP, a staging log cosigned by four witnesses), and spoilt ones."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.checkpoint import (
    Checkpoint,
    KeyKind,
    NoteKey,
    Signature,
    SignedCheckpoint,
    cosign_checkpoint,
    log_key,
    origin_of,
    sign_checkpoint,
)
from protocol.errors import Invalid, Malformed
from protocol.identifiers import Digest, NetworkId
from protocol.signing import SigningKey
from tests.protocol.chain import filled, key

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "checkpoint.json").read_text())
NETWORK = NetworkId(filled("network"))
SIGNERS = tuple(key(f"checkpoint {n}") for n in range(3))
WITNESS = key("witness")
CHECKPOINT = Checkpoint(origin_of(NETWORK), 4_711, Digest(filled("root")))
KEYS = tuple(log_key(NETWORK, signer.public) for signer in SIGNERS)
COSIGNER = NoteKey("witness.example/w1", KeyKind.COSIGNER, WITNESS.public)


def signed() -> SignedCheckpoint:
    lines = [sign_checkpoint(signer, CHECKPOINT) for signer in SIGNERS]
    return SignedCheckpoint(
        CHECKPOINT, (*lines, cosign_checkpoint(WITNESS, COSIGNER.name, CHECKPOINT, 1_700_000_000))
    )


def test_the_example_note_of_go_is_signed_to_the_same_bytes() -> None:
    vector = VECTORS["peter"]
    secret = SigningKey(base64.b64decode(vector["seed_base64_with_type"])[1:])
    note_key = NoteKey("PeterNeumann", KeyKind.LOG, secret.public)
    assert note_key.text == vector["key"]
    assert (
        Signature(note_key.name, note_key.id, secret.sign(vector["text"].encode())).line
        == vector["line"] + "\n"
    )


@pytest.mark.parametrize("name", ["peter", "foo"])
def test_published_notes_verify(name: str) -> None:
    vector = VECTORS[name]
    note_key, signature = NoteKey.parse(vector["key"]), Signature.parse(vector["line"])
    assert signature.is_named(note_key)
    assert signature.holds(note_key, vector["text"])
    assert not signature.holds(note_key, vector["text"] + "\n")


def test_a_checkpoint_of_a_real_log_verifies_under_its_key_and_those_of_three_witnesses() -> None:
    note = VECTORS["arche"]["note"].encode()
    keys = [NoteKey.parse(text) for text in VECTORS["arche"]["keys"]]
    parsed = SignedCheckpoint.parse(note)
    assert parsed.encode() == note
    found = parsed.signed_by(keys)
    assert set(found) == set(keys)
    assert {found[one].time_s for one in keys[1:]} == {0x6A122120}
    with pytest.raises(Invalid):
        replace(parsed, checkpoint=replace(parsed.checkpoint, size=42)).signed_by(keys)


def test_the_examples_of_the_specification_come_back_as_they_are() -> None:
    note = VECTORS["behind_the_sofa"].encode()
    parsed = SignedCheckpoint.parse(note)
    assert parsed.encode() == note
    assert (parsed.checkpoint.origin, parsed.checkpoint.size) == ("example.com/behind-the-sofa", 20_852_163)


def test_what_members_and_a_witness_sign_is_known_as_theirs() -> None:
    again = SignedCheckpoint.parse(signed().encode())
    assert again == signed()
    found = again.signed_by((*KEYS, COSIGNER))
    assert set(found) == {*KEYS, COSIGNER}
    assert found[COSIGNER].time_s == 1_700_000_000
    assert set(again.signed_by(KEYS[:1])) == {KEYS[0]}


def test_our_own_form_never_changes() -> None:
    assert signed().encode().decode() == VECTORS["own"]


def test_a_signature_of_one_role_is_none_of_another() -> None:
    as_log = NoteKey(COSIGNER.name, KeyKind.LOG, WITNESS.public)
    assert as_log.id != COSIGNER.id
    assert not signed().signatures[-1].holds(as_log, CHECKPOINT.text)
    assert not signed().signatures[0].holds(replace(KEYS[0], kind=KeyKind.COSIGNER), CHECKPOINT.text)


def test_a_false_signature_under_a_known_name_and_id_spoils_the_note() -> None:
    lines = signed().signatures
    false = replace(lines[0], value=bytes([lines[0].value[0] ^ 1]) + lines[0].value[1:])
    for signatures in ((false,), (lines[1], false), (lines[0], false)):
        with pytest.raises(Invalid):
            SignedCheckpoint(CHECKPOINT, signatures).signed_by(KEYS)
    assert not SignedCheckpoint(CHECKPOINT, (false,)).signed_by(KEYS[1:])


def test_the_time_of_a_cosignature_is_part_of_it() -> None:
    line = signed().signatures[-1]
    for time_s in (0, 1_700_000_001, 2**63):
        moved = replace(line, value=time_s.to_bytes(8, "big") + line.value[8:])
        assert not moved.holds(COSIGNER, CHECKPOINT.text)
    assert not replace(line, value=line.value + b"\0").holds(COSIGNER, CHECKPOINT.text)


GOOD = signed().encode().decode()
FIRST = signed().signatures[0].line


@pytest.mark.parametrize(
    "spoilt",
    [
        GOOD.replace("\n", "\r\n"),
        GOOD.replace(str(CHECKPOINT.size), f"{CHECKPOINT.size}\r"),
        GOOD.replace("\n4711\n", "\n04711\n"),
        GOOD.replace("\n4711\n", "\n+4711\n"),
        GOOD.replace("\n4711\n", "\n4_711\n"),
        GOOD.replace("\n4711\n", "\n4711 \n"),
        GOOD.replace("\n4711\n", "\n٤٧١١\n"),
        GOOD.replace("\n4711\n", "\n-1\n"),
        GOOD.replace("\n4711\n", f"\n{2**63}\n"),
        GOOD.replace("\n4711\n", "\n" + "9" * 5_000 + "\n"),
        GOOD.replace("\n4711\n", "\n\n4711\n"),
        GOOD.replace("=\n\n", "\n\n"),
        GOOD.replace("=\n\n", "=\n\n\n"),
        GOOD.replace("=\n\n", "=\n"),
        GOOD.rstrip("\n"),
        GOOD + "\n",
        GOOD + FIRST,
        GOOD + FIRST.replace("— ", "- "),
        GOOD + FIRST.replace("— ", "—  "),
        GOOD + "— name\u00a0with-space AAAAAAA=\n",
        GOOD + "— a+b AAAAAAA=\n",
        GOOD + "— a AAAAAA==\n",
        GOOD + "— a AAAAAAB=\n",
        GOOD + "— a AAAA\n",
        "".join(f"— n{n} AAAAAAA=\n" for n in range(200)).join((GOOD, "")),
        GOOD[: GOOD.index("—")],
        "",
        "\n",
        "\x00" + GOOD,
        GOOD + "— a " + "A" * 400_000 + "\n",
    ],
)
def test_any_other_spelling_is_refused(spoilt: str) -> None:
    with pytest.raises(Malformed):
        SignedCheckpoint.parse(spoilt.encode())


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(Malformed):
        SignedCheckpoint.parse(GOOD.encode().replace(b"carechain", b"care\xffhain"))


@given(st.data())
def test_no_two_notes_read_alike(data: st.DataObject) -> None:
    note = bytearray(GOOD.encode())
    at = data.draw(st.integers(0, len(note) - 1))
    match data.draw(st.sampled_from(("change", "insert", "remove"))):
        case "change":
            note[at] = data.draw(st.integers(0, 255).filter(lambda value: value != note[at]))
        case "insert":
            note.insert(at, data.draw(st.integers(0, 255)))
        case _:
            del note[at]
    try:
        parsed = SignedCheckpoint.parse(bytes(note))
    except Malformed:
        return
    assert parsed.encode() == bytes(note)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000+",
        KEYS[0].text.replace("+", " ", 1),
        KEYS[0].text.upper(),
        KEYS[0].text[:-1],
        KEYS[0].text + "\n",
        "+" + KEYS[0].text.partition("+")[2],
        "other" + KEYS[0].text,
        COSIGNER.text.replace(
            base64.b64encode(b"\x04" + WITNESS.public).decode(),
            base64.b64encode(b"\x06" + WITNESS.public).decode(),
        ),
    ],
)
def test_a_verifier_key_that_is_not_one_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        NoteKey.parse(text)


def test_a_verifier_key_comes_back_as_it_is() -> None:
    for one in (*KEYS, COSIGNER):
        assert NoteKey.parse(one.text) == one
