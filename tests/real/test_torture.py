"""Real daemons under faults for half a minute; and that the instruments of that test measure what they are to measure."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.identifiers import Digest, Height, Txid
from protocol.ledger_rows import Receipt
from simulations.linearizability import check
from tests.real.faults import plan
from tests.real.journal import (
    AccessModel,
    AddRecord,
    EndGrant,
    GiveGrant,
    Journal,
    OpenRecord,
    OrderModel,
    Wish,
)
from tests.real.links import NamespaceLinks, ProxyLinks, connect
from tests.real.slow_disk import slow_disk
from tests.real.torture import torture
from tests.real.verdict import Ledger, judge

FAULTS_S = float(os.environ.get("CARECHAIN_TORTURE_SECONDS", "20"))
"""How long the short version has faults; the long one is python -m tests.real.torture."""
A, B, C = "aa" * 32, "bb" * 32, "cc" * 32


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "share", "proxies"), [(11, 1.0, False), (12, 0.3, True)])
def test_daemons_that_are_killed_stopped_cut_off_and_slowed_lose_nothing_and_do_nothing_twice(
    seed: int, share: float, *, proxies: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    report = torture(seed, FAULTS_S * share, print, proxies=proxies)
    with capsys.disabled():
        print("", *report.lines(), sep="\n")  # which links and disks it had is part of the result

    assert report.problems == []
    assert report.judgement is not None
    assert report.judgement.access.operations > 0
    assert report.judgement.order.operations > 0


# --- the models -------------------------------------------------------------------------------------------------------


def told(*wishes: Wish) -> Journal:
    """Everything done, one after the other; the n-th by the n-th of the transactions A, B, C."""
    journal = Journal()
    for wish, transaction in zip(wishes, (A, B, C), strict=False):
        journal.returned(journal.call("client", wish), (transaction,))
    return journal


def test_who_opens_after_the_revocation_was_reported_contradicts_every_order() -> None:
    history = told(GiveGrant("x", 1), EndGrant("x", 1), OpenRecord("x"))

    assert check(history.access(), AccessModel()).outcome == "violation"


def test_who_opens_between_grant_and_revocation_contradicts_nothing() -> None:
    history = told(GiveGrant("x", 1), OpenRecord("x"), EndGrant("x", 1))

    assert check(history.access(), AccessModel()).outcome == "ok"


def test_a_grant_of_unknown_outcome_may_explain_what_was_opened() -> None:
    journal = Journal()
    journal.call("custodian", GiveGrant("x", 1))
    journal.returned(journal.call("reader", OpenRecord("x")), (A,))

    assert check(journal.access(), AccessModel()).outcome == "ok"


def test_what_was_reported_first_may_not_stand_later_on_the_ledger() -> None:
    journal = told(AddRecord("x", 1), AddRecord("x", 2))
    right, wrong = {A: (1, 0), B: (1, 1)}, {A: (1, 1), B: (1, 0)}

    assert check(journal.order(right), OrderModel()).outcome == "ok"
    assert check(journal.order(wrong), OrderModel()).outcome == "violation"


def test_what_was_under_way_at_once_may_stand_in_any_order() -> None:
    journal = Journal()
    first, second = (journal.call("client", AddRecord("x", number)) for number in (1, 2))
    journal.returned(first, (A,))
    journal.returned(second, (B,))

    assert check(journal.order({A: (2, 0), B: (1, 0)}), OrderModel()).outcome == "ok"


# --- the judgement ----------------------------------------------------------------------------------------------------

HISTORY = (GiveGrant("x", 1), AddRecord("x", 1), EndGrant("x", 1))


def ledger(name: str = "one") -> Ledger:
    receipts = {
        text: Receipt(Txid(bytes.fromhex(text)), Height(1), index, 0, "accepted")
        for index, text in enumerate((A, B, C))
    }
    tip = Digest(bytes(32))
    kinds = Counter({"Grant": 1, "RecordCommit": 1, "Revoke": 1})
    return Ledger(name, Height(0), tip, (tip,), receipts, 0, kinds, ())


def problems(*ledgers: Ledger) -> str:
    return "; ".join(judge(told(*HISTORY), ledgers).problems)


def test_equal_ledgers_that_hold_what_was_reported_are_in_order() -> None:
    assert problems(ledger("one"), ledger("two")) == ""


def test_an_acknowledged_transaction_that_one_daemon_lacks_is_a_loss() -> None:
    receipts = {A: ledger().receipts[A], B: ledger().receipts[B]}
    assert "is lost at two" in problems(ledger("one"), replace(ledger("two"), receipts=receipts))


def test_an_acknowledged_transaction_that_the_ledger_refused_is_a_loss() -> None:
    receipts = ledger().receipts | {A: replace(ledger().receipts[A], verdict="refused: expired")}
    assert "refused: expired at one" in problems(replace(ledger(), receipts=receipts))


def test_more_effects_than_wishes_are_found() -> None:
    twice = Counter({"Grant": 1, "RecordCommit": 2, "Revoke": 1})
    assert "holds 2 transactions RecordCommit" in problems(replace(ledger(), accepted=twice))
    assert "took effect twice" in problems(replace(ledger(), events_twice=(A,)))


def test_one_transaction_reported_for_two_wishes_is_found() -> None:
    journal = told(*HISTORY)
    journal.returned(journal.call("client", AddRecord("x", 2)), (B,))
    assert any("was reported for" in problem for problem in judge(journal, (ledger(),)).problems)


def test_different_ledgers_are_found() -> None:
    other = Digest(b"1" * 32)
    assert "different blocks at height 0" in problems(ledger(), replace(ledger(), digests=(other,)))
    assert "ended at block" in problems(ledger(), replace(ledger(), height=Height(3)))


def test_a_plan_is_that_of_its_seed_and_fills_its_time() -> None:
    assert plan(7, 100.0) == plan(7, 100.0) != plan(8, 100.0)
    assert sum(drawn.seconds + drawn.calm_s for drawn in plan(7, 100.0)) >= 100.0
    kinds = {fault.kind for seed in range(20) for drawn in plan(seed, 100.0) for fault in drawn.faults}
    assert len(kinds) == 8


# --- proxies and disks ------------------------------------------------------------------------------------------------


@pytest.fixture
def line() -> Iterator[tuple[ProxyLinks, socket.socket, socket.socket]]:
    """Two daemons' line: daemon 0 dialled daemon 1. Yields the lines and both ends."""
    links = ProxyLinks(2)
    with contextlib.ExitStack() as stack:
        stack.callback(links.close)
        listener = stack.enter_context(
            socket.create_server(("::1", links.target_port(1)), family=socket.AF_INET6)
        )
        (address,) = links.place(0).peers
        near = stack.enter_context(
            socket.create_connection(("127.0.0.1", int(address.rsplit("/", 1)[1])), timeout=5)
        )
        far = stack.enter_context(listener.accept()[0])
        far.settimeout(5)
        yield links, near, far


