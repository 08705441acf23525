"""A recovery that makes a configuration block final: those before the block have a say, or one leader would choose who has."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from node.bench.made_history import BEGIN_MS, MadeHistory, transactions
from protocol import block, codec
from protocol.block import Block
from protocol.catchup import Position, Run
from protocol.certificate import ElectionCertificate, grant_vote
from protocol.change_proof import CrossingRecovery, FinalityProof, at_genesis, check_not_given_up, follow
from protocol.errors import Conflicting, Invalid
from protocol.identifiers import Term
from protocol.light_client import Update, advance, anchor_at
from protocol.merkle import Frontier
from protocol.recovery import Recovery, SignedRecovery
from protocol.recovery_block import CrossingConsents, earlier_consents_of, recovery_block
from protocol.trust_policy import CERTIFICATE_ALONE
from tests.protocol.test_light_client import update

HOUSES = tuple(f"house {n}" for n in range(4))


def opening(chain: MadeHistory) -> Block:
    """Return the block with which a leader that everybody elects opens the next term."""
    tip = chain.blocks[-1]
    term, leader = Term(tip.term + 1), chain.configuration.voters[0]
    grants = [
        grant_vote(chain.keys[node], chain.network, epoch=0, incarnation=0, term=term, candidate=leader, tip=tip.hash)
        for node in chain.configuration.voters
    ]  # fmt: skip
    elected = ElectionCertificate(term, leader, tip.hash, tuple(grants))
    return block.cut(
        (),
        opening=codec.encode(elected),
        predecessor=tip.header,
        predecessor_hash=tip.hash,
        frontier=chain.frontier,
        term=term,
        key=chain.keys[leader],
        now_ms=BEGIN_MS,
    )


def crossed() -> tuple[MadeHistory, CrossingRecovery]:
    """Return a network of four that lost a member before the change to five was certified, with an opening above the change."""
    chain = MadeHistory.of(*HOUSES)
    chain.cut(*transactions(2, chain.network))
    chain.rotate(2)
    chain.blocks.append(opening(chain))
    crossing = chain.recover_across("house 3")
    chain.cut(*transactions(3, chain.network)[2:])
    return chain, crossing


CHAIN, CROSSING = crossed()
LATER = CHAIN.proof(len(CHAIN.blocks) - 1, CHAIN.certificate(CHAIN.blocks[-1]))
RECOVERY = CROSSING.signed.recovery
CHANGE = CROSSING.headers[0].height
PASSED = CHAIN.in_force(CROSSING.headers[0].height)
TREE = Frontier().append(CHAIN.blocks[1].leaves())
"""Before and after the change: there is nothing in the blocks between."""


def test_a_proof_leads_across_and_survives_its_wire_form() -> None:
    in_force = LATER.check()

    assert (in_force.epoch, in_force.configuration) == (1, RECOVERY.configuration)
    assert codec.decode(codec.encode(LATER), FinalityProof) == LATER


def test_what_was_certified_on_the_other_side_of_its_base_is_given_up() -> None:
    beside = replace(CROSSING.headers[-1], time_ms=CROSSING.headers[-1].time_ms + 1)

    with pytest.raises(Invalid, match="a branch that was given up"):
        check_not_given_up(beside, LATER.changes)


def with_crossing(crossing: CrossingRecovery) -> FinalityProof:
    return replace(LATER, changes=(*LATER.changes[:-1], crossing))


def asked(**changes: object) -> CrossingRecovery:
    """Return the crossing with another word, consented to by everybody."""
    recovery = replace(RECOVERY, **changes)  # type: ignore[arg-type]  # field by field, as a test names them
    signed = SignedRecovery(recovery, CHAIN.consents(recovery, CROSSING.configuration))
    return replace(CROSSING, signed=signed, earlier=CHAIN.consents(recovery, PASSED))


SPOILED: dict[str, tuple[Callable[[], CrossingRecovery], str]] = {
    "no word of those before": (
        lambda: replace(CROSSING, earlier=()),
        "needs the consent of 3 organisations and has 0",
    ),
    "of too few before": (
        lambda: replace(CROSSING, earlier=CROSSING.earlier[:2]),
        "needs the consent of 3 organisations and has 2",
    ),
    "of a newcomer as one of those before": (
        lambda: replace(CROSSING, earlier=CROSSING.signed.signatures),
        "signed by distinct organisations",
    ),
    "of too few afterwards": (
        lambda: replace(CROSSING, signed=replace(CROSSING.signed, signatures=CROSSING.earlier)),
        "needs the consent of 4 organisations and has 3",
    ),
    "to another word": (
        lambda: replace(CROSSING, earlier=asked(reason="another").earlier),
        "a signature of a recovery does not verify",
    ),
    "another base": (
        lambda: replace(CROSSING, headers=CROSSING.headers[:1]),
        "goes on from another block than 3",
    ),
    "no chain to the base": (
        lambda: replace(CROSSING, headers=(CROSSING.headers[0], replace(CROSSING.headers[1], time_ms=1))),
        "goes on from another block than 4",
    ),
    "another configuration": (
        lambda: replace(CROSSING, configuration=PASSED),
        "is not the one that its header names",
    ),
    "a plain block as the change": (
        lambda: replace(CROSSING, headers=CROSSING.headers[1:]),
        "is of another configuration",
    ),
    "no later epoch": (lambda: asked(epoch=0), "begins no later epoch"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_crossing_that_does_not_hold_is_refused(name: str) -> None:
    build, sentence = SPOILED[name]

    with pytest.raises(Invalid, match=sentence):
        with_crossing(build()).check()


def test_a_change_below_what_is_in_force_is_out_of_order() -> None:
    above = replace(at_genesis(CHAIN.genesis), height=CROSSING.headers[0].height)

    with pytest.raises(Invalid, match="out of order"):
        follow(above, (CROSSING,))


# --- who catches up -------------------------------------------------------------------------------------------------


def run_below_the_change() -> Run:
    """Return the run of a follower to whom the block below the change is the newest final one."""
    below = CHAIN.blocks[CHANGE - 1]
    return Run(Position(below.header, below.hash, TREE), PASSED)


def test_who_catches_up_believes_those_before_and_those_after_the_change() -> None:
    run = run_below_the_change()

    run.extend(CHAIN.blocks[CHANGE:-1])

    assert run.configuration == RECOVERY.configuration
    assert earlier_consents_of(CHAIN.blocks[-2]) == CROSSING.earlier


def test_nothing_but_openings_stands_above_a_change_that_is_not_certified() -> None:
    run = run_below_the_change()
    run.extend(CHAIN.blocks[CHANGE : CHANGE + 2])
    certificate = CHAIN.certificate(CHAIN.blocks[CHANGE + 1])
    with pytest.raises(Invalid, match="another configuration"):
        run.certify(certificate)

    plain = MadeHistory.of(*HOUSES)
    plain.cut(*transactions(2, plain.network))
    plain.rotate(2)
    plain.cut()
    run = run_below_the_change()
    with pytest.raises(Invalid, match="stands above a configuration that is not certified"):
        run.extend(plain.blocks[CHANGE:])


def test_a_leader_cannot_make_up_who_consents_to_its_own_change() -> None:
    change, base = CHAIN.blocks[CHANGE], CHAIN.blocks[CHANGE + 1]
    for earlier in ((), CROSSING.earlier[:2], CROSSING.signed.signatures):
        made = recovery_block(CROSSING.signed, base.header, TREE, earlier)
        run = run_below_the_change()
        run.extend((change, base))

        with pytest.raises(Invalid, match="recovery"):
            run.extend((Block.decode(made.raw),))


def test_whoever_consents_the_block_is_the_same_and_its_consents_fit_into_it() -> None:
    base = CHAIN.blocks[CHANGE + 1]
    plain = recovery_block(CROSSING.signed, base.header, TREE)
    assert plain.hash == CHAIN.blocks[CHANGE + 2].hash
    many = tuple(CROSSING.earlier[:1] * 64)
    full = Block(plain.header, codec.encode(CrossingConsents(many, many)), plain.special, ())
    assert earlier_consents_of(Block.decode(full.raw)) == many


# --- a light client -------------------------------------------------------------------------------------------------


def test_a_light_client_follows_across_and_notices_a_crossing_that_gives_up_what_it_has_seen() -> None:
    now_ms = CHAIN.blocks[-1].header.time_ms
    start = anchor_at(CHAIN.genesis, now_ms)
    anchor = advance(start, update(CHAIN, start), CERTIFICATE_ALONE, now_ms)
    assert anchor.header.epoch == 1
    seen = CHAIN.blocks[CHANGE - 1]
    before = replace(
        start,
        header=replace(seen.header, time_ms=seen.header.time_ms - 1),
        configuration=PASSED,
        configured_at=seen.height,
    )
    beside: Recovery = replace(RECOVERY, base_height=seen.height)
    given_up = replace(
        CROSSING,
        signed=SignedRecovery(beside, CHAIN.consents(beside, CROSSING.configuration)),
        earlier=CHAIN.consents(beside, PASSED),
    )
    with pytest.raises(Conflicting, match="gives up block"):
        advance(before, Update((given_up,), LATER.certificate, (), b""), CERTIFICATE_ALONE, now_ms)
    with pytest.raises(Invalid, match="needs the consent"):
        advance(
            before, Update((replace(given_up, earlier=()),), LATER.certificate, (), b""), CERTIFICATE_ALONE, now_ms
        )  # fmt: skip
