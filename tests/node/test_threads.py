"""Functions in threads: what comes back, and what a cancelled caller leaves behind."""

import threading

import pytest
import trio

from node.system import ThreadWorkers
from node.threads import run_in_thread


async def test_what_a_thread_returns_or_raises_comes_back() -> None:
    assert await run_in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(lambda: 1 // 0)


async def test_who_is_cancelled_waits_for_its_thread_and_begins_no_other() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert go_on.wait(5)
        return "done"

    found: list[str] = []

    async def caller() -> None:
        found.append(await run_in_thread(work))
        await run_in_thread(lambda: found.append("a second one"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller)
        while not begun.is_set():
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
        go_on.set()
    assert found == ["done"]


async def test_no_more_run_at_once_than_there_are_workers() -> None:
    workers, lock = ThreadWorkers(2), threading.Lock()
    running = most = 0

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return number

    results: list[int] = []

    async def caller(number: int) -> None:
        results.append(await workers.run(work, number))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(caller, number)
    assert sorted(results) == list(range(20))
    assert 1 <= most <= 2
