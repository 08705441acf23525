"""Routes for going on after the loss of a majority."""

from collections.abc import Mapping
from typing import Any

from starlette.routing import Route

from node.services import Services
from node.telemetry import Metrics
from node.web.answers import Fields, call


def recovery_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the routes of `carechain recover`; files travel as their text."""
    recovery = services.recovery

    async def collect(fields: Fields) -> Mapping[str, Any]:
        return await recovery.collect(fields.texts("files"), freeze=fields.flag("freeze"))

    async def propose(fields: Fields) -> Mapping[str, Any]:
        return recovery.propose(
            fields.texts("files"),
            lost=fields.texts("lost"),
            gone=fields.texts("gone"),
            cards=fields.texts("cards"),
            reason=fields.text("reason"),
        )

    async def sign(fields: Fields) -> Mapping[str, Any]:
        return recovery.sign(fields.text("plan"), instead_of=fields.optional_text("instead_of"))

    async def apply(fields: Fields) -> Mapping[str, Any]:
        return await recovery.apply(fields.text("plan"), fields.texts("consents"))

    async def cancel(_fields: Fields) -> Mapping[str, Any]:
        return await recovery.cancel()

    return [
        call("/v1/recovery/collect", collect, metrics),
        call("/v1/recovery/propose", propose, metrics),
        call("/v1/recovery/sign", sign, metrics),
        call("/v1/recovery/apply", apply, metrics),
        call("/v1/recovery/cancel", cancel, metrics),
    ]
