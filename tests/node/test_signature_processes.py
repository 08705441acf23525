"""Real processes, few and short: what they say, and that nothing is lost when they end or never start."""

import io
import os
import signal
import subprocess
import sys

import pytest
import trio

from node import signature_process, signature_processes
from node.signature_process import request
from node.signature_processes import SignatureProcesses
from node.verification import Verification
from protocol import claims, transaction
from protocol.claims import Claim
from protocol.errors import Invalid
from tests.node.ledger_double import InlineWorkers, SilentLog
from tests.protocol import chain

RAW = chain.signed()
CLAIMED = tuple(claim for raw in RAW for claim in claims.check(raw, chain.NETWORK)[2])
FORGED = CLAIMED[0]._replace(signature=bytes(64))


def answers(requests: bytes) -> bytes:
    said = io.BytesIO()
    signature_process.serve(io.BytesIO(requests), said)
    return said.getvalue()


def test_each_request_gets_one_answer_in_its_order() -> None:
    asked = request(CLAIMED), request((*CLAIMED, FORGED)), request((FORGED, *CLAIMED)), request(CLAIMED[:1])
    assert answers(b"".join(asked)) == b"\x01\x00\x00\x01"


def test_a_request_that_is_cut_off_gets_none() -> None:
    whole = request(CLAIMED[:1])
    for length in range(len(whole)):
        assert answers(whole[:length]) == b""


def test_signed_bytes_of_any_length_are_told_apart() -> None:
    key = chain.VOTERS[0]
    forms = b"", b"x", b"y" * 70_000
    claimed = [Claim(key.public, form, key.sign(form)) for form in forms]
    swapped = [claimed[0]._replace(form=b"x"), claimed[1]]
    assert answers(request(claimed) + request(swapped)) == b"\x01\x00"


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(65)])
def test_a_claim_of_unlawful_length_does_not_shift_what_follows_it(signature: bytes) -> None:
    with pytest.raises(ValueError, match="unlawful length"):
        request((CLAIMED[0]._replace(signature=signature), *CLAIMED))


async def test_processes_say_what_holds_and_end_with_their_scope() -> None:
    processes = SignatureProcesses(2)
    assert not processes.are_running
    assert not await processes.hold(CLAIMED)  # nobody who could say
    with trio.fail_after(60):
        async with processes.running():
            said: list[tuple[int, bool]] = []

            async def ask(number: int) -> None:
                claimed = CLAIMED if number % 3 else (*CLAIMED, FORGED)
                said.append((number, await processes.hold(claimed)))

            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(ask, number)
            pids = processes.pids
    assert {number for number, is_held in said if not is_held} == set(range(0, 30, 3))
    assert len(pids) == 2
    assert processes.pids == ()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_certified_transactions_are_judged_alike_with_processes_without_and_when_they_are_killed() -> (
    None
):
    processes = SignatureProcesses(1)
    verification = Verification(chain.NETWORK, InlineWorkers(), SilentLog(), processes=processes)
    expected = tuple(transaction.check(raw, chain.NETWORK) for raw in RAW)
    bad = RAW[0][:-1] + bytes([RAW[0][-1] ^ 1])
    with trio.fail_after(60):
        async with processes.running():
            for is_alive in (True, False):
                assert processes.are_running is True
                assert await verification.check_certified(RAW * 20) == expected * 20
                with pytest.raises(Invalid, match="does not verify"):
                    await verification.check_certified((*RAW * 20, bad))
                if is_alive:
                    os.kill(processes.pids[0], signal.SIGKILL)
                    await processes._running[0]._process.wait()
            assert processes.are_running is False
    assert await verification.check_certified(RAW) == expected


async def test_a_request_that_is_given_up_spoils_its_process_and_no_other_answer() -> None:
    processes = SignatureProcesses(1)
    with trio.fail_after(60):
        async with processes.running():
            assert await processes.hold(CLAIMED)
            assert not await processes.hold((*CLAIMED, CLAIMED[0]._replace(signature=b"")))
            with trio.move_on_after(0):
                await processes.hold((FORGED,))
            assert not await processes.hold(CLAIMED), "an answer to another request is none to this one"
            assert not processes.are_running


async def test_a_process_that_stands_still_is_given_up_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = SignatureProcesses(1)
    with trio.fail_after(60):
        async with processes.running():
            os.kill(processes.pids[0], signal.SIGSTOP)
            monkeypatch.setattr(signature_processes, "_ANSWER_S", 0.1)
            assert not await processes.hold(CLAIMED)
            assert not processes.are_running


def test_a_process_whose_daemon_is_gone_ends_without_a_word() -> None:
    process = subprocess.Popen(
        (sys.executable, "-P", "-m", "node.signature_process"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdin, process.stderr:
        process.stdout.close()
        process.stdin.write(request(CLAIMED) * 2)
        process.stdin.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


async def test_without_the_program_it_goes_on_without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    processes = SignatureProcesses(1)
    async with processes.running():
        assert not processes.are_running
    assert processes.pids == ()
