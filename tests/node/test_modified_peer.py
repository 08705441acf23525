"""A member that runs a modified daemon, against honest ones: nothing crashes, nothing wrong is stored, nothing false is final.

The laboratory's daemon is stopped, and its keys speak through a transport of our own to the real daemons of the others.
"""

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.attachments import AttachmentGet, AttachmentsPut
from node.card_file import read_genesis
from node.demo_network import Facility, until
from node.identity import Identity, opened_keystore
from protocol import block as blocks
from protocol import chunk_exchange as exchange
from protocol import codec, limits
from protocol.catchup import Announce
from protocol.certificate import CommitProof, acknowledge, grant_vote
from protocol.errors import CarechainError
from protocol.finality import Certificate, cast_vote
from protocol.identifiers import Cid, Digest, Height, NodeId, Rid, Term, Txid, Vid
from protocol.merkle import Frontier
from protocol.raft.messages import (
    AppendEntries,
    CertificateNotice,
    PreVote,
    PreVoteReply,
    VoteNotice,
    VoteReply,
)
from protocol.signing import SigningKey
from protocol.transaction import EnvelopeReceipt, Grant, Read, RecordCommit, Revoke, VaultOpen, encoded, sign
from tests.node.daemons import carechain, caught_up, consortium
from tests.node.modified_member import House, asked, command, documents, ledger_of, modified, still_honest
from tests.node.transports import WallClock, eventually

pytestmark = pytest.mark.slow

CHANNELS = (
    "submit",
    "chunks",
    "envelopes",
    "attachments",
    "watermark",
    "time",
    "blocks",
    "consensus",
    "nonsense",
)
GARBAGE = (
    b"", b"\x00", b"\xc1", b"\xff" * 1000, codec.pack(), codec.pack(1), codec.pack("x"), codec.pack(b"x" * 5000),
    codec.pack(*[b"x"] * 5000), b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 400, os.urandom(300_000),
)  # fmt: skip
ALWAYS_MS = 2**53 - 1


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("files")
    person = {"resourceType": "Patient", "identifier": [{"system": "urn:example", "value": "victim"}]}
    (folder / "person.json").write_text(json.dumps(person))
    (folder / "letter.pdf").write_bytes(b"%PDF-1.4 a letter")
    with consortium() as network:
        hospital, lab = network["hospital"], network["lab"]
        patient = documents(
            carechain("patient", "register", "--from", folder / "person.json", home=hospital)
        )["patient"]
        added = carechain(
            "record", "add", folder / "letter.pdf", "--patient", patient, "--category", "labs", home=hospital
        )
        record = documents(added)["records"][0]["record"]
        granted = carechain(
            "consent", "grant", "--patient", patient, "--to", "lab", "--category", "labs", home=hospital
        )
        until(
            "the laboratory to read",
            lambda: carechain("record", "get", record, "-o", folder / "copy", home=lab).code == 0 or None,
        )
        documents(carechain("consent", "revoke", documents(granted)["grant"], home=hospital))
        caught_up(network)
        lab.stop()
        genesis = read_genesis(lab.home.genesis)
        with opened_keystore(lab.home, None, secrets.token_bytes) as keystore:
            identity = Identity.load(keystore)
        yield House(network, patient, record, genesis, identity, *ledger_of(lab, genesis))


async def consents(house: House) -> Any:
    hospital = house.honest[0]
    log = documents(await command("audit", "log", "--patient", house.patient, home=hospital))["entries"]
    grants = documents(await command("consent", "list", "--patient", house.patient, home=hospital))["grants"]
    return [entry for entry in log if entry["action"] not in ("add", "open")], grants