def silent(end: socket.socket) -> bool:
    end.settimeout(0.3)
    try:
        return not end.recv(16)
    except TimeoutError:
        return True
    finally:
        end.settimeout(5)


def test_a_proxy_cuts_one_direction_and_delivers_it_when_healed(
    line: tuple[ProxyLinks, socket.socket, socket.socket],
) -> None:
    links, near, far = line
    near.sendall(b"before")
    assert far.recv(16) == b"before"

    links.cut(0, 1)
    near.sendall(b"held")
    far.sendall(b"other way")

    assert near.recv(16) == b"other way"
    assert silent(far)
    links.heal()
    assert far.recv(16) == b"held"


def test_a_proxy_makes_no_connection_over_a_line_that_is_cut_one_way() -> None:
    links = ProxyLinks(2)
    with contextlib.ExitStack() as stack:
        stack.callback(links.close)
        listener = stack.enter_context(
            socket.create_server(("::1", links.target_port(1)), family=socket.AF_INET6)
        )
        listener.settimeout(0.3)
        links.cut(1, 0)
        (address,) = links.place(0).peers
        near = stack.enter_context(socket.create_connection(("127.0.0.1", int(address.rsplit("/", 1)[1]))))
        with pytest.raises(TimeoutError):
            listener.accept()
        links.heal()
        listener.settimeout(5)
        far = stack.enter_context(listener.accept()[0])
        near.sendall(b"now")
        assert far.recv(16) == b"now"


LISTEN = """
import socket
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("", 4001))
own.settimeout(20)
print("ready", flush=True)
print(own.recvfrom(64)[0].decode(), flush=True)
"""
SEND = "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 4001))"


def test_a_namespace_cuts_one_direction_and_leaves_nothing_behind() -> None:
    links = connect(2)
    if not isinstance(links, NamespaceLinks):
        links.close()
        pytest.skip("no network namespaces here")

    def python(number: int, *arguments: str) -> list[str]:
        return [*links.place(number).prefix, sys.executable, "-c", *arguments]

    def host(number: int) -> str:
        return links.place(number).listen.split("/")[2]

    try:
        links.cut(0, 1)
        with contextlib.ExitStack() as stack:
            listeners = [
                stack.enter_context(
                    subprocess.Popen(python(number, LISTEN), stdout=subprocess.PIPE, text=True)
                )
                for number in (0, 1)
            ]
            outputs = [listener.stdout for listener in listeners]
            assert [output and output.readline() for output in outputs] == ["ready\n", "ready\n"]
            subprocess.run(python(0, SEND, host(1), "lost"), check=True, timeout=120)
            subprocess.run(python(1, SEND, host(0), "other way"), check=True, timeout=120)
            assert outputs[0]
            assert outputs[0].readline() == "other way\n"
            links.heal()
            subprocess.run(python(0, SEND, host(1), "healed"), check=True, timeout=120)
            # The first that arrives: what was sent over the cut line did not.
            assert outputs[1]
            assert outputs[1].readline() == "healed\n"
    finally:
        links.close()

    left = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert f"carechain-{os.getpid()}-" not in left


def test_a_slow_disk_delays_synchronised_writes_and_is_fast_again_when_healed(tmp_path: Path) -> None:
    disk = slow_disk(tmp_path)
    if "SIGSTOP" in disk.kind:
        pytest.skip("no throttled block device here; its stand-in would stop this very process")

    def seconds() -> float:
        began = time.monotonic()
        with (tmp_path / "file").open("wb", buffering=0) as file:
            for _ in range(5):
                file.write(bytes(4096))
                os.fdatasync(file.fileno())
        return time.monotonic() - began

    try:
        disk.slow(os.getpid(), 10)
        slow = seconds()
        disk.heal()
        healed = seconds()
    finally:
        disk.close()

    # Five writes at ten a second cannot take less than four tenths; what the disk does by itself is not judged.
    assert slow > 0.35
    assert healed < slow
