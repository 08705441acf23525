"""How a route's result, or its refusal, becomes an HTTP answer; and how a request's fields are read and checked.

| error | status | exit code of the command |
|---|---|---|
| Refused | 422 | 1 |
| Forbidden | 403 | 1 |
| Erased | 410 | 1 |
| NotFinal | 202, with `ids` and `details` | 3 |
| StorageFull | 507 | 1 |
| Unavailable | 503 | 1 |
| RemoteFault | 502 | 1 |
| Corruption, anything else | 500 | 1 |
| a field missing or of another type | 400 | 2 |
"""

import base64
import binascii
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from node.sealed_wallet import SealedWallet
from node.telemetry import Metrics
from protocol import limits
from protocol.errors import (
    CarechainError,
    Erased,
    Forbidden,
    NotFinal,
    Refused,
    RemoteFault,
    StorageFull,
    Unavailable,
)

T = TypeVar("T")

JSON_BODY_BYTES_MAX = 4 * limits.MIB
"""The largest is a wallet file (some KiB) in base64."""
_CALLER_GONE = 499
"""Only counted, never sent; the number is the one that other servers use for it."""
OPTIONS_HEADER = "carechain-options"
INFO_HEADER = "carechain-info"

# The first that fits decides; subclasses stand before their bases.
_STATUS: tuple[tuple[type[CarechainError], int], ...] = (
    (NotFinal, 202),
    (StorageFull, 507),
    (Unavailable, 503),
    (Forbidden, 403),
    (Erased, 410),
    (Refused, 422),
    (RemoteFault, 502),
    (CarechainError, 500),
)


class WrongUsage(Exception):
    """A request's fields are not what the route takes: the caller is of another version, or not our client."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one request: a JSON object of which nothing is known yet. Readers raise WrongUsage."""

    # Any: JSON as a caller sent it; every reader below checks the type it returns.
    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return a text."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise WrongUsage(f"the field '{name}' is missing or not a text")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a text, or None when it is absent."""
        return None if self.values.get(name) is None else self.text(name)

    def texts(self, name: str) -> list[str]:
        """Return a list of texts; empty when it is absent."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise WrongUsage(f"the field '{name}' is not a list of texts")
        return value

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """Return a list of pairs of texts; empty when it is absent."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(
            isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item)
            for item in value
        ):
            raise WrongUsage(f"the field '{name}' is not a list of pairs")
        return [(first, second) for first, second in value]

    def flag(self, name: str) -> bool:
        """Return a truth value; false when it is absent."""
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise WrongUsage(f"the field '{name}' is not true or false")
        return value

    def number(self, name: str) -> int:
        """Return an integer."""
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise WrongUsage(f"the field '{name}' is missing or not a whole number")
        return value

    def optional_number(self, name: str) -> int | None:
        """Return an integer, or None when it is absent."""
        return None if self.values.get(name) is None else self.number(name)

    def data(self, name: str) -> bytes:
        """Return bytes that travel as base64."""
        try:
            return base64.b64decode(self.text(name), validate=True)
        except (binascii.Error, ValueError):
            raise WrongUsage(f"the field '{name}' is not base64") from None

    def wallet(self) -> SealedWallet | None:
        """Return the wallet that comes with the call, or None."""
        if self.values.get("wallet") is None:
            return None
        return SealedWallet(self.data("wallet"), self.data("wallet_passphrase"))


Endpoint = Callable[[Request], Awaitable[Response]]
Answer = Callable[[Fields], Awaitable[Mapping[str, Any]]]


def route(path: str, endpoint: Endpoint, metrics: Metrics, *, method: str = "POST") -> Route:
    """Return a route whose every error becomes an answer of the table above; nothing reaches the server's own handler."""

    async def guarded(request: Request) -> Response:
        try:
            response = await endpoint(request)
        except ClientDisconnect:
            # Nobody is left to answer; what the service had begun, it has dropped.
            response = Response(status_code=_CALLER_GONE)
        except Exception as error:  # noqa: BLE001  (an unexpected error costs one answer, never the daemon)
            response = failure(error, path)
        metrics.count_request(path, response.status_code)
        return response

    return Route(path, guarded, methods=[method])


def call(path: str, answer: Answer, metrics: Metrics) -> Route:
    """Return a route that reads a JSON object and answers with the document of one service call."""

    async def endpoint(request: Request) -> Response:
        return JSONResponse(await answer(await read_fields(request)))

    return route(path, endpoint, metrics)


def failure(error: Exception, path: str) -> JSONResponse:
    """Return the answer for an error; an unexpected one is logged without its message and told without detail."""
    if isinstance(error, WrongUsage):
        return JSONResponse({"error": str(error), "exit": 2}, status_code=400)
    if isinstance(error, NotFinal):
        document = {"error": str(error), "exit": 3, "ids": list(error.ids), "details": error.details}
        return JSONResponse(document, status_code=202)
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return JSONResponse({"error": str(error), "exit": 1}, status_code=status)
    structlog.get_logger().error("a call failed unexpectedly", route=path, exc_info=error)
    return JSONResponse({"error": "internal error, see the daemon's log", "exit": 1}, status_code=500)


class BodyStream(StreamingResponse):
    """An answer written piece by piece, whose source is closed at once when the caller goes away."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(pieces, media_type=media_type, headers=headers)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        async with aclosing(self._pieces):
            await super().__call__(scope, receive, send)


async def lines(documents: AsyncIterator[Mapping[str, Any]], path: str) -> AsyncGenerator[bytes, None]:
    """Write each document as a line; an error on the way becomes the last line, for the status has been sent."""
    async with closing(documents):
        try:
            async for document in documents:
                yield json.dumps(document).encode() + b"\n"
        except Exception as error:  # noqa: BLE001  (told to the caller as the answer's last line)
            yield bytes(failure(error, path).body) + b"\n"


def closing(source: AsyncIterator[T]) -> AbstractAsyncContextManager[AsyncIterator[T]]:
    """Return a context that closes `source` at its end if it is a generator; left alone, one is closed only some day."""
    return aclosing(source) if isinstance(source, AsyncGenerator) else nullcontext(source)


async def read_fields(request: Request) -> Fields:
    """Return the JSON object in a request's body.

    Raises:
        WrongUsage: too large, not JSON, or not an object.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > JSON_BODY_BYTES_MAX:
            raise WrongUsage(f"a request of more than {JSON_BODY_BYTES_MAX} bytes")
    return _fields(bytes(body))


def read_options(request: Request) -> Fields:
    """Return the JSON object in the options header, beside a body that is a document.

    Raises:
        WrongUsage: missing or not a JSON object in base64.
    """
    try:
        data = base64.b64decode(request.headers.get(OPTIONS_HEADER, ""), validate=True)
    except (binascii.Error, ValueError):
        raise WrongUsage("the options of the request are not base64") from None
    return _fields(data)


def _fields(data: bytes) -> Fields:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise WrongUsage("the request is not JSON") from None
    if not isinstance(values, dict):
        raise WrongUsage("the request is not a JSON object")
    return Fields(values)
