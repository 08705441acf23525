"""What joins the daemons of one machine, so that each direction between two of them can be cut by itself.

namespaces   every daemon in a network namespace of its own, joined by a bridge in one more. A direction is cut at
             its sender, by a neighbour entry that leads nowhere: frames leave and reach nobody, and TCP on both
             sides sees what it would see of a broken line. Needs root and the kernel's bridge and veth.
proxies      every daemon on loopback, dialled through one TCP proxy for each pair. A cut direction is not read:
             bytes wait in the sender's socket, and flow when the cut is healed. What a daemon listens on is known
             to its proxies alone: it announces an address where nobody is, and multicast does not reach ::1.
"""

import contextlib
import itertools
import os
import selectors
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

_PORT = 4001
_NOWHERE = "02:00:00:00:00:fe"
"""A locally administered link-layer address that no interface has."""
_ANNOUNCED_NOWHERE = "/ip4/127.0.0.1/tcp/1"
_PIECE_BYTES = 64 * 1024
_TURN_S = 0.05
_COMMAND_S = 10
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Place:
    """Where one daemon lives: what its command is prefixed with, and the addresses of its configuration."""

    prefix: tuple[str, ...]
    listen: str
    announce: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    hidden: str | None = None
    """An address at which nobody may be seen to reach it: that would be past the proxies."""


class Links(Protocol):
    """The lines between daemons 0 … n-1. Nothing of it remains after `close`."""

    kind: str
    """Which of the two it is, as a sentence says it."""

    def place(self, number: int) -> Place:
        """Return where a daemon lives."""
        ...

    def cut(self, source: int, target: int) -> None:
        """Let nothing pass from `source` to `target`; the other direction stays as it is."""
        ...

    def heal(self) -> None:
        """Let everything pass again."""
        ...

    def close(self) -> None:
        """Remove whatever was made."""
        ...


def connect(count: int, *, proxies: bool = False) -> Links:
    """Return lines between `count` daemons: in namespaces where this machine and this user may have them.

    `proxies` asks for proxies also where it may.
    """
    if not proxies and os.geteuid() == 0 and shutil.which("ip") is not None:
        links = NamespaceLinks(count)
        try:
            links.open()
        except (OSError, subprocess.SubprocessError):
            links.close()
        else:
            return links
    return ProxyLinks(count)


# --- namespaces -------------------------------------------------------------------------------------------------------


class NamespaceLinks:
    """A namespace for each daemon, one with the bridge; names are of this process, so that runs do not meet."""

    kind = "network namespaces joined by a bridge"

    def __init__(self, count: int) -> None:
        self._count = count
        self._name = f"carechain-{os.getpid()}-{next(_numbers)}"
        self._made: list[str] = []
        self._cut: set[tuple[int, int]] = set()

    def open(self) -> None:
        """Make everything. `close` is due also when this fails.

        Raises:
            SubprocessError, OSError: not on this machine.
        """
        bridge = self._namespace("bridge")
        _ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "br0", "up")
        for number in range(self._count):
            own = self._namespace(str(number))
            port = f"port{number}"
            _ip(
                "link", "add", port, "netns", bridge,
                "type", "veth", "peer", "name", "eth0", "netns", own,
            )  # fmt: skip
            _ip("-n", bridge, "link", "set", port, "master", "br0")
            _ip("-n", bridge, "link", "set", port, "up")
            _ip("-n", own, "address", "add", f"{_host(number)}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", own, "link", "set", interface, "up")

    def _namespace(self, suffix: str) -> str:
        name = f"{self._name}-{suffix}"
        _ip("netns", "add", name)
        self._made.append(name)
        return name

    def place(self, number: int) -> Place:
        """Return a daemon's namespace and its address there."""
        return Place(("ip", "netns", "exec", f"{self._name}-{number}"), f"/ip4/{_host(number)}/tcp/{_PORT}")

    def cut(self, source: int, target: int) -> None:
        """Send what `source` has for `target` to a link-layer address that nobody has."""
        _ip(
            "-n", f"{self._name}-{source}",
            "neighbour", "replace", _host(target), "lladdr", _NOWHERE, "dev", "eth0", "nud", "permanent",
        )  # fmt: skip
        self._cut.add((source, target))

    def heal(self) -> None:
        """Forget the wrong neighbours."""
        for source, target in sorted(self._cut):
            _ip("-n", f"{self._name}-{source}", "neighbour", "delete", _host(target), "dev", "eth0")
        self._cut.clear()

    def close(self) -> None:
        """Remove the namespaces, and with them every interface in them."""
        for name in self._made:
            with contextlib.suppress(subprocess.SubprocessError):  # the others are to go all the same
                _ip("netns", "delete", name)
        self._made.clear()


def _host(number: int) -> str:
    return f"10.77.0.{number + 1}"


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True, capture_output=True, timeout=_COMMAND_S)


# --- proxies ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Pipe:
    """One direction of one connection: what was read of `source` and not yet taken by `target`."""

    way: tuple[int, int]
    source: socket.socket
    target: socket.socket
    waiting: bytes = b""
    ended: bool = False


@dataclass(eq=False, slots=True)
class _Doorway:
    """Where `dialler` reaches `target`, and nobody else does."""

    dialler: int
    target: int
    listener: socket.socket
    pipes: list[_Pipe] = field(default_factory=list)


