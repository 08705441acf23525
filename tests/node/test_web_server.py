"""The local API on a real socket: streaming both ways, errors as sentences, nothing else on TCP."""

import base64
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from node.cli.client import OPTIONS_HEADER, Client
from node.home import Home
from protocol.errors import CarechainError, Forbidden, NotFinal, Refused, Unavailable
from tests.node.web_services import PIECE, RECORD, Calls, serving


@pytest.fixture
def home() -> Iterator[Home]:
    # Not tmp_path: its name is longer than a socket's may be on some machines.
    with TemporaryDirectory(dir="/tmp") as folder:
        place = Home(Path(folder) / "home")
        place.make()
        place.config.write_text("name = 'A'\n")
        yield place


def test_status_comes_back_as_the_service_reported_it(home: Home) -> None:
    calls = Calls()
    with serving(home, calls):
        assert Client(home).get("/v1/status") == calls.report()


def test_socket_is_for_its_owner_only_and_leaves_with_the_daemon(home: Home) -> None:
    with serving(home, Calls()):
        path = home.socket_path()
        assert path is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert home.socket_path() is None


def test_a_home_with_a_long_path_is_served_from_a_private_directory() -> None:
    with TemporaryDirectory(dir="/tmp") as folder:
        place = Home(Path(folder) / ("x" * 120))
        place.make()
        with serving(place, Calls()):
            path = place.socket_path()
            assert path is not None
            assert not path.is_relative_to(place.path)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert Client(place).get("/v1/status")["facility"] == "A"
        assert not path.parent.exists()
        assert not (place.path / "api.path").exists()


def test_a_socket_left_by_a_killed_daemon_is_taken_over(home: Home) -> None:
    with home.bound_socket() as left:
        os.link(home.path / "api.sock", home.path / "left")
        assert left.fileno() >= 0
    (home.path / "left").rename(home.path / "api.sock")
    with pytest.raises(Unavailable, match="no daemon is running"):
        Client(home).get("/v1/status")
    with serving(home, Calls()):
        assert Client(home).get("/v1/status")["height"] == 7


def test_upload_reaches_the_service_in_small_pieces(home: Home) -> None:
    calls = Calls()
    with serving(home, calls):
        answer = Client(home).upload("/v1/records", iter([bytes(1 << 20)] * 40), file_suffix=".bin")
    assert answer["records"][0]["record"] == RECORD
    assert calls.received == 40 << 20
    assert calls.largest_piece <= 1 << 20


def test_upload_refused_in_the_middle_says_why_at_once(home: Home) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(4096):
            sent += 1 << 20
            yield bytes(1 << 20)

    with serving(home, Calls()), pytest.raises(CarechainError, match="no patient matches"):
        Client(home).upload("/v1/records", endless(), patient="nobody")
    assert sent < 64 << 20


def test_an_upload_that_is_cut_off_is_never_taken_for_a_whole_one(home: Home) -> None:
    calls = Calls()
    with serving(home, calls), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(home.socket_path()))
        options = base64.b64encode(b'{"file_suffix": ".bin"}').decode()
        head = f"POST /v1/records HTTP/1.1\r\nHost: x\r\n{OPTIONS_HEADER}: {options}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"5\r\nhello\r\n")
        connection.close()
        assert calls.cut_off.wait(5)


def test_a_reader_who_goes_away_frees_the_record(home: Home) -> None:
    calls = Calls(pieces=400)
    with serving(home, calls):
        with Client(home).download("/v1/records/read", record="r", purpose="TREAT") as (_, body):
            assert next(body)
        assert calls.closed.wait(5)


def test_what_is_queued_carries_its_ids_and_records(home: Home) -> None:
    with serving(home, Calls()), pytest.raises(NotFinal) as raised:
        Client(home).upload("/v1/records", iter([b"x"]), patient="queued")
    assert raised.value.ids == (RECORD,)
    assert raised.value.details["records"][0]["state"] == "received"  # type: ignore[index]


def test_read_streams_the_body_with_its_information(home: Home) -> None:
    calls = Calls(pieces=64)
    with serving(home, calls):
        received = _read(home, "r")
    assert received == PIECE * 64
    assert calls.asked == [("read", ("r", "TREAT", None))]


def test_a_body_that_breaks_off_is_not_taken_for_its_end(home: Home) -> None:
    calls = Calls(pieces=8)
    calls.breaks_after = 4
    with serving(home, calls), pytest.raises(Unavailable, match="broke off"):
        _read(home, "r")


@pytest.mark.parametrize(
    ("record", "status", "sentence"),
    [
        ("hidden", 403, "this record is not open to this facility"),
        ("gone", 410, "the record was erased"),
        ("damaged", 500, "a chunk fails its check"),
        ("bug", 500, "internal error, see the daemon's log"),
    ],
)
def test_refusals_are_sentences_and_bugs_tell_nothing(
    home: Home, record: str, status: int, sentence: str
) -> None:
    with serving(home, Calls()), _raw(home) as client:
        answer = client.post("/v1/records/read", json={"record": record, "purpose": "TREAT"})
    assert (answer.status_code, answer.json()) == (status, {"error": sentence, "exit": 1})


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"record": 3}', b'{"record": "r"}', b"[" * 100_000])
def test_fields_of_another_shape_are_wrong_usage(home: Home, body: bytes) -> None:
    with serving(home, Calls()), _raw(home) as client:
        answer = client.post("/v1/records/read", content=body)
    assert answer.status_code == 400
    assert answer.json()["exit"] == 2


def test_full_disk_is_told_with_its_own_status(home: Home) -> None:
    with serving(home, Calls()), _raw(home) as client:
        answer = client.post(
            "/v1/records", content=b"x", headers={"carechain-options": "eyJwYXRpZW50IjogImZ1bGwifQ=="}
        )
    assert answer.status_code == 507


def test_verification_breaking_off_ends_with_its_reason(home: Home) -> None:
    calls = Calls()
    calls.breaks_after = 0
    with serving(home, calls), pytest.raises(CarechainError, match="stopping"):
        list(Client(home).lines("/v1/audit/verify", full=False))


def test_tcp_answers_health_and_figures_and_nothing_else(home: Home) -> None:
    with serving(home, Calls(), http="127.0.0.1:0") as listening:
        assert listening.http is not None
        with httpx.Client(base_url=listening.http, trust_env=False) as client:
            assert client.get("/healthz").json() == {"ok": True}
            figures = client.get("/metrics").text
            hidden = client.get("/v1/status").status_code
    assert "carechain_certified_height 6.0" in figures
    assert "carechain_peers_connected 1.0" in figures
    assert hidden == 404


def test_a_port_in_use_is_refused_in_one_sentence(home: Home) -> None:
    from node.web.server import bind_http  # noqa: PLC0415

    with serving(home, Calls(), http="127.0.0.1:0") as listening:
        assert listening.http is not None
        with pytest.raises(Refused, match="in use"):
            bind_http(listening.http.removeprefix("http://"))


def test_forbidden_reads_the_same_over_the_socket(home: Home) -> None:
    with serving(home, Calls()), pytest.raises(Forbidden) as raised:
        _read(home, "hidden")
    assert str(raised.value) == str(Forbidden("this record is not open to this facility"))


def _read(home: Home, record: str) -> bytes:
    with Client(home).download("/v1/records/read", record=record, purpose="TREAT") as (_, body):
        return b"".join(body)


def _raw(home: Home) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(home.socket_path())), base_url="http://test")