async def test_garbage_on_every_channel_hurts_nobody(house: House, tmp_path: Path) -> None:
    async with modified(house, tmp_path) as transport:
        refused = 0
        for name in ("hospital", "clinic"):
            for channel in CHANNELS:
                for body in GARBAGE:
                    transport.send(house.node(name), channel, body)
                    answer = await asked(transport, house.node(name), channel, body)
                    refused += isinstance(answer, CarechainError)
                    with_error: list[CarechainError] = []
                    try:
                        async with transport.fetch(house.node(name), channel, body) as pieces:
                            async for _ in pieces:
                                pass
                    except CarechainError as error:
                        with_error.append(error)
                    assert with_error
        for body in GARBAGE:
            if len(body) < limits.PUBLISH_BYTES_MAX:
                await transport.publish("blocks", body)

        assert refused > 2 * len(GARBAGE) * 5
        await still_honest(house, tmp_path)


async def test_other_peoples_transactions_change_nothing_a_second_time(house: House, tmp_path: Path) -> None:
    before = await consents(house)
    async with modified(house, tmp_path) as transport:
        raw = [entry for _, entry in house.ledger]
        for name in ("hospital", "clinic"):
            await asked(transport, house.node(name), "submit", codec.pack(*raw))
            for entry in raw:
                altered = bytes([*entry[:-1], entry[-1] ^ 1])
                answer = await asked(transport, house.node(name), "submit", codec.pack(altered))
                # A leader refuses it; a follower answers "again" without a look at it.
                assert isinstance(answer, CarechainError) or answer == b"again"

        await still_honest(house, tmp_path)
        assert await consents(house) == before


async def test_nobody_signs_for_somebody_else(house: House, tmp_path: Path) -> None:
    before = await consents(house)
    lab, team = SigningKey(house.identity.node), SigningKey(house.identity.team)
    grant, read = house.first(Grant), house.first(Read)
    commit, opening, revoke = house.first(RecordCommit), house.first(VaultOpen), house.first(Revoke)
    now: dict[str, Any] = {"valid_until_ms": WallClock().now_ms() + 60_000}
    form_of_nobody = bytes(64)
    forged = [
        # Rights: a grant to ourselves, the revoked one again, the revocation of it, a Read under it, as the owner.
        sign(replace(grant, **now), house.net, lab),
        sign(replace(grant, **now), house.net, team),
        sign(replace(revoke, **now), house.net, team),
        sign(replace(read, nonce=os.urandom(32), **now), house.net, team, lab),
        sign(replace(read, gid=Txid(bytes(32)), nonce=os.urandom(32), actor_pk=lab.public, **now), house.net, lab, lab),
        # Records: into the hospital's vault, with receipts that nobody gave; as if the hospital had written it.
        sign(replace(commit, rid=Rid(os.urandom(32)), author_pk=NodeId(lab.public), **now), house.net, lab),
        sign(
            replace(
                commit, rid=Rid(os.urandom(32)), author_pk=NodeId(lab.public),
                receipts=tuple(EnvelopeReceipt(one.node, form_of_nobody) for one in commit.receipts), **now,
            ),
            house.net, lab,
        ),
        sign(replace(commit, rid=Rid(os.urandom(32)), **now), house.net, lab),
        # Vaults: the hospital's again, and one in its name.
        sign(replace(opening, auth_pk=lab.public, **now), house.net, lab, lab),
        sign(replace(opening, vid=Vid(os.urandom(32)), auth_pk=lab.public, **now), house.net, lab, lab),
        # Time: good for ever, and long over.
        sign(replace(read, nonce=os.urandom(32), valid_until_ms=ALWAYS_MS), house.net, team, lab),
        sign(replace(read, nonce=os.urandom(32), valid_until_ms=1), house.net, team, lab),
    ]  # fmt: skip
    async with modified(house, tmp_path) as transport:
        for signed in forged:
            _, raw = encoded(signed, house.net)
            for name in ("hospital", "clinic"):
                await asked(transport, house.node(name), "submit", codec.pack(raw))
        await still_honest(house, tmp_path)

        assert await consents(house) == before
        records = documents(
            await command("record", "list", "--patient", house.patient, home=house.honest[0])
        )["records"]
        assert all(one["kind"] for one in records)  # the hospital added every one of them itself


