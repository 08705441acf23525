"""Bulk work rests while a transaction is under way, no longer than is fair, and little of it is on its way meanwhile."""

from node.pacing import NoticedDisk, Pace, Traffic
from storage.key_value import Batch

LONG_AGO = -(10**9)


class World:
    """A clock that moves when somebody sleeps, transactions that begin and become final at set times, and a disk."""

    def __init__(self, *pending: tuple[int, int]) -> None:
        self.now = 1_000
        self.pending = pending
        self.slept = 0
        self.commit_ms = 0

    def now_ms(self) -> int:
        return self.now

    async def sleep_ms(self, duration_ms: int) -> None:
        self.slept += duration_ms
        self.now += duration_ms

    def read(self, key: bytes) -> bytes | None:
        return key

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        assert sync is True
        assert not batch.writes
        self.now += self.commit_ms

    def traffic(self) -> Traffic:
        return Traffic(
            max((begun for begun, final in self.pending if final <= self.now), default=LONG_AGO),
            sum(begun <= self.now < final for begun, final in self.pending),
            is_waited_for=False,
        )


async def rested_ms(world: World, pace: Pace, worked_ms: int) -> int:
    before = world.slept
    await pace.rest(worked_ms)
    return world.slept - before


async def test_it_rests_until_the_transaction_is_final_and_a_moment_longer() -> None:
    world = World((1_010, 1_050))
    pace = Pace(world, world.traffic)
    assert await rested_ms(world, pace, 30) == 0

    world.now = 1_015
    assert await rested_ms(world, pace, 30) == 40  # two looks in a row find nothing, at 1,050 and 1,055
    assert await rested_ms(world, pace, 30) == 0


async def test_a_stream_of_transactions_leaves_a_copy_its_share_of_the_time() -> None:
    world = World(*((begin, begin + 90) for begin in range(1_000, 9_000, 80)))
    pace = Pace(world, world.traffic)
    world.now = 1_001
    pace.is_quiet()
    worked = rested = 0
    while world.now < 8_000:
        rested += await rested_ms(world, pace, 20)
        world.now += 20
        worked += 20

    assert 0.2 <= worked / (worked + rested) <= 0.3
    assert await rested_ms(world, pace, 10_000) <= 150
    assert await rested_ms(world, pace, -5) <= 30


async def test_a_transaction_that_waits_for_others_holds_nothing_up_for_long() -> None:
    world = World((1_010, 10**9))
    pace = Pace(world, world.traffic)
    world.now = 1_020
    assert await rested_ms(world, pace, 1_000) == 150

    world.now = 2_020  # nothing has moved for a second: there is no quorum
    assert await rested_ms(world, pace, 1_000) == 0


async def test_who_waits_for_a_receipt_has_the_right_of_way_before_any_block_is_seen() -> None:
    world, is_waited_for = World(), False
    pace = Pace(world, lambda: Traffic(LONG_AGO, 0, is_waited_for=is_waited_for))
    assert await rested_ms(world, pace, 20) == 0

    is_waited_for = True
    assert await rested_ms(world, pace, 20) == 60


async def test_writes_that_precede_a_transaction_are_noticed_when_they_begin_and_when_they_end() -> None:
    world = World()
    pace = Pace(world, world.traffic)
    disk = NoticedDisk(world, pace)
    world.commit_ms = 15
    await disk.commit(Batch(), sync=True)

    assert disk.read(b"key") == b"key"
    assert await rested_ms(world, pace, 100) == 25  # 20 ms, and the second look


async def test_much_is_on_its_way_only_when_transactions_are_rare() -> None:
    world = World((1_010, 1_050))
    pace = Pace(world, world.traffic)
    seen = []
    for world.now in (1_000, 1_020, 1_060, 1_900, 2_021):
        seen.append(pace.is_quiet())

    assert seen == [True, False, False, False, True]


async def test_a_transaction_between_two_looks_counts_as_well() -> None:
    world = World((1_010, 1_050))
    pace = Pace(world, world.traffic)
    world.now = 1_100

    assert not pace.is_quiet()
    assert await rested_ms(world, pace, 20) == 0
    world.now = 2_010
    assert pace.is_quiet()


async def test_a_clock_that_was_set_back_does_not_hold_it_up() -> None:
    world = World((1_010, 10**9))
    pace = Pace(world, world.traffic)
    pace.notice()
    world.now = 1_020
    assert not pace.is_quiet()
    world.now -= 10_000
    world.pending = ()

    assert pace.is_quiet()
    assert await rested_ms(world, pace, 20) == 0
