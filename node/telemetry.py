"""Structured logs without personal data, and metrics.

A log line has an event (a fixed sentence from our code) and fields whose *names* stand in one table here; every other
field is dropped before it is written. Of an unexpected error its class and places in the code are logged, never its
message, which may quote what a person sent. Libraries' own lines lose their arguments for the same reason.
"""

import logging
import os
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from protocol.errors import CarechainError

LogFormat = Literal["text", "json"]

# What a line is made of, then ids, counts, sizes, times and places in the code. Nothing that a patient, a clinician or a
# document brings with it; facility names are public on the ledger. `error` is a class name, or the text of one of ours.
_FIELD_NAMES = """
event level timestamp logger
network its_network facility member peer peer_id node role leader term index height epoch certified_height applied_height
address addresses port channel protocol topic transport found_by interface source
transaction record chunk cid grant vault block digest category state kind suite
count transactions blocks chunks records vaults grants members peers voters queued dropped pending attempts replicas
bytes free_bytes size duration_ms seconds timeout_ms delay_ms
reason fault code problem problems witness verifier_key error_type error_at error status method route signal database stage step version
"""
FIELDS = frozenset(_FIELD_NAMES.split())
TEXT_CHARACTERS_MAX = 300

# Any: structlog hands every processor an untyped dictionary of what was logged.
Event = MutableMapping[str, Any]


def configure(*, level: str, log_format: LogFormat) -> None:
    """Send our logs, and the warnings of libraries, to standard error."""
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = structlog.processors.JSONRenderer()
    if log_format == "text":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            describe_error,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[LibraryHandler()], level=logging.WARNING, force=True)


def describe_error(_logger: Any, _method: str, event: Event) -> Event:
    """Replace an exception by its class and places; the text only of our own errors, which never quote personal data."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["error_type"] = type(error).__name__
        event["error_at"] = places(error)
        if isinstance(error, CarechainError):
            event["error"] = str(error)
    return event


def redact(_logger: Any, _method: str, event: Event) -> Event:
    """Keep the fields of `FIELDS` only; show bytes as hexadecimal and cut long texts."""
    return {name: _plain(value) for name, value in event.items() if name in FIELDS}


def places(error: BaseException, most: int = 4) -> str:
    """Return where an error was raised, innermost first, as `file:line < file:line`."""
    frames = traceback.extract_tb(error.__traceback__)[-most:]
    return " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames))  # noqa: PTH119


def _plain(value: object) -> object:
    match value:
        case bytes():
            return value.hex()[:64]
        case bool() | int() | float() | None:
            return value
        case list() | tuple():
            return [_plain(item) for item in value[:32]]
        case _:
            return str(value)[:TEXT_CHARACTERS_MAX]


class LibraryHandler(logging.Handler):
    """Passes a library's warning on as the constant part of its message, without what was filled in."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record."""
        # With arguments, the message is a constant template; without, it may have been filled in already: say where only.
        template = (
            record.msg.splitlines()[0] if record.args and isinstance(record.msg, str) and record.msg else ""
        )
        reason = template or f"{record.module}:{record.lineno}"
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().log(
            record.levelno, "library", logger=record.name, reason=reason, exc_info=error
        )


class Metrics:
    """The figures that /metrics shows, in a registry of their own.

    Gauges are taken from the status report when somebody asks; counters are counted where the event happens.
    """

    _GAUGES: Mapping[str, str] = {
        "term": "Raft term.",
        "height": "Height of the last block in the log.",
        "certified_height": "Height up to which blocks are final and applied.",
        "history_height": "Height up to which every final block is here.",
        "tree_size": "Transactions in the ledger's tree.",
        "quorum": "Signers whose votes make a block final.",
        "ordered_height": "Height up to which a commit proof was seen.",
    }

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._gauges = {name: self._gauge(name, text) for name, text in self._GAUGES.items()}
        self._connected = self._gauge("peers_connected", "Members of the network that are connected.")
        self._problems = self._gauge(
            "problems", "Problems that an operator must act on (see carechain status)."
        )
        self._requests = Counter(
            "carechain_api_requests",
            "Calls on the local socket.",
            ["route", "status"],
            registry=self._registry,
        )

    def count_request(self, route: str, status: int) -> None:
        """Count one call. `route` is the pattern of the route, never what a caller typed."""
        self._requests.labels(route=route, status=str(status)).inc()

    def render(self, report: Mapping[str, Any]) -> bytes:
        """Return the text that Prometheus reads, with the gauges of a status report."""
        for name, gauge in self._gauges.items():
            value = report.get(name)
            if isinstance(value, int):
                gauge.set(value)
        self._connected.set(sum(1 for peer in report.get("peers", ()) if peer.get("connected")))
        self._problems.set(len(report.get("problems", ())))
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"carechain_{name}", text, registry=self._registry)
