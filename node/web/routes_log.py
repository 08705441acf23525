"""Routes of the log: its newest checkpoint, for everybody; and add-checkpoint, where this node is a witness of logs.

Plain text in both directions, as C2SP tlog-checkpoint and tlog-witness say.
"""

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from node.log_witness import LogWitness
from node.services import Services
from node.telemetry import Metrics
from node.web.answers import closing, route
from protocol import limits
from protocol.errors import StorageFull, Unavailable
from protocol.log_witness import REQUEST_BYTES_MAX, SIZE_MEDIA_TYPE, Declined

_BODY_SECONDS_MAX = 10.0
_CONFLICT = 409


def checkpoint_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return what is public of the ledger: that it exists, how large it is, and who signs that."""

    async def checkpoint(_request: Request) -> Response:
        note = services.checkpoints.newest()
        if note is None:
            return PlainTextResponse("no checkpoint is signed yet\n", 503)
        return PlainTextResponse(note.encode(), headers={"cache-control": "no-store"})

    return [route("/checkpoint", checkpoint, metrics, method="GET")]


def checkpoint_report_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the route of `audit checkpoint` on the local socket."""

    async def report(request: Request) -> Response:
        return JSONResponse(services.checkpoints.report(witnessed="witnessed" in request.query_params))

    return [route("/v1/audit/checkpoint", report, metrics, method="GET")]


def witness_routes(witness: LogWitness, metrics: Metrics) -> list[Route]:
    """Return what a witness answers to the logs it knows, and to nobody else."""
    in_hand = trio.CapacityLimiter(limits.LOG_REQUESTS_MAX)

    async def add_checkpoint(request: Request) -> Response:
        try:
            in_hand.acquire_on_behalf_of_nowait(request)
        except trio.WouldBlock:
            return PlainTextResponse("not now\n", 503)
        try:
            return PlainTextResponse(await witness.add_checkpoint(await _body(request)))
        except Declined as refusal:
            if refusal.status == _CONFLICT:
                return Response(f"{refusal.size}\n", _CONFLICT, media_type=SIZE_MEDIA_TYPE)
            return PlainTextResponse(f"{refusal}\n", refusal.status)
        except (StorageFull, Unavailable):
            return PlainTextResponse("not now\n", 503)
        finally:
            in_hand.release_on_behalf_of(request)

    return [route("/add-checkpoint", add_checkpoint, metrics)]


async def _body(request: Request) -> bytes:
    """Return a request's body.

    Raises:
        Declined: 413, it is longer than any checkpoint; 408, it does not come.
    """
    body = bytearray()
    with trio.move_on_after(_BODY_SECONDS_MAX):
        async with closing(request.stream()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > REQUEST_BYTES_MAX:
                    raise Declined(413, f"a request of more than {REQUEST_BYTES_MAX} bytes")
        return bytes(body)
    raise Declined(408, "the request did not come in time")
