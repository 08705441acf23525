"""Routes about patients."""

import base64
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node.services import Services
from node.telemetry import Metrics
from node.web.answers import Fields, call, read_options, route
from protocol import limits
from protocol.errors import Refused


def patient_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the routes about patients."""

    async def register(request: Request) -> Response:
        fields = read_options(request)
        source = await _read_source(request)
        document = await services.patients.register(
            source or None,
            identifiers=fields.pairs("identifiers"),
            name=fields.optional_text("name"),
            birth_date=fields.optional_text("birth_date"),
        )
        return JSONResponse(document)

    async def patients(_request: Request) -> Response:
        return JSONResponse(await services.patients.list())

    async def prepare(fields: Fields) -> Mapping[str, Any]:
        prepared = await services.patients.prepare_handover(
            fields.text("patient"), passphrase=fields.data("passphrase")
        )
        wallet = prepared["wallet"]
        assert isinstance(wallet, bytes)
        return {**prepared, "wallet": base64.b64encode(wallet).decode()}

    async def complete(fields: Fields) -> Mapping[str, Any]:
        return await services.patients.complete_handover(fields.text("handover"), grant=fields.flag("grant"))

    return [
        route("/v1/patients", patients, metrics, method="GET"),
        route("/v1/patients", register, metrics),
        call("/v1/patients/handover/prepare", prepare, metrics),
        call("/v1/patients/handover/complete", complete, metrics),
    ]


async def _read_source(request: Request) -> bytes:
    source = bytearray()
    async for piece in request.stream():
        source += piece
        if len(source) > limits.SORTED_BYTES_MAX:
            raise Refused(
                f"the file is over {limits.SORTED_BYTES_MAX} bytes; give a smaller one with the Patient alone"
            )
    return bytes(source)
