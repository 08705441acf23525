"""Routes about consent and its audit."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from node.services import Services
from node.telemetry import Metrics
from node.web.answers import BodyStream, Fields, call, closing, failure, read_fields, route


def consent_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the routes about grants."""

    async def grant(fields: Fields) -> Mapping[str, Any]:
        return await services.consent.grant(
            patient=fields.text("patient"),
            to=fields.text("to"),
            categories=fields.texts("categories"),
            purposes=fields.texts("purposes"),
            expires_ms=fields.number("expires_ms"),
            write=fields.flag("write"),
            wallet=fields.wallet(),
        )

    async def listed(fields: Fields) -> Mapping[str, Any]:
        return await services.consent.list(fields.text("patient"), wallet=fields.wallet())

    async def revoke(fields: Fields) -> Mapping[str, Any]:
        return await services.consent.revoke(fields.text("grant"), wallet=fields.wallet())

    return [
        call("/v1/consent/grant", grant, metrics),
        call("/v1/consent/list", listed, metrics),
        call("/v1/consent/revoke", revoke, metrics),
    ]


def audit_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the routes about the audit of accesses and of the ledger itself."""

    async def log(fields: Fields) -> Mapping[str, Any]:
        return await services.audit.log(fields.text("patient"), wallet=fields.wallet())

    async def verify(request: Request) -> Response:
        fields = await read_fields(request)
        return BodyStream(
            _lines(services.audit.verify(full=fields.flag("full"))), media_type="application/x-ndjson"
        )

    return [call("/v1/audit/log", log, metrics), route("/v1/audit/verify", verify, metrics)]


async def _lines(documents: AsyncIterator[Mapping[str, Any]]) -> AsyncGenerator[bytes, None]:
    """Write each document as a line; an error on the way becomes the last line, for the status has been sent."""
    async with closing(documents):
        try:
            async for document in documents:
                yield json.dumps(document).encode() + b"\n"
        except Exception as error:  # noqa: BLE001  (told to the caller as the answer's last line)
            yield bytes(failure(error, "/v1/audit/verify").body) + b"\n"
