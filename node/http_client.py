"""Bounded HTTP requests to services outside the network."""

from dataclasses import dataclass

import httpx
import trio

from protocol.errors import Unavailable

_SECONDS_MAX = 10.0
_ANSWER_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered. `media_type` is without parameters."""

    status: int
    media_type: str
    body: bytes


async def post(url: str, body: bytes) -> Answer:
    """Send a body, once and without following redirections; return the answer.

    Raises:
        Unavailable: no answer in time, none that is HTTP, or too long a one.
    """
    try:
        with trio.fail_after(_SECONDS_MAX):
            async with (
                httpx.AsyncClient(timeout=_SECONDS_MAX) as client,
                client.stream("POST", url, content=body, headers={"content-type": "text/plain"}) as response,
            ):
                received = bytearray()
                async for piece in response.aiter_bytes():
                    received += piece
                    if len(received) > _ANSWER_BYTES_MAX:
                        raise Unavailable("the answer is too long")
                media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                return Answer(response.status_code, media_type, bytes(received))
    except trio.TooSlowError:
        raise Unavailable(f"no answer within {_SECONDS_MAX:.0f} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"no answer ({type(error).__name__})") from None
