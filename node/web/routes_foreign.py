"""Routes about other networks: following them, and what they need to follow us."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node.foreign import ForeignNetworks
from node.telemetry import Metrics
from node.web.answers import Fields, call, route


def foreign_routes(networks: ForeignNetworks, metrics: Metrics) -> list[Route]:
    """Return the routes of the noun `foreign`."""

    async def listed(_request: Request) -> Response:
        return JSONResponse(networks.networks())

    async def add(fields: Fields) -> Mapping[str, Any]:
        return await networks.add(fields.text("genesis"), fields.text("policy"))

    async def update(fields: Fields) -> Mapping[str, Any]:
        return await networks.update(fields.data("update"))

    async def confirm(fields: Fields) -> Mapping[str, Any]:
        return await networks.confirm(fields.text("network"), fields.text("hash"))

    return [
        route("/v1/foreign", listed, metrics, method="GET"),
        call("/v1/foreign/add", add, metrics),
        call("/v1/foreign/update", update, metrics),
        call("/v1/foreign/confirm", confirm, metrics),
    ]
