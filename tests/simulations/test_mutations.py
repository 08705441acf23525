"""The simulation is worth its time only if it finds bugs: here are some, put in on purpose.

Each is one that shipped in some implementation of Raft. A few short seeds must suffice to find it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from protocol.configuration import Configuration
from protocol.identifiers import ZERO
from protocol.raft.state import HardState
from simulations.disk import VirtualDisk
from simulations.runner import Options, simulate
from storage.key_value import Batch
from storage.ledger_store import LedgerStore

SEEDS = 6


def findings(scenario: str) -> str:
    """Return the first violations that the first failing seed finds; "" when none does."""
    for seed in range(SEEDS):
        verdict = simulate(Options(seed=seed, virtual_s=30, scenario=scenario))
        if verdict.violations:
            return " | ".join(verdict.violations)
    return ""


def test_votes_and_blocks_that_are_sent_before_they_are_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    write = VirtualDisk.commit

    async def unsynced(self: VirtualDisk, batch: Batch, *, sync: bool) -> None:
        await write(self, batch, sync=False)

    monkeypatch.setattr(VirtualDisk, "commit", unsynced)
    found = findings("leader-crash")
    assert "without synchronising" in found


def test_a_vote_that_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    put = LedgerStore.put_hard_state

    def forgetful(batch: Batch, state: HardState) -> None:
        put(batch, dataclasses.replace(state, vote=ZERO))

    monkeypatch.setattr(LedgerStore, "put_hard_state", staticmethod(forgetful))
    assert "before that was durable" in findings("leader-crash")


def test_a_quorum_that_is_no_majority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Configuration, "raft_quorum", property(lambda _: 1))
    found = findings("partition")
    assert any(word in found for word in ("safety", "completeness", "failed", "warns"))


def test_rows_that_are_applied_without_the_mark_that_explains_them(monkeypatch: pytest.MonkeyPatch) -> None:
    put: Callable[..., None] = LedgerStore.put_applied

    def forgetful(
        store: LedgerStore, batch: Batch, writes: dict[bytes, bytes | None], mark: Any, proof: Any
    ) -> None:
        put(store, batch, dict(list(writes.items())[:1]), mark, proof)

    monkeypatch.setattr(LedgerStore, "put_applied", forgetful)
    assert findings("slow-disk")
