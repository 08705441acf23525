import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Refused
from protocol.health.fhir import lines_of, parse_document, resources_of_line
from tests.samples import sample_files

BLANK = st.text(alphabet=" \t\r\n", max_size=3)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=20),
    st.sampled_from(["{", "}", '"', "\\", "]", "é", "\u2028", "🩺", '{"resourceType":"Patient"}']),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def resource_texts() -> st.SearchStrategy[str]:
    return st.builds(
        lambda kind, identifier, extra, ascii_, indent, decimal: json.dumps(
            {"zzz": extra, "id": identifier, "resourceType": kind, "value": "@@"},
            ensure_ascii=ascii_,
            indent=indent,
        ).replace('"@@"', decimal),
        st.sampled_from(["Patient", "Observation", "Condition"]),
        st.text(alphabet="abc123-", min_size=1, max_size=8),
        VALUES,
        st.booleans(),
        st.sampled_from([None, 0, 3]),
        st.sampled_from(["72.50", "1E2", "-0", "0.10", "12345678901234567890.000"]),
    )


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(resource_texts(), min_size=1, max_size=4),
    blanks=st.lists(BLANK, min_size=6, max_size=6),
    data=st.data(),
)
def test_resources_of_a_bundle_are_its_own_substrings(
    texts: list[str], blanks: list[str], data: st.DataObject
) -> None:
    a, b, c, d, e, f = blanks
    entries = f"{a},{b}".join(
        data.draw(
            st.sampled_from(
                [
                    f'{{{c}"fullUrl"{d}:{e}"urn:x:{number}",{f}"resource":{a}{text}{b}}}',
                    f'{{"resource":{text}{c},"fullUrl":"urn:x:{number}","request":{{"a":[1,"]"]}}}}',
                ]
            )
        )
        for number, text in enumerate(texts)
    )
    members = [
        f'"entry"{a}:{b}[{c}{entries}{d}]',
        '"resourceType":"Bundle"',
        '"type" : "batch"',
        '"x":{"entry":[{}]}',
    ]
    whole = a + "{" + b + ",".join(data.draw(st.permutations(members))) + c + "}" + d
    received = (b"\xef\xbb\xbf" if data.draw(st.booleans()) else b"") + whole.encode()

    document = parse_document(received)

    assert [found.text.decode() for found in document.resources] == texts
    assert [found.url() for found in document.resources] == [
        f"urn:x:{number}" for number in range(len(texts))
    ]
    assert [found.resource() for found in document.resources] == [json.loads(text) for text in texts]
    assert [found.id for found in document.resources] == [json.loads(text)["id"] for text in texts]


def test_numbers_keep_their_digits() -> None:
    data = b'{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Observation","valueQuantity":{"value": 72.50}}}]}'
    assert b"72.50}" in parse_document(data).resources[0].text


@pytest.mark.parametrize("folder", ["synthea_r4", "us_core", "ips"])
def test_every_published_sample_is_read_as_json_reads_it(folder: str) -> None:
    for path in sample_files(folder):
        data = path.read_bytes()
        document = parse_document(data)
        parsed: Any = json.loads(data.decode("utf-8-sig"), parse_float=Decimal)
        expected = (
            [entry["resource"] for entry in parsed["entry"]]
            if parsed["resourceType"] == "Bundle"
            else [parsed]
        )
        assert [json.loads(found.text, parse_float=Decimal) for found in document.resources] == expected, (
            path.name
        )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf \n", "empty"),
        (b"\xff\xfe{\x00", "UTF-8"),
        (b'{"resourceType":"Patient"', "not valid JSON at line 1"),
        (b'{"resourceType":"Patient",}', "not valid JSON"),
        (b'{"resourceType":"Patient" "a":1}', "not valid JSON"),
        (b'{"resourceType":\n"Patient","x":NaN}', "not valid JSON at line 2"),
        (b"{'resourceType':'Patient'}", "not valid JSON"),
        (b"[]", "no object"),
        (b"hello", "not valid JSON"),
        (b'{"a":1}', "no resourceType"),
        (b'{"resourceType":7}', "no resourceType"),
        (b'{"resourceType":"Spaceship"}', "does not know"),
        (b'{"resourceType":"Patient"}{"resourceType":"Patient"}', "goes on after its end"),
        (b'{"resourceType":"Patient","id":"1","id":"2"}', "repeats a name"),
        (b'{"resourceType":"Patient","x":{"a":1,"\\u0061":2}}', "repeats a name"),
        (b'{"resourceType":"Bundle"}', "no resource"),
        (b'{"resourceType":"Bundle","entry":[]}', "no resource"),
        (b'{"resourceType":"Bundle","entry":{}}', "no resource"),
        (b'{"resourceType":"Bundle","entry":[{"resource":{"id":"1"}}]}', "entry 1 of the Bundle is not"),
        (b'{"resourceType":"Bundle","entry":[{"fullUrl":"x"}]}', "entry 1 of the Bundle holds no resource"),
        (b'{"resourceType":"Bundle","entry":[{"resource":{},"resource":{}}]}', "repeats a name"),
        (b'{"resourceType":"Bundle","entry":["x"]}', "entry 1"),
        (b'{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Patient"}},]}', "entry|not valid"),
        (b'{"resourceType":"Patient","x":' + b"[" * 100_000, "nested too deeply"),
        (b'{"resourceType":"Patient","x":' + b"9" * 5_000 + b"}", "not valid JSON"),
    ],
)
def test_what_is_no_fhir_document_is_refused_in_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refusal:
        parse_document(data)
    assert "\n" not in str(refusal.value)


def test_a_refusal_quotes_nothing_of_the_document() -> None:
    with pytest.raises(Refused) as refusal:
        parse_document(b'{"resourceType":"Patient","name":"Mustermann" oops}')
    assert "Mustermann" not in str(refusal.value)
    assert "Mustermann" not in repr(parse_document(b'{"resourceType":"Patient","id":"Mustermann"}').resources)


def test_deletions_in_a_bundle_hold_no_resource_and_are_passed_over() -> None:
    data = (
        b'{"resourceType":"Bundle","type":"batch","entry":[{"request":{"method":"DELETE","url":"Patient/1"}},'
        b'{"resource":{"resourceType":"Patient"}}]}'
    )
    assert [found.resource_type for found in parse_document(data).resources] == ["Patient"]


def test_a_list_with_entries_is_one_resource() -> None:
    data = b' {"entry":[{"item":{"reference":"Condition/1"}}],"resourceType":"List"} '
    (found,) = parse_document(data).resources
    assert found.text == data.strip()


@given(
    lines=st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=6),
    cut=st.integers(1, 7),
    final=st.booleans(),
)
def test_lines_are_cut_wherever_blocks_end(lines: list[bytes], cut: int, final: bool) -> None:
    whole = b"\n".join(lines) + (b"\n" if final else b"")
    blocks = (whole[start : start + cut] for start in range(0, len(whole), cut))
    expected = whole.split(b"\n")
    assert list(lines_of(blocks, line_bytes_max=1000)) == (expected[:-1] if not expected[-1] else expected)


def test_a_line_that_never_ends_is_refused() -> None:
    with pytest.raises(Refused, match="longer than"):
        list(lines_of(iter([b"x" * 60, b"x" * 60]), line_bytes_max=100))


def test_ndjson_lines_may_be_blank_or_end_in_cr() -> None:
    assert resources_of_line(b"\r") == ()
    assert resources_of_line(b"\xef\xbb\xbf \t") == ()
    (found,) = resources_of_line(b'{"resourceType":"Patient"}\r')
    assert found.text == b'{"resourceType":"Patient"}'
