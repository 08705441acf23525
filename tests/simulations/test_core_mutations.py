"""Tier A finds cores whose rules were taken out: each within a few seeds, by the checker that is there for it."""

import dataclasses
from typing import Any

import pytest

from protocol import limits
from protocol.identifiers import ZERO
from protocol.raft.election import Election
from protocol.raft.log import Log
from protocol.raft.output import Output
from protocol.raft.read_index import LeaderReads
from protocol.raft.replication import Leadership
from protocol.raft.snapshot import Offers
from simulations import core_compaction
from simulations.core_disk import CoreDisk
from simulations.core_world import simulate_core
from simulations.runner import Options, story_of
from simulations.story import Load
from simulations.story_text import parse

SEEDS = 25
BLACKOUTS = "\n".join(f"at {at} blackout for 0.5" for at in range(3, 28, 3))
LAGGING = (
    "at 4 cut both 2 for 4\nat 7.9 crash leader for 4\nat 16 cut both 1 for 4\nat 19.9 crash leader for 4"
)
ALONE = "\n".join(f"at {at} cut both leader for 3" for at in range(3, 28, 4))
SLEEPING = "at 4 pause leader for 4\nat 4.1 cut both leader for 8\nat 17 pause leader for 4\nat 17.1 cut both leader for 8"


def first_finding(*, scenario: str = "mixed", lines: str = "", seeds: int = SEEDS) -> str:
    """Return what the first seed of a scenario, or of a story's lines, says that it found; or nothing."""
    for seed in range(seeds):
        options = Options(seed, 30.0, scenario, voters=3, observers=0, tier="a")
        events = (
            parse(f"world tier=a seed=0 observers=0 seconds=30\n{lines}") if lines else story_of(options)
        ).events
        verdict = simulate_core(options, events, load=Load(3, 0.2))
        if verdict.violations:
            return verdict.violations[0]
    return ""


def test_a_vote_given_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Election.answer_vote

    def answer_twice(self: Any, request: Any) -> bool:
        voter = self._voter
        if voter.hard.vote != voter.me:
            voter.hard = dataclasses.replace(voter.hard, vote=ZERO)
        return answer(self, request)

    monkeypatch.setattr(Election, "answer_vote", answer_twice)
    # Two candidates of one term have to meet often: time-outs that pass together, but for when each node has started.
    monkeypatch.setattr(Election, "_draw", lambda _: limits.ELECTION_TICKS_MIN)
    finding = first_finding(lines=BLACKOUTS)
    assert "changed its vote" in finding or "voted for two candidates" in finding


def test_a_candidate_with_a_shorter_log_that_is_elected_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "_is_current", lambda *_: True)
    finding = first_finding(lines=LAGGING)
    assert "completeness" in finding or "conflicts with the certified block" in finding


def test_a_message_sent_before_its_promise_is_durable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "_is_prompt", lambda *_: True)
    assert "persist before send" in first_finding(scenario="leader-crash", seeds=3)


def test_a_read_without_a_round_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_at_once(self: Any) -> None:
        waiting, self._waiting = tuple(self._waiting), []
        self._answer(waiting, self._voter.log.committed)

    monkeypatch.setattr(LeaderReads, "advance", answer_at_once)
    assert "stale read" in first_finding(lines=SLEEPING)


def test_a_block_of_an_older_term_committed_by_counting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its proof does not hold: of acknowledgements of a later term than the block's (Raft §5.4.2, Figure 8)."""
    log_term = Log.term

    def advance(self: Any) -> None:
        own = self._voter.term
        with monkeypatch.context() as patch:
            patch.setattr(Log, "term", lambda log, height: max(log_term(log, height), own))
            commit(self)

    commit = Leadership.advance_commit
    monkeypatch.setattr(Leadership, "advance_commit", advance)
    assert first_finding(scenario="leader-crash")


def test_a_tail_that_is_not_truncated_before_it_is_written_anew_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take = Log.take_unpersisted
    monkeypatch.setattr(Log, "take_unpersisted", lambda self: (None, take(self)[1]))
    assert "a core failed" in first_finding(scenario="partition")


def always_compacting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let members drop history and install snapshots in every seed, and often."""
    monkeypatch.setattr(core_compaction, "_SEEDS", 1.0)
    monkeypatch.setattr(core_compaction, "_EVERY_S", (0.5,))


def test_without_a_mutation_members_that_install_snapshots_all_the_time_are_found_sound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always_compacting(monkeypatch)
    assert first_finding(scenario="leader-crash", seeds=4) == ""


def test_an_installation_that_discards_an_acknowledged_tail_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """camunda #6092, RedisLabs/raft #49; ledger.md 3.1 no. 38."""
    install = CoreDisk.install

    def discard(self: CoreDisk, source: CoreDisk) -> None:
        install(self, source)
        del self.blocks[self.applied + 1 :]

    always_compacting(monkeypatch)
    monkeypatch.setattr(CoreDisk, "install", discard)
    assert "was acknowledged in term" in first_finding(scenario="leader-crash")


def test_an_installation_that_keeps_a_conflicting_tail_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """hashicorp/raft #697; ledger.md 3.1 no. 37."""

    def keep(self: CoreDisk, source: CoreDisk) -> None:
        above = self.blocks[source.applied + 1 :]
        install(self, source)
        del self.blocks[self.applied + 1 :]
        self.blocks += above

    install = CoreDisk.install
    always_compacting(monkeypatch)
    monkeypatch.setattr(CoreDisk, "install", keep)
    finding = first_finding(lines=ALONE)
    assert "a core failed" in finding or "durable state" in finding


def test_a_leader_that_sends_what_it_does_not_hold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    always_compacting(monkeypatch)
    monkeypatch.setattr(Offers, "serve", lambda *_: False)
    assert "not held" in first_finding(scenario="partition")
