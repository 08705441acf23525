"""Starlette on Hypercorn's trio worker: the record API on the home's socket, /healthz, /metrics and /checkpoint on TCP if configured."""

import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import hypercorn.config
import hypercorn.trio
import hypercorn.trio.tcp_server
import trio
from starlette.applications import Starlette

from node.config import host_and_port
from node.home import Home
from node.log_witness import LogWitness
from node.services import Services
from node.telemetry import Metrics
from node.web.routes_backup import backup_routes
from node.web.routes_consent import audit_routes, consent_routes
from node.web.routes_foreign import foreign_routes
from node.web.routes_log import checkpoint_report_routes, checkpoint_routes, witness_routes
from node.web.routes_members import member_routes
from node.web.routes_node import node_routes, public_routes
from node.web.routes_patients import patient_routes
from node.web.routes_receipts import receipt_routes
from node.web.routes_records import record_routes
from node.web.routes_recovery import recovery_routes
from node.web.routes_storage import storage_routes
from protocol import limits
from protocol.errors import Refused

if TYPE_CHECKING:
    # libp2p brings these stubs of trio along, and type checkers prefer them to trio's own annotations.
    from trio_typing import TaskStatus

KEEP_ALIVE_SECONDS = 5
BACKLOG = 64
RECEIVED_BYTES = 256 * limits.KIB
"""Read from a socket at once, more than it holds. Stock takes 64 KiB: a large record then costs an eighth more to take in."""
WITNESS_READ_SECONDS = 10
"""Between two pieces of a request from strangers; the local socket's callers may take their time."""


hypercorn.trio.tcp_server.MAX_RECV = RECEIVED_BYTES


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the daemon answers. `http` is None without TCP; its port is the real one."""

    http: str | None


def api(services: Services, metrics: Metrics) -> Starlette:
    """Return the record API."""
    return Starlette(
        routes=[
            *node_routes(services, metrics),
            *member_routes(services, metrics),
            *recovery_routes(services, metrics),
            *patient_routes(services, metrics),
            *record_routes(services, metrics),
            *consent_routes(services, metrics),
            *audit_routes(services, metrics),
            *receipt_routes(services.receipts, services.updates, metrics),
            *checkpoint_report_routes(services, metrics),
            *foreign_routes(services.foreign, metrics),
            *backup_routes(services, metrics),
            *storage_routes(services, metrics),
        ]
    )


def bind_http(address: str) -> socket.socket:
    """Bind `HOST:PORT` for HTTP.

    Raises:
        Refused: the port is in use, or not ours to use.
    """
    host, port = host_and_port(address)
    try:
        family, kind, protocol, _, resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            # A restarted daemon must not wait for old connections to time out.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(resolved)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        reason = (
            "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or "unknown host")
        )
        raise Refused(
            f"cannot answer HTTP on {address}: {reason}; change http in config.toml or stop the other program"
        ) from None
    return listener


async def serve_api(
    services: Services,
    home: Home,
    http: socket.socket | None = None,
    *,
    metrics: Metrics,
    task_status: "TaskStatus[Listening]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, which cuts calls in progress: repeating one is always safe. Reports once every socket listens.

    `http` is what `bind_http` returned: bound early, so that a port in use ends the start at once.
    """
    with home.bound_socket() as local:
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve, api(services, metrics), local.dup())
            address = None
            if http is not None:
                host, port = http.getsockname()[:2]
                address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                routes = [*public_routes(services, metrics), *checkpoint_routes(services, metrics)]
                await nursery.start(_serve, Starlette(routes=routes), http)
            task_status.started(Listening(address))


async def serve_witness(
    witness: LogWitness,
    listener: socket.socket,
    metrics: Metrics,
    *,
    task_status: "TaskStatus[list[str]]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer add-checkpoint until cancelled: on an address of its own, because logs outside the facility call it."""
    app = Starlette(routes=witness_routes(witness, metrics))
    await _serve(app, listener, read_seconds=WITNESS_READ_SECONDS, task_status=task_status)


async def _serve(
    app: Starlette,
    listener: socket.socket,
    *,
    read_seconds: int | None = None,
    task_status: "TaskStatus[list[str]]" = trio.TASK_STATUS_IGNORED,
) -> None:
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.backlog = BACKLOG
    # Access lines would hold paths, and error lines tracebacks with data: routes log for themselves.
    config.accesslog = config.errorlog = None
    config.include_server_header = config.include_date_header = False
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.read_timeout = read_seconds
    await hypercorn.trio.serve(app, config, mode="asgi", task_status=task_status)
