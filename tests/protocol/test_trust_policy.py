"""Policies in the manner of C2SP tlog-policy: what they ask for, and every line that is none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.bench.made_history import signing_key
from protocol import limits
from protocol.checkpoint import KeyKind, NoteKey
from protocol.errors import Refused
from protocol.identifiers import PublicKey
from protocol.trust_policy import CERTIFICATE_ALONE, TrustPolicy, parse_policy

ORIGIN = "carechain/" + "ab" * 32


def public(name: str) -> PublicKey:
    return signing_key(name).public


def cosigner(name: str) -> str:
    return NoteKey(f"{name}.example", KeyKind.COSIGNER, public(name)).text


def signer(name: str) -> str:
    return NoteKey(ORIGIN, KeyKind.LOG, public(name)).text


EXAMPLE = f"""# three of their four, and any of our two
log {signer("v1")} https://one.example
witness v1 {signer("v1")}
witness v2 {signer("v2")}
witness v3 {signer("v3")}
witness v4 {signer("v4")}
group voters 3 v1 v2 v3 v4

\twitness w1 {cosigner("w1")} https://witness.example/
witness w2   {cosigner("w2")}
group ours any w1 w2
group both all voters ours
quorum both
"""


def policy(text: str) -> TrustPolicy:
    return parse_policy(text.encode(), source="policy")


@pytest.mark.parametrize(
    ("by", "met"),
    [
        ("v1 v2 v3 w2", True),
        ("v1 v2 v3 v4 w1 w2", True),
        ("v1 v2 v3", False),
        ("v1 v2 w1", False),
        ("v2 v3 v4 w1", False),  # no log that is listed
        ("w1 w2", False),
        ("", False),
    ],
)
def test_groups_of_groups_count(by, met):
    assert policy(EXAMPLE).is_met({public(name) for name in by.split()}) is met


def test_a_quorum_of_none_asks_for_nothing():
    assert policy("quorum none").is_met(set())
    assert CERTIFICATE_ALONE.is_met(set())


def test_a_quorum_may_be_one_witness():
    text = f"witness w1 {cosigner('w1')}\nquorum w1\n"

    assert policy(text).is_met({public("w1")})
    assert not policy(text).is_met({public("w2")})
    assert [key.public for key in policy(text).keys] == [public("w1")]


W1 = f"witness w1 {cosigner('w1')}\n"
W2 = f"witness w2 {cosigner('w2')}\n"
WRONG = {
    "no quorum": (W1, "has no quorum line"),
    "two quorums": (W1 + "quorum w1\nquorum none\n", "line 3: neither"),
    "an undefined quorum": (W1 + "quorum w2\n", "line 2: 'w2' is not defined above"),
    "a group before its members": ("group g any w1\n" + W1 + "quorum g\n", "line 1: 'w1' is not defined"),
    "a group of itself": (W1 + "group g any w1 g\nquorum g\n", "line 2: 'g' is not defined"),
    "a member of two groups": (
        W1 + "group g any w1\ngroup h any w1\nquorum g\n",
        "line 3: 'w1' .* in a group",
    ),
    "a member twice": (W1 + "group g 2 w1 w1\nquorum g\n", "line 2: 'w1' .* in a group"),
    "a name twice": (W1 + f"witness w1 {cosigner('w2')}\nquorum w1\n", "line 2: the name 'w1' is taken"),
    "a group named as a witness": (
        W1 + W2 + "group w1 any w2\nquorum w1\n",
        "line 3: the name 'w1' is taken",
    ),
    "the name none": (f"witness none {cosigner('w1')}\nquorum none\n", "line 1: the name 'none' is taken"),
    "a key twice": (W1 + f"witness w2 {cosigner('w1')}\nquorum w1\n", "line 2: a key that is listed already"),
    "a threshold of nought": (W1 + "group g 0 w1\nquorum g\n", "line 2: a group of 1 has a threshold"),
    "a threshold too high": (W1 + "group g 2 w1\nquorum g\n", "line 2: a group of 1 has a threshold"),
    "no members": (W1 + "group g any\nquorum g\n", "line 2: neither"),
    "a cosigner as a log": (f"log {cosigner('w1')}\nquorum none\n", "line 1: a key of another kind"),
    "no key": ("witness w1 nokey\nquorum w1\n", "line 1: a verifier key is"),
    "another word": ("trust everybody\nquorum none\n", "line 1: neither"),
    "carriage returns": ("quorum none\r\n", "other characters"),
    "too long": ("#" * (limits.POLICY_BYTES_MAX + 1), "too large"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_policy_is_refused_with_its_line(name):
    text, sentence = WRONG[name]
    with pytest.raises(Refused, match=sentence):
        policy(text)


@given(data=st.binary(max_size=60) | st.text("witnessgrouplog none12\n\t #", max_size=60).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_are_refused_and_never_crash(data):
    try:
        parsed = parse_policy(data, source="policy")
    except Refused:
        return
    assert parsed.quorum == "none"
