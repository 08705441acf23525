import pytest
import trio

from node.applier import Certified
from protocol.identifiers import NodeId
from storage.key_value import Batch
from tests.node.ledger_double import DirectTransport
from tests.node.snapshot_house import BLOCKS_BUILT, NEWEST, Member, built, voters
from tests.protocol.chain import VOTERS, certificate_of

Network = dict[NodeId, DirectTransport]


@pytest.fixture
def network() -> Network:
    return {}


async def compared(member: Member) -> None:
    """Let a voter make the snapshot of the newest height, and look what the others state."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.maker.run)
        nursery.start_soon(member.state_check.run)
        for block in built()[member.applier.mark.height + 1 : BLOCKS_BUILT + 1]:
            await member.applier.apply(Certified((block,), certificate_of(block), is_stored=False))
        await member.made(NEWEST)
        await trio.sleep(120)
        nursery.cancel_scope.cancel()


async def test_a_voter_whose_state_differs_tells_it_and_serves_no_snapshot(
    network: Network, autojump_clock
) -> None:
    await voters(network)
    member = Member(network, VOTERS[0])
    await member.apply(20)
    batch = Batch()
    key, value = next(member.rows.scan(b"Sv", b"Sw"))
    batch.put(key, value[:-1] + bytes([value[-1] ^ 1]))
    member.rows.write(batch, sync=True)
    await compared(member)
    assert "is not what a quorum of signers has" in member.state_check.trouble
    assert member.events("error") == ["the state of this node is not that of the other signers"]
    assert member.snapshots.newest() is None
    assert member.snapshots.statements() == ()


async def test_a_voter_that_states_what_the_others_do_is_not_troubled(
    network: Network, autojump_clock
) -> None:
    await voters(network)
    member = Member(network, VOTERS[0])
    await member.apply(20)
    await compared(member)
    assert member.state_check.trouble == ""
    assert member.snapshots.newest() is not None


async def test_one_other_voter_alone_troubles_nobody(network: Network, autojump_clock) -> None:
    members = await voters(network)
    members[2].transport.is_up = False
    member = Member(network, VOTERS[0])
    await member.apply(20)
    batch = Batch()
    key, value = next(member.rows.scan(b"Sv", b"Sw"))
    batch.put(key, value[:-1] + bytes([value[-1] ^ 1]))
    member.rows.write(batch, sync=True)
    await compared(member)
    assert member.state_check.trouble == ""
