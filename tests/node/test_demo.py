import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from node.demo_network import until
from tests.node.daemons import carechain

pytestmark = pytest.mark.slow


def left_behind() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("carechain-demo-*")}


def test_the_demonstration_holds_and_leaves_nothing_behind() -> None:
    before = left_behind()

    ran = carechain("demo")

    assert ran.code == 0, ran.said
    assert ran.document is not None
    assert ran.document["ok"]
    assert [step["name"] for step in ran.document["steps"] if not step["ok"]] == []
    assert len(ran.document["steps"]) == 15
    assert left_behind() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_leaves_nothing_behind(number: signal.Signals) -> None:
    before = left_behind()
    demo = subprocess.Popen(
        [sys.executable, "-P", "-m", "node", "demo", "--json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (name,) = until("the demonstration to have started", lambda: left_behind() - before or None)
    folder = Path(tempfile.gettempdir()) / name
    until("its daemons to start", lambda: any(folder.glob("*/log")) or None)

    demo.send_signal(number)
    code = demo.wait(30)

    assert code != 0
    assert left_behind() == before
