"""The processes of a benchmark: three voters that find a leader, and members that come later, on loopback."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol import codec, configuration
from protocol.errors import Unavailable
from protocol.identifiers import NodeId
from protocol.signing import SigningKey

# Any: answers of the voters are JSON objects between two parts of one program.
Answer = dict[str, Any]

VOTERS = 3
_START_S = 20.0


class VoterProcess:
    """One voter's process, spoken to in lines."""

    def __init__(self, node: str) -> None:
        self.node = node
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            (sys.executable, "-P", "-m", "node.bench.voter"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # an interrupt at the terminal is the parent's to pass on
            env=environment,
        )

    def send(self, **command: object) -> None:
        """Send a command; its answer must be received before the next one."""
        assert self.process.stdin is not None, "opened as a pipe"
        with contextlib.suppress(BrokenPipeError):  # receive tells that it ended
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self) -> Answer:
        """Return the answer to the last command.

        Raises:
            Unavailable: the voter ended.
        """
        assert self.process.stdout is not None, "opened as a pipe"
        line = self.process.stdout.readline()
        if not line:
            raise Unavailable("a voter of the benchmark ended before its time")
        answer: Answer = json.loads(line)
        return answer

    def ask(self, **command: object) -> Answer:
        """Send a command and return its answer."""
        self.send(**command)
        return self.receive()

    def stop(self) -> None:
        """Let the voter end cleanly, or kill it after five seconds."""
        assert self.process.stdin is not None, "opened as a pipe"
        assert self.process.stdout is not None, "opened as a pipe"
        with contextlib.suppress(BrokenPipeError):  # ended already
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def ask_all(voters: list[VoterProcess], **command: object) -> list[Answer]:
    """Send one command to all voters at once; return their answers in order."""
    for voter in voters:
        voter.send(**command)
    return [voter.receive() for voter in voters]


@dataclass(slots=True)
class Cast:
    """The processes of a benchmark: three voters that have a leader, and observers that were not started yet."""

    folder: Path
    genesis: str
    disk_delay_ms: float = 0
    voters: list[VoterProcess] = field(default_factory=list)
    observers: list[VoterProcess] = field(default_factory=list)
    """Those that were started."""
    _addresses: list[str] = field(default_factory=list)
    _away: list[bytes] = field(default_factory=list)

    def start_voter(self, seed: bytes) -> None:
        """Start a voter that dials those before it."""
        self.voters.append(VoterProcess(SigningKey(seed).public.hex()))
        self._addresses += self._start(self.voters[-1], seed)["addresses"]

    def start_observer(self, *, samples_history: bool = False) -> VoterProcess:
        """Start the next observer, with an empty ledger: it begins to catch up at once."""
        seed = self._away.pop()
        self.observers.append(VoterProcess(SigningKey(seed).public.hex()))
        self._start(self.observers[-1], seed, samples_history=samples_history)
        return self.observers[-1]

    def _start(self, process: VoterProcess, seed: bytes, *, samples_history: bool = False) -> Answer:
        home = self.folder / process.node
        home.mkdir()
        return process.ask(
            do="start",
            seed=seed.hex(),
            configuration=self.genesis,
            folder=str(home),
            peers=self._addresses,
            disk_delay_ms=self.disk_delay_ms,
            samples_history=samples_history,
        )


@contextlib.contextmanager
def cast(folder: Path, *, limit_s: float, observers: int = 0, disk_delay_ms: float = 0) -> Iterator[Cast]:
    """Start three voters and wait for their leader; stop everybody afterwards, and kill them when they take over `limit_s`.

    Raises:
        Unavailable: they find no leader, or one of them ends.
    """
    keys = {SigningKey(seed).public: seed for seed in (os.urandom(32) for _ in range(VOTERS))}
    # The lower id dials at once, the higher one waits: who starts later is to be lower.
    seeds = [keys[node] for node in sorted(keys, reverse=True)]
    away = [os.urandom(32) for _ in range(observers)]
    cards = (*(_card(seed, "voter") for seed in seeds), *(_card(seed, "observer") for seed in away))
    genesis = codec.encode(configuration.found(cards, nonce=os.urandom(32))).hex()
    nodes = Cast(folder, genesis, disk_delay_ms, _away=away)
    watchdog = threading.Timer(limit_s, _kill, [nodes])
    watchdog.start()
    try:
        for seed in seeds:
            nodes.start_voter(seed)
        _wait_for_leader(nodes.voters)
        yield nodes
    finally:
        watchdog.cancel()
        for process in nodes.voters + nodes.observers:
            process.stop()


def _kill(nodes: Cast) -> None:
    for process in nodes.voters + nodes.observers:
        process.process.kill()


def _card(seed: bytes, role: str) -> configuration.Card:
    key = SigningKey(seed)
    node = NodeId(key.public)
    member = configuration.Member(
        node.hex()[:16], "hospital", role, node, key.public, key.public, key.public, key.public, ()
    )
    return configuration.Card.make(member, key)


def _wait_for_leader(voters: list[VoterProcess]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        states = ask_all(voters, do="state")
        leaders = {state["leader"] for state in states}
        if (
            len(leaders) == 1
            and None not in leaders
            and all(state["connected"] == VOTERS - 1 for state in states)
        ):
            return
        time.sleep(0.1)
    raise Unavailable("the voters of the benchmark did not find a leader")
