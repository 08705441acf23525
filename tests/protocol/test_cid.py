import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.cid import cid_of, cid_text, parse_cid
from protocol.identifiers import Cid


def test_golden_content_ids() -> None:
    # SHA-256 of nothing and of "hello world", as `ipfs add --cid-version=1 --raw-leaves` names them.
    assert cid_text(cid_of(b"")) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    assert cid_text(cid_of(b"hello world")) == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


@given(st.binary(max_size=100))
def test_text_and_bytes_are_one_to_one(data: bytes) -> None:
    cid = cid_of(data)
    assert cid == hashlib.sha256(data).digest()
    assert parse_cid(cid_text(cid)) == cid


@given(st.binary(min_size=32, max_size=32))
def test_another_implementation_reads_and_writes_the_same(digest: bytes) -> None:
    other = pytest.importorskip("cid")
    read = other.make_cid(cid_text(Cid(digest)))
    assert (read.version, read.codec, bytes(read.multihash)) == (1, "raw", b"\x12\x20" + digest)
    assert read.encode("base32").decode() == cid_text(Cid(digest))


@given(st.data())
def test_every_other_spelling_is_refused(data: st.DataObject) -> None:
    text = cid_text(cid_of(b"x"))
    position = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(codec="utf-8").filter(lambda found: found != text[position]))
    changed = text[:position] + character + text[position + 1 :]
    try:
        parsed = parse_cid(changed)
    except ValueError:
        return
    assert cid_text(parsed) == changed  # another valid content id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "bafkrei",
        "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n",
        "B" + cid_text(cid_of(b""))[1:].upper(),
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a content id"):
        parse_cid(text)


def test_stray_bits_are_refused() -> None:
    text = cid_text(cid_of(b""))
    assert text.endswith("u")
    with pytest.raises(ValueError, match="not a content id"):
        parse_cid(text[:-1] + "v")