async def test_chunks_and_envelopes_are_taken_only_for_what_they_are(house: House, tmp_path: Path) -> None:
    commit = house.first(RecordCommit)
    hospital, clinic = (house.node(name) for name in ("hospital", "clinic"))
    async with modified(house, tmp_path) as transport:
        before = documents(await command("storage", "status", home=house.honest[1]))
        copy = codec.decode(
            await transport.call(
                clinic, "envelopes", codec.encode(exchange.GetEnvelope(commit.rid)), timeout_ms=5_000
            ),
            exchange.EnvelopeCopy,
        )
        chunk = os.urandom(700)
        named = exchange.storage_receipt((Cid(bytes(32)),), SigningKey(house.identity.node), house.net)
        offers = [
            exchange.OfferEnvelope(commit.vid, commit.rid, commit.epoch, house.node("lab"), copy.envelope, copy.cids, (named,)),
            exchange.OfferEnvelope(commit.vid, commit.rid, commit.epoch, hospital, copy.envelope, copy.cids, (named,)),
            exchange.OfferEnvelope(
                commit.vid, Rid(os.urandom(32)), commit.epoch, house.node("lab"), os.urandom(500), (Cid(bytes(32)),),
                (named, replace(named, node=hospital), replace(named, node=clinic)),
            ),
            exchange.OfferEnvelope(commit.vid, commit.rid, 2**40, house.node("lab"), copy.envelope, copy.cids, (named,)),
        ]  # fmt: skip
        answers = codec.decode(
            await transport.call(
                clinic, "envelopes", codec.encode(exchange.OfferEnvelopes(tuple(offers))), timeout_ms=5_000
            ),
            exchange.Answered,
        ).answers
        lacking = await transport.call(
            clinic, "chunks", codec.encode(exchange.ConfirmChunks(((Cid(bytes(32)),),))), timeout_ms=5_000
        )
        nothing = await transport.call(
            clinic, "chunks", codec.encode(exchange.GetChunks((Cid(bytes(32)),))), timeout_ms=5_000
        )
        stored = await transport.call(
            clinic, "chunks", codec.encode(exchange.PutChunks((chunk,))), timeout_ms=5_000
        )
        oversize = codec.pack("put-chunks", (bytes(limits.CHUNK_BYTES_MAX + 1),))
        missing = codec.encode(exchange.GetEnvelope(Rid(os.urandom(32))))

        assert len(answers) == len(offers)
        assert not any(isinstance(answer, EnvelopeReceipt) for answer in answers)
        assert codec.decode(lacking, exchange.Confirmed).answers == (exchange.Lacking((Cid(bytes(32)),)),)
        assert codec.decode(nothing, exchange.Chunks).chunks == (b"",)
        assert codec.decode(stored, exchange.Stored) == exchange.Stored()
        assert isinstance(await asked(transport, clinic, "chunks", oversize), CarechainError)
        assert await transport.call(clinic, "envelopes", missing, timeout_ms=5_000) == codec.encode(
            exchange.NoEnvelope()
        )
        after = documents(await command("storage", "status", home=house.honest[1]))
        assert after["chunks"] == before["chunks"] + 1  # it is what its hash says; nothing refers to it
        await still_honest(house, tmp_path)


async def test_attachments_are_kept_by_their_hash(house: House, tmp_path: Path) -> None:
    clinic = house.node("clinic")
    async with modified(house, tmp_path) as transport:
        kept = await asked(transport, clinic, "attachments", codec.encode(AttachmentsPut((b"x",))))
        oversize = codec.pack("attachments-put", (bytes(limits.ATTACHMENT_BYTES_MAX + 1),))
        unknown = await asked(transport, clinic, "attachments", codec.encode(AttachmentGet(os.urandom(32))))

        assert isinstance(kept, bytes)
        assert isinstance(unknown, bytes)
        assert isinstance(await asked(transport, clinic, "attachments", oversize), CarechainError)
        await still_honest(house, tmp_path)


