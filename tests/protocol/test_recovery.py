"""Going on after the loss of a majority: the base that no answer can contradict, and whose word begins the next epoch."""

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec, finality, recovery
from protocol.block import Block, Header, cut, genesis_block, header_hash
from protocol.configuration import Configuration, Member, network_id
from protocol.errors import Invalid, Malformed, Unavailable
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import Height, NodeId, PublicKey, Term
from protocol.merkle import Frontier
from protocol.recovery import (
    FreezeStatement,
    Recovery,
    SignedRecovery,
    check_freeze,
    consent,
    find_base,
    freeze,
)
from protocol.recovery_block import check_recovery_block, recovery_block
from protocol.signing import SigningKey, sha256

NOW_MS = 1_800_000_000_000


def key(name: str) -> SigningKey:
    return SigningKey(sha256(name.encode()))


def configuration(count: int, *, names: str = "n") -> Configuration:
    members = []
    for number in range(count):
        node, governance = key(f"{names}{number}"), key(f"{names}{number}/governance")
        public = PublicKey(node.public)
        keys = public, public, PublicKey(governance.public), public
        members.append(Member(f"{names}{number}", "hospital", "voter", NodeId(public), *keys, ()))
    return Configuration(1, tuple(sorted(members, key=lambda member: member.node)), 0, (0,), bytes(32))


class Consortium:
    """Voters with keys in the order of the configuration, and blocks that any of them cuts."""

    def __init__(self, count: int) -> None:
        self.configuration = configuration(count)
        self.network = network_id(self.configuration)
        by_node = {NodeId(key(f"n{number}").public): key(f"n{number}") for number in range(count)}
        self.voters = [by_node[node] for node in self.configuration.voters]
        self.governance = [key(member.name + "/governance") for member in self.configuration.members]
        self.genesis = genesis_block(self.configuration)

    def block(self, below: Block, *, leader: int = 0, later_ms: int = 1) -> Block:
        return cut(
            (),
            predecessor=below.header,
            predecessor_hash=below.hash,
            frontier=Frontier(),
            term=Term(1),
            key=self.voters[leader],
            now_ms=NOW_MS + below.height * 1000 + later_ms,
        )

    def chain(self, count: int, above: Block | None = None) -> list[Block]:
        blocks = [above or self.genesis]
        for _ in range(count):
            blocks.append(self.block(blocks[-1]))
        return blocks

    def vote(self, signer: int, block: Block, base: Block | None = None) -> CommitVote:
        base = base or self.genesis
        return finality.cast_vote(
            self.voters[signer],
            self.network,
            epoch=0,
            incarnation=0,
            height=block.height,
            tip=block.hash,
            base_height=base.height,
            base=base.hash,
        )

    def certificate(self, block: Block, base: Block | None = None) -> Certificate:
        votes = [self.vote(one, block, base) for one in range(self.configuration.certificate_quorum)]
        return Certificate(block.header, (), tuple(sorted(votes, key=lambda vote: vote.signer)))

    def frozen(
        self,
        signer: int,
        chain: list[Block],
        *,
        certified: int = 0,
        voted: int | None = None,
    ) -> FreezeStatement:
        """Return the statement of a signer that holds `chain`, knows a certificate for one height, and voted up to another."""
        return freeze(
            self.voters[signer],
            self.network,
            epoch=0,
            incarnation=0,
            term=Term(1),
            certificate=self.certificate(chain[certified]) if certified else None,
            links=tuple(block.header for block in chain[certified + 1 :]),
            vote=self.vote(signer, chain[voted], chain[certified]) if voted is not None else None,
        )

    def base(self, *statements: FreezeStatement) -> recovery.Base:
        for statement in statements:
            check_freeze(statement, self.network)
        return find_base(statements, self.genesis.header, self.configuration)

    def recovery(self, base: Header, **changes: object) -> Recovery:
        plan = Recovery(
            1,
            base.height,
            header_hash(base),
            Term(9),
            NOW_MS * 2,
            self.configuration.digest,
            dataclasses.replace(configuration(3, names="new"), number=1),
            (),
            (),
            "flood",
        )
        return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]  # field by field, as a test names them

    def signed(self, plan: Recovery, *by: int) -> SignedRecovery:
        nodes = self.configuration.signers
        consents = [consent(self.governance[one], self.network, plan, nodes[one]) for one in by]
        return SignedRecovery(plan, tuple(sorted(consents, key=lambda one: one.node)))


# --- the base -------------------------------------------------------------------------------------------------------


def test_a_certified_block_is_the_base_when_nobody_can_have_voted_above_it() -> None:
    net = Consortium(5)
    chain = net.chain(4)
    everybody = [net.frozen(one, chain, certified=2) for one in range(5)]

    base = net.base(*everybody)

    assert base.hash == chain[2].hash
    assert set(base.discarded) == {chain[3].hash, chain[4].hash}


