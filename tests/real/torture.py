"""Real daemons under load and under faults, as a command: python -m tests.real.torture --minutes 10 --seed 7

    found ──► clients begin ──► faults, round by round ──► heal ──► every client gets something done ──► clients end
          ──► one height ──► audit by each daemon ──► stop ──► the ledgers on disk are judged

It prints what goes on, ends with a summary, and exits 1 on any violation; the homes are kept then, with their logs.
"""

import argparse
import contextlib
import hashlib
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from node.demo_network import DemoError, until
from protocol.errors import CarechainError, NotFinal, Unavailable
from tests.real.clients import Chart, Client, Custodian, Reader, Recorder, added, registered
from tests.real.daemons import VOTERS, Consortium, Daemon
from tests.real.faults import carry_out, plan
from tests.real.journal import AddRecord, Journal
from tests.real.verdict import Judgement, judge, ledger_of

_AFTERWARDS_S = 90.0
"""How long after the last fault every client may take to get something done."""
_JOIN_S = 180.0
_PROGRESS_S = 10.0

Say = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """What came of a run. `problems` is empty when nothing was violated."""

    seed: int
    conditions: str
    problems: list[str] = field(default_factory=list)
    faults: int = 0
    seconds: float = 0.0
    journal: Journal = field(default_factory=Journal)
    judgement: Judgement | None = None

    def lines(self) -> Iterator[str]:
        """Yield the summary."""
        yield f"seed {self.seed}: {self.faults} faults in {self.seconds:.0f} s; {self.conditions}"
        yield "; ".join(f"{name} {count}" for name, count in sorted(self.journal.outcomes.items()))
        if self.judgement is not None:
            found = self.judgement
            yield f"{found.transactions} transactions in {found.height} blocks, {found.copies} copies without effect"
            yield f"access: {found.access}"
            yield f"order: {found.order}"
        yield from (f"VIOLATION: {problem}" for problem in self.problems)
        yield (
            "violated"
            if self.problems
            else "nothing lost, nothing twice, one ledger, and a history that one copy could have told"
        )


def torture(
    seed: int, seconds: float, say: Say, stop: threading.Event | None = None, *, proxies: bool = False
) -> Report:
    """Torture a consortium for `seconds` of faults, and return what was found.

    Nothing remains of it, unless something was violated: the homes and logs then. `proxies` as `Consortium`.
    """
    consortium = Consortium(proxies=proxies)
    report = Report(seed, consortium.conditions)
    say(report.conditions)
    try:
        consortium.found()
        _run(consortium, report, seconds, say, stop or threading.Event())
    except DemoError as error:
        report.problems.append(str(error))
    finally:
        consortium.close(keep=bool(report.problems))
        if report.problems:
            say(f"the homes and logs are kept in {consortium.folder}")
    return report


def _run(consortium: Consortium, report: Report, seconds: float, say: Say, stop: threading.Event) -> None:
    clients = _clients(consortium, report)
    say(f"{len(clients)} clients begin")
    for client in clients:
        client.start()
    began = said_at = time.monotonic()
    for drawn in plan(report.seed, seconds):
        left = seconds - (time.monotonic() - began)
        if left <= 0 or stop.is_set() or report.problems:
            break
        at = f"{time.monotonic() - began:6.1f} s  "
        carry_out(consortium, drawn, lambda line, at=at: say(at + line), stop)  # type: ignore[misc]
        report.faults += len(drawn.faults)
        report.problems += consortium.ended_by_themselves()
        if time.monotonic() - said_at > _PROGRESS_S:
            said_at = time.monotonic()
            say(f"{said_at - began:6.1f} s  {sum(client.done for client in clients)} operations done")
    report.seconds = time.monotonic() - began
    consortium.heal()
    if not report.problems:
        _end(consortium, clients, report, say)


def _end(consortium: Consortium, clients: tuple[Client, ...], report: Report, say: Say) -> None:
    """Let everybody get something done without faults, end the clients, and judge."""
    say("healed; every client is to get something done")
    consortium.wait_for_answers()
    consortium.wait_for_connections()
    before = [client.done for client in clients]

    def progressed() -> bool | None:
        alive = [client for client, done in zip(clients, before, strict=True) if client.done == done]
        return None if any(client.is_alive() for client in alive) else True

    with _noting(report):
        until("every client to get something done after the last fault", progressed, _AFTERWARDS_S)
    for client in clients:
        client.stop()
    for client in clients:
        client.join(_JOIN_S)
        if client.is_alive():
            report.problems.append(f"{client.name} does not come to an end")
        if client.failure is not None:
            report.problems.append(f"{client.name} failed: {client.failure!r}")
    report.problems += report.journal.surprises
    with _noting(report):
        say(f"one height: {consortium.wait_for_one_height()}")
        for daemon in consortium.daemons:
            _audit(daemon, report)
        report.problems += consortium.passed_by()
    report.problems += consortium.ended_by_themselves()
    report.problems += consortium.stop()
    report.judgement = judge(report.journal, tuple(ledger_of(daemon) for daemon in consortium.daemons))
    report.problems += report.judgement.problems


@contextlib.contextmanager
def _noting(report: Report) -> Iterator[None]:
    """Note what did not come to pass, and go on: the ledgers tell more."""
    try:
        yield
    except DemoError as error:
        report.problems.append(str(error))


def _audit(daemon: Daemon, report: Report) -> None:
    try:
        results = [
            one["result"] for one in daemon.client.lines("/v1/audit/verify", full=True) if "result" in one
        ]
    except CarechainError as error:
        report.problems.append(f"the audit of {daemon.name} broke off: {error}")
        return
    if not results or not results[0]["ok"]:
        report.problems.append(f"the audit of {daemon.name} found {results[:1]}")


def _clients(consortium: Consortium, report: Report) -> tuple[Client, ...]:
    """Register patients, add the records that are to be opened, and return the clients, not yet started."""
    draw, journal = random.Random(report.seed), report.journal
    voters = consortium.daemons[:VOTERS]
    clients: list[Client] = []
    for number, custodian in enumerate(voters):
        reader = voters[(number + 1) % VOTERS]
        chart = _chart(custodian, reader, draw, journal)
        clients.append(Custodian(chart, journal, random.Random(draw.random())))
        clients.append(Reader(chart, journal, random.Random(draw.random())))
    clients += [
        Recorder(daemon, registered(daemon, 2), journal, random.Random(draw.random())) for daemon in voters
    ]
    return tuple(clients)


def _chart(custodian: Daemon, reader: Daemon, draw: random.Random, journal: Journal) -> Chart:
    place = f"{custodian.name} to {reader.name}"
    patient, data = registered(custodian, 1), draw.randbytes(3_000)
    entry = journal.call("preparation", AddRecord(place, 0))

    def final() -> tuple[str, tuple[str, ...]] | None:
        try:
            return added(custodian, patient, data)
        except (NotFinal, Unavailable):
            return None

    record, transactions = until("the first records to be final", final, _AFTERWARDS_S)
    journal.returned(entry, transactions)
    return Chart(place, custodian, reader, patient, record, hashlib.sha256(data).hexdigest())


def main() -> int:
    """Run as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.real.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long there are faults (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the clients (default: 1)")
    parser.add_argument(
        "--proxies", action="store_true", help="loopback and proxies also where there are network namespaces"
    )
    chosen = parser.parse_args()
    stop = threading.Event()
    # Ended early, it heals, judges and clears away all the same.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    report = torture(
        chosen.seed,
        chosen.minutes * 60,
        lambda line: print(line, flush=True),
        stop,
        proxies=chosen.proxies,
    )
    for line in report.lines():
        print(line, flush=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
