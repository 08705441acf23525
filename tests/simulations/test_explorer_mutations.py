"""Rules of Raft taken out of the core one at a time: the explorer must find what that leads to, within small bounds."""

import dataclasses
from typing import Any, Final

import pytest

from protocol.identifiers import ZERO, NodeId
from protocol.raft import read_index
from protocol.raft.election import Election
from protocol.raft.following import Following
from protocol.raft.heartbeat import Heartbeats
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.messages import AppendReply, RequestVote, VoteReply
from protocol.raft.output import Output
from protocol.raft.quorum import assemble_proof, quorum_height
from protocol.raft.read_index import LeaderReads
from protocol.raft.replication import Leadership
from protocol.raft.state import Ready
from protocol.raft.voter import Voter
from simulations.explorer import explore
from simulations.explorer_disk import Disk
from simulations.explorer_node import Node
from simulations.explorer_search import Bounds, Budget, Order, Report

STATES = 60_000
FEW: Final[dict[str, Any]] = {"time_outs": 1, "proposals": 0, "crashes": 0, "slow_writes": 0, "heartbeats": 0}


def search(root: str, terms: int, *, lost: tuple[str, ...] = ("heartbeat",), **budget: Any) -> Report:
    """Look from a root until something is found, or too much was looked at."""
    bounds = Bounds(states=STATES, terms=terms, budget=Budget(**budget), lost=frozenset(lost))
    return explore(bounds, root=root, order=Order.DEVIATIONS)


def found(report: Report) -> str:
    return report.violations[0].sentence if report.violations else f"nothing in {report.states} states"


def vote_for_anybody(self: Election, request: RequestVote) -> bool:
    voter = self._voter
    if request.term != voter.term or not self._is_current(request.tip.term, request.tip.height):
        voter.send(request.candidate, VoteReply(voter.term, voter.me, None))
        return False
    voter.hard = dataclasses.replace(voter.hard, vote=request.candidate)
    grant = self._grant(request.candidate, request.tip_hash)
    voter.send(request.candidate, VoteReply(voter.term, voter.me, grant))
    return True


def check_nothing(*_arguments: object) -> None:
    """Stand in for a check, so that only what comes of it later can be seen."""


def test_a_voter_that_votes_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "answer_vote", vote_for_anybody)

    assert "a vote was changed" in found(search("start", 1, time_outs=2))


def test_two_leaders_of_a_term_are_found_where_nobody_looks_at_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "answer_vote", vote_for_anybody)
    monkeypatch.setattr(Node, "_check_vote", check_nothing)
    write = Disk.write

    def write_unchecked(self: Disk, ready: Ready) -> None:
        self.hard_state = dataclasses.replace(self.hard_state, vote=ZERO)
        write(self, ready)

    monkeypatch.setattr(Disk, "write", write_unchecked)

    assert "election safety: term 1" in found(search("start", 1, time_outs=2, crashes=0, slow_writes=0))


def test_a_vote_that_is_not_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    everything, advance = Output.everything, Output.advance

    def forgetful(self: Output) -> Ready | None:
        ready = everything(self)
        if ready is not None and ready.hard_state is not None:
            hard_state = dataclasses.replace(ready.hard_state, vote=ZERO)
            ready = self._outstanding = dataclasses.replace(ready, hard_state=hard_state)
        return ready

    def believing(self: Output, ready: Ready) -> None:
        advance(self, ready)
        self._voter.durable = self._voter.hard

    monkeypatch.setattr(Output, "everything", forgetful)
    monkeypatch.setattr(Output, "advance", believing)

    assert "a vote left before it was durable" in found(search("start", 1))


def test_a_leader_that_commits_an_older_block_by_counting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def count_any_term(self: Leadership) -> None:
        voter, log = self._voter, self._voter.log
        heights = [log.persisted, *(self._progress[node].match_height for node in voter.other_voters)]
        height = quorum_height(heights, voter.configuration.raft_quorum)
        if height <= log.committed:
            return
        own = voter.acknowledge(height) if log.persisted >= height else None
        acks = [(node, self._progress[node].ack) for node in voter.other_voters]
        others = {node: ack for node, ack in acks if ack is not None}
        voter.commit(assemble_proof(log, height, others, voter.configuration.raft_quorum, own))

    monkeypatch.setattr(Leadership, "advance_commit", count_any_term)

    assert "own term: a leader of term 2" in found(search("half-way", 2))


def test_a_voter_that_elects_a_shorter_log_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "_is_current", lambda *_: True)

    assert "leader completeness" in found(search("behind", 2))


def test_a_leader_that_counts_its_own_log_before_it_is_durable_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Log, "persisted", property(lambda log: log.tip_height))

    assert "durab" in found(search("led", 1))


def test_a_follower_that_acknowledges_before_it_has_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    is_prompt, ready = Output._is_prompt, Raft.ready

    def hasty(self: Raft) -> Ready | None:
        if self._leadership is None:
            self._following.send_reply()
        return ready(self)

    monkeypatch.setattr(Raft, "ready", hasty)
    monkeypatch.setattr(
        Output, "_is_prompt", lambda self, each: isinstance(each, AppendReply) or is_prompt(self, each)
    )

    assert "before its block was durable" in found(search("led", 1))


def test_a_candidate_that_asks_for_votes_before_its_own_is_written_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_prompt = Output._is_prompt
    monkeypatch.setattr(
        Output, "_is_prompt", lambda self, each: isinstance(each, RequestVote) or is_prompt(self, each)
    )

    assert "a vote left before it was durable" in found(search("start", 1))


def test_a_leader_that_speaks_before_its_term_is_durable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "_is_prompt", lambda *_: True)

    assert "before it was durable" in found(search("start", 1))
    monkeypatch.setattr(Node, "_check_vote", check_nothing)
    assert "terms: a message of term 1" in found(search("start", 1))


def test_a_follower_that_shortens_its_log_by_an_old_frame_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Following, "_known", lambda *_: 0)

    assert "liar: a frame conflicts with" in found(search("led", 1, duplicates=1))


def test_a_leader_that_answers_reads_without_asking_a_quorum_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Heartbeats, "answered_round", lambda self: self._round)

    assert "stale read" in found(search("led", 2, **FEW, reads=1))


def test_a_leader_that_answers_reads_before_its_first_commit_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advance = LeaderReads.advance

    def early(self: LeaderReads) -> None:
        if self._waiting:
            round_number = self._heartbeats.begin_round()
            height = self._voter.log.committed
            self._rounds.append(read_index._Round(round_number, height, tuple(self._waiting)))
            self._waiting.clear()
        advance(self)

    monkeypatch.setattr(LeaderReads, "advance", early)

    assert "stale read" in found(search("unaware", 2, lost=(), **FEW, reads=1))


def test_a_witness_whose_acknowledgement_counts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def everybody_else(self: Voter) -> tuple[NodeId, ...]:
        return tuple([node for node in self.configuration.signers if node != self.me])

    monkeypatch.setattr(Voter, "other_voters", property(everybody_else))

    assert "acknowledgements of distinct voters" in found(search("witnessed", 1, **FEW | {"heartbeats": 1}))
