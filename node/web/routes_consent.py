"""Routes about consent and its audit."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from node.services import Services
from node.telemetry import Metrics
from node.web.answers import BodyStream, Fields, call, lines, read_fields, route


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
        documents = services.audit.verify(full=fields.flag("full"))
        return BodyStream(lines(documents, "/v1/audit/verify"), media_type="application/x-ndjson")

    return [call("/v1/audit/log", log, metrics), route("/v1/audit/verify", verify, metrics)]
