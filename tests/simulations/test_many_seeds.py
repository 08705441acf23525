"""The share of the nightly seeds that every change has to pass."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("tier", "seeds"), [("a", 300), ("b", 20)])
def test_seeds_of_a_minute_of_faults_run_without_a_violation(tier: str, seeds: int) -> None:
    command = [
        sys.executable,
        "-m",
        "simulations",
        "--tier",
        tier,
        "--seeds",
        str(seeds),
        "--seconds",
        "60",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    document = json.loads(done.stdout)
    assert (document["seeds"], document["failed"]) == (seeds, [])