def test_a_block_that_those_who_are_silent_may_have_certified_stays() -> None:
    net = Consortium(5)  # q = 4, b = 1
    chain = net.chain(4)
    # One survivor voted for block 4; two are silent; one may lie: 1 + 2 + 1 = 4 votes are possible.
    survivors = [
        net.frozen(0, chain, certified=2, voted=4),
        *(net.frozen(one, chain, certified=2) for one in (1, 2)),
    ]

    assert net.base(*survivors).hash == chain[4].hash
    assert net.base(*survivors, net.frozen(3, chain, certified=2)).hash == chain[2].hash


def test_the_certificate_that_only_one_survivor_holds_counts() -> None:
    net = Consortium(4)
    chain = net.chain(3)

    base = net.base(
        net.frozen(0, chain[:3], certified=1, voted=2), net.frozen(1, chain, certified=3, voted=3)
    )

    assert (base.hash, base.discarded) == (chain[3].hash, ())


def test_two_histories_that_could_both_be_final_wait_for_more_answers() -> None:
    net = Consortium(5)
    trunk = net.chain(1)
    one = [*trunk, net.block(trunk[1], leader=0)]
    other = [*trunk, net.block(trunk[1], leader=1, later_ms=7)]
    left, right = net.frozen(0, one, certified=1, voted=2), net.frozen(1, other, certified=1, voted=2)

    with pytest.raises(Unavailable, match="two histories"):
        net.base(left, right)
    third = net.frozen(2, one, certified=1, voted=2)
    fourth = net.frozen(3, one, certified=1, voted=2)
    assert net.base(left, right, third, fourth).hash == one[2].hash


def test_a_vote_upon_the_block_itself_does_not_certify_it() -> None:
    net = Consortium(4)  # q = 3, b = 1
    chain = net.chain(2)
    statements = [net.frozen(one, chain, certified=2, voted=2) for one in range(4)]
    assert all(one.vote is not None and one.vote.base_height == 2 for one in statements)
    assert net.base(*statements).hash == chain[2].hash


@given(data=st.data())
def test_no_certificate_that_can_exist_is_left_behind(data: st.DataObject) -> None:
    """Whoever voted for what: if the votes of all signers certify a block, the base is that block or above it."""
    net = Consortium(4)
    trunk = net.chain(1)
    branches = [[*trunk, *itertools.islice(_branch(net, trunk[1], leader), 3)] for leader in range(2)]
    voted = [data.draw(st.tuples(st.integers(0, 1), st.integers(1, 4))) for _ in range(4)]
    answered = data.draw(st.sets(st.integers(0, 3), min_size=1))
    statements = [
        net.frozen(one, branches[branch], certified=1, voted=height if height > 1 else None)
        for one, (branch, height) in enumerate(voted)
    ]

    try:
        base = net.base(*(statements[one] for one in sorted(answered)))
    except Unavailable:
        return
    for branch, height in itertools.product(range(2), range(2, 5)):
        votes = sum(where == branch and up_to >= height for where, up_to in voted)
        if votes >= net.configuration.certificate_quorum:
            known = {header_hash(header) for one in answered for header in statements[one].links}
            if branches[branch][height].hash in known:
                assert base.header.height >= height
                assert base.hash in [block.hash for block in branches[branch]]


def _branch(net: Consortium, below: Block, leader: int) -> Iterator[Block]:
    while True:
        below = net.block(below, leader=leader, later_ms=leader + 1)
        yield below


# --- statements -----------------------------------------------------------------------------------------------------


def test_a_term_that_leaves_no_later_one_is_refused() -> None:
    net = Consortium(3)
    last = Term((1 << 64) - 1)
    above = dataclasses.replace(net.block(net.genesis).header, term=last)
    for term, links in ((last, ()), (Term(1), (above,))):
        statement = freeze(
            net.voters[0], net.network, epoch=0, incarnation=0, term=term, certificate=None, links=links, vote=None
        )  # fmt: skip
        with pytest.raises(Invalid, match="no election reaches"):
            check_freeze(statement, net.network)


def test_a_freeze_statement_that_was_changed_is_refused() -> None:
    net = Consortium(4)
    chain = net.chain(3)
    honest = net.frozen(0, chain, certified=1, voted=2)
    assert codec.decode(codec.encode(honest), FreezeStatement) == honest
    other = [net.block(chain[2], leader=1, later_ms=5)]
    for changed in (
        dataclasses.replace(honest, epoch=1),
        dataclasses.replace(honest, term=Term(2)),
        dataclasses.replace(honest, vote=None),
        dataclasses.replace(honest, vote=net.vote(0, chain[3])),
        dataclasses.replace(honest, vote=net.vote(1, chain[2])),
        dataclasses.replace(honest, certificate=None),
        dataclasses.replace(honest, links=honest.links[:-1]),
        dataclasses.replace(honest, links=tuple(block.header for block in other)),
        dataclasses.replace(honest, node=NodeId(net.voters[1].public)),
    ):
        with pytest.raises(Invalid):
            check_freeze(changed, net.network)


# --- the block ------------------------------------------------------------------------------------------------------


