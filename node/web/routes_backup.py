"""Routes about backups. The file is sealed before it reaches the socket."""

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node.services import Services
from node.telemetry import Metrics
from node.web.answers import BodyStream, closing, failure, read_fields, route

if TYPE_CHECKING:
    # The backup reaches consensus and storage; the routes need its name only.
    from node.backup import Backup, BackupStream

_PATH = "/v1/backup"


def backup_routes(services: Services, metrics: Metrics) -> list[Route]:
    """Return the routes about backups and the key they are sealed to."""

    async def backup(request: Request) -> Response:
        fields = await read_fields(request)
        stream = await services.backup.begin(with_payloads=fields.flag("with_payloads"))
        return BodyStream(_parts(services.backup, stream), media_type="application/octet-stream")

    async def recovery_key(request: Request) -> Response:
        fields = await read_fields(request)
        await services.backup.set_recovery_key(fields.data("public"), fields.optional_text("passphrase"))
        return JSONResponse({})

    return [
        route(_PATH, backup, metrics),
        route("/v1/recovery-key", recovery_key, metrics),
    ]


async def _parts(backup: "Backup", stream: "BackupStream") -> AsyncGenerator[bytes, None]:
    """Write each piece behind a line of JSON with its `bytes`; a summary, or the error that ended it, is the last line."""
    yield _line({"bytes": 0, "total": stream.total})
    try:
        async with closing(backup.pieces(stream)) as pieces:
            async for piece in pieces:
                yield _line({"bytes": len(piece)})
                yield piece
        yield _line({"bytes": 0, "summary": stream.summary()})
    except Exception as error:  # noqa: BLE001  (told to the caller as the answer's last line)
        yield bytes(failure(error, _PATH).body) + b"\n"


def _line(document: dict[str, object]) -> bytes:
    return json.dumps(document).encode() + b"\n"
