"""What one hostile member can make our gossip do."""

from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.pubsub.pb import rpc_pb2
from multiaddr import Multiaddr

from protocol import limits
from tests.node.hostile import MESHSUB, Attacker, attacker
from tests.node.test_libp2p_hostile import MEMBER_SEED, Scene, become_member, varint
from tests.node.transports import NETWORK, NODES, connected_pair, eventually

TOPIC = f"/carechain/{NETWORK.hex()}/blocks/1"


@pytest.fixture
async def scene(tmp_path: Path) -> Any:
    async with connected_pair(tmp_path) as (honest, victim):
        victim.subscribe("blocks", 10)
        await eventually(lambda: TOPIC in victim._pubsub.subscribed_topics_receive)
        yield Scene(victim, honest)


def framed(rpc: rpc_pb2.RPC) -> bytes:
    data = rpc.SerializeToString()
    return varint(len(data)) + data


async def gossip_stream(hostile: Attacker, scene: Scene) -> Any:
    return await hostile.open(await become_member(hostile, scene), MESHSUB)


async def test_a_flood_of_messages_is_dropped_unread(scene: Scene) -> None:
    empty = rpc_pb2.Message(topicIDs=[TOPIC], from_id=ID(bytes.fromhex("002408011220") + NODES[2]).to_bytes())
    flood = framed(rpc_pb2.RPC(publish=[empty] * 1_000))
    async with attacker(MEMBER_SEED) as hostile:
        stream = await gossip_stream(hostile, scene)
        for _ in range(4 * limits.GOSSIP_FROM_PEER_BURST // 1_000):
            await stream.write(flood)
        await eventually(lambda: scene.victim.counters["gossip_dropped_too_many"] > 0)
        await scene.assert_unharmed()
    await scene.assert_unharmed()
    assert scene.victim.counters["gossip_dropped_too_many"] > 0


async def test_a_message_is_sent_once_however_often_one_request_names_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock sent it each time: 180 MB for one request of 256 KiB."""
    await scene.victim.publish("blocks", bytes(1_000))
    (message_id,) = scene.victim._router.mcache.msgs
    sent: list[int] = []
    monkeypatch.setattr(
        scene.victim._router,
        "send_rpc",
        lambda _peer, packet, *_rest, **_more: sent.append(len(packet.publish)),
    )
    wanted = rpc_pb2.ControlIWant(messageIDs=[message_id.hex().encode()] * 1_000)
    async with attacker(MEMBER_SEED) as hostile:
        stream = await gossip_stream(hostile, scene)
        for _ in range(3):
            await stream.write(framed(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(iwant=[wanted]))))
        await eventually(lambda: scene.victim.counters["gossip_answers_cut"] == 3)
    assert max(sent) == 1
    await scene.assert_unharmed()


async def test_whom_a_neighbour_recommends_is_not_dialled_and_foreign_topics_are_not_noted(
    scene: Scene,
) -> None:
    keys = create_new_key_pair(bytes([77]) * 32)
    recommended = ID.from_pubkey(keys.public_key)
    dialled: list[Any] = []

    async def connect(info: Any) -> None:
        dialled.append(info)

    scene.victim._host.connect = connect
    address = Multiaddr("/ip4/127.0.0.1/tcp/9")
    record = seal_record(PeerRecord(recommended, [address]), keys.private_key).marshal_envelope()
    peers = [rpc_pb2.PeerInfo(peerID=recommended.to_bytes(), signedPeerRecord=record)]
    prunes = [rpc_pb2.ControlPrune(topicID=TOPIC, peers=peers, backoff=1)]
    prunes += [rpc_pb2.ControlPrune(topicID=f"foreign {number}", backoff=1) for number in range(100)]
    grafts = [rpc_pb2.ControlGraft(topicID=f"foreign {number}") for number in range(100)]
    router = scene.victim._router
    async with attacker(MEMBER_SEED) as hostile:
        stream = await gossip_stream(hostile, scene)
        await stream.write(framed(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(prune=prunes, graft=grafts))))
        await eventually(lambda: scene.victim.counters["gossip_of_no_topic"] == 200)
        hostile_id = ID(bytes.fromhex("002408011220") + NODES[2])
        assert set(router.back_off) <= {TOPIC}
        assert set(router.graft_flood_tracking[hostile_id]) <= {TOPIC}
    assert not dialled
    await scene.assert_unharmed()


async def test_addresses_that_a_member_pushes_are_not_taken(scene: Scene) -> None:
    """They come with a Hello, from whom they are of."""
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        with pytest.raises(trio.BrokenResourceError):
            await hostile.open(connection, "/ipfs/id/push/1.0.0")
        stream = await hostile.open(connection, MESHSUB)
        # With a record that stock would refuse the rest for.
        prune = rpc_pb2.ControlMessage(prune=[rpc_pb2.ControlPrune(topicID="foreign", backoff=1)])
        await stream.write(framed(rpc_pb2.RPC(senderRecord=b"\xff" * 200_000, control=prune)))
        await eventually(lambda: scene.victim.counters["gossip_of_no_topic"] == 1)
    await scene.assert_unharmed()


async def test_subscriptions_that_come_and_go_are_bounded(scene: Scene) -> None:
    """Each begins three tasks, and sends again what was said last."""
    coming_and_going = [
        rpc_pb2.RPC.SubOpts(subscribe=number % 2 == 0, topicid=TOPIC)
        for number in range(2 * limits.GOSSIP_SUBSCRIPTIONS_BURST)
    ]
    async with attacker(MEMBER_SEED) as hostile:
        stream = await gossip_stream(hostile, scene)
        for _ in range(4):
            await stream.write(framed(rpc_pb2.RPC(subscriptions=coming_and_going)))
        await eventually(lambda: scene.victim.counters["gossip_subscriptions_dropped"] == 4)
    await scene.assert_unharmed()
    assert scene.victim.counters["gossip_subscriptions_dropped"] == 4