def test_enough_organisations_begin_the_next_epoch() -> None:
    net = Consortium(5)
    base = net.chain(2)[2]
    block = recovery_block(net.signed(net.recovery(base.header), 0, 1, 2, 3), base.header, Frontier())

    again = Block.decode(block.raw)
    signed = check_recovery_block(again, base.header, Frontier(), net.configuration)

    assert (again.header.epoch, again.height, again.is_configuration) == (1, Height(3), True)
    assert again.header.next_config_hash == signed.recovery.configuration.digest


def test_whoever_consents_the_block_that_begins_the_epoch_is_the_same() -> None:
    net = Consortium(5)
    base = net.chain(1)[1]
    plan = net.recovery(base.header)
    made = [
        recovery_block(net.signed(plan, *by), base.header, Frontier())
        for by in ((0, 1, 2, 3), (1, 2, 3, 4), (0, 1, 2, 3, 4))
    ]

    for block in made:
        check_recovery_block(Block.decode(block.raw), base.header, Frontier(), net.configuration)

    assert len({block.raw for block in made}) == 3
    assert len({block.hash for block in made}) == 1


def test_consents_are_all_that_may_stand_in_the_place_of_a_signature_and_have_a_bound() -> None:
    net = Consortium(4)
    plan = net.recovery(net.genesis.header)
    block = recovery_block(net.signed(plan, 0, 1, 2), net.genesis.header, Frontier())
    led = dataclasses.replace(block.header, leader=net.configuration.voters[0])
    for raw in (
        Block(led, block.signature, block.special, ()).raw,
        Block(block.header, bytes(1 << 20), block.special, ()).raw,
    ):
        with pytest.raises(Malformed):
            Block.decode(raw)
    unsigned = Block.decode(Block(block.header, b"", block.special, ()).raw)
    with pytest.raises(Malformed):
        check_recovery_block(unsigned, net.genesis.header, Frontier(), net.configuration)


def test_who_is_lost_is_not_counted_on_either_side_but_a_quorum_of_all_must_consent() -> None:
    net = Consortium(5)  # q = 4
    base = net.chain(1)[1]
    nodes = net.configuration.signers
    gone = tuple(sorted((nodes[3], nodes[4])))
    plan = net.recovery(base.header, lost=gone)
    for by in ((0, 1, 2), (0, 1, 2, 3)):
        block = recovery_block(net.signed(plan, *by), base.header, Frontier())
        with pytest.raises(Invalid):
            check_recovery_block(block, base.header, Frontier(), net.configuration)
    one_lost = net.recovery(base.header, lost=(nodes[4],))
    block = recovery_block(net.signed(one_lost, 0, 1, 2, 3), base.header, Frontier())
    assert check_recovery_block(block, base.header, Frontier(), net.configuration).recovery.lost == (
        nodes[4],
    )


def test_a_recovery_that_is_not_what_was_signed_is_refused() -> None:
    net = Consortium(4)
    chain = net.chain(2)
    base = chain[2]
    plan = net.recovery(base.header)
    good = net.signed(plan, 0, 1, 2)
    spoiled = {
        "another base": (net.signed(net.recovery(chain[1].header), 0, 1, 2), base.header),
        "no later epoch": (net.signed(net.recovery(base.header, epoch=0), 0, 1, 2), base.header),
        "no later time": (net.signed(net.recovery(base.header, time_ms=1), 0, 1, 2), base.header),
        "an earlier term": (net.signed(net.recovery(base.header, term=Term(0)), 0, 1, 2), base.header),
        "another configuration before": (
            net.signed(net.recovery(base.header, before=bytes(32)), 0, 1, 2),
            base.header,
        ),
        "a stranger lost": (
            net.signed(net.recovery(base.header, lost=(NodeId(bytes(32)),)), 0, 1, 2),
            base.header,
        ),
        "the same configuration": (
            net.signed(net.recovery(base.header, configuration=net.configuration), 0, 1, 2),
            base.header,
        ),
        "too few": (net.signed(plan, 0, 1), base.header),
        "signed by a node and not by its organisation": (
            SignedRecovery(
                plan,
                (
                    *good.signatures[:-1],
                    consent(net.voters[3], net.network, plan, net.configuration.signers[3]),
                ),
            ),
            base.header,
        ),
        "another reason than signed": (
            dataclasses.replace(good, recovery=dataclasses.replace(plan, reason="theft")),
            base.header,
        ),
    }
    for signed, above in spoiled.values():
        block = recovery_block(signed, above, Frontier())
        with pytest.raises(Invalid):
            check_recovery_block(block, above, Frontier(), net.configuration)
    whole = recovery_block(good, base.header, Frontier())
    led = Block(
        dataclasses.replace(whole.header, leader=net.configuration.voters[0]),
        whole.signature,
        whole.special,
        (),
    )
    with pytest.raises(Invalid):
        check_recovery_block(led, base.header, Frontier(), net.configuration)
    with pytest.raises(Malformed):
        check_recovery_block(net.block(base), base.header, Frontier(), net.configuration)
