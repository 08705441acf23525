"""The network: `ports.PeerTransport` over py-libp2p (TCP, Noise, Yamux, GossipSub 1.1).

One task owns the libp2p stack and is shielded: when `run` is cancelled the stack first closes its connections, so
that peers learn of it at once, and then ends, within three seconds. What connects to whom is `dialer`'s decision,
what travels is `framing`'s, what libp2p needs to survive hostile input is `libp2p_kit`'s.

Who is admitted is one frozen value that `admit` replaces (`membership_admission`). A peer outside it is refused right after
the handshake; a member that runs another network (a different genesis) is found out by the first frame and appears in
`problems()`.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import trio
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from node import libp2p_kit
from node.address_book import AddressBook
from node.dialer import Dialer, fixed_addresses
from node.discovery import MdnsDiscovery
from node.endpoints import Endpoint, check_listen, parse_endpoint, reachable
from node.event_log import EventLog
from node.framing import BODY_BYTES_MAX, Fetch, Hello
from node.gossip_topics import GossipTopics
from node.guests import Guests
from node.membership_admission import Admission, Gate
from node.peer_session import BULK_PROTOCOL, PERSISTENT_PROTOCOLS, PeerSession, loser
from node.ports import CallHandler, Clock, Entropy, PeerStatus, StreamHandler
from node.request_server import RequestServer
from protocol import limits
from protocol.errors import Invalid, LocalFault, Refused, Unavailable
from protocol.identifiers import NetworkId, NodeId, peer_id
from protocol.signing import SigningKey

if TYPE_CHECKING:
    from trio_typing import TaskStatus

DIAL_S = 5
CLOSE_S = 2.5


class Libp2pTransport:
    """Authenticated messages between the configured members. Call `run` once; handlers may be set before or during it.

    `members` maps each member, this node included, to its fixed multiaddrs; `seed` is this node's Ed25519 seed[32];
    `extra_peers` are multiaddrs given by the operator, with or without /p2p/ID. `counters` counts what was dropped
    or refused, by reason.
    """

    def __init__(
        self,
        *,
        seed: bytes,
        network: NetworkId,
        members: Mapping[NodeId, tuple[str, ...]],
        listen: tuple[str, ...],
        announce: tuple[str, ...] = (),
        extra_peers: tuple[str, ...] = (),
        address_book: AddressBook,
        mdns: bool = True,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._network = network
        me = self._me = NodeId(SigningKey(seed).public)
        self._gate = Gate(Admission(MappingProxyType(dict(members))), me)
        self._listen = listen
        self._announced = tuple(parse_endpoint(address)[0] for address in announce)
        self._book = address_book
        self._mdns = mdns
        self._entropy = entropy
        self._log = log
        self._host = libp2p_kit.make_host(seed, self._gate.is_admitted, self._count, log)
        self._pubsub, self._router = libp2p_kit.make_pubsub(self._host, self._count, log)
        self._gossip = GossipTopics(
            self._pubsub,
            self._router,
            network=network,
            is_member=self._gate.is_member,
            me=me,
            count=self._count,
        )
        self._server = RequestServer(network, self._gate.may, self._count, log)
        self._dialer = Dialer(
            me=me, members=members, connect=self._connect, clock=clock, entropy=entropy, log=log
        )
        self._sessions: dict[NodeId, PeerSession] = {}
        self._guests = Guests(self._sessions.get)
        self._strangers: dict[NodeId, str] = {}
        self._dialling: dict[NodeId, str] = {}
        self._bound: tuple[Endpoint, ...] = ()
        self._tasks: trio.Nursery | None = None
        self._discovery: MdnsDiscovery | None = None
        for known in fixed_addresses(me, members, extra_peers, address_book, log):
            self._dialer.learn(*known)

    @property
    def me(self) -> NodeId:
        """This node's own id."""
        return self._me

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status` is started once every address is listened on.

        Raises:
            Refused: an address cannot be listened on.
        """
        check_listen(self._listen)
        async with trio.open_nursery() as nursery:
            stop = trio.Event()
            await nursery.start(self._run_stack, stop)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                stop.set()

    async def call(self, peer: NodeId, channel: str, body: bytes, *, timeout_ms: int) -> bytes:
        """Return the peer's answer to one request (see `ports.PeerTransport.call`)."""
        _check_body(body)
        session = self._session(peer)
        with trio.move_on_after(timeout_ms / 1000):
            return await session.call(channel, body)
        raise Unavailable(f"no answer from {session.short} within {timeout_ms} ms")

    def send(self, peer: NodeId, channel: str, body: bytes) -> None:
        """Queue one message without an answer; dropped and counted when the peer is away or its queue full."""
        _check_body(body)
        session = self._sessions.get(peer)
        if session is None or not session.is_ready:
            self._count("sends_dropped_not_connected")
        elif not session.send(channel, body):
            self._count("sends_dropped_queue_full")

    def fetch(
        self, peer: NodeId, channel: str, body: bytes
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Ask for a stream of frames on a stream of its own (see `ports.PeerTransport.fetch`)."""
        _check_body(body)
        return self._session(peer).fetch(Fetch(self._network, channel, body))

    def serve(self, channel: str, handler: CallHandler) -> None:
        """Answer calls on `channel`."""
        self._server.serve(channel, handler)

    def serve_stream(self, channel: str, handler: StreamHandler) -> None:
        """Answer fetches on `channel`."""
        self._server.serve_stream(channel, handler)

    def inbox(self, channel: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        """Return the queue of messages sent to us on `channel`; when it is full, new ones are dropped and counted."""
        return self._server.inbox(channel, size)

    async def publish(self, topic: str, body: bytes) -> None:
        """Gossip a message of at most 64 KiB, best effort; dropped and counted before `run`."""
        await self._gossip.publish(topic, body)

    def subscribe(self, topic: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        """Return the queue of (publisher, body) of a topic; when it is full, new ones are dropped and counted."""
        return self._gossip.subscribe(topic, size)

    def peers(self) -> tuple[PeerStatus, ...]:
        """Return the status of every configured member but this one, sorted by node id."""
        found = []
        for node in sorted(self._gate.admission.members):
            session = self._sessions.get(node)
            if node == self._me:
                continue
            if session is not None and session.is_ready:
                found.append(PeerStatus(node, True, session.address, session.found_by))
            else:
                found.append(PeerStatus(node, False, *self._dialer.best_address(node)))
        return tuple(found)

    def problems(self) -> tuple[str, ...]:
        """Return what an operator must act on, one sentence each."""
        return tuple(
            f"{peer_id(node)} runs another network ({network[:16]}…): its genesis differs from ours"
            for node, network in sorted(self._strangers.items())
        )

    def addresses(self) -> tuple[str, ...]:
        """Return the multiaddrs this node can be reached at (real ports, without /p2p)."""
        return tuple(str(endpoint) for endpoint in reachable(self._bound))

    @property
    def is_mdns_available(self) -> bool:
        """Whether daemons on this network can find each other without addresses."""
        return self._discovery is not None and self._discovery.available

    def _count(self, what: str) -> None:
        self.counters[what] += 1

    def admit(self, admission: Admission) -> None:
        """Take who is admitted from now on. Members that are new are dialled; whoever is admitted no more is let go."""
        self._gate.admission = admission
        self._dialer.keep(admission.members, lambda node: node in self._sessions)
        for session in [*self._sessions.values(), *self._guests]:
            if not admission.is_admitted(session.node) and self._tasks is not None:
                self._tasks.start_soon(session.close)

    def _session(self, peer: NodeId) -> PeerSession:
        session = self._sessions.get(peer)
        if session is None or not session.is_ready:
            raise Unavailable(f"{peer_id(peer)} is not connected")
        return session

    # --- the stack ------------------------------------------------------------------------------------------------

    async def _run_stack(self, stop: trio.Event, *, task_status: "TaskStatus[None]") -> None:
        with trio.CancelScope(shield=True) as scope:
            for protocol in PERSISTENT_PROTOCOLS:
                self._host.set_stream_handler(protocol, self._on_persistent_stream)
            self._host.set_stream_handler(BULK_PROTOCOL, self._on_bulk_stream)
            self._host.get_network().register_notifee(libp2p_kit.ConnectionEvents(self._on_connected))
            async with trio.open_nursery() as tasks:
                self._tasks = tasks
                async with self._host.run([Multiaddr(address) for address in self._listen]):
                    self._bound = self._listening()
                    async with background_trio_service(self._pubsub), background_trio_service(self._router):
                        await self._pubsub.wait_until_ready()
                        self._start_tasks(tasks)
                        task_status.started()
                        await stop.wait()
                        scope.deadline = trio.current_time() + CLOSE_S
                        self._tasks = (
                            None  # from here on new connections are left to the host, which closes them
                        )
                        await self._close_connections()
                        tasks.cancel_scope.cancel()
                        await self._host.close()

    def _listening(self) -> tuple[Endpoint, ...]:
        listeners = self._host.get_network().listeners
        missing = [address for address in self._listen if str(Multiaddr(address)) not in listeners]
        if missing:
            raise Refused(f"cannot listen on {missing[0]}")  # check_listen passed: taken in between
        found = [str(address) for listener in listeners.values() for address in listener.get_addrs()]
        return tuple(parse_endpoint(address)[0] for address in found)

    def _start_tasks(self, tasks: trio.Nursery) -> None:
        tasks.start_soon(self._gossip.run)
        tasks.start_soon(self._dialer.run)
        if self._mdns and self._bound:
            self._discovery = MdnsDiscovery(
                network=self._network,
                me=self._me,
                listening=self._bound,
                entropy=self._entropy,
                log=self._log,
            )
            tasks.start_soon(self._discovery.run)
            tasks.start_soon(self._take_discoveries, self._discovery)

    async def _close_connections(self) -> None:
        for listener in self._host.get_network().listeners.values():
            await listener.close()  # first, or a peer that loses us is back before we are gone
        async with trio.open_nursery() as nursery:
            if self._discovery is not None:
                nursery.start_soon(self._discovery.stop)
            for session in [*self._sessions.values(), *self._guests]:
                nursery.start_soon(session.close)

    async def _take_discoveries(self, discovery: MdnsDiscovery) -> None:
        async for node, address in discovery.found:
            if address not in self.addresses():
                self._dialer.learn(node, address, "mdns", fresh=True)

    # --- connections ----------------------------------------------------------------------------------------------

    async def _connect(self, node: NodeId, address: str) -> None:
        if self._tasks is None:
            raise Unavailable("closing")
        network, peer = self._host.get_network(), libp2p_kit.id_of(node)
        network.unblock_peer(peer)  # libp2p refuses for a minute after one failure
        self._dialling[node] = address
        try:
            with trio.fail_after(DIAL_S):
                await network.dial_addr(Multiaddr(address), peer)
        except trio.TooSlowError:
            raise Unavailable(f"no handshake within {DIAL_S} s") from None
        except Exception as error:  # noqa: BLE001 - libp2p raises a dozen classes
            if libp2p_kit.is_wrong_peer(error):
                self._book.forget(node, address)
                raise Invalid("another node answers at this address") from None
            raise Unavailable(f"cannot connect: {type(error).__name__}") from None
        finally:
            self._dialling.pop(node, None)

    def _on_connected(self, connection: Any) -> None:
        """Take a new connection, keeping one per pair."""
        node = libp2p_kit.node_of(connection.muxed_conn.peer_id)
        if node is None or self._tasks is None:
            return  # closing: the host ends it
        inbound = not connection.muxed_conn.is_initiator
        address = "" if inbound else self._dialling.get(node, "")
        found_by = "inbound" if inbound else self._dialer.found_by(node, address)
        if inbound:
            address = next(map(str, connection.get_transport_addresses()), "")
        session = PeerSession(node, connection, inbound=inbound, address=address, found_by=found_by)
        rival = self._sessions.get(node)
        if rival is not None and not rival.is_over:
            if (other := loser(rival, session, self._me)) is None:
                self._tasks.start_soon(self._contend, rival, session)
            else:
                self._tasks.start_soon(other.close)
            if other is not rival:
                return
        self._keep(session)

    def _keep(self, session: PeerSession) -> None:
        if self._tasks is not None:
            self._sessions[session.node] = session
            self._dialer.connected(session.node)
            self._tasks.start_soon(self._run_session, session)

    async def _contend(self, old: PeerSession, new: PeerSession) -> None:
        if await self._guests.outlasts(old, new):
            self._keep(new)
            await old.close()

    async def _run_session(self, session: PeerSession) -> None:
        node = session.node

        def ready() -> None:
            self._strangers.pop(node, None)
            if not session.inbound:
                self._book.remember(node, session.address)
            self._log.info(
                "peer connected", peer=session.short, address=session.address, found_by=session.found_by
            )

        try:
            await session.run(self._hello(session), self._greet, ready, self._log)
        finally:
            if self._sessions.get(node) is session:
                del self._sessions[node]
                self._dialer.disconnected(node)
                self._log.info("peer disconnected", peer=session.short)

    def _hello(self, session: PeerSession) -> Hello:
        try:
            local = parse_endpoint(session.address)[0].is_loopback
        except ValueError:
            local = False
        # Our loopback addresses mean something to a peer on this machine only. Announced ones replace all others: behind a
        # router, what we listen on means nothing to anybody.
        own = self._announced or reachable(self._bound)
        usable = [str(endpoint) for endpoint in own if local or not endpoint.is_loopback]
        return Hello(self._network, tuple(usable[: limits.PEER_ADDRESSES_MAX]))

    def _greet(self, node: NodeId, hello: Hello) -> None:
        if hello.network != self._network:
            if self._strangers.get(node) != hello.network.hex():
                self._strangers[node] = hello.network.hex()
                self._log.warning(
                    "peer runs another network", peer=peer_id(node), its_network=hello.network.hex()
                )
            self._count("refused_other_network")
            raise Invalid("the peer runs another network")
        for address in hello.addresses:
            self._dialer.learn(node, address, "inbound")
        session = self._sessions.get(node)
        if session is not None and session.inbound and session.takes_address(hello.addresses):
            self._book.remember(node, session.address)  # for our next start

    def _member_behind(self, stream: Any) -> NodeId:
        node = libp2p_kit.node_of(stream.muxed_conn.peer_id)
        if node is None or not self._gate.is_admitted(node):
            raise Invalid("not a member")
        return node

    async def _on_persistent_stream(self, stream: Any) -> None:
        node = self._member_behind(stream)
        session = self._sessions.get(node)
        hello = self._hello(session) if session is not None else Hello(self._network, ())
        wrapped = libp2p_kit.Stream(stream)
        try:
            await self._server.converse(node, wrapped, hello, self._greet)
        finally:
            await wrapped.reset()

    async def _on_bulk_stream(self, stream: Any) -> None:
        node = self._member_behind(stream)
        await self._server.serve_bulk(node, libp2p_kit.Stream(stream))
        session = self._sessions.get(node)
        if node in self._gate.admission.former and session is not None:
            await session.close()  # a former member is admitted for one answer


def _check_body(body: bytes) -> None:
    if len(body) > BODY_BYTES_MAX:
        raise LocalFault(f"a message of {len(body)} bytes is over the limit of {BODY_BYTES_MAX}")
