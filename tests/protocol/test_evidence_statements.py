"""E1 to E5: liars are convicted, and for each obvious short form the honest member that it would convict is not."""

import dataclasses

import pytest

from protocol.errors import Invalid, Malformed
from protocol.evidence import decode
from protocol.evidence_statements import (
    HiddenLog,
    HiddenTerm,
    OtherTip,
    TwoAcknowledgements,
    TwoGrants,
    TwoHeaders,
    TwoVotes,
)
from tests.protocol.evidence_cast import (
    GENESIS,
    LEFT,
    RIGHT,
    TRUNK,
    ack,
    fork,
    grant,
    grown,
    headers,
    judged,
    node,
    request,
    signed_header,
    vote,
)

# --- E1


def test_two_headers_of_one_height_and_term_convict_their_leader() -> None:
    one, other = grown(GENESIS, 1)[0], grown(GENESIS, 1, branch=1)[0]

    conviction = judged(TwoHeaders(signed_header(one), signed_header(other)))

    assert (conviction.kind, conviction.nodes, conviction.height) == ("E1", (node(0),), 1)


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (TRUNK[0], TRUNK[1], "different heights"),  # the short form: two headers in one term
        (grown(GENESIS, 1)[0], grown(GENESIS, 2, branch=1)[0], "different heights, terms"),
        (LEFT[0], RIGHT[0], "two leaders"),
        (TRUNK[0], TRUNK[0], "one header twice"),
    ],
)
def test_headers_that_an_honest_leader_signs_do_not_convict_it(one, other, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(TwoHeaders(signed_header(one), signed_header(other)))


def test_a_header_that_its_leader_has_not_signed_convicts_nobody() -> None:
    one, other = grown(GENESIS, 1)[0], grown(GENESIS, 1, branch=1)[0]
    forged = dataclasses.replace(signed_header(other), signature=bytes(64))

    with pytest.raises(Invalid, match="signature"):
        judged(TwoHeaders(signed_header(one), forged))


# --- E2


def test_acknowledging_two_branches_in_one_term_convicts_the_voter() -> None:
    conviction = judged(TwoAcknowledgements(ack(LEFT[0], 4), ack(RIGHT[2], 4), headers(RIGHT[1:])))

    assert (conviction.kind, conviction.nodes) == ("E2", (node(0),))


def test_acknowledging_two_blocks_of_one_height_in_one_term_convicts_the_voter() -> None:
    assert judged(TwoAcknowledgements(ack(LEFT[1], 4), ack(RIGHT[1], 4), ())).kind == "E2"


@pytest.mark.parametrize(
    ("one", "other", "line", "reason"),
    [
        # the short form: two acknowledgements not on one chain; a voter follows each term's leader
        (ack(LEFT[0], 2), ack(RIGHT[0], 3), (), "two terms"),
        (ack(LEFT[0], 4), ack(RIGHT[0], 4, incarnation=1), (), "incarnations"),
        (ack(LEFT[0], 4), ack(RIGHT[0], 4, epoch=1), (), "epochs"),
        (ack(LEFT[0], 4), ack(RIGHT[0], 4, by=1), (), "two voters"),
        (ack(TRUNK[0], 4), ack(LEFT[0], 4), headers((*TRUNK[1:], LEFT[0])), "one chain"),
        (ack(TRUNK[0], 4), ack(LEFT[0], 4), headers((TRUNK[2], LEFT[0])), "do not reach"),
        (ack(LEFT[0], 4), ack(LEFT[1], 4), headers((RIGHT[1],)), "do not lead to the block"),
        (ack(LEFT[0], 4), ack(LEFT[2], 4), headers((RIGHT[1], LEFT[2])), "not one chain"),
        (ack(LEFT[1], 4), ack(LEFT[0], 4), (), "do not reach"),
    ],
)
def test_acknowledgements_of_an_honest_voter_do_not_convict_it(one, other, line, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(TwoAcknowledgements(one, other, line))


def test_a_line_of_headers_with_the_wrong_height_shows_nothing() -> None:
    false = dataclasses.replace(ack(LEFT[1], 4), height=LEFT[0].height)

    with pytest.raises(Invalid, match="does not verify"):
        judged(TwoAcknowledgements(false, ack(RIGHT[0], 4), ()))


# --- E3


def test_votes_for_two_branches_from_below_their_parting_convict_the_signer() -> None:
    conviction = judged(
        TwoVotes(vote(LEFT[1], TRUNK[2]), vote(RIGHT[0], TRUNK[0]), fork(LEFT[:2], RIGHT[:1]))
    )

    assert (conviction.kind, conviction.nodes, conviction.height) == ("E3", (node(0),), LEFT[1].height)


def test_a_new_incarnation_does_not_excuse_a_second_vote() -> None:
    found = TwoVotes(vote(LEFT[0]), vote(RIGHT[0], incarnation=1), fork(LEFT[:1], RIGHT[:1]))

    assert judged(found).kind == "E3"


@pytest.mark.parametrize("base", [RIGHT[0], RIGHT[1]])
def test_a_signer_that_a_certificate_led_to_the_other_branch_is_not_convicted(base) -> None:
    # the short form: two votes not on one chain
    found = TwoVotes(vote(LEFT[1]), vote(RIGHT[2], base), fork(LEFT[:2], RIGHT))

    with pytest.raises(Invalid, match="base above the parting"):
        judged(found)


@pytest.mark.parametrize(
    ("one", "other", "shown", "reason"),
    [
        (vote(LEFT[0]), vote(LEFT[1]), fork(LEFT[:1], LEFT[:2]), "part higher up, if at all"),
        (vote(LEFT[0]), vote(RIGHT[0], by=1), fork(LEFT[:1], RIGHT[:1]), "two signers"),
        (vote(LEFT[0]), vote(RIGHT[0], epoch=1), fork(LEFT[:1], RIGHT[:1]), "two epochs"),
        (vote(LEFT[1]), vote(RIGHT[1]), fork(LEFT[1:2], RIGHT[1:2]), "do not begin upon one block"),
    ],
)
def test_votes_of_an_honest_signer_do_not_convict_it(one, other, shown, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(TwoVotes(one, other, shown))


def test_a_parting_that_is_shown_too_high_convicts_nobody() -> None:
    """Two lines that begin above the real parting would lift it over the bases."""
    found = TwoVotes(vote(LEFT[2], LEFT[0]), vote(RIGHT[2]), fork(LEFT[1:], RIGHT[1:]))

    with pytest.raises(Invalid, match="do not begin upon one block"):
        judged(found)


# --- E4


def test_votes_for_two_candidates_in_one_term_convict_the_voter() -> None:
    assert judged(TwoGrants(grant(5, 1), grant(5, 2))).nodes == (node(0),)


def test_votes_for_two_logs_of_one_candidate_in_one_term_convict_the_voter() -> None:
    """A candidate that lies can ask with two tips; an honest voter answers one of them, also when it has been down between."""
    assert judged(TwoGrants(grant(5, 1, LEFT[0]), grant(5, 1, RIGHT[0]))).nodes == (node(0),)


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (grant(5, 1), grant(6, 2), "two terms"),
        (grant(5, 1), grant(5, 2, incarnation=1), "incarnations"),  # the short form: two votes in one term
        (grant(5, 1), grant(5, 2, by=1), "two voters"),
        (grant(5, 1), grant(5, 1), "one candidate"),
    ],
)
def test_grants_of_an_honest_voter_do_not_convict_it(one, other, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(TwoGrants(one, other))


# --- E5


def test_a_candidate_that_hides_a_term_is_convicted() -> None:
    assert judged(HiddenTerm(request(5, LEFT[0], 2), ack(RIGHT[0], 3))).kind == "E5a"


@pytest.mark.parametrize(
    ("asked", "acknowledged", "reason"),
    [
        (request(5, LEFT[0], 2), ack(LEFT[0], 2), "hides no term"),
        (request(5, LEFT[0], 2), ack(RIGHT[0], 5), "hides no term"),  # it lost, and follows the winner
        (request(5, LEFT[0], 2), ack(RIGHT[0], 6), "hides no term"),
        (request(5, LEFT[0], 2), ack(RIGHT[0], 3, by=1), "two members"),
        (request(5, LEFT[0], 0, incarnation=1), ack(RIGHT[0], 3), "two incarnations"),
    ],
)
def test_what_a_candidate_acknowledged_at_other_times_does_not_convict_it(
    asked, acknowledged, reason
) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(HiddenTerm(asked, acknowledged))


def test_a_candidate_with_less_than_it_acknowledged_is_convicted() -> None:
    found = HiddenLog(request(5, LEFT[0], 2), ack(LEFT[2], 2), None, headers(LEFT[1:]))

    assert (judged(found).kind, judged(found).nodes) == ("E5b", (node(0),))


def test_a_candidate_with_another_branch_than_it_acknowledged_is_convicted() -> None:
    found = HiddenLog(request(5, RIGHT[2], 2, TRUNK[2]), ack(LEFT[1], 2), fork(LEFT[:2], RIGHT), ())

    assert judged(found).kind == "E5b"


@pytest.mark.parametrize("base", [RIGHT[0], RIGHT[1], RIGHT[2]])
def test_a_candidate_that_a_certificate_led_to_its_tip_is_not_convicted(base) -> None:
    # the short form: the tip contradicts an acknowledgement
    found = HiddenLog(request(5, RIGHT[2], 2, base), ack(LEFT[1], 2), fork(LEFT[:2], RIGHT), ())

    with pytest.raises(Invalid, match="a certificate led"):
        judged(found)


def test_a_candidate_that_names_a_base_on_another_branch_than_its_tip_is_convicted() -> None:
    asked = request(5, RIGHT[2], 2, LEFT[0])
    found = HiddenLog(asked, ack(LEFT[1], 2), fork(LEFT[:2], RIGHT), headers(RIGHT[1:]))

    assert judged(found).kind == "E5b"


def test_a_base_on_the_tips_chain_is_not_made_false_by_showing_it() -> None:
    asked = request(5, RIGHT[2], 2, RIGHT[0])
    found = HiddenLog(asked, ack(LEFT[1], 2), fork(LEFT[:2], RIGHT), headers(RIGHT[1:]))

    with pytest.raises(Invalid, match="a certificate led"):
        judged(found)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (HiddenLog(request(5, RIGHT[0], 3), ack(LEFT[0], 2), fork(LEFT[:1], RIGHT[:1]), ()), "another term"),
        (HiddenLog(request(5, LEFT[1], 2), ack(LEFT[0], 2), None, ()), "not below"),
        (HiddenLog(request(5, LEFT[0], 2), ack(LEFT[0], 2), None, ()), "not below"),
        # Where they part is not shown, and so not whether a base excuses it.
        (HiddenLog(request(5, RIGHT[0], 2, RIGHT[0]), ack(LEFT[1], 2), None, headers(LEFT[1:2])), "is not shown"),
        (
            HiddenLog(
                request(5, LEFT[0], 2, incarnation=1), ack(LEFT[1], 2), None, headers(LEFT[1:2])
            ),
            "two incarnations",
        ),
    ],
)  # fmt: skip
def test_a_candidate_whose_log_holds_what_it_acknowledged_is_not_convicted(found, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(found)


def test_a_leader_whose_block_does_not_descend_from_the_tip_it_showed_is_convicted() -> None:
    made = grown(RIGHT[0], 5, 5, branch=3)

    low = OtherTip(request(5, LEFT[2], 2), signed_header(made[0]), ())
    high = OtherTip(request(5, LEFT[0], 2), signed_header(made[1]), headers(made[:1]))

    assert {judged(low).kind, judged(high).kind} == {"E5c"}


@pytest.mark.parametrize(
    ("tip", "term", "made", "line", "reason"),
    [
        (LEFT[0], 2, LEFT[1], (), "descends from the tip"),
        (LEFT[0], 2, LEFT[2], headers(LEFT[1:2]), "descends from the tip"),
        (LEFT[0], 2, LEFT[0], (), "descends from the tip"),
        (LEFT[2], 4, TRUNK[1], (), "not of the term"),  # the short form: any header that leaves the tip out
        (RIGHT[0], 3, RIGHT[1], (), "not of the term and node"),  # its leader is another one
    ],
)
def test_a_leader_that_only_appends_is_not_convicted(tip, term, made, line, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(OtherTip(request(term, tip, 1), signed_header(made), line))


def test_a_tip_beside_a_signed_request_that_is_not_its_own_convicts_nobody() -> None:
    asked = dataclasses.replace(request(5, LEFT[2], 2), tip=RIGHT[2].header)

    with pytest.raises(Invalid, match="not its header's"):
        judged(HiddenTerm(asked, ack(RIGHT[0], 3)))


def test_what_is_no_evidence_is_refused_by_its_form() -> None:
    with pytest.raises(Malformed):
        decode(b"\x91\xa3foo")


def test_evidence_has_a_bound() -> None:
    with pytest.raises(Invalid, match="over the limit"):
        decode(bytes(60_000))


def test_evidence_against_strangers_is_refused() -> None:
    with pytest.raises(Invalid, match="no member"):
        judged(TwoGrants(grant(5, 1), grant(5, 2)), {})
