"""py-libp2p as we use it: how a host and its gossip are made, and the repairs they need.

Pinned to libp2p 0.8.1, whose private names are touched here and in `noise_session`; every repair has a regression
test named after it in tests/node/test_libp2p_kit.py. What the repairs do for a host:

- *Sessions and streams are ours* (`noise_session`, `yamux`), after the library's handshake: its own cost ten times as much.
- *Noise only.* The default list also accepts plaintext, which lets anyone claim any peer id.
- *Guarded handlers.* An exception escaping a stream handler, a validator or pubsub's parsing ends the whole process.
- *Gossip is bounded per peer* (`gossip_limits`).
- *Inbound connections leave nothing behind.* Stock keeps a task and a slot per connection until the host stops.
- *Handshakes are bounded per address* (`handshakes`), of half-open ones the oldest gives way: nobody can lock others out.
- *Connections are bounded per peer*: one member cannot take the places of all.
- *Membership is checked right after the handshake*, both ways, before a peer can speak any protocol.
- *No automatic dialling, no identify but its answer, no resource manager*: the dialer and the limits here are ours.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import libp2p.network.connection.swarm_connection as swarm_connection_module
import libp2p.pubsub.gossipsub as gossipsub_module
import libp2p.pubsub.pubsub as pubsub_module
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import Ed25519PublicKey, create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux as StockYamux
from libp2p.transport.exceptions import SecurityUpgradeFailure

from node.event_log import EventLog
from node.gossip_limits import FRAME_BYTES_MAX, bound_gossip
from node.handshakes import HalfOpenHandshakes, bound_handshakes, handshake_rates, origin
from node.noise_session import NoiseSession
from node.yamux import Yamux
from protocol import limits
from protocol.identifiers import NodeId

READ_BYTES = 64 * limits.KIB
HANDSHAKE_S = 5
NEGOTIATION_S = 5
GOSSIP_QUEUE_MESSAGES = 4_096
"""Stock is 32 and drops silently; nothing repairs the loss within the mesh."""
_PEER_ID_PREFIX = bytes.fromhex("002408011220")

# libp2p is untyped here (pyproject skips its imports): a host, connection, stream or pubsub object is Any.


class Stream:
    """A libp2p stream with two outcomes: bytes, or `trio.BrokenResourceError`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # Around it libp2p keeps a state behind locks, which tells us nothing new.
        self._muxed = stream.muxed_stream

    @property
    def place(self) -> tuple[int, str]:
        """Which connection of those that are open it belongs to, and its protocol."""
        return id(self._stream.muxed_conn), str(self._stream.get_protocol())

    async def read(self) -> bytes:
        """Return the next received bytes (at most 64 KiB), or b"" after the other end finished writing."""
        try:
            return bytes(await self._muxed.read(READ_BYTES))
        except MuxedStreamEOF:
            return b""
        except Exception as error:
            # MuxedStreamReset, …: each means that the stream is gone.
            raise trio.BrokenResourceError(type(error).__name__) from error

    async def write(self, data: bytes) -> None:
        """Write all bytes; waits for the reader's window, at most a minute. One writer at a time."""
        try:
            await self._muxed.write(data)
        except Exception as error:
            raise trio.BrokenResourceError(type(error).__name__) from error  # as above

    async def finish(self) -> None:
        """Tell the other end that nothing more will be written, and release the stream."""
        with contextlib.suppress(Exception):  # already gone: there is nobody to tell
            await self._stream.close()

    async def reset(self) -> None:
        """Abandon the stream, both ways, also while being cancelled."""
        with (
            trio.CancelScope(deadline=trio.current_time() + 1, shield=True),
            contextlib.suppress(Exception),
        ):  # already gone
            await self._stream.reset()


class ConnectionEvents:
    """What libp2p calls a notifee; it is awaited before the connection is used."""

    def __init__(self, connected: Callable[[Any], None]) -> None:
        self._connected = connected

    async def connected(self, _network: Any, connection: Any) -> None:
        """Hand a new connection on."""
        self._connected(connection)

    async def disconnected(self, _network: Any, _connection: Any) -> None:
        """Sessions watch their own connection."""

    async def opened_stream(self, _network: Any, _stream: Any) -> None:
        """Of no interest."""

    async def closed_stream(self, _network: Any, _stream: Any) -> None:
        """Of no interest."""

    async def listen(self, _network: Any, _address: Any) -> None:
        """Of no interest."""

    async def listen_close(self, _network: Any, _address: Any) -> None:
        """Of no interest."""


def node_of(peer: Any) -> NodeId | None:
    """Return the node key in a libp2p `ID`, or None when it is no Ed25519 key."""
    return node_of_bytes(bytes(peer.to_bytes()))


