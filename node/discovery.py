"""Finding daemons of the same network on the local links by multicast DNS (RFC 6762, DNS-SD RFC 6763).

Service `_carechain._udp.local.`, one instance per listening port under a random name; TXT: `n` the network id and `p`
the peer id. Nothing names a facility. Announced on the interfaces of the listen addresses only, a loopback listener
on 127.0.0.1 only. zeroconf blocks for seconds and runs threads of its own, so it lives in a worker thread, and what
it finds crosses to trio through a bounded channel; what does not fit is announced again.
"""

import contextlib
import ipaddress
from collections.abc import Iterator
from typing import Any

import trio
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from node.endpoints import Endpoint, interface_addresses
from node.event_log import EventLog
from node.ports import Entropy
from protocol.identifiers import NetworkId, NodeId, node_of_peer_id, peer_id

SERVICE = "_carechain._udp.local."
FOUND_MAX = 64
LOOKUP_MS = 1_000
STOP_S = 1.0


class MdnsDiscovery:
    """Announces this node and yields others: `found` gives (node, multiaddr). Run once; then `stop`.

    `available` is False from the moment multicast turns out to be missing, which is said once in the log.
    """

    def __init__(
        self,
        *,
        network: NetworkId,
        me: NodeId,
        listening: tuple[Endpoint, ...],
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self.available = True
        self._told, self.found = trio.open_memory_channel[tuple[NodeId, str]](FOUND_MAX)
        self._network = network
        self._me = me
        self._listening = tuple(endpoint for endpoint in listening if endpoint.kind == "ip4")
        self._entropy = entropy
        self._log = log
        self._zeroconf: Zeroconf | None = None
        self._stopped = False
        self._token: trio.lowlevel.TrioToken | None = None

    async def run(self) -> None:
        """Announce and listen until cancelled. Without multicast it says so and returns."""
        self._token = trio.lowlevel.current_trio_token()
        names = [self._entropy.bytes(8).hex() for _ in self._listening]
        try:
            # The trio stubs that libp2p brings along predate `abandon_on_cancel`.
            await trio.to_thread.run_sync(self._start, names, abandon_on_cancel=True)  # type: ignore[call-arg]
            await trio.sleep_forever()
        except OSError as error:
            self.available = False
            self._log.warning("no discovery by multicast: give addresses", error=type(error).__name__)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Take the announcement back and end zeroconf's threads, within a second also when cancelled."""
        self._stopped = True
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            with trio.CancelScope(deadline=trio.current_time() + STOP_S, shield=True):
                await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)  # type: ignore[call-arg]

    def _start(self, names: list[str]) -> None:
        interfaces = self._interfaces()
        if not interfaces:
            raise OSError("no interface to announce on")
        zeroconf = Zeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
        self._zeroconf = zeroconf
        if self._stopped:  # while the sockets were opened: nobody is left to close them but us
            zeroconf.close()
            return
        ServiceBrowser(zeroconf, SERVICE, handlers=[self._on_change])
        for name, endpoint in zip(names, self._listening, strict=True):
            info = self._service(name, endpoint)
            # The name is random: probing for a conflict would only cost three quarters of a second.
            zeroconf.register_service(info, cooperating_responders=True)

    def _interfaces(self) -> list[str]:
        own = interface_addresses()
        if any(endpoint.is_unspecified for endpoint in self._listening):
            return list(own)
        # zeroconf leaks a socket when it is given an address that no interface has.
        return sorted(
            {endpoint.host for endpoint in self._listening if endpoint.host in own or endpoint.is_loopback}
        )

    def _service(self, name: str, endpoint: Endpoint) -> ServiceInfo:
        hosts = interface_addresses() if endpoint.is_unspecified else (endpoint.host,)
        return ServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=endpoint.port,
            properties={"n": self._network.hex(), "p": peer_id(self._me)},
            addresses=[ipaddress.IPv4Address(host).packed for host in hosts],
            server=f"{name}.local.",
        )

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Look at a new or changed announcement. Runs in zeroconf's thread and must never raise.

        A daemon that comes back on another port under a known name arrives as Updated only.
        """
        if state_change is ServiceStateChange.Removed:
            return
        with contextlib.suppress(Exception):  # hostile announcements raise what zeroconf's parser raises
            info = ServiceInfo(service_type, name)
            if info.load_from_cache(zeroconf) or info.request(zeroconf, LOOKUP_MS):
                for node, address in self._read(info):
                    self._tell(node, address)

    def _read(self, info: ServiceInfo) -> Iterator[tuple[NodeId, str]]:
        properties: dict[str, Any] = dict(info.decoded_properties)
        if properties.get("n") != self._network.hex() or not info.port:
            return
        node = node_of_peer_id(str(properties.get("p")))
        if node == self._me:
            return
        hosts = info.parsed_addresses(IPVersion.V4Only)
        others = [host for host in hosts if not ipaddress.ip_address(host).is_loopback]
        # Loopback addresses of another machine are ours, and somebody else's daemon may answer there.
        is_here = not others or bool(set(others) & set(interface_addresses()))
        for host in hosts if is_here else others:
            yield node, str(Endpoint("ip4", host, info.port))

    def _tell(self, node: NodeId, address: str) -> None:
        def put() -> None:
            with contextlib.suppress(trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
                # Full: announcements repeat. Closed: nobody wants to know any more.
                self._told.send_nowait((node, address))

        assert self._token is not None
        with contextlib.suppress(trio.RunFinishedError):  # the program is over, the thread not yet
            self._token.run_sync_soon(put)
