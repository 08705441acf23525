"""`carechain bench catchup`: members that were away pull the ledger from three voters, and verify all of it.

Three voters and three observers as six processes on loopback. The voters order transactions of 1,060 bytes with two
signatures each while the observers are away. Then each observer in turn starts with an empty ledger, pulls every block
from the voters, verifies every link, root, certificate and signature, and applies it, durably.

    catchup           transactions per second of the first observer, the voters idle
    catchup_sampled   the same of the second, which verifies one transaction's signatures in sixteen (history = "sampled")
    catchup_loaded    the same of the third, which verifies all, while the voters order as much as they can
    slowdown          what the voters' own rate loses meanwhile, of what it was just before

All six share this machine's processors. A member that catches up has its own, so the third observer runs at a low
priority: what the voters lose is what serving it costs them, not what it computes. But voters that take all there is leave
it little, and then there is little to serve: so beside it stand the pace it kept (`caught_up_meanwhile`), the processor time
that the voters spend on serving one transaction, and what that comes to at the first observer's pace (`serving_share`).
An observer's is counted with that of the processes that verify for it (`node.signature_processes`).
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node.bench import ingredients
from node.bench.cast import VOTERS, Answer, Cast, VoterProcess, ask_all, cast
from node.bench.consensus import SIGNATURES, rate_between, settle, spent_between
from node.bench.ingredients import Row, figure, row
from protocol import limits
from protocol.errors import Unavailable

CATCHUP_TARGET = 10_000.0
SLOWDOWN_TARGET_PERCENT = 10.0
MACHINE_SHARE_TARGET = 0.50
"""catchup / (cores / seconds to verify one transaction)."""
FILL_BYTES = 24 * limits.MIB
TRANSACTION_BYTES = 1_060
OBSERVERS = 3
_CLIENTS, _BATCH = 4, 100
_ROUND_TRANSACTIONS = 60_000
"""Prepared at a time, which bounds what lies in memory."""
_LOAD_S = 6.0
"""How long the voters' rate is measured before the second observer comes."""
_RAMP_S = 1.0
"""Left out before the voters' rate counts: the first batches are still on their way."""
_LOADED_SHARE = 2.0
"""How much longer than alone an observer may take beside the load: that much is prepared."""
_POLL_S = 0.05
_NICENESS = 10
"""A tenth of what another process gets; with less, beside voters that take all, it would hardly catch up at all."""
_CATCH_UP_S = 300.0
_LIMIT_S = 1_800.0


