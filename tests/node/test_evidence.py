"""What a node does with evidence: it keeps it, spreads it, and hands it in until the ledger has it."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from node.evidence import MEANINGS, EvidenceDesk, convicted, convicted_documents
from node.hearing import Hearing
from protocol import certificate, codec, evidence, recovery
from protocol.block import Block, cut, header_form
from protocol.certificate import ElectionGrant
from protocol.evidence_statements import TwoGrants
from protocol.finality import cast_vote
from protocol.identifiers import Digest, Height, NodeId, Term
from protocol.raft.messages import VoteReply
from protocol.signing import SigningKey
from storage import keyspace
from storage.key_value import Batch
from tests.node.ledger_double import LedgerDouble, MemberDouble, running
from tests.node.scripted_transport import ScriptedTransport
from tests.node.test_status import running as a_node


class House:
    """A ledger of four, a desk of one member, and a liar's signatures."""

    def __init__(self) -> None:
        self.ledger = LedgerDouble(4)
        self.member, self.other, self.liar = self.ledger.members[:3]
        self.gossip = ScriptedTransport(self.node(self.member))
        self.desk = self.desk_of(self.member)

    def desk_of(self, member: MemberDouble) -> EvidenceDesk:
        self.gossip = ScriptedTransport(self.node(member))
        self.hearing = Hearing()
        return EvidenceDesk(
            key=SigningKey(member.identity.node),
            hearing=self.hearing,
            store=member.store,
            rows=member.rows,
            disk=member.disk,
            submitter=member.submitter,
            transport=self.gossip,
            workers=member.workers,
            clock=member.clock,
            log=member.log,
        )

    @staticmethod
    def node(member: MemberDouble) -> NodeId:
        return member.member.node

    def grants(self, term: int = 5) -> tuple[ElectionGrant, ElectionGrant]:
        key = SigningKey(self.liar.identity.node)
        one, other = (
            certificate.grant_vote(
                key, self.ledger.network, epoch=0, incarnation=0, term=Term(term), candidate=self.node(candidate),
                tip=Digest(bytes(32)),
            )
            for candidate in (self.member, self.other)
        )  # fmt: skip
        return one, other

    def lie(self, term: int = 5) -> bytes:
        return codec.encode(TwoGrants(*self.grants(term)))

    def kinds(self) -> list[list[str]]:
        return [[one.kind for one in convicted(member.store)] for member in self.ledger.members]

    def kept(self) -> list[bytes]:
        return [raw for _, raw in self.member.rows.scan(*keyspace.prefix_range(keyspace.EVIDENCE))]

    def invalid(self, term: int = 9) -> Block:
        """Return a block of the liar's in a term that nobody elected it in, unless it is that of the last block."""
        mark = self.member.store.applied()
        return cut(
            (), predecessor=self.member.store.header(mark.height), predecessor_hash=mark.hash,
            frontier=mark.frontier, term=Term(term), key=SigningKey(self.liar.identity.node), now_ms=0,
        )  # fmt: skip


@pytest.fixture
def house() -> House:
    return House()


@asynccontextmanager
async def working(house: House) -> AsyncIterator[None]:
    async with running(house.ledger), trio.open_nursery() as tasks:
        tasks.start_soon(house.desk.run)
        yield
        tasks.cancel_scope.cancel()


async def test_a_liar_that_a_node_sees_stands_convicted_on_every_members_ledger(
    house, autojump_clock
) -> None:
    async with working(house):
        for grant in house.grants():
            house.desk.see(grant)
        await trio.sleep(15)

    assert house.kinds() == [["E4"]] * 4
    assert house.gossip.published == [house.lie()]
    assert house.kept() == [], "what is final needs no keeping"


async def test_who_votes_on_after_its_freeze_statement_was_collected_stands_convicted(
    house, autojump_clock
) -> None:
    key, network, store = SigningKey(house.liar.identity.node), house.ledger.network, house.member.store
    async with working(house):
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            await house.ledger.order(())
        tip = store.applied().height
        last, later = (
            cast_vote(
                key, network, epoch=0, incarnation=0, height=Height(at), tip=store.hash(Height(at)),
                base_height=Height(0), base=store.hash(Height(0)),
            )
            for at in (tip - 1, tip)
        )  # fmt: skip
        stated = recovery.freeze(
            key, network, epoch=0, incarnation=0, term=Term(1), certificate=None, links=(), vote=last
        )
        house.hearing.frozen(stated)
        await trio.sleep(1)
        assert house.kept() == [], "what it names it may have said"
        house.desk.see(later, [store.header(tip)])
        await trio.sleep(15)

    assert house.kinds() == [["E3c"]] * 4


async def test_words_that_a_peer_puts_into_anothers_mouth_convict_nobody_and_hide_nothing(
    house, autojump_clock
) -> None:
    """A forged statement must not take the place of the true one that convicts the liar."""
    one, other = house.grants()
    forged = dataclasses.replace(one, signature=bytes(64))
    async with working(house):
        for grant in (one, forged, other):
            message = VoteReply(Term(5), grant.voter, grant)
            house.hearing.hear(house.node(house.other), message)
        await trio.sleep(15)

    assert house.kinds() == [["E4"]] * 4