def node_of_bytes(raw: bytes) -> NodeId | None:
    """Return the node key in the bytes of a peer id, or None when it is no Ed25519 key."""
    return NodeId(raw[6:]) if len(raw) == 38 and raw.startswith(_PEER_ID_PREFIX) else None


def id_of(node: NodeId) -> Any:
    """Return the libp2p `ID` of a node key."""
    return ID.from_pubkey(Ed25519PublicKey.from_bytes(node))


def make_host(
    seed: bytes, is_member: Callable[[NodeId], bool], count: Callable[[str], None], log: EventLog
) -> Any:
    """Return a repaired host for the Ed25519 key of `seed`[32]; it does not listen yet."""
    _patch_process(log)
    keys = create_new_key_pair(seed)
    configuration = ConnectionConfig(
        min_connections=0,
        low_watermark=0,
        high_watermark=limits.CONNECTIONS_PER_PEER_MAX * limits.MEMBERS_MAX,
        max_connections=limits.CONNECTIONS_PER_PEER_MAX * limits.MEMBERS_MAX,
        max_connections_per_peer=limits.CONNECTIONS_PER_PEER_MAX,
        inbound_upgrade_timeout=HANDSHAKE_S,
    )
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: noise},
        muxer_opt={YAMUX: StockYamux},
        connection_config=configuration,
    )
    network = host.get_network()
    network.retry_config.max_retries = 0  # the dialer owns retries
    network.set_resource_manager(None)  # its rate limits are global: a flood would lock members out
    network.auto_connector.maybe_connect = _nothing  # would dial everything in the peer store
    host._schedule_identify = lambda *_args, **_values: None  # noqa: SLF001 - runs in system tasks, which end the process
    host._push_identify_to_all_peers = _nothing  # noqa: SLF001
    host.multiselect.remove_handler(IDENTIFY_PUSH)
    _admit_members_only(network, is_member, count, log)
    _guard_streams(host, count, log)
    return host


def make_pubsub(host: Any, count: Callable[[str], None], log: EventLog) -> tuple[Any, Any]:
    """Return (pubsub, gossipsub) for a host, configured never to prune: a pruned peer hears nothing."""
    gossip = GossipSub(
        protocols=[PROTOCOL_ID_V11],  # 1.2 sends an IDONTWANT frame per message
        degree=8,
        degree_low=6,
        degree_high=limits.MEMBERS_MAX,
        heartbeat_interval=1,
        heartbeat_initial_delay=0.1,
        gossip_window=6,
        gossip_history=10,
        prune_back_off=5,
        unsubscribe_back_off=2,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,  # would also drop our own publishes above 10 per second
        eclipse_protection_enabled=False,
        do_px=False,
    )
    pubsub = Pubsub(
        host,
        gossip,
        strict_signing=True,
        seen_ttl=600,
        validation_cache_ttl=1,
        max_inbound_rpc_size=FRAME_BYTES_MAX,
    )
    bound_gossip(pubsub, gossip, count, log)
    return pubsub, gossip


async def open_stream(connection: Any, protocol: str) -> Stream:
    """Open a stream on one connection and negotiate its protocol.

    Raises:
        trio.BrokenResourceError: the connection is gone, or the peer does not speak the protocol.
    """
    stream = None
    try:
        stream = await connection.new_stream()
        await MultiselectClient().select_one_of([protocol], MultiselectCommunicator(stream), NEGOTIATION_S)
    except BaseException as error:
        if stream is not None:
            await Stream(stream).reset()
        if isinstance(error, Exception):
            raise trio.BrokenResourceError(f"{protocol}: {type(error).__name__}") from error
        raise
    stream.set_protocol(protocol)
    return Stream(stream)


def is_wrong_peer(error: BaseException | None) -> bool:
    """Return whether a failed dial found another node than it was looking for."""
    while error is not None:
        if "mismatch" in type(error).__name__.lower() or "mismatch" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


async def _nothing() -> None:
    return None


