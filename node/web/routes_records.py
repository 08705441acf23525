"""Routes about records. Bodies are streamed in both directions and stand in memory one piece at a time."""

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node.services import Services
from node.small_files import BODY_BYTES_MAX, decode_files
from node.telemetry import Metrics
from node.web.answers import (
    INFO_HEADER,
    BodyStream,
    Fields,
    call,
    closing,
    failure,
    read_fields,
    read_options,
    route,
)
from protocol.errors import Refused

if TYPE_CHECKING:
    # The query reaches consensus and storage; the routes need its name only.
    from node.query import Opened


def record_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the routes about records."""

    async def add(request: Request) -> Response:
        fields = read_options(request)
        document = await services.ingest.add(
            _nonempty(request.stream()),
            patient=fields.optional_text("patient"),
            category=fields.optional_text("category"),
            media_type=fields.optional_text("media_type"),
            file_suffix=fields.optional_text("file_suffix") or "",
            force=fields.flag("force"),
        )
        return JSONResponse(document)

    async def add_many(request: Request) -> Response:
        fields = read_options(request)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_BYTES_MAX:
                raise Refused(
                    f"small files are added together up to {BODY_BYTES_MAX} bytes; send fewer of them"
                )
        document = await services.ingest.add_many(
            decode_files(bytes(body)),
            patient=fields.optional_text("patient"),
            category=fields.optional_text("category"),
            force=fields.flag("force"),
        )
        return JSONResponse(document)

    async def listed(fields: Fields) -> Mapping[str, Any]:
        return await services.query.list(fields.text("patient"))

    async def status(fields: Fields) -> Mapping[str, Any]:
        return await services.query.status(fields.text("record"))

    async def erase(fields: Fields) -> Mapping[str, Any]:
        return await services.erasures.erase(
            fields.text("record"),
            only=fields.flag("only"),
            listed=fields.texts("listed"),
            wallet=fields.wallet(),
        )

    async def read(request: Request) -> Response:
        fields = await read_fields(request)
        info, stream = await services.query.read(
            fields.text("record"),
            purpose=fields.text("purpose"),
            user=fields.optional_text("user"),
            start=max(0, fields.number("start")) if "start" in fields.values else 0,
        )
        headers = {INFO_HEADER: base64.b64encode(json.dumps(info).encode()).decode()}
        return BodyStream(_logged(stream), media_type="application/octet-stream", headers=headers)

    async def export(request: Request) -> Response:
        fields = await read_fields(request)
        records = services.query.export(
            fields.text("patient"), purpose=fields.text("purpose"), user=fields.optional_text("user")
        )
        # The first is fetched before the status is sent, so that a refusal has its own.
        first = await anext(records, None)
        return BodyStream(_parts(first, records), media_type="application/octet-stream")

    return [
        route("/v1/records", add, metrics),
        route("/v1/records/many", add_many, metrics),
        route("/v1/records/export", export, metrics),
        call("/v1/records/list", listed, metrics),
        call("/v1/records/status", status, metrics),
        call("/v1/records/erase", erase, metrics),
        route("/v1/records/read", read, metrics),
    ]


async def _parts(first: "Opened | None", others: "AsyncIterator[Opened]") -> AsyncGenerator[bytes, None]:
    """Write each record as a line of JSON followed by its `bytes`; an error between two becomes the last line."""
    async with closing(others):
        try:
            opened = first
            while opened is not None:
                info, stream = opened
                yield json.dumps(info).encode() + b"\n"
                async with aclosing(_logged(stream)) as body:
                    async for piece in body:
                        yield piece
                opened = await anext(others, None)
        except Exception as error:  # noqa: BLE001  (told as the last line; inside a body it cuts that short)
            yield bytes(failure(error, "/v1/records/export").body) + b"\n"


async def _nonempty(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Leave out the empty piece that ends a request's body."""
    async for piece in stream:
        if piece:
            yield piece


async def _logged(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Pass a body on. When it breaks, say so in the log; the client sees that the body has no end."""
    try:
        async with closing(stream):
            async for piece in stream:
                yield piece
    except Exception as error:
        structlog.get_logger().error("a record's body broke off", route="/v1/records/read", exc_info=error)
        raise
