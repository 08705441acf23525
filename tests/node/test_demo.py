import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.demo_network import until
from tests.node.daemons import carechain

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demonstration puts what is temporary: its own, since other tests run daemons meanwhile; short, for sockets."""
    with tempfile.TemporaryDirectory(prefix="cc-") as name:
        yield Path(name)


def test_the_demonstration_holds_and_leaves_nothing_behind(folder: Path) -> None:
    ran = carechain("demo", TMPDIR=str(folder))

    assert ran.code == 0, ran.said
    assert ran.document is not None
    assert ran.document["ok"]
    assert [step["name"] for step in ran.document["steps"] if not step["ok"]] == []
    assert len(ran.document["steps"]) == 16
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_leaves_nothing_behind(folder: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-P", "-m", "node", "demo", "--json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    until("its daemons to start", lambda: any(folder.glob("carechain-demo-*/*/log")) or None)

    demo.send_signal(number)
    code = demo.wait(120)

    assert code != 0
    assert list(folder.iterdir()) == []
