"""Routes about the members of the network: who they are, proposals, ballots."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node.membership_wish import Wish
from node.services import Services
from node.telemetry import Metrics
from node.web.answers import Fields, call, route


def member_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the routes about members."""

    async def listed(_request: Request) -> Response:
        return JSONResponse(services.members.members())

    async def propose(fields: Fields) -> Mapping[str, Any]:
        wish = Wish(
            fields.optional_text("name") or "",
            fields.optional_text("card"),
            fields.optional_text("role"),
            fields.flag("leaves"),
            fields.optional_number("min_b"),
        )
        return await services.members.propose(
            wish, expires_ms=fields.number("expires_ms"), accept_risk=fields.flag("accept_risk")
        )

    async def leave(fields: Fields) -> Mapping[str, Any]:
        return await services.members.leave(
            expires_ms=fields.number("expires_ms"), accept_risk=fields.flag("accept_risk")
        )

    async def rotate(fields: Fields) -> Mapping[str, Any]:
        return await services.members.rotate(fields.texts("keys"), expires_ms=fields.number("expires_ms"))

    async def vote(fields: Fields) -> Mapping[str, Any]:
        return await services.members.vote(
            fields.text("proposal"), is_yes=fields.flag("yes"), accept_risk=fields.flag("accept_risk")
        )

    async def withdraw(fields: Fields) -> Mapping[str, Any]:
        return await services.members.withdraw(fields.text("proposal"))

    async def ticket(fields: Fields) -> Mapping[str, Any]:
        return services.members.ticket(fields.text("facility"), expires_ms=fields.number("expires_ms"))

    return [
        route("/v1/members", listed, metrics, method="GET"),
        call("/v1/members/propose", propose, metrics),
        call("/v1/members/leave", leave, metrics),
        call("/v1/members/rotate", rotate, metrics),
        call("/v1/members/vote", vote, metrics),
        call("/v1/members/withdraw", withdraw, metrics),
        call("/v1/members/ticket", ticket, metrics),
    ]
