"""`carechain bench consensus`: three voters as three processes on loopback order signed transactions to final.

Every transaction is a VaultOpen of 1,060 bytes with TWO signatures; every voter verifies both, and every block is
synchronised to disk by every voter. Clients live at all three voters and submit to their own.

    sustained     batches kept outstanding at all voters; counted where the slowest voter has applied
    latency_*     single submits at a fixed 200/s, from when each was due to the receipt that its own voter applied
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.bench import ingredients
from node.bench.ingredients import Row, figure, percentile, row
from protocol import codec, configuration
from protocol.errors import Unavailable
from protocol.identifiers import NodeId
from protocol.signing import SigningKey

# Any: answers of the voters are JSON objects between two parts of one program.
Answer = dict[str, Any]

VOTERS = 3
SIGNATURES = 2
SINGLES_PER_S = 200
SUSTAINED_TARGET = 2_000.0
LATENCY_P50_TARGET_MS = 30.0
MACHINE_SHARE_TARGET = 0.30
"""sustained / (cores / (voters x seconds to verify one transaction)); ledger.md decision 10."""
_SECONDS = 60.0
_CLIENTS, _BATCH = 4, 100
"""Batches outstanding per voter, and transactions in each."""
_WARM_UP_S = 2.0
_IDLE_S = 3.0
_REST_S = 5.0
"""Between the load and the single submits: LevelDB compacts what a saturating minute has written for a while longer."""
_WARM_UP_TRANSACTIONS = 4_000
_PREPARED_MORE = 1.8
"""Prepared beyond what the warm-up promises: it is slower than what follows."""
_START_S = 20.0
_SETTLE_S = 20.0


def measure(
    *, minutes: float | None = None, compare: bool = False, show: Callable[[str], None] = print
) -> dict[str, list[Row]]:
    """Measure and return `figures`, `ingredients` and, with `compare`, `ratios`. `minutes` is the length of `sustained`.

    Raises:
        Unavailable: the voters did not come to a leader, or one of them ended.
    """
    seconds = _SECONDS if minutes is None else minutes * 60
    with tempfile.TemporaryDirectory(prefix="carechain-bench-") as folder:
        show("measuring what the machine can do …")
        parts = ingredients.of_ledger(Path(folder))
        with cast(Path(folder), limit_s=seconds + 120) as nodes:
            return _measured(nodes.voters, parts, seconds, compare=compare, show=show)


def _measured(
    voters: "list[VoterProcess]",
    parts: list[Row],
    seconds: float,
    *,
    compare: bool,
    show: Callable[[str], None],
) -> dict[str, list[Row]]:
    show("three voters are up; warming up …")
    parts += _idle(voters)
    rate = _warm_up(voters)
    singles_s = min(10.0, max(1.0, seconds / 4))
    singles = int(singles_s * SINGLES_PER_S / VOTERS)
    prepared = ask_all(
        voters, do="prepare", count=int(rate * seconds * _PREPARED_MORE / VOTERS) + _CLIENTS * _BATCH
    )
    show(f"ordering for {seconds:.0f} s …")
    sustained, load = _sustained(voters, seconds)
    time.sleep(min(_REST_S, seconds / 4))
    show(f"single submits at {SINGLES_PER_S}/s for {singles_s:.0f} s …")
    latencies, single_rows = _single_submits(voters, singles)
    figures = [
        figure("sustained", sustained, "tx/s", SUSTAINED_TARGET, least=True),
        figure("latency_p50", percentile(latencies, 0.5), "ms", LATENCY_P50_TARGET_MS, least=False),
        figure("latency_p99", percentile(latencies, 0.99), "ms", None, least=False),
    ]
    size = prepared[0]["transaction_bytes"]
    parts += [row("transaction_bytes", size, f"bytes, {SIGNATURES} signatures"), *load, *single_rows]
    return {"figures": figures, "ingredients": parts, "ratios": _ratios(sustained, parts) if compare else []}


def _ratios(sustained: float, parts: list[Row]) -> list[Row]:
    verify = ingredients.value_of(parts, "verify")
    # Every voter verifies every signature; all voters share this machine's cores.
    most = ingredients.cores() * verify / (VOTERS * SIGNATURES)
    share = sustained / most
    return [
        {
            "name": "sustained",
            "of": f"cores / (voters x time to verify {SIGNATURES} signatures)",
            "machine": ingredients.rounded(most),
            "share": ingredients.rounded(share),
            "target": MACHINE_SHARE_TARGET,
            "met": share >= MACHINE_SHARE_TARGET,
        }
    ]


# --- phases ---------------------------------------------------------------------------------------------------------


def _idle(voters: "list[VoterProcess]") -> list[Row]:
    """Return a round trip between two voters, and what a voter costs that has nothing to do."""
    echoes = voters[0].ask(do="echo", bytes=1024, calls=100)["ms"]
    before = ask_all(voters, do="usage")
    time.sleep(_IDLE_S)
    after = ask_all(voters, do="usage")
    shares = [
        (late["cpu_s"] - early["cpu_s"]) / (late["at_s"] - early["at_s"]) * 100
        for early, late in zip(before, after, strict=True)
    ]
    return [
        row("libp2p_echo_1_kib_p50", percentile(echoes, 0.5), "ms"),
        row("idle_voter_cpu", max(shares), "% of a core"),
        row("idle_voter_memory", max(usage["rss_anon_mib"] for usage in after), "MiB RssAnon"),
    ]


def _warm_up(voters: "list[VoterProcess]") -> float:
    """Order some transactions, and return how many per second it was."""
    ask_all(voters, do="prepare", count=_WARM_UP_TRANSACTIONS)
    before = voters[0].ask(do="state")
    ask_all(voters, do="load", clients=_CLIENTS, batch=_BATCH)
    time.sleep(_WARM_UP_S)
    after = voters[0].ask(do="state")
    ask_all(voters, do="halt")
    settle(voters)
    return max(100.0, rate_between(before, after))


def _sustained(voters: "list[VoterProcess]", seconds: float) -> tuple[float, list[Row]]:
    """Return transactions per second at the slowest voter, and the conditions under which it was."""
    ask_all(voters, do="load", clients=_CLIENTS, batch=_BATCH)
    time.sleep(min(1.0, seconds / 4))
    usage, before = ask_all(voters, do="usage"), ask_all(voters, do="state")
    end, after = before[0]["at_s"] + seconds, before
    while (left := end - time.monotonic()) > 0 and not any(state["exhausted"] for state in after):
        time.sleep(min(1.0, left))
        after = ask_all(voters, do="state")
    cpu = sum(
        late["cpu_s"] - early["cpu_s"] for early, late in zip(usage, ask_all(voters, do="usage"), strict=True)
    )
    ask_all(voters, do="halt")
    final = settle(voters)
    rates = [rate_between(early, late) for early, late in zip(before, after, strict=True)]
    done = after[0]["tree_size"] - before[0]["tree_size"]
    blocks = after[0]["height"] - before[0]["height"]
    failed = sum(state["refused"] + state["not_final"] for state in final)
    answered = failed + sum(state["accepted"] for state in final)
    rows = [
        row("sustained_for", after[0]["at_s"] - before[0]["at_s"], "s"),
        row("outstanding", VOTERS * _CLIENTS * _BATCH, "transactions"),
        row("block_transactions", done / max(1, blocks), "per block"),
        row("failed", 100 * failed / max(1, answered), "% of transactions"),
        row("cpu_per_transaction", cpu / max(1, done) * 1e6, "us, all voters and clients"),
        row("cores_used", cpu / (after[0]["at_s"] - before[0]["at_s"]), "all voters and clients"),
        row(
            "busy_voter_memory",
            max(usage["rss_anon_mib"] for usage in ask_all(voters, do="usage")),
            "MiB RssAnon",
        ),
    ]
    return min(rates), rows


def _single_submits(voters: "list[VoterProcess]", count: int) -> tuple[list[float], list[Row]]:
    """Return each single submit's milliseconds to final, and the same by role: all voters submit in turn."""
    ask_all(voters, do="prepare", count=count)
    every_ms = 1000 * VOTERS / SINGLES_PER_S
    for position, voter in enumerate(voters):
        voter.send(do="singles", count=count, every_ms=every_ms, offset_ms=position * every_ms / VOTERS)
    answers = [voter.receive() for voter in voters]
    leader = voters[0].ask(do="state")["leader"]
    at_leader = [
        ms
        for voter, answer in zip(voters, answers, strict=True)
        if voter.node == leader
        for ms in answer["ms"]
    ]
    elsewhere = [
        ms
        for voter, answer in zip(voters, answers, strict=True)
        if voter.node != leader
        for ms in answer["ms"]
    ]
    return at_leader + elsewhere, [
        row("latency_p50_at_leader", percentile(at_leader, 0.5), "ms"),
        row("latency_p50_at_followers", percentile(elsewhere, 0.5), "ms"),
        row("singles_failed", sum(answer["failed"] for answer in answers), "transactions"),
    ]


