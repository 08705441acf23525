"""Nothing that honest cores sign convicts anybody: seeded hostile runs, everything signed paired with everything."""

import contextlib
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from protocol import evidence
from protocol.block import Header, header_hash
from protocol.certificate import Acknowledgement, ElectionGrant
from protocol.errors import RemoteFault
from protocol.evidence import Conviction, Evidence
from protocol.evidence_certificates import ConflictingCertificates, FalseBase
from protocol.evidence_freezes import FrozenVote
from protocol.evidence_lines import Point, SignedHeader
from protocol.evidence_statements import (
    HiddenLog,
    HiddenTerm,
    OtherTip,
    TwoAcknowledgements,
    TwoGrants,
    TwoHeaders,
    TwoVotes,
    voted,
)
from protocol.finality import Certificate, CommitVote, cast_vote
from protocol.header_window import HeaderWindow
from protocol.identifiers import ZERO, Digest, Height, NodeId
from protocol.notebook import Notebook, Statement
from protocol.overheard import overheard
from protocol.raft.messages import AppendEntries, RequestVote, check_append
from protocol.recovery import FreezeStatement, freeze
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.test_soak import run

STEPS = 1_000
RUNS = int(os.environ.get("CARECHAIN_HOSTILE_RUNS", "40"))
"""How many long runs are made up; each takes a fifth of a second. More at night."""
S = TypeVar("S")


@dataclass
class Said:
    """Everything that was signed in a run."""

    statements: dict[Statement, None] = field(default_factory=dict)  # in the order they were made
    seen: dict[Digest, Header] = field(default_factory=dict)

    @staticmethod
    def of(cluster: Cluster) -> "Said":
        said = Said()
        for _, _, message in cluster.trace:
            statements, headers = overheard(
                check_append(message) if isinstance(message, AppendEntries) else message
            )
            said.statements |= dict.fromkeys(statements)
            said.seen |= {header_hash(header): header for header in headers}
        return said

    def of_kind(self, kind: type[S]) -> list[S]:
        return [one for one in self.statements if isinstance(one, kind)]

    def pairs(self, window: HeaderWindow) -> Iterator[Evidence]:
        """Yield everything that could be put together as evidence from two statements."""
        for header, twin in itertools.combinations(self.of_kind(SignedHeader), 2):
            yield TwoHeaders(header, twin)
        for low, high in itertools.combinations(
            sorted(self.of_kind(Acknowledgement), key=lambda a: a.height), 2
        ):
            line = window.line(low.height, Point(high.height, high.header_hash))
            if low.voter == high.voter and line is not None:
                yield TwoAcknowledgements(low, high, line)
        for grant, second in itertools.combinations(self.of_kind(ElectionGrant), 2):
            yield TwoGrants(grant, second)
        for request in self.of_kind(RequestVote):
            yield from self._of_request(request, window)
        yield from self._of_votes(window)

    def _of_votes(self, window: HeaderWindow) -> Iterator[Evidence]:
        votes, certificates = self.of_kind(CommitVote), self.of_kind(Certificate)
        for vote, other in itertools.combinations(votes, 2):
            fork = window.fork(voted(vote), voted(other))
            if fork is not None:
                yield TwoVotes(vote, other, fork)
        for vote, certificate in itertools.product(votes, certificates):
            ends = (
                Point(vote.base_height, vote.base_hash),
                Point(certificate.height, header_hash(certificate.header)),
            )
            low, high = sorted(ends, key=lambda point: point.height)
            yield FalseBase(vote, certificate, window.line(low.height, high) or ())
        for one, second in itertools.combinations(certificates, 2):
            fork = window.fork(*(Point(each.height, header_hash(each.header)) for each in (one, second)))
            if fork is not None:
                yield ConflictingCertificates(one, second, fork, NodeId(ZERO))

    def _of_request(self, request: RequestVote, window: HeaderWindow) -> Iterator[Evidence]:
        tip = Point(request.tip.height, request.tip_hash)
        for ack in self.of_kind(Acknowledgement):
            if ack.voter == request.candidate:
                acknowledged = Point(ack.height, ack.header_hash)
                yield HiddenTerm(request, ack)
                yield HiddenLog(request, ack, None, window.line(tip.height, acknowledged) or ())
                fork = window.fork(acknowledged, tip)
                if fork is not None:
                    yield HiddenLog(request, ack, fork, ())
                    yield HiddenLog(request, ack, fork, window.line(request.base_height, tip) or ())
        for signed in self.of_kind(SignedHeader):
            line = window.line(tip.height, signed.point)
            if line is not None:
                yield OtherTip(request, signed, line[:-1])


