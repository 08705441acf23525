"""The one file that touches trio's private names: a trio run that depends on its seed and on nothing else.

trio sorts no batch of runnable tasks and reverses it by the toss of a coin. With its flag for deterministic scheduling
it sorts each batch by the tasks' age and shuffles it with its own random generator; that, seeded, and a clock that jumps
when all tasks wait make a run repeatable. None of this is public in trio 0.35, which is why trio is pinned and
`tests/simulations/test_determinism.py` compares two processes.

While a simulation runs, the outside world is closed: the wall clock, unseeded randomness, threads and sockets raise. The
collector runs only when the simulation says so: it may end async generators, and when it runs depends on how modules
were loaded.
"""

import contextlib
import gc
import hashlib
import math
import os
import random
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import trio
import trio.testing
from nacl.exceptions import BadSignatureError
from trio._core import _run as scheduler

from protocol import certificate, finality, signing
from protocol.errors import LocalFault
from protocol.raft import leader_forms

T = TypeVar("T")

_CLOSED: Final = (
    (time, ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep")),
    (os, ("urandom", "getrandom")),
    (
        random,
        ("random", "randint", "randrange", "choice", "choices", "shuffle", "sample", "uniform", "randbytes"),
    ),
    (random, ("getrandbits", "gauss", "expovariate", "seed", "SystemRandom")),
    (secrets, ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "randbits", "choice")),
    (threading.Thread, ("start",)),
    (trio.to_thread, ("run_sync",)),
    (trio.lowlevel, ("start_thread_soon",)),
    (socket, ("socket", "create_connection", "getaddrinfo", "socketpair")),
    (trio.socket, ("socket", "getaddrinfo")),
    (trio, ("open_tcp_stream", "open_unix_socket", "run_process")),
)
_FAKE_SECRET_BYTES: Final = 64
_TURNS_PER_QUESTION: Final = 1_000
_VERDICTS: Final = (certificate.acknowledgement_valid, finality.vote_valid, leader_forms.ends_valid)
_STUCK: Final = "every task waits and no time-out will wake one"


def stream(seed: int, name: str) -> random.Random:
    """Return the random generator of one part of the world: Random(SHA-256(seed ‖ name))."""
    return random.Random(hashlib.sha256(f"{seed}/{name}".encode()).digest())


