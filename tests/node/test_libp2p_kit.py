"""One regression test per repair of py-libp2p that the hostile suite does not show from outside."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from node import libp2p_kit
from node.libp2p_transport import Libp2pTransport
from tests.node.transports import SEEDS, RecordingLog, connected_pair, node_id

Pair = tuple[Libp2pTransport, Libp2pTransport]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with connected_pair(tmp_path) as pair:
        yield pair


def test_peer_ids_and_node_ids_are_the_same_keys() -> None:
    node = node_id(SEEDS[0])
    assert libp2p_kit.node_of(libp2p_kit.id_of(node)) == node
    assert libp2p_kit.node_of_bytes(b"\x12\x20" + bytes(32)) is None  # a hashed (RSA) peer id


async def test_only_noise_and_yamux_are_offered(pair: Pair) -> None:
    upgrader = pair[0]._host.get_network().upgrader
    assert list(upgrader.security_multistream.transports) == ["/noise"]
    assert list(upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]


async def test_a_stream_that_is_reset_while_everything_ends_is_no_error_of_ours(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside tasks that are being cancelled a reset came out of the network as an error, and ended the daemon with it."""
    one, other = pair
    host: Any = one._host

    async def reset_at_the_end(_stream: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise trio.BrokenResourceError("StreamReset")

    monkeypatch.setattr(host, "_swarm_stream_handler", reset_at_the_end)
    log = RecordingLog()
    libp2p_kit._guard_streams(host, lambda _name: None, log)
    stream = await one._sessions[other.me].connection.new_stream()
    with trio.move_on_after(0.01) as scope:
        await host.get_network().common_stream_handler(stream)
    assert scope.cancelled_caught
    assert log.count("stream abandoned") == 1


def test_the_library_logs_one_line_to_us_and_nothing_to_the_root_logger() -> None:
    log = RecordingLog()
    libp2p_kit._patch_process(log)
    logging.getLogger("libp2p.network.swarm").error("first line\nsecond line")
    logging.getLogger("libp2p.network.auto_connector").info("chatter")
    assert log.events == [("debug", "libp2p", {"source": "libp2p.network.swarm", "reason": "first line"})]
    assert not logging.getLogger("libp2p").propagate
