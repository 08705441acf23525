"""The command line's side of the daemon's local socket: HTTP over HOME/api.sock."""

import base64
import contextlib
import json
import socket
import time
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.cli.output import Document
from node.cli.record_parts import RecordParts
from node.home import Home
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

if typing.TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 5.0
STARTING_SECONDS = 15.0
"""A daemon that holds its home but has no socket yet is opening its databases."""
STARTING_POLL_SECONDS = 0.05
OPTIONS_HEADER = "carechain-options"
INFO_HEADER = "carechain-info"
BODY_PIECE_BYTES = 1024 * 1024
_KINDS: dict[int, type[CarechainError]] = {
    400: Refused,
    403: Forbidden,
    410: Erased,
    422: Refused,
    500: CarechainError,
    502: RemoteFault,
    503: Unavailable,
    507: StorageFull,
}


@dataclass(frozen=True, slots=True)
class Client:
    """Calls the daemon of one home. Each call is one connection: the daemon may restart between two."""

    home: Home

    def get(self, path: str) -> Document:
        """Return the document at `path`.

        Raises:
            Unavailable: no daemon runs.
            CarechainError: what the daemon refused, in its words.
        """
        with self._request("GET", path) as response:
            return _document(response)

    def post(self, path: str, **fields: Any) -> Document:
        """Send `fields` as JSON and return the daemon's answer. Raises as `get`, and NotFinal with the queued ids."""
        with self._request("POST", path, content=_json(fields)) as response:
            return _document(response)

    def upload(self, path: str, body: Iterable[bytes], **options: Any) -> Document:
        """Send a body piece by piece, never whole in memory, with `options` in a header. Raises as `post`."""
        headers = {OPTIONS_HEADER: base64.b64encode(_json(options)).decode()}
        with self._request("POST", path, content=body, headers=headers) as response:
            return _document(response)

    @contextlib.contextmanager
    def download(self, path: str, **fields: Any) -> Iterator[tuple[Document, Iterator[bytes]]]:
        """Send `fields` as JSON; yield the answer's information and its body piece by piece. Raises as `post`.

        A body that breaks off raises Unavailable from the iterator.
        """
        with self._request("POST", path, content=_json(fields)) as response:
            if response.status_code != 200:
                _document(response)
            yield json.loads(base64.b64decode(response.headers[INFO_HEADER])), _pieces(response)

    def lines(self, path: str, **fields: Any) -> Iterator[Document]:
        """Send `fields` as JSON and yield the documents of a long answer as they come. Raises as `post`."""
        with self._request("POST", path, content=_json(fields)) as response:
            if response.status_code != 200:
                _document(response)
            buffer = b""
            for piece in _pieces(response):
                *whole, buffer = (buffer + piece).split(b"\n")
                for line in whole:
                    document: Document = json.loads(line)
                    if "error" in document and "exit" in document:
                        _raise(document)
                    yield document

    def records(self, path: str, **fields: Any) -> Iterator[tuple[Document, Iterator[bytes]]]:
        """Send `fields` as JSON; yield what is told about each record of the answer, and its bytes, which must be read.

        Raises as `post`, also between two records.
        """
        with self._request("POST", path, content=_json(fields)) as response:
            if response.status_code != 200:
                _document(response)
            for header, body in RecordParts(_pieces(response)):
                if "error" in header and "exit" in header:
                    _raise(header)
                yield header, body

    @contextlib.contextmanager
    def _request(self, method: str, path: str, **content: Any) -> Iterator["httpx.Response"]:
        path_of_socket = self._socket()
        import httpx  # noqa: PLC0415  (a quarter of a second that --help does not pay)

        # No TLS on a local socket: an SSL context would cost more than the call. No proxies from the environment.
        transport = httpx.HTTPTransport(uds=str(path_of_socket), verify=False)
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        with httpx.Client(
            transport=transport, base_url="http://carechain", timeout=timeout, trust_env=False
        ) as client:
            try:
                with client.stream(method, path, **content) as response:
                    yield response
            except httpx.ConnectError:
                raise self._no_daemon() from None
            except httpx.TransportError:
                raise Unavailable(
                    "the daemon went away before it answered; start it and repeat, nothing is done twice"
                ) from None

    def _socket(self) -> Path:
        """Return the socket where the daemon answers; one that is just starting is waited for.

        Raises:
            Unavailable: no daemon runs, or it takes too long to start.
        """
        end = time.monotonic() + STARTING_SECONDS
        while (path := self.home.socket_path()) is None or not _listens(path):
            if not self.home.is_held() or time.monotonic() > end:
                raise self._no_daemon()
            time.sleep(STARTING_POLL_SECONDS)
        return path

    def _no_daemon(self) -> Unavailable:
        if not self.home.config.exists():
            return Unavailable(
                f"no facility at {self.home.path}; make one with carechain init --name NAME, or name its --home"
            )
        return Unavailable(f"no daemon is running for {self.home.path}; start it with carechain run")


def _listens(path: Path) -> bool:
    """Return whether somebody answers at a socket: a killed daemon leaves its own behind.

    Asked before httpx is loaded, which takes longer than the answer and leaks its socket when there is none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def _json(fields: dict[str, Any]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # What the shell passed on was not UTF-8; Python carries such bytes as lone surrogates.
        raise Refused("an argument is not UTF-8 text; type it again in a terminal set to UTF-8") from None


def _pieces(response: "httpx.Response") -> Iterator[bytes]:
    import httpx  # noqa: PLC0415

    try:
        yield from response.iter_raw(BODY_PIECE_BYTES)
    except httpx.TransportError:
        raise Unavailable(
            "the daemon's answer broke off before its end; repeat, and see the daemon's log if it stays so"
        ) from None


def _document(response: "httpx.Response") -> Document:
    """Return the JSON document of an answer; raise what the daemon refused."""
    try:
        document: Document = json.loads(response.read())
    except ValueError:
        raise Unavailable(
            "the daemon's answer is not JSON; is carechain of another version running?"
        ) from None
    if not isinstance(document, dict):
        raise Unavailable("the daemon's answer is no document; is carechain of another version running?")
    if response.status_code != 200:
        _raise(document, response.status_code)
    return document


def _raise(document: Document, status: int = 0) -> typing.NoReturn:
    """Raise what the daemon refused, as the class its status stands for (node/web/answers.py)."""
    sentence = str(document.get("error", "the daemon refused without a reason; see its log"))
    if document.get("exit") == 3:
        raise NotFinal(sentence, tuple(document.get("ids", ())), dict(document.get("details", {})))
    raise _KINDS.get(status, CarechainError)(sentence)
