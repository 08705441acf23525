"""Multiaddrs as we use them."""

import pytest

from node.endpoints import Endpoint, interface_addresses, parse_endpoint, reachable
from protocol.identifiers import peer_id
from tests.node.transports import NODES


@pytest.mark.parametrize(
    "text", ["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/1", "/dns4/clinic.example/tcp/65535", "/dns/a/tcp/0"]
)
def test_an_endpoint_is_spelled_as_it_was_read(text: str) -> None:
    endpoint, node = parse_endpoint(text)
    assert (str(endpoint), node) == (text, None)
    assert parse_endpoint(f"{text}/p2p/{peer_id(NODES[0])}") == (endpoint, NODES[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/1",
        "/ip4/300.0.0.1/tcp/1",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/-1",
        "/ip4/127.0.0.1/tcp/1/p2p/nobody",
        "/ip4/127.0.0.1/tcp/1/p2p/0",
        "/ip4/127.0.0.1/tcp/1/ws",
        "/onion/abc/tcp/1",
        "/dns4//tcp/1",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(text)


def test_every_interface_becomes_its_addresses_loopback_last() -> None:
    found = reachable(
        (Endpoint("ip4", "0.0.0.0", 7), Endpoint("ip4", "127.0.0.1", 7), Endpoint("ip4", "127.0.0.1", 8))
    )
    assert found[-1] == Endpoint("ip4", "127.0.0.1", 8)
    assert [endpoint.host for endpoint in found[:-1]] == list(interface_addresses())
    assert found[-2].is_loopback
