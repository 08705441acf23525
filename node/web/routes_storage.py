"""Routes about stored chunks: their figures, and the long calls that read, repair and give back."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node.services import Services
from node.telemetry import Metrics
from node.web.answers import BodyStream, Fields, lines, read_fields, route


def storage_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the routes of the noun `storage`."""

    async def figures(_request: Request) -> Response:
        return JSONResponse(await services.storage.figures())

    def scrub(fields: Fields) -> AsyncIterator[Mapping[str, Any]]:
        rate = None if fields.values.get("rate") is None else fields.number("rate")
        return services.storage.scrub(rate=rate)

    def repair(_fields: Fields) -> AsyncIterator[Mapping[str, Any]]:
        return services.storage.repair()

    def reclaim(_fields: Fields) -> AsyncIterator[Mapping[str, Any]]:
        return services.storage.reclaim()

    return [
        route("/v1/storage", figures, metrics, method="GET"),
        _followed("/v1/storage/scrub", scrub, metrics),
        _followed("/v1/storage/repair", repair, metrics),
        _followed("/v1/storage/reclaim", reclaim, metrics),
    ]


def _followed(
    path: str, begin: Callable[[Fields], AsyncIterator[Mapping[str, Any]]], metrics: Metrics
) -> Route:
    """Return a route that answers with a line for each step of a long call."""

    async def endpoint(request: Request) -> Response:
        fields = await read_fields(request)
        return BodyStream(lines(begin(fields), path), media_type="application/x-ndjson")

    return route(path, endpoint, metrics)
