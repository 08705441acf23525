"""Elections, replication and commitment of a cluster, as stories."""

from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster


def test_a_lone_voter_elects_itself_in_its_first_tick_and_commits_alone():
    cluster = Cluster(1)
    cluster.run(1)
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[1].role is Role.LEADER
    assert cluster.rafts[1].commit_height == height == 2


def test_a_fresh_network_has_a_leader_within_two_seconds():
    for seed in range(10):
        cluster = Cluster(3, seed)
        assert cluster.run_until(cluster.led) <= 40


def test_a_proposal_is_committed_everywhere_without_waiting_for_a_tick():
    cluster = Cluster(3)
    cluster.elect(1)
    height = cluster.propose(1)
    cluster.settle()
    assert {raft.commit_height for raft in cluster.rafts.values()} == {height}
