"""Tickets: for one facility, once, for a while, with clocks that agree; each refusal says what to do."""

import dataclasses
import json
from pathlib import Path

import pytest
import trio
import trio.testing

from node.card_file import card_text
from node.membership_wish import Wish
from node.ticket import CHANNEL, Invitation, Redeem, Redeemed, Ticket, check_ticket, read_ticket, sealed
from node.ticket_desk import TicketDesk
from node.ticket_joining import find_named_block, redeem
from protocol import codec
from protocol.errors import Refused
from protocol.identifiers import Digest, Height, NodeId, peer_id
from protocol.signing import SigningKey
from tests.node.ledger_double import DirectTransport, DoubleClock, LedgerDouble, MemberDouble, SilentLog
from tests.node.test_membership import WEEK, membership, network

NEW = MemberDouble("house", "observer", "new")
OTHER = MemberDouble("other", "observer", "other")
HOUR = 3_600_000


def desk_of(member: MemberDouble) -> TicketDesk:
    return TicketDesk(
        key=SigningKey(member.identity.node), store=member.store, rows=member.rows, disk=member.disk,
        transport=member.transport, clock=member.clock, entropy=member.entropy,
    )  # fmt: skip


async def ticketed(ledger: LedgerDouble, folder: Path) -> Ticket:
    sponsor = ledger.members[0]
    await membership(sponsor).propose(
        Wish("card.json", card_text(NEW.card)), expires_ms=WEEK, accept_risk=False
    )
    file = folder / "ticket.json"
    desk = desk_of(sponsor)
    file.write_text(desk.issue("house", expires_ms=HOUR))
    desk.serve()
    return read_ticket(file)[0]


async def answer(
    ledger: LedgerDouble, ticket: Ticket, *, nonce: bytes = bytes(32), by: MemberDouble = NEW
) -> str:
    joiner = DirectTransport(by.member.node, dict(ledger.transports))
    joiner._network = ledger.transports
    body = codec.encode(Redeem(ticket, nonce))
    raw = await joiner.call(ticket.sponsor, CHANNEL, body, timeout_ms=1_000)
    return codec.decode(raw, Redeemed).refusal


async def test_a_ticket_is_made_for_proposed_facilities_only(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with network() as (ledger, _):
        with pytest.raises(Refused, match="propose its card first"):
            desk_of(ledger.members[0]).issue("house", expires_ms=HOUR)
        ticket = await ticketed(ledger, tmp_path)
        assert ticket.candidate == NEW.member.node
        assert ticket.network == ledger.network
        assert all("/p2p/" in address for address in ticket.addresses)
        assert len(ticket.addresses) >= 2
        store = ledger.members[0].store
        assert (ticket.height, ticket.block_hash) == (store.applied().height, store.applied().hash)


async def test_a_ticket_is_taken_once_and_a_crashed_joiner_may_repeat_it(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with network() as (ledger, _):
        ticket = await ticketed(ledger, tmp_path)
        assert await answer(ledger, ticket) == await answer(ledger, ticket) == ""
        assert "has been used" in await answer(ledger, ticket, nonce=bytes(31) + b"\x01")


async def test_the_sponsor_refuses_what_is_foreign_expired_or_altered(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with network() as (ledger, desks):
        ticket = await ticketed(ledger, tmp_path)
        assert "another facility" in await answer(ledger, ticket, by=OTHER)
        assert "not of this sponsor" in await answer(ledger, dataclasses.replace(ticket, height=Height(7)))
        foreign = sealed(
            dataclasses.replace(ticket, genesis=LedgerDouble(1, seed="elsewhere").genesis),
            SigningKey(ledger.members[0].identity.node),
        )
        assert "another network" in await answer(ledger, foreign)
        (row,) = desks[0].members()["proposals"]
        await desks[0].withdraw(row["proposal"])
        assert "no proposal" in await answer(ledger, ticket)
        ledger.clock.advance_ms(2 * HOUR)
        assert "has expired" in await answer(ledger, ticket)


async def test_the_joiner_refuses_before_it_meets_anybody(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with network() as (ledger, _):
        ticket = await ticketed(ledger, tmp_path)
        now_ms = ledger.clock.now_ms()
        check_ticket(ticket, NEW.member.node, now_ms)
        for broken, node, at_ms, reason in (
            (dataclasses.replace(ticket, expires_ms=0), NEW.member.node, now_ms, "was altered"),
            (ticket, OTHER.member.node, now_ms, peer_id(OTHER.member.node)),
            (ticket, NEW.member.node, now_ms + 2 * HOUR, "has expired"),
            (ticket, NEW.member.node, now_ms - HOUR, "set it by NTP"),
        ):
            with pytest.raises(Refused, match=reason):
                check_ticket(broken, NodeId(node), at_ms)


async def test_a_wrong_clock_or_an_absent_sponsor_ends_the_joining_with_what_to_do(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with network() as (ledger, _):
        ticket = await ticketed(ledger, tmp_path)
        joiner = DirectTransport(NEW.member.node, ledger.transports)
        invitation, log = Invitation(ticket, bytes(32)), SilentLog()
        await redeem(invitation, transport=joiner, clock=ledger.clock, log=log)
        slow = DoubleClock()
        slow.advance_ms(-HOUR)
        with pytest.raises(Refused, match="60 minutes off"):
            await redeem(invitation, transport=joiner, clock=slow, log=log)
        ledger.members[0].transport.is_up = False
        with pytest.raises(Refused, match="cannot be reached"):
            await redeem(invitation, transport=joiner, clock=ledger.clock, log=log)


async def test_a_joiner_that_finds_another_block_than_the_sponsor_says_so(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with network() as (ledger, _):
        ticket, other, log = await ticketed(ledger, tmp_path), ledger.members[1], SilentLog()
        assert await find_named_block(ticket, other.store, other.applier.history, log)
        forked = dataclasses.replace(ticket, block_hash=Digest(bytes(32)))
        assert not await find_named_block(forked, other.store, other.applier.history, log)
        assert [level for level, _, _ in log.events] == ["error"]


def test_files_that_are_no_tickets_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "ticket.json"
    for text in ("", "[]", "{}", json.dumps({"version": 1, "ticket": "AAAA", "network": "", "for": ""})):
        file.write_text(text)
        with pytest.raises(Refused, match="ask the sponsor"):
            read_ticket(file)
    with pytest.raises(Refused, match="cannot be read"):
        read_ticket(tmp_path / "nothing")
