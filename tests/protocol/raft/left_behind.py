"""A cluster whose leader holds only its newest blocks, and a follower that needs older ones: how the stories of snapshots begin."""

import dataclasses

from protocol import limits
from protocol.certificate import ElectionCertificate
from protocol.raft.leader_forms import offer_form
from protocol.raft.messages import InstallSnapshot
from protocol.raft.state import HardState
from tests.protocol.raft.cluster import Cluster

ROUND = limits.HEARTBEAT_TICKS


def behind(count: int = 3, *, blocks: int = 10, learners: tuple[int, ...] = ()) -> Cluster:
    """Return a cluster whose leader 1 has committed blocks that 3 has not, and holds only the newest of them."""
    cluster = Cluster(count, learners=learners)
    cluster.elect(1)
    rest = tuple(n for n in cluster.keys if n != 3)
    cluster.partition(rest, (3,))
    for _ in range(blocks):
        cluster.propose(1)
        cluster.settle()
    cluster.drop(1, cluster.rafts[1].commit_height)
    return cluster


def offer_of(cluster: Cluster) -> InstallSnapshot:
    """Return the newest offer of the leader 1."""
    offer: InstallSnapshot = cluster.sent(InstallSnapshot, 1, 3)[-1]
    return offer


def elected(cluster: Cluster) -> ElectionCertificate:
    """Return the certificate of the leader 1."""
    leadership = cluster.rafts[1]._leadership
    assert leadership is not None
    return leadership._election


def healed() -> Cluster:
    """Return a cluster where 3 has been offered a snapshot and has not installed it."""
    cluster = behind()
    cluster.heal()
    cluster.run(2 * ROUND)
    return cluster


def rebuild(cluster: Cluster, n: int, height: int) -> None:
    """Let a voter that has lost its disk go on from a snapshot, in the term of the others, where its vote is spent."""
    term = max(raft.term for raft in cluster.rafts.values())
    cluster.disks[n].hard_state = dataclasses.replace(HardState.initial(), term=term, vote=cluster.node(n))
    cluster.install(n, height)


def signed(cluster: Cluster, offer: InstallSnapshot) -> InstallSnapshot:
    """Return an offer as leader 1 would have signed it."""
    form = offer_form(
        cluster.network,
        epoch=offer.epoch,
        term=offer.term,
        leader=offer.leader,
        first=offer.first,
        offered_hash=cluster.states[offer.height][0].hash,
    )
    return dataclasses.replace(offer, signature=cluster.keys[1].sign(form))


def installed() -> tuple[Cluster, InstallSnapshot]:
    """Return a cluster where 3 has installed and follows, and an offer of that snapshot in the term that is led now.

    Whoever installs above a marker of its term leaves that term, so what was offered in it is only answered with the new one.
    """
    cluster = healed()
    offer = offer_of(cluster)
    cluster.install(3, 11)
    cluster.run_until(cluster.converged)
    cluster.elect(2)
    cluster.elect(1)
    cluster.run_until(lambda: cluster.disks[3].applied == cluster.rafts[1].tip_height)
    again = dataclasses.replace(offer, term=cluster.rafts[1].term, election=elected(cluster))
    return cluster, signed(cluster, again)


def diverged(tail: int) -> Cluster:
    """Return a cluster where 3 led term 1 and holds `tail` blocks of its own that the others overwrote in later terms."""
    cluster = Cluster(3)
    cluster.elect(3)
    cluster.partition((1, 2), (3,))
    for _ in range(tail):
        cluster.propose(3)
        cluster.drain(3)
    cluster.elect(1)
    for _ in range(5):
        cluster.propose(1)
        cluster.settle()
    cluster.drop(1, cluster.rafts[1].commit_height)
    return cluster