def measure(
    *, fill_bytes: int | None = None, compare: bool = False, show: Callable[[str], None] = print
) -> dict[str, list[Row]]:
    """Measure and return `figures`, `ingredients` and, with `compare`, `ratios`. `fill_bytes` is what was missed.

    Raises:
        Unavailable: the voters did not come to a leader, an observer did not catch up, or a process ended.
    """
    least = VOTERS * _CLIENTS * _BATCH
    transactions = max(least, (FILL_BYTES if fill_bytes is None else fill_bytes) // TRANSACTION_BYTES)
    with tempfile.TemporaryDirectory(prefix="carechain-bench-") as folder:
        show("measuring what the machine can do …")
        parts = ingredients.of_ledger(Path(folder))
        with cast(Path(folder), limit_s=_LIMIT_S, observers=OBSERVERS) as nodes:
            return _measured(nodes, parts, transactions, compare=compare, show=show)


def _measured(
    nodes: Cast, parts: list[Row], transactions: int, *, compare: bool, show: Callable[[str], None]
) -> dict[str, list[Row]]:
    show(f"three voters order {transactions} transactions while the observers are away …")
    fill_rate = _fill(nodes.voters, transactions)
    missed = settle(nodes.voters)[0]
    show(f"an observer catches up {missed['height']} blocks, the voters idle …")
    alone = _catch_up(nodes)
    show("another one, which verifies one transaction in sixteen …")
    sampled = _catch_up(nodes, samples_history=True)
    # As long as it took alone, and longer because it shares the processors, and the time before it comes.
    seconds = _RAMP_S + _LOAD_S + alone.seconds * (1 + _LOADED_SHARE)
    ask_all(nodes.voters, do="prepare", count=int(fill_rate * seconds / VOTERS) + _CLIENTS * _BATCH)
    show("a third one catches up while the voters order as much as they can …")
    before, loaded = _catch_up_beside_load(nodes)
    slowdown = 100 * (1 - loaded.voters_rate / before) if loaded.voters_rate is not None else None
    figures = [
        figure("catchup", alone.rate, "tx/s", CATCHUP_TARGET, least=True),
        figure("catchup_sampled", sampled.rate, "tx/s", CATCHUP_TARGET, least=True),
        figure("slowdown", slowdown, "% of the voters' rate", SLOWDOWN_TARGET_PERCENT, least=False),
        figure("catchup_loaded", loaded.rate, "tx/s", None, least=True),
    ]
    parts += [
        row("transaction_bytes", TRANSACTION_BYTES, f"bytes, {SIGNATURES} signatures"),
        row("blocks_behind", missed["height"], "blocks"),
        row("transactions_behind", missed["tree_size"], "transactions"),
        row("catchup_blocks", missed["height"] / alone.seconds, "blocks/s"),
        row("catchup_for", alone.seconds, "s"),
        row("observer_cpu_per_transaction", alone.observer_cpu_us, "us"),
        row("sampled_cpu_per_transaction", sampled.observer_cpu_us, "us"),
        row("serving_cpu_per_transaction", alone.voters_cpu_us, "us, all voters"),
        row("voters_rate_before", before, "tx/s"),
        row("voters_rate_meanwhile", loaded.voters_rate, "tx/s"),
        row("caught_up_meanwhile", loaded.rate_meanwhile, "tx/s"),
        row("serving_share", _serving_percent(alone), "% of the processors, serving one that has its own"),
        row(
            "observer_memory",
            nodes.observers[-1].ask(do="usage")["rss_anon_mib"],
            "MiB RssAnon, those processes apart",
        ),
    ]
    return {"figures": figures, "ingredients": parts, "ratios": _ratios(alone.rate, parts) if compare else []}


def _serving_percent(alone: "_CaughtUp") -> float:
    """Return what serving at the pace that was reached takes of all processors; what voters do when idle is counted with it."""
    return 100 * alone.rate * alone.voters_cpu_us / 1e6 / ingredients.cores()


def _ratios(rate: float, parts: list[Row]) -> list[Row]:
    most = ingredients.cores() * ingredients.value_of(parts, "verify") / SIGNATURES
    return [
        {
            "name": "catchup",
            "of": f"cores / time to verify {SIGNATURES} signatures",
            "machine": ingredients.rounded(most),
            "share": ingredients.rounded(rate / most),
            "target": MACHINE_SHARE_TARGET,
            "met": rate / most >= MACHINE_SHARE_TARGET,
        }
    ]


# --- phases ---------------------------------------------------------------------------------------------------------


def _fill(voters: list[VoterProcess], transactions: int) -> float:
    """Order about so many transactions, and return how many per second it was in the last round."""
    left, rate = transactions, 0.0
    while left > 0:
        count = min(left, _ROUND_TRANSACTIONS)
        ask_all(voters, do="prepare", count=count // VOTERS + _CLIENTS * _BATCH)
        before = voters[0].ask(do="state")
        ask_all(voters, do="load", clients=_CLIENTS, batch=_BATCH)
        after = voters[0].ask(do="state")
        while after["tree_size"] - before["tree_size"] < count and not after["exhausted"]:
            time.sleep(_POLL_S)
            after = voters[0].ask(do="state")
        ask_all(voters, do="halt")
        rate = rate_between(before, after)
        left -= count
    return rate


@dataclass(frozen=True, slots=True)
class _CaughtUp:
    """How an observer caught up: what it verified, in what time, and at what cost in processor time."""

    transactions: int
    seconds: float
    observer_cpu_us: float
    """Per transaction."""
    voters_cpu_us: float
    """Per transaction, of all voters together; their own ordering included, when they order."""
    voters_rate: float | None
    """Transactions per second that the slowest voter applied meanwhile; None when they had none left to order."""
    rate_meanwhile: float
    """Transactions per second that the observer applied in the time over which `voters_rate` is taken."""

    @property
    def rate(self) -> float:
        """Transactions per second, verified and applied."""
        return self.transactions / self.seconds


def _catch_up(nodes: Cast, *, samples_history: bool = False, yields: bool = False) -> _CaughtUp:
    """Start the next observer and wait until it has all that the voters had when it was connected.

    Raises:
        Unavailable: it takes too long.
    """
    deadline = time.monotonic() + _CATCH_UP_S
    observer = nodes.start_observer(samples_history=samples_history)
    begin = observer.ask(do="state")
    while not begin["connected"]:
        begin = _later(observer, deadline)
    if yields:
        observer.ask(do="yield", niceness=_NICENESS)
    first, usage = ask_all(nodes.voters, do="state"), ask_all(nodes.voters, do="usage")
    own, goal = observer.ask(do="usage"), max(state["tree_size"] for state in first)
    end, last, beside = begin, first, begin
    while end["tree_size"] < goal:
        end = _later(observer, deadline)
        states = ask_all(nodes.voters, do="state")
        # A voter without clients left is no measure of what it could do.
        if not any(state["exhausted"] for state in states):
            last, beside = states, end
    spent = spent_between(usage, ask_all(nodes.voters, do="usage"))
    done = end["tree_size"] - begin["tree_size"]
    rates = [rate_between(early, late) for early, late in zip(first, last, strict=True) if late is not early]
    return _CaughtUp(
        done,
        end["at_s"] - begin["at_s"],
        spent_between([own], [observer.ask(do="usage")]) / done * 1e6,
        spent / done * 1e6,
        min(rates, default=None),
        rate_between(begin, beside) if beside is not begin else 0.0,
    )


def _later(observer: VoterProcess, deadline: float) -> Answer:
    if time.monotonic() > deadline:
        raise Unavailable("the observer of the benchmark does not catch up")
    time.sleep(_POLL_S)
    return observer.ask(do="state")


def _catch_up_beside_load(nodes: Cast) -> tuple[float, _CaughtUp]:
    """Return the voters' rate before the observer came, and how it caught up beside the load."""
    ask_all(nodes.voters, do="load", clients=_CLIENTS, batch=_BATCH)
    time.sleep(_RAMP_S)
    before = ask_all(nodes.voters, do="state")
    time.sleep(_LOAD_S)
    after = ask_all(nodes.voters, do="state")
    loaded = _catch_up(nodes, yields=True)
    ask_all(nodes.voters, do="halt")
    settle(nodes.voters)
    return min(rate_between(early, late) for early, late in zip(before, after, strict=True)), loaded
