"""Proposals and ballots by command, what the leader does with what was decided, and who is admitted when."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from node.card_file import card_text
from node.identity import Identity
from node.key_rotation import KeyRotation, first_node_id, settled
from node.membership import Membership
from node.membership_admission import (
    APART_MS,
    LINGER_MS,
    Admission,
    AdmissionKeeper,
    admission_of,
    governance_of,
)
from node.membership_leader import ConfigurationProposer, ExpectedConfiguration
from node.membership_wish import Wish
from node.queued_record import QueuedRecord
from node.sealed_rows import SealedRows
from node.ticket_desk import TicketDesk
from protocol import codec
from protocol.cid import cid_of
from protocol.configuration import Configuration
from protocol.errors import Refused, Unavailable
from protocol.identifiers import Height, NodeId, Rid, Vid, peer_id
from protocol.signing import SigningKey
from protocol.transaction import GovernanceTransaction
from storage.key_value import Batch
from storage.keyspace import RECORD_QUEUE
from tests.node.ledger_double import LedgerDouble, MemberDouble, SilentLog, running

WEEK = 7 * 86_400_000
CIDS = (cid_of(b"a chunk"), cid_of(b"a manifest"))


def membership(member: MemberDouble) -> "Settled":
    key = SigningKey(member.identity.node)
    desk = TicketDesk(
        key=key, store=member.store, rows=member.rows, disk=member.disk, transport=member.transport,
        clock=member.clock, entropy=member.entropy,
    )  # fmt: skip
    return Settled(
        me=NodeId(key.public),
        keys=KeyRotation(member.keystore, member.identity, member.entropy.bytes),
        store=member.store,
        submitter=member.submitter,
        tickets=desk,
        now_ms=member.clock.now_ms,
        catch_up=trio.testing.wait_all_tasks_blocked,
    )


NEW = MemberDouble("house", "voter", "new")
CARD = Wish("card.json", card_text(NEW.card))


@asynccontextmanager
async def network(voters: int = 3, observers: int = 0) -> AsyncIterator[tuple[LedgerDouble, list["Settled"]]]:
    async with running(LedgerDouble(voters, observers=observers)) as ledger:
        yield ledger, [membership(member) for member in ledger.members]


class Settled(Membership):
    """Membership that answers when every member has applied what was done."""

    async def _submit(self, transaction: GovernanceTransaction) -> Height:
        try:
            return await super()._submit(transaction)
        finally:
            await trio.testing.wait_all_tasks_blocked()


async def decide(ledger: LedgerDouble, desks: list["Settled"], wish: Wish, *, risk: bool = False) -> str:
    """Propose and vote until it is decided, then bring it into force."""
    first, *others = desks
    proposal = str((await first.propose(wish, expires_ms=WEEK, accept_risk=risk))["proposal"])
    for other in others:
        if governance_of(ledger.members[0].store).pending is None:
            await other.vote(proposal, is_yes=True, accept_risk=risk)
    pending = governance_of(ledger.members[0].store).pending
    assert pending is not None
    await ledger.reconfigure(pending)
    return proposal


async def test_a_card_that_asks_to_vote_is_proposed_as_learner_and_ballots_bring_it_in(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with network() as (ledger, desks):
        proposal = await decide(ledger, desks, CARD)
        for member, desk in zip(ledger.members, desks, strict=True):
            assert NEW.member.node in member.store.configuration.learners
            listed = desk.members()
            assert listed["configuration"] == 1
            (row,) = listed["proposals"]
            assert (row["proposal"], row["action"], row["state"]) == (
                proposal, "add house as learner", "in force",
            )  # fmt: skip
            assert (row["yes"], row["no"], row["needed"]) == (3, 0, 3)


async def test_a_repeated_proposal_or_ballot_has_no_second_effect(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with network() as (ledger, (first, second, _)):
        made = await first.propose(CARD, expires_ms=WEEK, accept_risk=False)
        again = await second.propose(CARD, expires_ms=WEEK, accept_risk=False)
        assert again["proposal"] == made["proposal"]
        height = ledger.members[0].store.applied().height
        await second.vote(made["proposal"], is_yes=False, accept_risk=False)
        await second.vote(made["proposal"][:12], is_yes=False, accept_risk=False)
        assert ledger.members[0].store.applied().height == height + 1
        assert first.members()["proposals"][0]["state"] == "rejected"


async def test_what_costs_safety_says_so_before_and_after(autojump_clock: trio.testing.MockClock) -> None:
    async with network(4) as (ledger, desks):
        name = ledger.members[3].name
        with pytest.raises(Refused, match="liars tolerated fall from 1 to 0"):
            await desks[0].propose(Wish(name, leaves=True), expires_ms=WEEK, accept_risk=False)
        made = await desks[0].propose(Wish(name, leaves=True), expires_ms=WEEK, accept_risk=True)
        assert (made["before"]["liars"], made["after"]["liars"]) == (1, 0)
        assert (made["needed"], "from 1 to 0" in made["risk"]) == (3, True)
        with pytest.raises(Refused, match="accept-risk"):
            await desks[1].vote(made["proposal"], is_yes=True, accept_risk=False)


async def test_who_has_no_ballot_or_names_nobody_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with network(3, observers=1) as (ledger, desks):
        observer = desks[3]
        made = await desks[0].propose(CARD, expires_ms=WEEK, accept_risk=False)
        with pytest.raises(Refused, match="have a ballot"):
            await observer.vote(made["proposal"], is_yes=True, accept_risk=False)
        with pytest.raises(Refused, match="no proposal has the id"):
            await desks[0].vote("ff", is_yes=True, accept_risk=False)
        with pytest.raises(Refused, match="name a --role"):
            await desks[0].propose(Wish(ledger.members[1].name), expires_ms=WEEK, accept_risk=False)
        with pytest.raises(Refused, match="90 days"):
            await desks[0].propose(
                Wish(ledger.members[3].name, role="learner"), expires_ms=100 * WEEK, accept_risk=False
            )
        leaving = await observer.leave(expires_ms=WEEK, accept_risk=False)
        assert (leaving["proposer"], leaving["yes"]) == (ledger.members[3].name, 0)
        withdrawn = await observer.withdraw(leaving["proposal"])
        assert withdrawn["state"] == "withdrawn"


async def test_admission_follows_proposals_and_configurations(autojump_clock: trio.testing.MockClock) -> None:
    async with network(3, observers=1) as (ledger, desks):
        store, gone = ledger.members[0].store, ledger.members[3]
        assert not admission_of(store).is_admitted(NEW.member.node)
        await desks[0].propose(CARD, expires_ms=WEEK, accept_risk=False)
        candidate = admission_of(store)
        assert candidate.candidates == {NEW.member.node}
        assert candidate.may(NEW.member.node, "blocks")
        assert not candidate.may(NEW.member.node, "chunks")
        await decide(ledger, desks[:3], CARD)
        assert admission_of(store).is_member(NEW.member.node)
        await decide(ledger, desks[:3], Wish(gone.name, role="suspended"))
        assert gone.member.node in admission_of(store).candidates
        await decide(ledger, desks[:3], Wish(gone.name, leaves=True))
        former = admission_of(store)
        assert former.former == {gone.member.node}
        assert former.may(gone.member.node, "blocks")
        assert not former.may(gone.member.node, "snapshot")
        (row,) = desks[0].members()["former"]
        assert (row["name"], row["peer_id"]) == (gone.name, peer_id(gone.member.node))


async def test_the_transport_hears_of_every_change_and_a_joiner_keeps_its_contacts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[Admission] = []
    async with network() as (ledger, desks), trio.open_nursery() as nursery:
        member = ledger.members[0]
        stranger = NodeId(bytes(32))
        keeper = AdmissionKeeper(
            member.store, member.applier.height, told.append, SilentLog(), me=member.member.node,
            clock=member.clock, contacts={stranger: ("/x",)},
        )  # fmt: skip
        nursery.start_soon(keeper.run)
        await trio.testing.wait_all_tasks_blocked()
        assert told[-1].is_member(stranger)
        await decide(ledger, desks, CARD)
        await trio.testing.wait_all_tasks_blocked()
        assert not told[-1].is_member(stranger)
        assert told[-1].is_member(NEW.member.node)
        nursery.cancel_scope.cancel()


async def test_who_was_let_go_parts_from_the_others_and_asks_again_now_and_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[Admission] = []
    async with network(3, observers=1) as (ledger, desks), trio.open_nursery() as nursery:
        gone = ledger.members[3]
        everybody = {member.member.node for member in ledger.members}
        keeper = AdmissionKeeper(
            gone.store, gone.applier.height, told.append, SilentLog(), me=gone.member.node, clock=gone.clock
        )
        nursery.start_soon(keeper.run)
        await decide(ledger, desks[:3], Wish(gone.name, leaves=True))
        await trio.testing.wait_all_tasks_blocked()
        others = everybody - {gone.member.node}
        assert (set(told[0].members), set(told[-1].members)) == (everybody, others)
        await trio.sleep(LINGER_MS / 1000 + 1)
        assert told[-1] == Admission({})
        assert not any(told[-1].is_admitted(node) for node in everybody)

        await trio.sleep(APART_MS / 1000)
        assert told[-1].members.keys() == others
        await trio.sleep(LINGER_MS / 1000)
        assert told[-1] == Admission({})
        back = Wish("card.json", card_text(gone.card), role="observer")
        await decide(ledger, desks[:3], back)
        await trio.sleep(APART_MS / 1000)
        assert told[-1].members.keys() == everybody
        many = len(told)
        await trio.sleep(2 * (LINGER_MS + APART_MS) / 1000)
        assert len(told) == many
        nursery.cancel_scope.cancel()


async def test_the_leader_proposes_what_was_decided_until_it_is_in_force(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked: list[Configuration] = []
    async with network() as (ledger, desks), trio.open_nursery() as nursery:
        member = ledger.members[0]

        expected = ExpectedConfiguration(member.store, member.applier.height)

        async def reconfigure(following: Configuration) -> None:
            asked.append(following)
            assert expected.digest() == following.digest
            if len(asked) < 3:
                raise Unavailable("something is under way")
            await ledger.reconfigure(following)

        proposer = ConfigurationProposer(
            member.store, member.applier.height, reconfigure=reconfigure, clock=member.clock, log=SilentLog()
        )
        nursery.start_soon(proposer.run)
        assert expected.digest() is None
        made = await desks[0].propose(CARD, expires_ms=WEEK, accept_risk=False)
        await desks[1].vote(made["proposal"], is_yes=True, accept_risk=False)
        await desks[2].vote(made["proposal"], is_yes=True, accept_risk=False)
        with trio.fail_after(60):
            while member.store.configuration.number == 0:
                await member.applier.height.wait_above(member.applier.height.value)
        await trio.sleep(5)
        assert len(asked) == 3
        assert expected.digest() is None
        nursery.cancel_scope.cancel()


async def test_keys_rotate_by_ballot_and_the_new_ones_sign_at_once_and_after_a_restart(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with network() as (ledger, desks):
        member = ledger.members[0]
        member.identity.store(member.keystore)
        with pytest.raises(Refused, match="name which"):
            await desks[0].rotate(["team"], expires_ms=WEEK)
        made = await desks[0].rotate(["governance", "checkpoint"], expires_ms=WEEK)
        again = await desks[0].rotate(["checkpoint", "governance"], expires_ms=WEEK)
        assert again["proposal"] == made["proposal"]
        for desk in desks[1:]:
            await desk.vote(made["proposal"], is_yes=True, accept_risk=False)
        pending = governance_of(member.store).pending
        assert pending is not None
        await ledger.reconfigure(pending)
        renewed = member.store.configuration.by_node[member.member.node]
        assert renewed.governance != member.member.governance
        voted = await desks[0].propose(CARD, expires_ms=WEEK, accept_risk=False)
        assert voted["yes"] == 1
        identity = settled_at(member)
        for found in (identity, Identity.load(member.keystore)):
            assert SigningKey(found.governance).public == renewed.governance
            assert SigningKey(found.checkpoint).public == renewed.checkpoint
        assert settled_at(member, identity) == identity


def settled_at(member: MemberDouble, identity: Identity | None = None) -> Identity:
    """Return the identity with which a member would start now."""
    return settled(
        identity or member.identity, member.keystore, member.store.configuration, member.rows, member.entropy
    )


async def test_more_liars_to_tolerate_are_proposed_with_what_it_costs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with network(4) as (ledger, desks):
        wish = Wish("", min_b=2)
        with pytest.raises(Refused, match="no member could fail"):
            await desks[0].propose(wish, expires_ms=WEEK, accept_risk=False)
        made = await desks[0].propose(wish, expires_ms=WEEK, accept_risk=True)
        assert (made["action"], made["yes"]) == ("tolerate at least 2 liars", 1)
        changed = [(made[when]["liars"], made[when]["certificate_quorum"]) for when in ("before", "after")]
        assert changed == [(1, 3), (2, 4)]
        assert (made["before"]["crashes_finality"], made["after"]["crashes_finality"]) == (1, 0)
        again = await desks[1].propose(wish, expires_ms=WEEK, accept_risk=True)
        assert again["proposal"] == made["proposal"]
        with pytest.raises(Refused, match="leave out the member"):
            await desks[0].propose(Wish("x", min_b=1), expires_ms=WEEK, accept_risk=True)
        await decide(ledger, desks, wish, risk=True)
        assert ledger.members[0].store.configuration.certificate_quorum == 4
        with pytest.raises(Refused, match="nothing would change"):
            await desks[0].propose(wish, expires_ms=WEEK, accept_risk=True)


async def test_a_suspended_member_is_reinstated_by_the_same_command(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with network(3, observers=1) as (ledger, desks):
        store, name = ledger.members[0].store, ledger.members[3].name
        for role in ("suspended", "observer"):
            await decide(ledger, desks[:3], Wish(name, role=role))
            assert store.configuration.find(name).role == role


async def test_a_new_node_key_is_kept_beside_the_old_one_until_it_is_in_force(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with network(3, observers=1) as (ledger, desks):
        member, desk = ledger.members[3], desks[3]
        member.identity.store(member.keystore)
        sealed = SealedRows(member.rows, member.identity.fingerprint, member.entropy)
        batch, queued = Batch(), QueuedRecord(Rid(b"r" * 32), Vid(b"v" * 32), 3, b"d" * 32, b"sealed", CIDS)
        sealed.put(batch, RECORD_QUEUE + queued.rid, codec.encode(queued))
        member.rows.write(batch, sync=True)
        with pytest.raises(Refused, match="demote it first"):
            await desks[0].rotate(["node"], expires_ms=WEEK)
        made = await desk.rotate(["node", "checkpoint"], expires_ms=WEEK)
        assert (await desk.rotate(["checkpoint", "node"], expires_ms=WEEK))["proposal"] == made["proposal"]
        assert settled_at(member) == member.identity
        for other in desks[:3]:
            await other.vote(made["proposal"], is_yes=True, accept_risk=False)
        pending = governance_of(member.store).pending
        assert pending is not None
        await ledger.reconfigure(pending)

        identity = settled_at(member)
        renewed = member.store.configuration.by_node[identity.node_id]
        assert (renewed.name, identity.node_id != member.member.node) == (member.name, True)
        assert SigningKey(identity.checkpoint).public == renewed.checkpoint
        assert Identity.load(member.keystore) == identity == settled_at(member, identity)
        assert first_node_id(identity, member.keystore) == member.member.node
        row = sealed.get(RECORD_QUEUE + queued.rid)
        assert row is not None
        assert codec.decode(row, QueuedRecord) == dataclasses.replace(queued, envelope=b"")
        seen = ledger.members[0].store
        assert admission_of(seen).is_member(identity.node_id)
        assert not admission_of(seen).is_member(member.member.node)
        assert seen.configurations.present(member.member.node) == identity.node_id
        assert seen.configurations.name_ever(member.member.node) == member.name
        assert desks[0].members()["former"] == []
