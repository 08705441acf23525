import pytest
import trio

from simulations.clock import START_MS, VirtualClock


async def test_a_clock_jumps_and_drifts_and_keeps_what_is_not_set(autojump_clock) -> None:
    clock = VirtualClock(offset_ms=250)
    assert clock.now_ms() == START_MS + 250
    await trio.sleep(10)
    clock.set(offset_ms=3_600_000)
    assert clock.now_ms() == START_MS + 10_000 + 3_600_000
    clock.set(drift=0.5)
    await trio.sleep(10)
    assert clock.now_ms() == pytest.approx(START_MS + 25_000 + 3_600_000, abs=1)
    clock.set(offset_ms=-3_600_000)
    await trio.sleep(2)
    assert clock.now_ms() == pytest.approx(START_MS + 23_000 - 3_600_000, abs=1)


async def test_sleeping_follows_the_drift_and_no_jump(autojump_clock) -> None:
    clock = VirtualClock()
    clock.set(drift=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.sleep_ms, 4_000)
        await trio.sleep(1)
        clock.set(offset_ms=3_600_000)
    assert trio.current_time() == pytest.approx(2.0)