async def test_evidence_in_gossip_is_handed_in_by_who_hears_it(house, autojump_clock) -> None:
    async with working(house):
        house.gossip.deliver("evidence", house.node(house.other), house.lie())
        await trio.sleep(15)

    assert house.kinds() == [["E4"]] * 4
    assert house.gossip.published == [], "gossip spreads by itself"


@pytest.mark.parametrize("junk", [b"", b"\x93\x01\x02\x03", bytes(60_000)])
async def test_gossip_that_is_no_evidence_is_dropped(house, autojump_clock, junk) -> None:
    honest = codec.encode(TwoGrants(*(house.grants(term)[0] for term in (5, 6))))
    async with working(house):
        for body in (junk, honest):
            house.gossip.deliver("evidence", house.node(house.other), body)
        await trio.sleep(15)

    assert house.kinds() == [[]] * 4
    assert house.kept() == []


async def test_evidence_waits_on_disk_while_there_is_no_quorum(house, autojump_clock) -> None:
    async with working(house):
        house.ledger.has_quorum = False
        for grant in house.grants():
            house.desk.see(grant)
        await trio.sleep(60)
        assert house.kept() == [house.lie()]

        house.ledger.has_quorum = True
        await trio.sleep(60)

    assert house.kinds() == [["E4"]] * 4


async def test_a_node_that_restarts_hands_in_what_it_kept(house, autojump_clock) -> None:
    async with working(house):
        house.ledger.has_quorum = False
        for grant in house.grants():
            house.desk.see(grant)
        await trio.sleep(1)
    house.ledger.has_quorum = True
    house.desk = house.desk_of(house.member)

    async with working(house):
        await trio.sleep(60)

    assert house.kinds() == [["E4"]] * 4


async def test_kept_rows_that_convict_nobody_are_dropped_and_stop_nothing(house, autojump_clock) -> None:
    batch = Batch()
    batch.put(keyspace.EVIDENCE + bytes(32), b"of another program")
    house.member.rows.write(batch, sync=True)
    async with working(house):
        for grant in house.grants():
            house.desk.see(grant)
        await trio.sleep(30)

    assert house.kinds() == [["E4"]] * 4


async def test_what_others_have_brought_onto_the_ledger_is_not_handed_in_again(house, autojump_clock) -> None:
    async with working(house):
        house.gossip.deliver("evidence", house.node(house.other), house.lie())
        await trio.sleep(15)
        height = house.member.store.applied().height
        house.gossip.deliver("evidence", house.node(house.other), house.lie(term=7))
        await trio.sleep(60)

    assert house.member.store.applied().height == height


async def test_an_invalid_block_convicts_its_leader(house, autojump_clock) -> None:
    async with working(house):
        house.hearing.refused((house.invalid(),))
        await trio.sleep(15)

    (found,) = convicted_documents(house.member.store)
    assert (found["kind"], found["member"]) == ("E7", house.liar.name)


async def test_a_tree_root_that_is_wrong_above_transactions_is_shown_by_the_nodes_own_tree(
    house, autojump_clock
) -> None:
    async with working(house):
        for grant in house.grants():
            house.desk.see(grant)
        await trio.sleep(15)
        predecessor = house.member.store.header(house.member.store.applied().height)
        assert predecessor.n_tx > 0
        honest = house.invalid(term=predecessor.term)
        header = dataclasses.replace(honest.header, tree_root=Digest(bytes(32)))
        signature = SigningKey(house.liar.identity.node).sign(header_form(header))
        house.hearing.refused((honest,))
        house.hearing.refused((Block(header, signature, b"", ()),))
        await trio.sleep(15)

    assert house.kinds() == [["E4", "E7"]] * 4
    assert len(house.gossip.published) == 2, "the honest block is no evidence"


async def test_a_block_that_only_its_sender_has_mangled_convicts_nobody(house, autojump_clock) -> None:
    block = house.invalid()
    mangled = Block(
        dataclasses.replace(block.header, leader=house.node(house.other)), block.signature, b"", ()
    )
    async with working(house):
        house.hearing.refused((mangled,))
        await trio.sleep(15)

    assert house.kinds() == [[]] * 4


def test_every_kind_has_a_meaning_in_words() -> None:
    assert tuple(MEANINGS) == evidence.KINDS


async def test_status_and_member_list_name_who_is_convicted(autojump_clock) -> None:
    async with a_node() as node:
        clinic, laboratory = node.ledger.members[1:3]
        for candidate in (clinic, laboratory):
            grant = certificate.grant_vote(
                SigningKey(clinic.identity.node), node.ledger.network, epoch=0, incarnation=0, term=Term(5),
                candidate=candidate.member.node, tip=Digest(bytes(32)),
            )  # fmt: skip
            node.assembly.evidence.see(grant)
        await trio.sleep(30)

        (problem,) = [one for one in node.assembly.status.problems() if one["code"] == "evidence"]
        (listed,) = node.assembly.services.members.members()["evidence"]

    assert "clinic voted twice in one term" in problem["text"]
    assert (problem["kind"], problem["member"]) == ("E4", "clinic")
    assert (listed["kind"], listed["height"], listed["member"]) == ("E4", 0, "clinic")
