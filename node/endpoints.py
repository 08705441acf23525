"""Addresses of daemons: the part of the multiaddr format we use, and what this machine can listen on.

/ip4/ADDRESS/tcp/PORT    /ip6/ADDRESS/tcp/PORT    /dns4/NAME/tcp/PORT, dns6, dns    each may end in /p2p/PEER-ID
"""

import errno
import ipaddress
import socket
from dataclasses import dataclass

import ifaddr

from protocol.errors import Refused
from protocol.identifiers import NodeId, node_of_peer_id

_NAMES = ("dns", "dns4", "dns6")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a TCP port; `kind` is ip4, ip6, dns, dns4 or dns6."""

    kind: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"/{self.kind}/{self.host}/tcp/{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.kind not in _NAMES and ipaddress.ip_address(self.host).is_loopback

    @property
    def is_unspecified(self) -> bool:
        """Whether it stands for every interface (0.0.0.0, ::)."""
        return self.kind not in _NAMES and ipaddress.ip_address(self.host).is_unspecified


def parse_endpoint(text: str) -> tuple[Endpoint, NodeId | None]:
    """Return the endpoint a multiaddr names, and the node it must be, if it says so.

    Raises:
        ValueError: not one of the forms above.
    """
    parts = text.split("/")
    node = None
    if len(parts) == 7 and parts[5] == "p2p":
        node = node_of_peer_id(parts[6])
        parts = parts[:5]
    if len(parts) != 5 or parts[0] or parts[3] != "tcp" or not parts[4].isdecimal() or int(parts[4]) > 65535:
        raise ValueError(f"not a TCP multiaddr: {text[:100]}")
    kind, host = parts[1], parts[2]
    if kind == "ip4":
        host = str(ipaddress.IPv4Address(host))
    elif kind == "ip6":
        host = str(ipaddress.IPv6Address(host))
    elif kind not in _NAMES or not host or len(host) > 253:
        raise ValueError(f"not a TCP multiaddr: {text[:100]}")
    return Endpoint(kind, host, int(parts[4])), node


def check_listen(addresses: tuple[str, ...]) -> None:
    """Check that every address can be listened on. libp2p does not say: its listeners share ports (SO_REUSEPORT).

    Raises:
        Refused: not a multiaddr, of another machine, in use, or not allowed.
    """
    for text in addresses:
        try:
            endpoint, _ = parse_endpoint(text)
        except ValueError as error:
            raise Refused(f"cannot listen on {text[:100]}: {error}") from None
        if endpoint.kind in _NAMES:
            raise Refused(f"cannot listen on {text}: give an IP address, not a name")
        family = socket.AF_INET if endpoint.kind == "ip4" else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # SO_REUSEADDR passes over closed connections that linger, not over a listener.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((endpoint.host, endpoint.port))
        except OSError as error:
            raise Refused(f"cannot listen on {text}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "address in use; stop the other process or choose another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "not an address of this machine"
    if error.errno == errno.EACCES:
        return "ports below 1024 need privileges; choose another port"
    return (error.strerror or type(error).__name__).lower()


def interface_addresses() -> tuple[str, ...]:
    """Return the IPv4 addresses of this machine's interfaces, loopback last."""
    found = {ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)}
    return tuple(sorted(found, key=lambda host: (ipaddress.ip_address(host).is_loopback, host)))


def reachable(bound: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Return the endpoints under which listeners can be reached: 0.0.0.0 becomes every interface's address."""
    found: dict[Endpoint, None] = {}
    for endpoint in bound:
        if endpoint.is_unspecified:
            found.update({Endpoint("ip4", host, endpoint.port): None for host in interface_addresses()})
            if endpoint.kind == "ip6":
                found[Endpoint("ip6", "::1", endpoint.port)] = None
        else:
            found[endpoint] = None
    return tuple(found)