def _admit_members_only(
    network: Any, is_member: Callable[[NodeId], bool], count: Callable[[str], None], log: EventLog
) -> None:
    half_open, rates = HalfOpenHandshakes(), handshake_rates()
    connections: Counter[NodeId] = Counter()
    proven: dict[int, NodeId] = {}  # by the raw connection: who is counted for it
    upgrade_security = network.upgrader.upgrade_security
    upgrade_connection = network.upgrader.upgrade_connection

    async def upgrade(raw: Any, is_initiator: bool, peer: Any = None) -> Any:
        with trio.fail_after(HANDSHAKE_S):
            secured = await upgrade_security(raw, is_initiator, peer)
        half_open.release(id(raw))
        node = node_of(secured.get_remote_peer())
        if node is None or not is_member(node):
            count("refused_strangers")
            log.info("peer refused: not in the configuration", peer=str(secured.get_remote_peer()))
            await secured.close()
            raise SecurityUpgradeFailure("not a member")
        if not is_initiator:
            if connections[node] >= limits.CONNECTIONS_PER_PEER_MAX:
                count("refused_connections")
                await secured.close()
                raise SecurityUpgradeFailure("too many connections")
            connections[node] += 1
            proven[id(raw)] = node
        return NoiseSession(secured)

    async def multiplex(session: Any, peer: Any) -> Any:
        # It negotiates, and makes its own muxer whatever the options say; that one was never started.
        stock = await upgrade_connection(session, peer)
        muxed = Yamux(session, peer, session.is_initiator, refused=lambda: count("refused_streams"))
        muxed.negotiated_muxer_protocol = stock.negotiated_muxer_protocol
        muxed.negotiated_security_protocol = stock.negotiated_security_protocol
        return muxed

    async def inbound(socket: Any, listener: Any) -> None:
        raw = RawConnection(socket, initiator=False)
        remote = socket.stream.socket.getpeername()[0] if socket.stream.socket.fileno() >= 0 else ""
        address = origin(remote)
        if not rates.take(address, trio.current_time()):
            count("refused_handshakes")
            return  # the listener closes the socket
        with trio.CancelScope() as scope:
            half_open.admit(id(raw), address, scope)
            try:
                muxed = await network.upgrade_inbound_raw_conn(raw, listener)
                # The listener closes the socket when this returns.
                await muxed.event_closed.wait()
            except Exception as error:  # noqa: BLE001 - whatever a stranger provokes ends its connection, not the host
                count("failed_handshakes")
                log.debug("inbound connection failed", error=type(error).__name__)
            finally:
                half_open.release(id(raw))
                if (node := proven.pop(id(raw), None)) is not None:
                    connections[node] -= 1
                with contextlib.suppress(Exception):  # closed already
                    await raw.close()

    network.upgrader.upgrade_security = upgrade
    network.upgrader.upgrade_connection = multiplex
    network._handle_inbound_connection = inbound  # noqa: SLF001
    network.half_open_handshakes, network.handshake_rates = half_open, rates


def _guard_streams(host: Any, count: Callable[[str], None], log: EventLog) -> None:
    inner = host._swarm_stream_handler  # noqa: SLF001
    open_streams: dict[int, int] = {}

    async def abandon(stream: Any, error: BaseException) -> None:
        count("failed_streams")
        log.info("stream abandoned", protocol=str(stream.get_protocol()), error=type(error).__name__)
        with contextlib.suppress(Exception):  # already gone
            await stream.reset()

    async def guarded(stream: Any) -> None:
        key = id(stream.muxed_conn)
        open_streams[key] = open_streams.get(key, 0) + 1
        try:
            if open_streams[key] > limits.STREAMS_PER_CONNECTION_MAX:
                count("refused_streams")
                await stream.reset()
                return
            await inner(stream)
        except Exception as error:  # noqa: BLE001 - see "guarded handlers" above
            await abandon(stream, error)
        except BaseExceptionGroup as group:
            # A stream that is reset while everything ends: what is cancelled goes on ending, the reset is no error of ours.
            failed, cancelled = group.split(Exception)
            if failed is not None:
                await abandon(stream, failed)
            if cancelled is not None:
                raise cancelled from None
        finally:
            open_streams[key] -= 1
            if not open_streams[key]:
                del open_streams[key]

    host.get_network().set_stream_handler(guarded)


def _patch_process(log: EventLog) -> None:
    bound_handshakes()
    RpcQueue.__init__.__defaults__ = (GOSSIP_QUEUE_MESSAGES, FRAME_BYTES_MAX)
    pubsub_module.SUBSCRIPTION_CHANNEL_SIZE = GOSSIP_QUEUE_MESSAGES
    gossipsub_module.maybe_consume_signed_record = lambda *_arguments: True  # addresses come with a Hello
    # This module logs to the root logger, and `logging.debug` then configures the whole process.
    swarm_connection_module.logging = logging.getLogger("libp2p.network.connection")
    library = logging.getLogger("libp2p")
    library.handlers = [_OneLine(log)]
    library.propagate = False
    for name in ["libp2p", *logging.root.manager.loggerDict]:
        if name == "libp2p" or name.startswith("libp2p."):  # one of them forces itself to INFO
            logging.getLogger(name).setLevel(logging.ERROR)


class _OneLine(logging.Handler):
    """Passes libp2p's errors on as one line each: what matters of them we report ourselves."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on, without its traceback."""
        text = record.getMessage().partition("\n")[0]
        self._log.debug("libp2p", source=record.name, reason=text[:200])
