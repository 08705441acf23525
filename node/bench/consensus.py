"""`carechain bench consensus`: three voters as three processes on loopback order signed transactions to final.

Every transaction is a VaultOpen of 1,060 bytes with TWO signatures; every voter verifies both, and every block is
synchronised to disk by every voter. Clients live at all three voters and submit to their own.

    sustained        batches kept outstanding at all voters; counted where the slowest voter has applied
    latency_*        single submits at a fixed 200/s, from when each was due to the receipt that its own voter applied
    latency_*_1000   the same at 1,000/s

With `disk_delay_ms` every synchronised write takes so much longer: what a slower disk would cost.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from node.bench import ingredients
from node.bench.cast import VOTERS, Answer, VoterProcess, ask_all, cast
from node.bench.ingredients import Row, figure, percentile, row
from protocol.errors import Unavailable

SIGNATURES = 2
SUSTAINED_TARGET = 5_000.0
LATENCY_P50_TARGETS_MS = {200: 30.0, 1_000: 20.0}
"""Single submits per second -> how long half of them may take at most."""
_LATENCY_P99_TARGETS_MS = {1_000: 60.0}
MACHINE_SHARE_TARGET = 0.30
"""sustained / (cores / (voters x seconds to verify one transaction)); ledger.md decision 10."""
_SECONDS = 60.0
_CLIENTS, _BATCH = 4, 100
"""Batches outstanding per voter, and transactions in each."""
_WARM_UP_S = 2.0
_IDLE_S = 3.0
_SINGLES_S = 10.0
_REST_S = 5.0
"""Between the load and the single submits: LevelDB compacts what a saturating minute has written for a while longer."""
_WARM_UP_TRANSACTIONS = 4_000
_PREPARED_MORE = 1.8
"""Prepared beyond what the warm-up promises: it is slower than what follows."""
_SETTLE_S = 20.0


def measure(
    *,
    minutes: float | None = None,
    disk_delay_ms: float = 0,
    compare: bool = False,
    show: Callable[[str], None] = print,
) -> dict[str, list[Row]]:
    """Measure and return `figures`, `ingredients` and, with `compare`, `ratios`. `minutes` is the length of `sustained`.

    Raises:
        Unavailable: the voters did not come to a leader, or one of them ended.
    """
    seconds = _SECONDS if minutes is None else minutes * 60
    with tempfile.TemporaryDirectory(prefix="carechain-bench-") as folder:
        show("measuring what the machine can do …")
        parts = ingredients.of_ledger(Path(folder))
        if disk_delay_ms:
            parts.append(row("disk_delay", disk_delay_ms, "ms more for each synchronised write"))
        with cast(Path(folder), limit_s=3 * seconds + 120, disk_delay_ms=disk_delay_ms) as nodes:
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
    prepared = ask_all(
        voters, do="prepare", count=int(rate * seconds * _PREPARED_MORE / VOTERS) + _CLIENTS * _BATCH
    )
    show(f"ordering for {seconds:.0f} s …")
    sustained, load = _sustained(voters, seconds)
    figures = [figure("sustained", sustained, "tx/s", SUSTAINED_TARGET, least=True)]
    for per_s in LATENCY_P50_TARGETS_MS:
        time.sleep(min(_REST_S, seconds / 4))
        singles_s = min(_SINGLES_S, max(1.0, seconds / 4))
        show(f"single submits at {per_s}/s for {singles_s:.0f} s …")
        single_figures, single_rows = _single_submits(voters, per_s, singles_s)
        figures += single_figures
        load += single_rows
    size = prepared[0]["transaction_bytes"]
    parts += [row("transaction_bytes", size, f"bytes, {SIGNATURES} signatures"), *load]
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
    cpu = spent_between(usage, ask_all(voters, do="usage"))
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


def _single_submits(voters: "list[VoterProcess]", per_s: int, seconds: float) -> tuple[list[Row], list[Row]]:
    """Return how long single submits took to final, and the same by role: all voters submit in turn."""
    count = int(seconds * per_s / VOTERS)
    ask_all(voters, do="prepare", count=count)
    usage, before = ask_all(voters, do="usage"), voters[0].ask(do="state")
    every_ms = 1000 * VOTERS / per_s
    for position, voter in enumerate(voters):
        voter.send(do="singles", count=count, every_ms=every_ms, offset_ms=position * every_ms / VOTERS)
    answers = [voter.receive() for voter in voters]
    after = voters[0].ask(do="state")
    spent = spent_between(usage, ask_all(voters, do="usage"))
    at_leader, elsewhere = list[float](), list[float]()
    for voter, answer in zip(voters, answers, strict=True):
        (at_leader if voter.node == after["leader"] else elsewhere).extend(answer["ms"])
    name = "" if per_s == min(LATENCY_P50_TARGETS_MS) else f"_{per_s}"
    latencies = at_leader + elsewhere
    target = LATENCY_P50_TARGETS_MS[per_s]
    return [
        figure(f"latency_p50{name}", percentile(latencies, 0.5), "ms", target, least=False),
        figure(
            f"latency_p99{name}",
            percentile(latencies, 0.99),
            "ms",
            _LATENCY_P99_TARGETS_MS.get(per_s),
            least=False,
        ),
    ], [
        row(f"latency_p50_at_leader{name}", percentile(at_leader, 0.5), "ms"),
        row(f"latency_p50_at_followers{name}", percentile(elsewhere, 0.5), "ms"),
        row(f"singles_failed{name}", sum(answer["failed"] for answer in answers), "transactions"),
        row(f"singles_per_block{name}", VOTERS * count / (after["height"] - before["height"]), "per block"),
        row(f"cpu_per_single{name}", spent / (VOTERS * count) * 1e6, "us, all voters and clients"),
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


def spent_between(before: list[Answer], after: list[Answer]) -> float:
    """Return the seconds of processor time between two usages."""
    return float(sum(late["cpu_s"] - early["cpu_s"] for early, late in zip(before, after, strict=True)))


def rate_between(early: Answer, late: Answer) -> float:
    """Return transactions per second between two states of one process."""
    return float((late["tree_size"] - early["tree_size"]) / (late["at_s"] - early["at_s"]))
