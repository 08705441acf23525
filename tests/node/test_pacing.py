"""Bulk work rests while blocks come, as long as it worked, and not otherwise."""

from typing import Any

from node.pacing import Pace


class World:
    """A clock that moves when somebody sleeps, and a ledger of some height."""

    def __init__(self) -> None:
        self.now = 1_000
        self.height = 7
        self.slept: list[int] = []

    def now_ms(self) -> int:
        return self.now

    async def sleep_ms(self, duration_ms: int) -> None:
        self.slept.append(duration_ms)
        self.now += duration_ms

    def applied(self) -> "World":
        return self


async def test_it_rests_as_long_as_it_worked_while_blocks_come_and_not_afterwards() -> None:
    world: Any = World()
    pace = Pace(world, world)
    await pace.rest(30)
    assert world.slept == []

    world.height += 1
    await pace.rest(30)
    await pace.rest(40)
    await pace.rest(10_000)
    assert world.slept == [30, 40, 200]

    await pace.rest(30)  # the last block is 270 ms ago
    assert world.slept == [30, 40, 200]


async def test_a_clock_that_was_set_back_does_not_hold_it_up() -> None:
    world: Any = World()
    pace = Pace(world, world)
    await pace.rest(0)
    world.height += 1
    await pace.rest(30)
    world.now -= 900

    await pace.rest(30)
    await pace.rest(-870)

    assert world.slept == [30]
