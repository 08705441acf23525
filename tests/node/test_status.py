from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from node.assembly import Assembly
from node.chunk_writer import ChunkWriter
from node.core import Core, Ports
from node.status import Machine
from node.stores import Stores
from protocol import codec
from protocol.cid import cid_of
from protocol.identifiers import Height, NodeId, peer_id
from protocol.signing import SigningKey
from protocol.tip_statement import Session, state_tip
from storage.chunk_store import ChunkStore
from tests.node.ledger_double import LedgerDouble

Clock = trio.testing.MockClock
FIELDS = (
    "facility", "network", "role", "leader", "term", "height", "certified_height", "tree_size", "tree_root", "voters",
    "quorum", "release_gate", "addresses", "http", "problems", "peers",
)  # fmt: skip


@dataclass
class Surroundings:
    """What a test changes around a running node."""

    is_disk_full: bool = False
    free_share: float = 0.5


@dataclass
class Node:
    """One running voter, whose only quorum is itself or which has none, and its surroundings."""

    core: Core
    assembly: Assembly
    ledger: LedgerDouble
    surroundings: Surroundings

    def report(self) -> dict[str, object]:
        return self.assembly.status.report()

    def codes(self) -> list[str]:
        return [problem["code"] for problem in self.assembly.status.problems()]


@asynccontextmanager
async def running(voters: int = 1) -> AsyncIterator[Node]:
    ledger = LedgerDouble(voters, observers=2)
    member = ledger.members[0]
    ports = Ports(member.transport, member.disk, member.workers, ledger.clock, member.entropy, member.log)
    core = Core(ports, member.store, SigningKey(member.identity.node))
    chunks = ChunkStore(member.payloads, member.rows)
    stores = Stores(member.rows, chunks, ChunkWriter(chunks, member.workers), member.keystore, ())
    around = Surroundings()
    machine = Machine(lambda: around.is_disk_full, lambda: around.free_share, tuple)
    assembly = Assembly(core, stores, member.identity, lambda: None, machine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(core.run)
        nursery.start_soon(assembly.run)
        await trio.sleep(5)
        yield Node(core, assembly, ledger, around)
        nursery.cancel_scope.cancel()


async def test_the_report_has_every_field_of_the_contract(autojump_clock: Clock) -> None:
    async with running() as node:
        report = node.report()

        assert set(FIELDS) <= set(report)
        assert (report["facility"], report["role"], report["leader"]) == ("hospital", "voter", "hospital")
        assert report["network"] == node.ledger.network.hex()
        assert (report["voters"], report["quorum"], report["release_gate"]) == (["hospital"], 1, False)
        assert (report["height"], report["certified_height"]) == (1, 1)


async def test_peers_are_shown_with_how_they_were_found(autojump_clock: Clock) -> None:
    async with running() as node:
        peers = node.report()["peers"]

        assert isinstance(peers, list)
        assert {peer["name"] for peer in peers} == {"clinic", "laboratory"}
        ids = {peer_id(member.member.node) for member in node.ledger.members[1:]}
        assert {peer["peer_id"] for peer in peers} == ids
        assert all(peer["connected"] is True and peer["found_by"] == "config" for peer in peers)


async def test_a_healthy_node_has_no_problems(autojump_clock: Clock) -> None:
    async with running() as node:
        assert node.codes() == []


async def test_a_missing_peer_is_named(autojump_clock: Clock) -> None:
    async with running() as node:
        node.ledger.members[2].transport.is_up = False

        (problem,) = node.assembly.status.problems()

        assert problem["code"] == "peers-missing"
        assert "laboratory" in problem["text"]
        assert "clinic" not in problem["text"]


async def test_without_a_leader_there_is_no_quorum(autojump_clock: Clock) -> None:
    async with running(voters=3) as node:
        assert node.report()["leader"] is None
        assert "no-quorum" in node.codes()


@pytest.mark.parametrize(("free_share", "is_full", "code"), [(0.01, False, "disk"), (0.5, True, "disk-full")])
async def test_a_full_disk_is_named(
    autojump_clock: Clock, free_share: float, is_full: bool, code: str
) -> None:
    async with running() as node:
        node.surroundings.free_share, node.surroundings.is_disk_full = free_share, is_full

        assert node.codes() == [code]


async def test_a_clock_that_is_off_is_named_with_its_distance(autojump_clock: Clock) -> None:
    async with running() as node:

        async def ten_seconds_ahead(_peer: NodeId, _body: bytes) -> bytes:
            return codec.pack(node.ledger.clock.now_ms() + 10_000)

        for member in node.ledger.members[1:]:
            member.transport.serve("time", ten_seconds_ahead)
        await trio.sleep(30)

        (problem,) = node.assembly.status.problems()

        assert problem["code"] == "clock"
        assert "-10.0 s" in problem["text"]


async def test_two_processes_with_one_key_are_named_by_the_others(autojump_clock: Clock) -> None:
    async with running() as node:
        core, clinic = node.core, node.ledger.members[1].identity
        statements = [
            state_tip(
                SigningKey(clinic.node), core.network, Session(0, number, bytes(32)), epoch=0,
                certified_height=Height(0), vote_height=Height(0), vote_hash=bytes(32), time_ms=0,
            )
            for number in (1, 2, 1)
        ]  # fmt: skip
        for statement in statements:
            core.tips.hear(clinic.node_id, statement)

        (problem,) = node.assembly.status.problems()

        assert (problem["code"], problem["members"]) == ("two-processes", ["clinic"])


async def test_the_storage_document_counts_chunks(autojump_clock: Clock) -> None:
    async with running() as node:
        await node.assembly.ingest._writer.put([(cid_of(b"chunk"), b"chunk")])

        figures = await node.assembly.services.storage.figures()

        assert {"chunks": 1, "bytes": 5, "under_replicated": 0, "corrupt": 0}.items() <= figures.items()


async def test_the_member_list_names_everybody(autojump_clock: Clock) -> None:
    async with running() as node:
        listed = node.assembly.services.members.members()

        assert [member["name"] for member in listed["members"]] == ["clinic", "hospital", "laboratory"]
        assert listed["proposals"] == []
