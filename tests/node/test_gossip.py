import pytest
import trio
import trio.testing

from node.applier import Certified
from node.gossip import Announcer
from protocol import codec, limits
from protocol.catchup import Announce
from protocol.finality import Certificate
from protocol.identifiers import NodeId
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.state import HardState
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import SilentLog
from tests.node.scripted_transport import ScriptedTransport
from tests.protocol import chain
from tests.protocol.ledgers import configuration, key

CHAIN = chain.build()


def raft(*, leads: bool) -> Raft:
    """Return the Raft of a network of one, which elects itself at its first tick."""
    alone = configuration("hospital")
    store = LedgerStore(MemoryStore(), alone)
    mark = store.applied()
    machine = Raft(
        key=key("hospital"), network=chain.NETWORK, configuration=alone, hard_state=HardState.initial(),
        log=Log(store, mark.height, mark.frontier, ()), timeout_seed=bytes(32),
    )  # fmt: skip
    if leads:
        machine.tick(chain.NOW_MS)
        assert machine.leader == NodeId(key("hospital").public)
    return machine


def certified(*, links: int = 0) -> Certified:
    certificate = Certificate(
        CHAIN[2].header, (CHAIN[3].header,) * links, tuple(chain.commit_vote(n, CHAIN[2]) for n in (0, 1))
    )
    return Certified(CHAIN[1:3], certificate, is_stored=True)


async def published(announcer: Announcer, transport: ScriptedTransport, *groups: Certified) -> list[Announce]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.run)
        for group in groups:
            await announcer.announce(group)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert all(len(body) <= limits.PUBLISH_BYTES_MAX for body in transport.published)
    return [codec.decode(body, Announce) for body in transport.published]


@pytest.fixture
def transport() -> ScriptedTransport:
    return ScriptedTransport(NodeId(key("hospital").public))


async def test_a_leader_announces_blocks_with_their_certificate_and_bodies(transport) -> None:
    announcer = Announcer(transport, raft(leads=True), SilentLog())
    assert await published(announcer, transport, certified()) == [
        Announce(certified().certificate, tuple(block.raw for block in CHAIN[1:3]))
    ]


async def test_a_follower_announces_nothing(transport) -> None:
    assert await published(Announcer(transport, raft(leads=False), SilentLog()), transport, certified()) == []


@pytest.mark.parametrize(("body", "links"), [(1_000, 0), (limits.GOSSIP_BODY_BYTES_MAX, 64)])
async def test_large_bodies_or_certificates_leave_the_blocks_to_be_pulled(
    transport, monkeypatch, body, links
) -> None:
    monkeypatch.setattr(limits, "GOSSIP_BODY_BYTES_MAX", body)
    monkeypatch.setattr(limits, "PUBLISH_BYTES_MAX", 20_000 if not links else 18_000)
    announcer = Announcer(transport, raft(leads=True), SilentLog())
    (announcement,) = await published(announcer, transport, certified(links=links))
    assert announcement.blocks == ()
    assert announcement.certificate.header == CHAIN[2].header


async def test_announcing_never_waits_for_a_slow_network(transport) -> None:
    announcer = Announcer(transport, raft(leads=True), SilentLog())
    with trio.fail_after(60):
        for _ in range(200):
            await announcer.announce(certified())
    assert 0 < len(await published(announcer, transport)) < 200