async def test_a_lying_voter_makes_nothing_final_and_deposes_nobody(house: House, tmp_path: Path) -> None:
    key = SigningKey(house.identity.node)
    me = house.node("lab")
    before = [facility.status() for facility in house.honest]
    top = Term(2**60)
    lies: list[Any] = [
        PreVote(top, me, top, Height(2**60)),
        PreVote(Term(before[0]["term"] + 1), me, top, Height(2**60)),
        PreVoteReply(top, me, granted=True),
        PreVoteReply(Term(before[0]["term"]), house.node("clinic"), granted=True),
        AppendEntries(0, top, me, Height(0), Digest(bytes(32)), (), Digest(bytes(32)), None, None, bytes(64)),
        AppendEntries(0, Term(before[0]["term"]), me, Height(0), Digest(bytes(32)), (os.urandom(200),), Digest(bytes(32)), None, None, bytes(64)),
    ]  # fmt: skip
    async with modified(house, tmp_path) as transport:
        for _ in range(3):
            for name in ("hospital", "clinic"):
                for lie in lies:
                    transport.send(house.node(name), "consensus", codec.encode(lie))
                for proof in announcements(house, key):
                    transport.send(house.node(name), "consensus", proof)
                    await transport.publish("blocks", proof)
        await still_honest(house, tmp_path)

    after = [facility.status() for facility in house.honest]
    assert {report["term"] for report in after} == {report["term"] for report in before}
    assert {report["leader"] for report in after} == {report["leader"] for report in before}


def announcements(house: House, key: SigningKey) -> Iterator[bytes]:
    """Forged word that a block of ours is committed, or final: with our signature alone, and with it three times."""
    raw = house.ledger[0][1]
    for term in (Term(1), Term(1_000_000)):
        lone = blocks.cut(
            (raw,),
            predecessor=house.founding,
            predecessor_hash=blocks.header_hash(house.founding),
            frontier=Frontier(),
            term=term,
            key=key,
            now_ms=WallClock().now_ms(),
        )
        own = acknowledge(key, house.net, epoch=0, incarnation=0, term=term, height=Height(1), tip=lone.hash)
        for acknowledgements in ((own,), (own, own, own), (own, replace(own, voter=house.node("clinic")))):
            yield codec.encode(CommitProof(lone.header, (), acknowledgements))
        vote = cast_vote(
            key, house.net, epoch=0, incarnation=0, height=Height(1), tip=lone.hash,
            base_height=Height(0), base=blocks.header_hash(house.founding),
        )  # fmt: skip
        me = NodeId(key.public)
        yield codec.encode(VoteNotice(vote))
        for votes in ((vote,), (vote, vote), (vote, replace(vote, signer=house.node("clinic")))):
            forged = Certificate(lone.header, (), votes)
            yield codec.encode(CertificateNotice(me, forged))
            yield codec.encode(Announce(forged, (lone.raw,)))
        yield lone.raw


async def test_a_voter_that_votes_for_two_stands_convicted_on_the_ledger_and_before_every_operator(
    house: House, tmp_path: Path
) -> None:
    key, me = SigningKey(house.identity.node), house.node("lab")
    async with modified(house, tmp_path) as transport:
        for candidate in ("hospital", "clinic"):
            grant = grant_vote(
                key, house.net, epoch=0, incarnation=0, term=Term(1), candidate=house.node(candidate),
                tip=Digest(bytes(32)),
            )  # fmt: skip
            # Only the hospital hears both; what it finds it brings onto the ledger.
            transport.send(house.node("hospital"), "consensus", codec.encode(VoteReply(Term(1), me, grant)))
        await eventually(lambda: all(convictions(facility) for facility in house.honest), seconds=60)

    assert [convictions(facility) for facility in house.honest] == [[("lab", "E4")]] * 2
    await still_honest(house, tmp_path)


def convictions(facility: Facility) -> list[tuple[str, str]]:
    problems = facility.status()["problems"]
    return [(one["member"], one["kind"]) for one in problems if one["code"] == "evidence"]
