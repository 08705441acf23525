"""Signatures verified in processes of their own, for as long as there is much to verify.

Worker threads share the interpreter lock with the event loop: a thread lets go of it for each signature, and waits for it
afterwards, so that hardly anything is verified while blocks are being applied. Processes do not wait; they are started
for a catch-up of some length and ended after it, as each takes some 10 MiB.

A process that ends, or is not to be started, costs time only: who asks is told that it does not know, and looks itself.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence

import trio

from node.signature_process import ALL_HOLD, request
from protocol.claims import Claim

try:
    from fcntl import F_SETPIPE_SZ, fcntl
except ImportError:  # not Linux: pipes stay as they are
    fcntl = None  # type: ignore[assignment]

_PROCESSES_MAX = 4
_PIPE_BYTES = 1024 * 1024
"""What waits for a process, so that it has work while the event loop applies a megabyte of blocks."""

_ANSWER_S = 60.0
"""A process that says nothing for so long is given up: what may wait for it is half a second's work, on a machine that may be busy."""


def advisable() -> int:
    """Return how many processes this machine is good for; the event loop shares its processors with them."""
    return min(os.cpu_count() or 1, _PROCESSES_MAX)


class SignatureProcess:
    """One process. Its answers come in the order of the requests."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None and process.stdout is not None, "opened as pipes"  # noqa: PT018 - one thing
        self._process = process
        self.pid = process.pid
        self._requests, self._answers = process.stdin, process.stdout
        self._sending = trio.Lock()
        self._before: trio.Event | None = None
        self.waiting = 0
        """Bytes of the requests that it has not answered."""
        self.is_broken = False

    @classmethod
    async def start(cls) -> "SignatureProcess":
        """Start one.

        Raises:
            OSError: the system does not.
        """
        command = (sys.executable, "-P", "-m", "node.signature_process")
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if fcntl is not None and isinstance(process.stdin, trio.lowlevel.FdStream):
            with contextlib.suppress(
                OSError
            ):  # the user's share of pipe memory is used up: a shorter one does
                fcntl(process.stdin.fileno(), F_SETPIPE_SZ, _PIPE_BYTES)
        return cls(process)

    async def hold(self, asked: bytes) -> bool:
        """Return whether the process says that all claims of a request hold; False also when it can say nothing."""
        self.waiting += len(asked)
        mine = trio.Event()
        answer = b""
        try:
            with trio.move_on_after(_ANSWER_S):
                async with self._sending:
                    before, self._before = self._before, mine
                    await self._requests.send_all(asked)
                if before is not None:
                    await before.wait()
                if not self.is_broken:
                    answer = await self._answers.receive_some(1)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        finally:
            # Without an answer, whatever the reason, what it says next would be for another request.
            self.is_broken |= not answer
            self.waiting -= len(asked)
            mine.set()
        return answer == ALL_HOLD

    async def end(self) -> None:
        """End the process at once; it has nothing that needs saving."""
        self._process.kill()
        with trio.CancelScope(shield=True):
            await self._requests.aclose()
            await self._answers.aclose()
            await self._process.wait()


class SignatureProcesses:
    """A few processes, and the scope in which they live."""

    def __init__(self, count: int | None = None) -> None:
        """`count` is how many at once, None for what the machine is good for."""
        self._count = advisable() if count is None else count
        self._running: list[SignatureProcess] = []
        self._is_open = False

    @property
    def are_running(self) -> bool:
        """Whether it is worth asking."""
        return any(not process.is_broken for process in self._running)

    @property
    def pids(self) -> tuple[int, ...]:
        """The system's ids of those that run."""
        return tuple([process.pid for process in self._running])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have them run for as long as the block lasts; it goes on without them where they do not start."""
        assert not self._is_open, "one catch-up at a time"
        self._is_open = True
        try:
            with contextlib.suppress(OSError):  # no memory, no more processes: threads verify as well
                while len(self._running) < self._count:
                    self._running.append(await SignatureProcess.start())
            yield
        finally:
            running, self._running = self._running, []
            for process in running:
                await process.end()
            self._is_open = False

    async def hold(self, claimed: Sequence[Claim]) -> bool:
        """Return whether a process says that all of these hold; False also when none can say."""
        able = [process for process in self._running if not process.is_broken]
        if not able:
            return False
        try:
            asked = request(claimed)
        except ValueError:
            return False
        return await min(able, key=lambda process: process.waiting).hold(asked)
