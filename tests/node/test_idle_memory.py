import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")

_CHURN = """
import os, sys
from node.idle_memory import keep_free_memory, release_free_memory
from protocol import limits

def faults():
    return int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[7])

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "keep":
    keep_free_memory()
size = limits.CHUNK_BYTES_MAX
for _ in range(2):  # what the first round touches anew, the second one finds
    before = faults()
    held = [os.urandom(size) for _ in range(16)]
    del held
touched = (faults() - before) * os.sysconf("SC_PAGE_SIZE")
kept = resident()
release_free_memory()
print(touched // size, (kept - resident()) // size)
"""


def churned(how: str) -> tuple[int, int]:
    """Return how many of 16 chunks' worth of memory a second round touched anew, and how many were given back at last."""
    done = subprocess.run([sys.executable, "-c", _CHURN, how], check=True, capture_output=True, text=True)
    touched, released = done.stdout.split()
    return int(touched), int(released)


def test_memory_that_is_kept_is_used_again_and_given_back_when_asked() -> None:
    touched, released = churned("keep")

    assert touched <= 1
    assert released >= 15


def test_memory_that_is_not_kept_is_touched_anew() -> None:
    assert churned("leave")[0] >= 8
