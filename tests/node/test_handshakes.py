"""What a stranger can make us do before it has proved who it is."""

from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.pb import crypto_pb2
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.messages import NoiseHandshakePayload

from node.handshakes import HalfOpenHandshakes, Rates, bound_handshakes, origin
from protocol import limits
from tests.node.hostile import attacker, ended, tcp
from tests.node.test_libp2p_hostile import MEMBER_SEED, Scene, varint
from tests.node.transports import NODES, connected_pair, eventually


class Line:
    """Bytes of a peer that are read, and how many were asked for at once at most."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.most = 0

    async def read(self, size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.most = max(self.most, size)
        taken, self.data = self.data[:size], self.data[size:]
        return taken


async def name_in(line: Line) -> str:
    bound_handshakes()
    return str(await MultiselectCommunicator(line).read())


async def test_a_protocol_name_is_read() -> None:
    assert await name_in(Line(b"\x07/noise\nand more")) == "/noise"


@pytest.mark.parametrize(
    "announced", [b"\x81\x08", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\x00"], ids=len
)
async def test_a_protocol_name_of_any_length_is_not_read(announced: bytes) -> None:
    """Stock takes the length at its word, of a stranger too: four connections took 315 MiB in four seconds."""
    line = Line(announced + bytes(4_096))
    with pytest.raises(MultiselectCommunicatorError):
        await name_in(line)
    assert line.most == 1
    assert len(line.data) == 4_096


def test_only_ed25519_keys_are_looked_at() -> None:
    """To refuse an RSA key of 30 KB took three seconds of processor time, before anything was proved."""
    bound_handshakes()
    ours = create_new_key_pair(bytes(32)).public_key
    assert (
        NoiseHandshakePayload.deserialize(NoiseHandshakePayload(ours, b"sig").serialize()).id_pubkey == ours
    )
    for kind in (crypto_pb2.KeyType.RSA, crypto_pb2.KeyType.Secp256k1, crypto_pb2.KeyType.ECDSA):
        key = crypto_pb2.PublicKey(key_type=kind, data=b"\x30\x82" + bytes(60_000)).SerializeToString()
        payload = NoiseHandshakePayload(ours, b"sig").serialize()
        own = ours.serialize()
        # The key is the first field: tag, length, bytes.
        hostile = payload.replace(b"\x0a" + bytes([len(own)]) + own, b"\x0a" + varint(len(key)) + key, 1)
        with pytest.raises(ValueError, match="public key"):
            NoiseHandshakePayload.deserialize(hostile)


async def test_the_oldest_half_open_handshake_of_an_address_gives_way() -> None:
    half_open = HalfOpenHandshakes()
    scopes = [trio.CancelScope() for _ in range(limits.HALF_OPEN_PER_ADDRESS_MAX + 2)]
    other = trio.CancelScope()
    half_open.admit(-1, "192.0.2.9", other)
    for key, scope in enumerate(scopes):
        half_open.admit(key, "192.0.2.7", scope)
    assert [scope.cancel_called for scope in scopes] == [True, True] + [
        False
    ] * limits.HALF_OPEN_PER_ADDRESS_MAX
    assert not other.cancel_called
    assert len(half_open) == limits.HALF_OPEN_PER_ADDRESS_MAX + 1


def test_half_open_handshakes_are_bounded_over_all_addresses() -> None:
    half_open = HalfOpenHandshakes()
    for key in range(2 * limits.HALF_OPEN_MAX):
        half_open.admit(key, f"192.0.2.{key % 256}/{key}", trio.CancelScope())
    assert len(half_open) == limits.HALF_OPEN_MAX
    half_open.release(2 * limits.HALF_OPEN_MAX - 1)
    assert len(half_open) == limits.HALF_OPEN_MAX - 1


@given(waits=st.lists(st.floats(min_value=0, max_value=3), max_size=60))
def test_no_address_is_served_more_often_than_its_rate(waits: list[float]) -> None:
    rates, now, served = Rates(burst=5, per_s=2, remembered=4), 0.0, 0
    for wait in waits:
        now += wait
        served += rates.take("one", now)
    assert served <= 5 + 2 * now + 1e-6
    assert served == len(waits) or served > 4
    assert rates.take("another", now), "each has its own"


def test_the_addresses_that_are_counted_are_bounded() -> None:
    rates = Rates(burst=1, per_s=0, remembered=3)
    assert [rates.take(whom, 0) for whom in "abcda"] == [True] * 5
    assert len(rates) == 3
    assert not rates.take("d", 0)


@pytest.mark.parametrize(
    ("address", "counted_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_who_has_a_network_of_addresses_is_counted_once(address: str, counted_as: str) -> None:
    assert origin(address) == counted_as


# --- between real sockets ---------------------------------------------------------------------------------------------


@pytest.fixture
async def scene(tmp_path: Path) -> Any:
    async with connected_pair(tmp_path) as (honest, victim):
        yield Scene(victim, honest)


async def test_a_flood_of_connections_from_one_address_is_closed_unread(scene: Scene) -> None:
    network = scene.victim._host.get_network()
    # A slow machine must not give back what the flood has spent.
    network.handshake_rates._per_s = 0
    flood = limits.HANDSHAKES_PER_ADDRESS_BURST + 10
    for _ in range(flood):
        async with await tcp(scene.victim):
            pass
    await eventually(lambda: scene.victim.counters["refused_handshakes"] >= 10)
    async with await tcp(scene.victim) as stream:
        assert await ended(stream)
    assert len(network.half_open_handshakes) <= limits.HALF_OPEN_PER_ADDRESS_MAX
    await scene.assert_unharmed()


async def test_one_member_cannot_take_the_places_of_all(scene: Scene) -> None:
    async with attacker(MEMBER_SEED) as hostile:
        # Held open on the victim's side, too: what it has closed is counted no more.
        _ignore_new_connections(scene)
        for _ in range(limits.CONNECTIONS_PER_PEER_MAX):
            await hostile.connect(scene.victim)
        with pytest.raises(Exception, match="failed"):
            await hostile.connect(scene.victim)
        assert scene.victim.counters["refused_connections"] == 1
        held = scene.victim._host.get_network().connections
        assert sum(len(some) for peer, some in held.items() if peer.to_bytes()[6:] == NODES[2]) <= (
            limits.CONNECTIONS_PER_PEER_MAX
        )
    await scene.assert_unharmed()


def _ignore_new_connections(scene: Scene) -> None:
    for notifee in scene.victim._host.get_network().notifees:
        if hasattr(notifee, "_connected"):
            notifee._connected = lambda _connection: None
