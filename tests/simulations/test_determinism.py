import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol import signing
from protocol.errors import LocalFault
from protocol.finality import cast_vote, vote_valid
from protocol.identifiers import Digest, Height, NetworkId
from protocol.signing import SigningKey, verify
from simulations import determinism
from simulations.runner import Options, simulate

ROOT = Path(__file__).parents[2]


def test_two_processes_with_other_hash_seeds_tell_the_same_history() -> None:
    command = [sys.executable, "-m", "simulations", "--seed", "7", "--seconds", "30", "--json"]
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for hash_seed in ("1", "2")
    ]
    told = [json.loads(process.communicate(timeout=60)[0]) for process in running]
    for document in told:
        del document["real_seconds"]
    assert told[0] == told[1]
    assert told[0]["commits"] > 3
    assert told[0]["violations"] == []


def test_a_seed_tells_its_history_again_in_one_process_and_another_seed_another() -> None:
    one, again, other = (simulate(Options(seed, 10)).history_sha256 for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_tasks_that_race_are_ordered_by_the_seed_alone() -> None:
    def race(seed: int) -> list[int]:
        order: list[int] = []

        async def step(number: int) -> None:
            for _ in range(5):
                await trio.lowlevel.checkpoint()
                order.append(number)

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(step, number)

        determinism.run(seed, main)
        return order

    assert race(1) == race(1)
    assert race(1) != race(2)


CLOSED = {  # (owner, name, arguments): looked up when used, by when it has been replaced by what refuses
    "wall clock": (time, "time"),
    "monotonic clock": (time, "monotonic"),
    "blocking wait": (time, "sleep", 0),
    "unseeded random": (random, "random"),
    "operating system's random": (os, "urandom", 1),
    "secrets": (secrets, "token_bytes", 1),
    "thread": (threading.Thread, "start", threading.Thread(target=print)),
    "socket": (socket, "socket"),
}


@pytest.mark.parametrize(
    ("owner", "name", "arguments"), [(o, n, a) for o, n, *a in CLOSED.values()], ids=CLOSED
)
def test_the_outside_world_is_closed_during_a_run(owner: Any, name: str, arguments: list[Any]) -> None:
    refusals: list[str] = []

    async def main() -> None:
        try:
            getattr(owner, name)(*arguments)
        except LocalFault as fault:
            refusals.append(str(fault))

    determinism.run(1, main)
    assert len(refusals) == 1
    assert f"{name} was used inside a simulation" in refusals[0]


def test_the_outside_world_is_open_again_after_a_run_that_failed() -> None:
    async def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        determinism.run(1, main)
    assert time.time() > 0
    assert len(os.urandom(2)) == 2


def test_an_hour_of_sleep_takes_no_time_to_speak_of() -> None:
    async def main() -> float:
        await trio.sleep(3600)
        return trio.current_time()

    started = time.monotonic()
    assert determinism.run(1, main) >= 3600
    assert time.monotonic() - started < 60


def test_a_run_that_is_stuck_for_good_ends() -> None:
    with pytest.raises(LocalFault, match="every task waits"):
        determinism.run(1, trio.sleep_forever)


def test_streams_are_told_apart_by_name_and_seed() -> None:
    draws = {determinism.stream(seed, name).random() for seed in (1, 2) for name in ("disk", "network")}
    assert len(draws) == 4


def test_fake_signatures_verify_only_for_their_key_and_message() -> None:
    real = vars(signing)["bindings"]
    with determinism.fake_signatures():
        key, other = SigningKey(bytes(32)), SigningKey(b"1" * 32)
        signature = key.sign(b"message")
        assert len(signature) == 64
        assert verify(key.public, b"message", signature)
        assert not verify(other.public, b"message", signature)
        assert not verify(key.public, b"massage", signature)
    assert vars(signing)["bindings"] is real


def test_what_a_fake_signature_was_held_for_is_forgotten_outside() -> None:
    network, digest = NetworkId(bytes(32)), Digest(bytes(32))
    with determinism.fake_signatures():
        key = SigningKey(bytes(32))
        vote = cast_vote(
            key,
            network,
            epoch=0,
            incarnation=0,
            height=Height(2),
            tip=digest,
            base_height=Height(1),
            base=digest,
        )
        assert vote_valid(vote, network)
    assert not vote_valid(vote, network)


def test_ctrl_c_ends_a_simulation_that_seldom_asks_the_kernel() -> None:
    @trio.lowlevel.enable_ki_protection
    def press() -> None:
        signal.raise_signal(signal.SIGINT)  # not delivered here, but by a turn of the loop that asks

    async def main() -> None:
        press()
        while True:
            await trio.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        determinism.run(1, main)


def test_what_other_threads_do_is_not_part_of_a_simulation() -> None:
    heard: list[float] = []
    asked, answered = threading.Event(), threading.Event()

    def look_at_the_clock() -> None:
        asked.wait()
        heard.append(time.monotonic())
        answered.set()

    threading.Thread(target=look_at_the_clock, daemon=True).start()
    with determinism.no_outside_world():
        asked.set()
        answered.wait()

    assert len(heard) == 1
