"""Commit votes and certificates (ledger.md 1.1, P4 and P5; 7.2): what holds, and the sentence that each failure gets."""

import dataclasses
import hashlib

import pytest

from protocol import codec
from protocol.block import Header, genesis_block, header_hash
from protocol.configuration import Configuration, Member, network_id
from protocol.errors import Invalid
from protocol.finality import Certificate, CommitVote, cast_vote, check_certificate, vote_valid
from protocol.identifiers import ZERO, Digest, Height, NetworkId, NodeId, PublicKey, Term
from protocol.signing import SigningKey

KEYS = {n: SigningKey(hashlib.sha256(b"signer %d" % n).digest()) for n in range(1, 7)}


def configuration_of(**roles: str) -> Configuration:
    stands = PublicKey(bytes(32))
    members = [
        Member(
            f"facility {n}", "hospital", role, NodeId(KEYS[int(n)].public), stands, stands, stands, stands, ()
        )
        for n, role in roles.items()
    ]
    return Configuration(1, tuple(sorted(members, key=lambda member: member.node)), 0, (0,), bytes(32))


def named(**roles: str) -> Configuration:
    return configuration_of(**{name[1:]: role for name, role in roles.items()})


FOUR = named(n1="voter", n2="voter", n3="voter", n4="witness")
FIVE = named(n1="voter", n2="voter", n3="voter", n4="witness", n5="voter")
NETWORK = network_id(FOUR)


def chain(count: int, *, following: Configuration | None = None) -> list[Header]:
    """Return headers from genesis on; the second one sets `following` when that is given."""
    headers = [genesis_block(FOUR).header]
    for height in range(1, count + 1):
        changes = following is not None and height == 2
        headers.append(
            dataclasses.replace(
                headers[-1],
                height=Height(height),
                prev_hash=header_hash(headers[-1]),
                time_ms=height,
                next_config_hash=following.digest if changes and following is not None else ZERO,
            )
        )
    return headers


def vote(n: int, header: Header, base: Header, *, epoch: int = 0) -> CommitVote:
    return cast_vote(
        KEYS[n],
        NETWORK,
        epoch=epoch,
        incarnation=0,
        height=header.height,
        tip=header_hash(header),
        base_height=base.height,
        base=header_hash(base),
    )


def certificate(header: Header, votes: list[CommitVote], links: tuple[Header, ...] = ()) -> Certificate:
    return Certificate(header, links, tuple(sorted(votes, key=lambda vote: vote.signer)))


def test_votes_of_q_signers_make_a_block_final() -> None:
    base, header = chain(1)
    made = certificate(header, [vote(n, header, base) for n in (1, 2, 4)])
    assert check_certificate(made, NETWORK, FOUR) == header_hash(header)
    assert codec.decode(codec.encode(made), Certificate) == made


def test_votes_for_descendants_count_through_the_headers_between() -> None:
    base, header, above, top = chain(3)
    votes = [vote(1, header, base), vote(2, top, base), vote(3, above, base)]
    assert check_certificate(certificate(header, votes, (above, top)), NETWORK, FOUR) == header_hash(header)
    with pytest.raises(Invalid, match="something else"):
        check_certificate(certificate(header, votes, (above,)), NETWORK, FOUR)
    with pytest.raises(Invalid, match="not one chain"):
        check_certificate(certificate(header, votes, (top, above)), NETWORK, FOUR)


def test_a_vote_upon_the_block_itself_or_above_it_does_not_count_for_it() -> None:
    base, header, above = chain(2)
    votes = [vote(1, above, header), vote(2, header, base), vote(3, header, base)]
    with pytest.raises(Invalid, match="stands upon the block itself"):
        check_certificate(certificate(header, votes, (above,)), NETWORK, FOUR)


@pytest.mark.parametrize(
    ("signers", "sentence"),
    [
        ((1, 2), "holds 2"),
        ((1, 2, 3, 4), "does not need"),
        ((1, 2, 5), "holds 2"),
        ((1, 2, 3, 5), "not need"),
    ],
)
def test_the_votes_are_those_of_exactly_q_signers(signers: tuple[int, ...], sentence: str) -> None:
    base, header = chain(1)
    made = certificate(header, [vote(n, header, base) for n in signers])
    with pytest.raises(Invalid, match=sentence):
        check_certificate(made, NETWORK, FOUR)


def test_no_signer_votes_twice_in_a_certificate_and_the_order_is_fixed() -> None:
    base, header = chain(1)
    votes = certificate(header, [vote(n, header, base) for n in (1, 2, 3)]).votes
    for wrong in (votes[::-1], (votes[0], votes[0], votes[1])):
        with pytest.raises(Invalid, match="distinct signers, sorted"):
            check_certificate(Certificate(header, (), wrong), NETWORK, FOUR)


def test_another_network_configuration_or_epoch_is_told() -> None:
    base, header = chain(1)
    votes = [vote(n, header, base) for n in (1, 2, 3)]
    with pytest.raises(Invalid, match="another network"):
        check_certificate(certificate(header, votes), NetworkId(bytes(32)), FOUR)
    with pytest.raises(Invalid, match="another configuration"):
        check_certificate(certificate(header, votes), NETWORK, FIVE)
    with pytest.raises(Invalid, match="another epoch"):
        check_certificate(certificate(header, [*votes[:2], vote(3, header, base, epoch=1)]), NETWORK, FOUR)


def test_a_changed_vote_does_not_verify() -> None:
    base, header = chain(1)
    good = vote(3, header, base)
    assert vote_valid(good, NETWORK)
    for changed in (
        dataclasses.replace(good, base_hash=Digest(ZERO)),
        dataclasses.replace(good, incarnation=1),
        dataclasses.replace(good, signature=bytes(64)),
    ):
        assert not vote_valid(changed, NETWORK)
        votes = [vote(1, header, base), vote(2, header, base), changed]
        with pytest.raises(Invalid, match="does not verify"):
            check_certificate(certificate(header, votes), NETWORK, FOUR)


def test_a_configuration_block_needs_a_quorum_of_the_old_and_of_the_new() -> None:
    _, base, header = chain(2, following=FIVE)
    with pytest.raises(Invalid, match="and only then"):
        check_certificate(certificate(header, [vote(n, header, base) for n in (1, 2, 3)]), NETWORK, FOUR)
    with pytest.raises(Invalid, match="needs the votes of 4 signers and holds 3"):
        check_certificate(
            certificate(header, [vote(n, header, base) for n in (1, 2, 3)]), NETWORK, FOUR, FIVE
        )
    made = certificate(header, [vote(n, header, base) for n in (1, 2, 3, 5)])
    assert check_certificate(made, NETWORK, FOUR, FIVE) == header_hash(header)


def test_whether_a_certificate_stands_without_a_signer_is_a_matter_of_whose_votes_it_holds() -> None:
    base, header = chain(1)
    made = certificate(header, [vote(n, header, base) for n in (1, 2, 3)])
    signers = {n: NodeId(KEYS[n].public) for n in (1, 2, 3, 4)}

    assert made.stands_without(signers[4], FOUR)
    assert not any(made.stands_without(signers[n], FOUR) for n in (1, 2, 3))


def test_the_newest_term_of_a_certificate_is_that_of_what_was_voted_for() -> None:
    base, header, above = chain(2)
    above = dataclasses.replace(above, term=Term(5))
    made = certificate(header, [vote(n, above, base) for n in (1, 2, 3)], (above,))

    assert certificate(header, [vote(1, header, base)]).newest_term == header.term
    assert made.newest_term == 5