def freezes(cluster: Cluster) -> Iterator[FreezeStatement]:
    """Yield what every member would state that is frozen now, whether it runs or has just crashed (`node.recovery_base`)."""
    for n, disk in cluster.disks.items():
        hard, tip = disk.hard_state, Height(max(disk.blocks))
        is_open = disk.applied < hard.last_vote_height <= tip
        if not is_open or disk.hash(hard.last_vote_height) != hard.last_vote_hash:
            continue
        last = cast_vote(
            cluster.keys[n], cluster.network, epoch=hard.epoch, incarnation=hard.incarnation,
            height=hard.last_vote_height, tip=Digest(hard.last_vote_hash), base_height=disk.applied,
            base=disk.hash(disk.applied),
        )  # fmt: skip
        yield freeze(
            cluster.keys[n], cluster.network, epoch=hard.epoch, incarnation=hard.incarnation, term=hard.term,
            certificate=disk.certificate(tip), links=(), vote=last,
        )  # fmt: skip


def frozen_votes(said: Said, cluster: Cluster, window: HeaderWindow) -> Iterator[FrozenVote]:
    """Yield every vote beside the freeze statement that its signer makes after it."""
    for statement, vote in itertools.product(freezes(cluster), said.of_kind(CommitVote)):
        assert statement.vote is not None
        line = window.line(statement.vote.height, voted(vote))
        if statement.node == vote.signer and line is not None:
            yield FrozenVote(statement, vote, line)


def convicted_of(said: Said, cluster: Cluster) -> tuple[list[Conviction], int]:
    """Return what any two statements convict anybody of, and how many pairs were tried."""
    window = HeaderWindow(100_000)
    window.add(said.seen.values())
    known = {one.digest: one for one in cluster.configurations.values()}
    convictions, count = list[Conviction](), 0
    for found in itertools.chain(said.pairs(window), frozen_votes(said, cluster, window)):
        count += 1
        with contextlib.suppress(RemoteFault):  # an honest pair: what this test hopes for
            convictions.append(evidence.check(found, cluster.network, known))
    return convictions, count


def noted(said: Said, cluster: Cluster, seed: int) -> list[Evidence]:
    """Return what a notebook makes of everything, in any order."""
    known = {one.digest: one for one in cluster.configurations.values()}
    notebook = Notebook(cluster.network, lambda: known)
    everything = list(said.statements)
    random.Random(seed).shuffle(everything)
    return [found for one in everything for found in notebook.see(one, said.seen.values())]


@pytest.mark.parametrize("first", [0, 100, 214])
def test_nothing_that_honest_members_sign_in_hostile_runs_convicts_them(first: int) -> None:
    tried = 0
    for seed in range(first, first + 3):
        cluster = run(seed, STEPS)
        said = Said.of(cluster)

        convictions, count = convicted_of(said, cluster)

        assert convictions == [], f"seed {seed}"
        assert noted(said, cluster, seed) == [], f"seed {seed}"
        tried += count
    assert tried > 500, "runs in which little happens show little"


@pytest.mark.slow
def test_many_hostile_runs_convict_nobody() -> None:
    for seed in range(300, 300 + RUNS):
        cluster = run(seed, STEPS)
        said = Said.of(cluster)

        assert convicted_of(said, cluster)[0] == [], f"seed {seed}"
        assert noted(said, cluster, seed) == [], f"seed {seed}"


def test_a_voter_that_left_a_branch_it_had_acknowledged_is_not_convicted() -> None:
    """Voter 2 acknowledges a block that loses, follows the winner, and stands for election: Raft as it should be."""
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.partition((1, 2), (3, 4, 5))
    cluster.propose(1)
    cluster.settle()
    cluster.elect(3)
    cluster.propose(3)
    cluster.settle()
    cluster.heal()
    cluster.run_until(cluster.led)
    cluster.elect(2)
    cluster.propose(2)
    cluster.run_until(cluster.led)
    said = Said.of(cluster)
    window = HeaderWindow(100_000)
    window.add(said.seen.values())

    # Its tip contradicts what it acknowledged, which is what the short form of E5b convicts.
    assert [one for one in said.pairs(window) if isinstance(one, HiddenLog) and one.fork is not None]
    assert convicted_of(said, cluster)[0] == []
    assert noted(said, cluster, 0) == []
