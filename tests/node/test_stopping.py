"""A daemon that was told to stop ends in time, and never as if a signal had killed it."""

import subprocess
import sys

import pytest

STUCK = "import time; time.sleep(60)"
SLOW_AFTER_THE_LAST_HANDLER = """
import sys, time
class Slow:
    def __del__(self, sleep=time.sleep): sleep(1)
sys.modules["slow"] = Slow()
"""


@pytest.mark.parametrize("rest", [STUCK, SLOW_AFTER_THE_LAST_HANDLER])
def test_a_stuck_or_slow_end_is_cut_short_but_no_crash(rest: str) -> None:
    program = f"from node.daemon import end_in_time\nend_in_time(0.2)\n{rest}"
    ended = subprocess.run([sys.executable, "-P", "-c", program], check=False, timeout=50)
    assert ended.returncode == 0
