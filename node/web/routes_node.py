"""Routes about the node itself: status; and what TCP shows: /healthz and /metrics."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node.services import Services
from node.telemetry import Metrics
from node.web.answers import route


def node_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the node's routes on the local socket."""

    async def status(_request: Request) -> Response:
        return JSONResponse(services.status.report())

    return [
        route("/v1/status", status, metrics, method="GET"),
    ]


def public_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return what stands on TCP: nothing about patients, and nothing that changes anything."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def figures(_request: Request) -> Response:
        return Response(
            metrics.render(services.status.report()), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return [
        route("/healthz", healthz, metrics, method="GET"),
        route("/metrics", figures, metrics, method="GET"),
    ]
