"""Seeded random runs: loss, duplication, reordering, partitions, crashes at every point between ready and advance.

The cluster checks the invariants as it goes. Afterwards the network heals and must make progress (ledger.md section 4.1).
"""

import contextlib
import random

import pytest

from protocol.errors import Refused, Unavailable
from protocol.identifiers import Height
from protocol.limits import TICK_MS
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster

STEPS = 500


def drain_and_perhaps_crash(cluster: Cluster, n: int, rng: random.Random, crash: float, stall: float) -> None:
    """Run the driver's loop; with some chance the node dies before the write, after it, or after sending, or its disk stalls."""
    if n in cluster.waiting and rng.random() < 0.5:
        cluster.finish(n, cluster.waiting.pop(n))
    for _ in range(50):
        if n not in cluster.rafts:
            return
        ready = cluster.rafts[n].ready()
        cluster.check(n)
        if ready is None:
            return
        if n in cluster.waiting:
            cluster.finish(n, ready)  # frames only: the disk is still busy with the other
            continue
        if rng.random() < stall:
            cluster.waiting[n] = ready
            return
        point = rng.choice(("before", "written", "sent")) if rng.random() < crash else ""
        if point == "before":
            cluster.crash(n)
            return
        if not point:
            cluster.finish(n, ready)
            continue
        cluster.disks[n].persist(ready)
        if point == "sent":
            for target, message in ready.messages:
                cluster.send(n, cluster.number[target], message)
        cluster.crash(n)


def change_a_member(cluster: Cluster, rng: random.Random) -> None:
    """Let every leader promote or demote somebody, if it may: the others must never end with two configurations."""
    for leader in cluster.leaders:
        roles = {m.node: m.role for m in cluster.rafts[leader].configuration.members}
        node = rng.choice(sorted(roles))
        role = "learner" if roles[node] == "voter" else "voter"
        with contextlib.suppress(
            Refused, Unavailable
        ):  # not lawful, or not now: that is what the rules are for
            cluster.change(leader, **{f"n{cluster.number[node]}": role})


def act(cluster: Cluster, rng: random.Random) -> None:
    numbers = sorted(cluster.keys)
    n = rng.choice(numbers)
    dice = rng.random()
    if dice < 0.62 and cluster.wires:
        at = 0 if rng.random() < 0.7 else rng.randrange(len(cluster.wires))
        fate = rng.random()
        if fate < 0.04:
            cluster.wires.pop(at)
        else:
            if fate < 0.08:
                cluster.wires.append(cluster.wires[at])
            cluster.deliver(at)
    elif dice < 0.80:
        cluster.now_ms += TICK_MS
        cluster.tick(*(numbers if rng.random() < 0.5 else (n,)))
    elif dice < 0.88:
        for leader in cluster.leaders:
            try:
                cluster.propose(leader)
            except Unavailable:
                assert not cluster.rafts[leader].may_propose
    elif dice < 0.885:
        change_a_member(cluster, rng)
    elif dice < 0.895:
        if n in cluster.rafts and cluster.rafts[n].leader is not None:
            cluster.read(n)  # the cluster checks that no answer is stale
    elif dice < 0.90:
        for leader in cluster.leaders:
            with contextlib.suppress(Refused):  # a learner
                cluster.rafts[leader].transfer_leadership(cluster.node(n))
    elif dice < 0.92:
        shuffled = rng.sample(numbers, len(numbers))
        split = rng.randrange(1, len(numbers) + 1)
        cluster.partition(tuple(shuffled[:split]), tuple(shuffled[split:]))
    elif dice < 0.93:
        pair = rng.choice(numbers), rng.choice(numbers)
        cluster.cut.add(pair)  # one direction only
    elif dice < 0.95:
        cluster.heal()
    elif dice < 0.96:
        cluster.crash(n)
    elif dice < 0.98:
        if n not in cluster.rafts:
            cluster.start(n)
    elif dice < 0.985:
        if n in cluster.rafts:
            cluster.rafts[n].tick(cluster.now_ms)
    elif dice < 0.99:
        cluster.drop(n, rng.randint(cluster.disks[n].lowest, cluster.disks[n].applied))
    elif dice < 0.992:
        fetch_history(cluster, n)
    else:
        install_what_is_offered(cluster)


def fetch_history(cluster: Cluster, n: int) -> None:
    """Give a node the blocks that it does not hold, up to where its log begins."""
    disk = cluster.disks[n]
    disk.blocks.update({at: cluster.states[at][0] for at in range(disk.lowest)})
    disk.lowest = Height(0)


def install_what_is_offered(cluster: Cluster) -> None:
    """Let all that have heard of a snapshot above what they applied install one: the newest that there is."""
    for n in sorted(cluster.rafts):
        if cluster.behind[n] and cluster.disks[n].applied < cluster.behind[n][-1]:
            cluster.install(n, max(cluster.certificates))


def run(seed: int, steps: int = STEPS) -> Cluster:
    rng = random.Random(seed)
    count = rng.choice((2, 3, 3, 3, 4, 5))
    cluster = Cluster(count, seed, learners=(count + 1,) if rng.random() < 0.3 else ())
    crash, stall = rng.choice((0.0, 0.002, 0.01)), rng.choice((0.0, 0.05, 0.3))
    cluster.run(rng.randrange(30))
    for _ in range(steps):
        act(cluster, rng)
        if rng.random() < 0.8:
            for n in sorted(cluster.rafts):
                drain_and_perhaps_crash(cluster, n, rng, crash, stall)
    return cluster


def recover(cluster: Cluster) -> None:
    cluster.heal()
    for n in sorted(cluster.keys):
        cluster.thaw(n)
        if n not in cluster.rafts:
            cluster.start(n)

    def is_settled() -> bool:
        install_what_is_offered(cluster)
        return bool(cluster.leaders) and cluster.converged()

    cluster.run_until(is_settled, 300)
    leader = cluster.leader()
    cluster.run_until(lambda: cluster.rafts[cluster.leader()].may_propose)
    leader = cluster.leader()
    height = cluster.propose(leader)
    cluster.run(4)
    assert {raft.commit_height for raft in cluster.rafts.values()} == {height}
    assert [raft.role for raft in cluster.rafts.values()].count(Role.LEADER) == 1


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_faults_break_no_invariant_and_the_cluster_recovers(first):
    for seed in range(first, first + 10):
        cluster = run(seed)
        recover(cluster)
        assert max(cluster.chain) > 0, f"seed {seed}"


@pytest.mark.slow
def test_many_random_runs_break_no_invariant():
    for seed in range(1000, 1200):
        cluster = run(seed, steps=300)
        recover(cluster)
        assert max(cluster.chain) > 0, f"seed {seed}"


def test_a_seed_repeats_byte_for_byte():
    assert run(7).wires == run(7).wires
    assert run(7).chain == run(7).chain