class ProxyLinks:
    """Loopback, with a proxy for each dialler and target; one thread moves all bytes."""

    kind = "loopback through a TCP proxy for each pair"

    def __init__(self, count: int) -> None:
        self._ports = [_free_port() for _ in range(count)]
        self._doorways = {
            (dialler, target): _Doorway(dialler, target, socket.create_server(("127.0.0.1", 0)))
            for dialler, target in itertools.permutations(range(count), 2)
        }
        self._cut: frozenset[tuple[int, int]] = frozenset()
        self._closing = threading.Event()
        self._waiting: list[tuple[_Doorway, socket.socket]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def place(self, number: int) -> Place:
        """Return a daemon's own listener, known to the proxies alone, and its doorways to the others."""
        doorways = [doorway for (dialler, _), doorway in self._doorways.items() if dialler == number]
        # 0.0.0.0 is this host to whoever dials it, and yet no loopback address: who dials one of those tells the other
        # side where it listens itself, and that would lead past the proxies.
        peers = tuple(f"/ip4/0.0.0.0/tcp/{doorway.listener.getsockname()[1]}" for doorway in doorways)
        listen = f"/ip6/::1/tcp/{self._ports[number]}"
        return Place((), listen, (_ANNOUNCED_NOWHERE,), peers, hidden=listen)

    def target_port(self, number: int) -> int:
        """Return the port on ::1 that the proxies dial for a daemon."""
        return self._ports[number]

    def cut(self, source: int, target: int) -> None:
        """Read nothing any more that `source` sends to `target`."""
        self._cut |= {(source, target)}

    def heal(self) -> None:
        """Read everything again."""
        self._cut = frozenset()

    def close(self) -> None:
        """End the thread and every connection."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        doorways = tuple(self._doorways.values())
        for doorway in doorways:
            doorway.listener.setblocking(False)
        while not self._closing.is_set():
            self._turn(doorways)
        for doorway in doorways:
            doorway.listener.close()
            for pipe in doorway.pipes:
                pipe.source.close()
        for _, accepted in self._waiting:
            accepted.close()

    def _turn(self, doorways: tuple[_Doorway, ...]) -> None:
        """Do what can be done now; wait a little when it is nothing."""
        with selectors.DefaultSelector() as ready:
            for doorway in doorways:
                ready.register(doorway.listener, selectors.EVENT_READ)
            for pipe in self._flowing(doorways):
                end, event = (
                    (pipe.target, selectors.EVENT_WRITE)
                    if pipe.waiting
                    else (pipe.source, selectors.EVENT_READ)
                )
                known = ready.get_map().get(end)
                if known is None:
                    ready.register(end, event)
                else:
                    ready.modify(end, known.events | event)
            ready.select(_TURN_S)
        for doorway in doorways:
            self._accept(doorway)
            for pipe in doorway.pipes:
                if pipe.way not in self._cut:
                    _move(pipe)
            doorway.pipes = _without_ended(doorway.pipes)

    def _flowing(self, doorways: tuple[_Doorway, ...]) -> Iterator[_Pipe]:
        for doorway in doorways:
            for pipe in doorway.pipes:
                if pipe.way not in self._cut:
                    yield pipe

    def _accept(self, doorway: _Doorway) -> None:
        """Take a new connection; it is made at the other end only when both directions are open, as a handshake is."""
        with contextlib.suppress(BlockingIOError):  # nobody knocks
            while True:
                self._waiting.append((doorway, doorway.listener.accept()[0]))
        still: list[tuple[_Doorway, socket.socket]] = []
        for at, accepted in self._waiting:
            if {(at.dialler, at.target), (at.target, at.dialler)} & self._cut:
                still.append((at, accepted))
            else:
                self._join(at, accepted)
        self._waiting = still

    def _join(self, doorway: _Doorway, accepted: socket.socket) -> None:
        try:
            onward = socket.create_connection(("::1", self._ports[doorway.target]), timeout=1.0)
        except OSError:
            accepted.close()  # nobody is up there: refused
            return
        for end in (accepted, onward):
            end.setblocking(False)
        there, back = (doorway.dialler, doorway.target), (doorway.target, doorway.dialler)
        doorway.pipes += [_Pipe(there, accepted, onward), _Pipe(back, onward, accepted)]


def _move(pipe: _Pipe) -> None:
    """Move what there is, once."""
    try:
        if not pipe.waiting:
            pipe.waiting = pipe.source.recv(_PIECE_BYTES)
            pipe.ended = not pipe.waiting
        if pipe.waiting:
            pipe.waiting = pipe.waiting[pipe.target.send(pipe.waiting) :]
    except BlockingIOError:
        return
    except OSError:
        pipe.ended = True


def _without_ended(pipes: list[_Pipe]) -> list[_Pipe]:
    """Close connections of which one direction ended, and return the others."""
    ended = {id(end) for pipe in pipes if pipe.ended for end in (pipe.source, pipe.target)}
    kept = [pipe for pipe in pipes if id(pipe.source) not in ended]
    for pipe in pipes:
        if id(pipe.source) in ended:
            pipe.source.close()
    return kept


def _free_port() -> int:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        return int(probe.getsockname()[1])
