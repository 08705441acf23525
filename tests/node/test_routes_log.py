"""A witness on a real socket: what the wire may bring, and a log that pushes to it with the real client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import trio
from starlette.applications import Starlette

from node import http_client
from node.log_settings import OutsideWitness
from node.telemetry import Metrics
from node.web.routes_log import checkpoint_routes, witness_routes
from node.web.server import bind_http, serve_witness
from node.witness_client import WitnessClient
from protocol import limits
from protocol.checkpoint import SignedCheckpoint, parse_signatures
from protocol.errors import Unavailable
from protocol.log_witness import REQUEST_BYTES_MAX, SIZE_MEDIA_TYPE
from tests.node.ledger_double import LedgerDouble
from tests.node.log_house import OutsideHouse, order, signer_of
from tests.protocol import test_log_witness as requests


@asynccontextmanager
async def listening(outside: OutsideHouse) -> AsyncIterator[str]:
    with bind_http("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_witness, outside.witness, listener, Metrics())
            yield f"http://127.0.0.1:{port}"
            nursery.cancel_scope.cancel()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    outside = OutsideHouse()
    outside.logs = (requests.LOG,)
    async with listening(outside) as address:
        yield address


async def status_of(url: str, body: bytes) -> int:
    return (await http_client.post(f"{url}/add-checkpoint", body)).status


async def test_answers_are_those_of_the_specification(url: str) -> None:
    good = requests.request(0, 5)
    answer = await http_client.post(f"{url}/add-checkpoint", good.encode())
    assert (answer.status, answer.media_type) == (200, "text/plain")
    assert parse_signatures(answer.body.decode())
    conflict = await http_client.post(f"{url}/add-checkpoint", good.encode())
    assert (conflict.status, conflict.media_type, conflict.body) == (409, SIZE_MEDIA_TYPE, b"5\n")
    assert await status_of(url, requests.request(5, 8, requests.SIGNERS[:1]).encode()) == 403
    assert (
        await status_of(url, requests.request(5, 8).encode().replace(b"log.example/one", b"log.example/two"))
        == 404
    )
    assert (
        await status_of(
            url, requests.request(5, 8).encode().replace(b"old 5\n", b"old 5\n" + b"A" * 43 + b"=\n")
        )
        == 422
    )
    assert await status_of(url, requests.request(9, 8).encode()) == 400
    assert await status_of(url, b"") == 400
    assert await status_of(url, requests.request(5, 8).encode().replace(b"\n", b"\r\n")) == 400


async def test_a_body_longer_than_any_checkpoint_is_refused(url: str) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        response = await client.post(f"{url}/add-checkpoint", content=b"x" * (REQUEST_BYTES_MAX + 1))
    assert response.status_code == 413


async def test_nothing_else_is_answered(url: str) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        assert (await client.get(f"{url}/add-checkpoint")).status_code == 405
        for path in ("/", "/checkpoint", "/v1/status", "/metrics", "/healthz", "/add-checkpoint/"):
            assert (await client.get(f"{url}{path}", follow_redirects=True)).status_code in (404, 405)


async def test_a_log_has_its_checkpoints_cosigned_over_http() -> None:
    outside, ledger = OutsideHouse(), LedgerDouble(1)
    signer = signer_of(ledger, ledger.members[0], (outside.witness.key,))
    outside.trusts(signer)
    async with trio.open_nursery() as nursery, listening(outside) as address:
        client = WitnessClient(
            OutsideWitness(address, outside.witness.key),
            checkpoints=signer.checkpoints,
            tree=signer.tree,
            post=http_client.post,
            clock=ledger.clock,
            log=signer.member.log,
        )
        nursery.start_soon(ledger.run)
        while ledger.members[0].store.applied().height == 0:
            await trio.lowlevel.checkpoint()
        for numbers in ((1, 2, 3), (4,)):
            await order(ledger, *numbers)
            signer.checkpoints._due()
            assert signer.checkpoints._sign(signer.checkpoints._due())
            note = signer.checkpoints.newest()
            assert note is not None
            await client.push(note)
        nursery.cancel_scope.cancel()
    witnessed = signer.checkpoints.witnessed()
    assert witnessed is not None
    assert witnessed.checkpoint.size == 4
    assert SignedCheckpoint.parse(witnessed.encode()).signed_by([outside.witness.key])


async def test_nobody_there_and_no_address_are_unavailable() -> None:
    with bind_http("127.0.0.1:0") as unheard:
        port = unheard.getsockname()[1]
    for address in (f"http://127.0.0.1:{port}/add-checkpoint", "http://[::1/", "gopher://x/"):
        with pytest.raises(Unavailable):
            await http_client.post(address, b"")


@pytest.mark.parametrize("is_signed", [False, True])
async def test_the_newest_checkpoint_is_for_everybody_in_plain_text(is_signed: bool) -> None:
    note = requests.request(0, 5).note if is_signed else None
    services = cast("Any", SimpleNamespace(checkpoints=SimpleNamespace(newest=lambda: note)))
    app = Starlette(routes=checkpoint_routes(services, Metrics()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:
        answer = await client.get("/checkpoint")
        assert (await client.post("/checkpoint")).status_code == 405
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.status_code == (200 if is_signed else 503)
    assert note is None or answer.content == note.encode()


async def test_more_requests_than_can_be_held_are_put_off_at_once() -> None:
    outside = OutsideHouse()
    outside.logs = (requests.LOG,)
    app = Starlette(routes=witness_routes(outside.witness, Metrics()))
    statuses: list[int] = []
    come = trio.Event()

    async def slow() -> AsyncIterator[bytes]:
        await come.wait()
        yield requests.request(0, 5).encode()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:

        async def ask() -> None:
            statuses.append((await client.post("/add-checkpoint", content=slow())).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(limits.LOG_REQUESTS_MAX + 3):
                nursery.start_soon(ask)
            while len(statuses) < 3:
                await trio.sleep(0.01)
            assert statuses == [503] * 3
            come.set()
        assert sorted(statuses) == [200] + [409] * (limits.LOG_REQUESTS_MAX - 1) + [503] * 3
        statuses.clear()
        await ask()
        assert statuses == [409]