def run(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` to its end in virtual time, scheduled by `seed`, with the outside world closed; return its value."""
    whole = trio.CancelScope()

    async def closed() -> T:
        # Only from here on: trio opens a socket pair of its own before.
        with no_outside_world(), _kernel_asked_seldom(), whole:
            return await main()
        raise LocalFault(_STUCK)

    collects = gc.isenabled()
    before: tuple[bool, random.Random] = (
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING,  # noqa: SLF001 - see the module's docstring
        scheduler._r,  # noqa: SLF001
    )
    gc.collect()
    gc.disable()
    _schedule_by(deterministic=True, rng=stream(seed, "scheduler"))
    try:
        return trio.run(closed, clock=_virtual_time(whole))
    finally:
        _schedule_by(deterministic=before[0], rng=before[1])
        if collects:
            gc.enable()


def _schedule_by(*, deterministic: bool, rng: random.Random) -> None:
    # setattr, because the flag is declared final: trio means it for test suites, which is what this is.
    setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", deterministic)  # noqa: B010
    setattr(scheduler, "_r", rng)  # noqa: B010


def _virtual_time(whole: trio.CancelScope) -> trio.testing.MockClock:
    """Return a clock that stands still while any task can run, and then jumps to the next deadline.

    Trio takes no class but its own for that. Two of its methods are replaced: it would ask the real clock each time, and
    spin for ever in a run that is stuck for good: that is ended by cancelling `whole`.
    """
    clock: Any = trio.testing.MockClock(autojump_threshold=0)  # Any: private names are set

    def autojump() -> None:
        deadline = scheduler.GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
        if deadline != math.inf:
            clock.jump(max(0.0, deadline - clock.current_time()))
        elif not whole.cancel_called:
            whole.cancel()
        else:
            raise LocalFault(_STUCK + ", and is shielded against its end")

    clock._autojump = autojump  # noqa: SLF001
    clock._real_clock = float  # noqa: SLF001 - always 0.0; the rate is 0 anyway
    clock._real_base = 0.0  # noqa: SLF001
    clock.current_time = lambda: clock._virtual_base  # noqa: SLF001 - what is left of it, and asked for without end
    return clock  # type: ignore[no-any-return]


@contextlib.contextmanager
def _kernel_asked_seldom() -> Iterator[None]:
    """Have trio ask the kernel for events now and then only: at every turn of its loop that took half of the time.

    Sockets are closed to a simulation, so there is nothing to hear but that somebody has pressed Ctrl-C.
    """
    runner = scheduler.GLOBAL_RUN_CONTEXT.runner
    with _replaced(runner, "io_manager", _SeldomAsked(runner.io_manager)):
        yield


class _SeldomAsked:
    """Trio's input and output, but for most of the questions whether there is any."""

    def __init__(self, manager: Any) -> None:  # Any: the class differs between operating systems
        self._manager = manager
        self.process_events = manager.process_events
        self._turns = 0

    def get_events(self, timeout: float) -> Any:  # Any: passed on
        """Return what the kernel says, now and then."""
        self._turns += 1
        if timeout > 0 or self._turns % _TURNS_PER_QUESTION == 0:
            return self._manager.get_events(timeout)
        return ()

    def __getattr__(self, name: str) -> Any:  # Any: passed on
        return getattr(self._manager, name)


class _SelectiveQueue(deque[trio.lowlevel.Task]):
    """Trio's queue of runnable tasks, in which some wait apart."""

    def __init__(
        self, tasks: Iterable[trio.lowlevel.Task], is_held: Callable[[trio.lowlevel.Task], bool]
    ) -> None:
        super().__init__()
        self._is_held = is_held
        self.held: list[trio.lowlevel.Task] = []
        for task in tasks:
            self.append(task)

    def append(self, task: trio.lowlevel.Task) -> None:
        """Add a task that has become runnable."""
        if self._is_held(task):
            self.held.append(task)
        else:
            super().append(task)


def hold_tasks(is_held: Callable[[trio.lowlevel.Task], bool] | None) -> None:
    """From now on run no task that `is_held` names, as SIGSTOP does with a process; None, or a new choice, lets the others go on.

    Time, messages and time-outs do not wait for a held task: it finds all that has happened when it runs again.
    """
    runner: Any = scheduler.GLOBAL_RUN_CONTEXT.runner  # Any: a private attribute is set
    tasks: list[trio.lowlevel.Task] = list(runner.runq)
    if isinstance(runner.runq, _SelectiveQueue):
        tasks = runner.runq.held + tasks
    runner.runq = deque(tasks) if is_held is None else _SelectiveQueue(tasks, is_held)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Keep the collector out: it costs a fifth of the time, and a run's cycles are few enough to wait for its end."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def collect_garbage() -> None:
    """Free cycles now. Called at virtual times, never by the number of allocations (see above)."""
    gc.collect()


@contextlib.contextmanager
def no_outside_world() -> Iterator[None]:
    """Let everything raise LocalFault that a simulation could not repeat; restore it afterwards."""
    with contextlib.ExitStack() as stack:
        for owner, names in _CLOSED:
            for name in names:
                if hasattr(owner, name):
                    refusing = _refusing(f"{owner.__name__}.{name}", getattr(owner, name))
                    stack.enter_context(_replaced(owner, name, refusing))
        yield


@contextlib.contextmanager
def fake_signatures() -> Iterator[None]:
    """Replace Ed25519 by a keyed hash, thirty times faster, which anybody could forge: nobody in here does.

    A signature is BLAKE2b-512 of the message keyed by the public key. That forms, keys and messages match is still
    checked; `--signatures real` checks the rest.
    """
    with _replaced(signing, "bindings", _FakeBindings):
        for verdicts in _VERDICTS:
            verdicts.cache_clear()
        try:
            yield
        finally:
            # What holds here holds nowhere else.
            for verdicts in _VERDICTS:
                verdicts.cache_clear()


class _FakeBindings:
    """The three functions of `nacl.bindings` that `protocol.signing` uses."""

    @staticmethod
    def crypto_sign_seed_keypair(seed: bytes) -> tuple[bytes, bytes]:
        """Return (public[32], secret[64] = seed ‖ public)."""
        public = hashlib.blake2b(seed, digest_size=32, person=b"fake-public").digest()
        return public, seed + public

    @staticmethod
    def crypto_sign(message: bytes, secret: bytes) -> bytes:
        """Return signature[64] ‖ message."""
        assert len(secret) == _FAKE_SECRET_BYTES
        return hashlib.blake2b(message, key=secret[32:]).digest() + message

    @staticmethod
    def crypto_sign_open(signed: bytes, public: bytes) -> bytes:
        """Return the message, or raise BadSignatureError."""
        message = signed[64:]
        if hashlib.blake2b(message, key=public).digest() != signed[:64]:
            raise BadSignatureError("a fake signature that does not verify")
        return message


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:  # Any: a module or a class
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _refusing(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return `real`, closed to this thread: what other threads of the process do is not part of the simulation."""
    inside = threading.get_ident()

    def refuse(*arguments: Any, **named: Any) -> Any:  # Any: passed on as it came
        if threading.get_ident() != inside:
            return real(*arguments, **named)
        raise LocalFault(f"{what} was used inside a simulation; use a port")

    return refuse
