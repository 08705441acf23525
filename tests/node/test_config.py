"""config.toml: what is written is read back, and what cannot be used is refused in one sentence."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import config
from node.config import Config
from protocol.errors import Refused

NAMES = st.text(min_size=1, max_size=64).filter(lambda text: text == text.strip() and text.isprintable())
ADDRESSES = st.lists(
    st.sampled_from(["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/0", "/dns4/a.example/tcp/65535"]),
    min_size=1,
    max_size=3,
).map(tuple)


@given(
    name=NAMES,
    kind=st.sampled_from(["hospital", "clinic", "lab", "insurer", "regulator", "patient"]),
    role=st.sampled_from(["voter", "witness", "observer"]),
    addresses=ADDRESSES,
    http=st.sampled_from([None, "127.0.0.1:8080", "[::1]:0"]),
    history=st.sampled_from(["full", "sampled"]),
    blocks=st.sampled_from([1, 1_000, 1_000_000]),
    quota=st.integers(0, 2**50),
)
def test_rendered_configuration_parses_to_the_same(
    name, kind, role, addresses, http, history, blocks, quota
) -> None:
    written = Config(
        name, kind, role, addresses, addresses, addresses, http, history, blocks, storage_quota_bytes=quota
    )
    assert config.parse(config.render(written)) == written


@given(st.text())
def test_any_text_is_a_configuration_or_one_sentence(text: str) -> None:
    sentence = ""
    try:
        assert config.parse(text).name
    except Refused as refusal:
        sentence = str(refusal)
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "text",
    [
        "name = 'A'\nname = 'B'",
        "name = 3",
        "kind = 'clinic'",
        "name = 'A'\nrole = 'leader'",
        "name = 'A'\nlisten = '/ip4/0.0.0.0/tcp/0'",
        "name = 'A'\nlisten = []",
        "name = 'A'\nhttp = '8080'",
        "name = 'A'\nhistory = 'none'",
        "name = 'A'\nsnapshot_blocks = 0",
        "name = 'A'\nsnapshot_blocks = 1.5",
        "name = 'A'\nsnapshot_blocks = true",
        "name = 'A'\nstorage_quota_bytes = -1",
        "name = 'A'\nstorage_quota_bytes = '1G'",
        "name = 'A'\nlistne = ['/ip4/0.0.0.0/tcp/0']",
        "name = ''",
        "name = 'A\tB'",
    ],
)
def test_a_wrong_setting_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        config.parse(text)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1/udp/4001",
        "/ip4/300.0.0.1/tcp/1",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip6/1.2.3.4/tcp/1",
        "/dns4/-a/tcp/1",
        "/ip4/1.2.3.4/tcp/1/p2p/Qm",
        "/ip4/1.2.3.4/tcp/1/p2p",
        "/ip4/1.2.3.4/tcp/１",
    ],
)
def test_what_is_no_tcp_multiaddr_is_refused(address: str) -> None:
    with pytest.raises(Refused):
        config.check_multiaddr(address)


def test_a_multiaddr_may_end_with_a_peer_id() -> None:
    address = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWKYoCA8bUGspB1ncpaN7MZkMSFMLU677hY2tmv1ApJk2E"
    config.check_multiaddr(address)
    with pytest.raises(Refused):
        config.check_multiaddr(address + "x")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\0" * 10, b"name = 'A'\n" + b"#" * config.CONFIG_BYTES_MAX])
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(data)
    with pytest.raises(Refused):
        config.load(tmp_path / "config.toml")


def test_a_card_shows_only_addresses_that_can_be_dialled() -> None:
    listening = Config(
        "A",
        listen=("/ip4/0.0.0.0/tcp/0", "/ip4/192.0.2.1/tcp/0", "/ip4/0.0.0.0/tcp/9", "/ip4/192.0.2.1/tcp/9"),
    )
    assert listening.card_addresses() == ("/ip4/192.0.2.1/tcp/9",)
    assert Config("A", announce=("/dns4/a.example/tcp/9",)).card_addresses() == ("/dns4/a.example/tcp/9",)
