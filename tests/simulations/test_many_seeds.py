"""The share of the nightly seeds that every change has to pass.

`CARECHAIN_REPEATS=100` runs as many random seeds twice as issue and release demand; the default is a handful.
"""

import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

REPEATS = int(os.environ.get("CARECHAIN_REPEATS", "4"))


def run(*words: str, hash_seed: str = "0") -> dict[str, Any]:
    """Run the simulation in a process of its own; return its document."""
    command = [sys.executable, "-m", "simulations", *words, "--json"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2_000:]
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize(("tier", "seeds"), [("a", 300), ("b", 20)])
def test_seeds_of_a_minute_of_faults_run_without_a_violation(tier: str, seeds: int) -> None:
    document = run("--tier", tier, "--seeds", str(seeds), "--seconds", "60")
    assert (document["seeds"], document["failed"]) == (seeds, [])


@pytest.mark.parametrize("tier", ["a", "b"])
def test_random_seeds_repeat_byte_for_byte_in_other_processes(tier: str) -> None:
    first = random.randrange(10**9)
    words = ("--tier", tier, "--seed", str(first), "--seeds", str(REPEATS), "--seconds", "20")
    once = run(*words, "--jobs", "1", hash_seed="1")
    again = run(*words, "--jobs", "2", hash_seed="2")
    for document in (once, again):
        for verdict in document["runs"]:
            del verdict["real_seconds"]
    assert len(once["runs"]) == REPEATS
    assert once == again, f"seeds from {first} on do not repeat"
