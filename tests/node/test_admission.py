"""Candidates and former members on real connections: little is open to them, and strangers do not get in."""

from pathlib import Path

import pytest
import trio

from node.membership_admission import Admission
from protocol.errors import RemoteFault
from protocol.identifiers import NodeId
from tests.node.transports import NODES, connected, eventually, is_connected, make_transport, running

MEMBERS: dict[NodeId, tuple[str, ...]] = dict.fromkeys(NODES[:2], ())
CANDIDATE = NODES[2]


async def answer(_peer: NodeId, body: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return body


async def test_a_candidate_gets_its_channels_only_and_becomes_a_member_on_the_same_connection(
    tmp_path: Path,
) -> None:
    first = make_transport(0, tmp_path, members=NODES[:2])
    second = make_transport(1, tmp_path, members=NODES[:2])
    candidate = make_transport(2, tmp_path, members=NODES[:3])
    for channel in ("join", "chunks"):
        first.serve(channel, answer)
    async with running(first, second, candidate):
        candidate._dialer.learn(NODES[0], first.addresses()[0], "config", fresh=True)
        await eventually(lambda: first.counters["refused_strangers"])
        assert not is_connected(candidate, NODES[0])

        first.admit(Admission(MEMBERS, candidates=frozenset({CANDIDATE})))
        candidate._dialer.learn(NODES[0], first.addresses()[0], "config", fresh=True)
        await eventually(lambda: is_connected(candidate, NODES[0]))
        assert await candidate.call(NODES[0], "join", b"x", timeout_ms=5_000) == b"x"
        with pytest.raises(RemoteFault, match="members of the network only"):
            await candidate.call(NODES[0], "chunks", b"x", timeout_ms=5_000)
        assert CANDIDATE not in {peer.node for peer in first.peers()}

        first.admit(Admission({**MEMBERS, CANDIDATE: ()}))
        assert await candidate.call(NODES[0], "chunks", b"x", timeout_ms=5_000) == b"x"
        assert is_connected(first, CANDIDATE)


async def test_a_former_member_is_cut_off_and_a_member_that_is_let_go_is_not_dialled(tmp_path: Path) -> None:
    first, second = (make_transport(index, tmp_path, members=NODES[:2]) for index in range(2))
    async with running(first, second):
        first._dialer.learn(NODES[1], second.addresses()[0], "config", fresh=True)
        await connected(first, second)
        first.admit(Admission({NODES[0]: ()}))
        await eventually(lambda: not is_connected(second, NODES[0]))
        assert first.peers() == ()


def test_what_is_open_to_whom() -> None:
    admission = Admission(MEMBERS, frozenset({CANDIDATE}), frozenset({NODES[3]}))
    assert [admission.is_admitted(node) for node in (*NODES, NodeId(bytes(32)))] == [True] * 4 + [False]
    assert [admission.may(node, "chunks") for node in NODES] == [True, True, False, False]
    assert [admission.may(node, "snapshot") for node in NODES] == [True, True, True, False]
    assert all(admission.may(node, "blocks") for node in NODES)