def settle(voters: "list[VoterProcess]") -> list[Answer]:
    """Wait until all voters have applied the same blocks; return their states.

    Raises:
        Unavailable: they do not come to the same block.
    """
    deadline = time.monotonic() + _SETTLE_S
    previous: list[Answer] = []
    while time.monotonic() < deadline:
        states = ask_all(voters, do="state")
        heights = {state["height"] for state in states}
        if previous and len(heights) == 1 and heights == {state["height"] for state in previous}:
            assert len({state["hash"] for state in states}) == 1, "voters at one height hold one chain"
            return states
        previous = states
        time.sleep(0.2)
    raise Unavailable("the voters did not come to the same block")


def rate_between(early: Answer, late: Answer) -> float:
    """Return transactions per second between two states of one process."""
    return float((late["tree_size"] - early["tree_size"]) / (late["at_s"] - early["at_s"]))


# --- processes ------------------------------------------------------------------------------------------------------


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
    voters: list[VoterProcess] = field(default_factory=list)
    observers: list[VoterProcess] = field(default_factory=list)
    """Those that were started."""
    _addresses: list[str] = field(default_factory=list)
    _away: list[bytes] = field(default_factory=list)

    def start_voter(self, seed: bytes) -> None:
        """Start a voter that dials those before it."""
        self.voters.append(VoterProcess(SigningKey(seed).public.hex()))
        self._addresses += self._start(self.voters[-1], seed)["addresses"]

    def start_observer(self) -> VoterProcess:
        """Start the next observer, with an empty ledger: it begins to catch up at once."""
        seed = self._away.pop()
        self.observers.append(VoterProcess(SigningKey(seed).public.hex()))
        self._start(self.observers[-1], seed)
        return self.observers[-1]

    def _start(self, process: VoterProcess, seed: bytes) -> Answer:
        home = self.folder / process.node
        home.mkdir()
        return process.ask(
            do="start",
            seed=seed.hex(),
            configuration=self.genesis,
            folder=str(home),
            peers=self._addresses,
        )


@contextlib.contextmanager
def cast(folder: Path, *, limit_s: float, observers: int = 0) -> Iterator[Cast]:
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
    nodes = Cast(folder, genesis, _away=away)
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
        node.hex()[:16], "hospital", role, node, key.public, key.public, key.public, ()
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
