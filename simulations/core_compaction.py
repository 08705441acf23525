"""Members of tier A that hold only their newest blocks, and others that are installed from a snapshot therefore.

In some seeds members drop, at random, what lies below what they have applied, as those do that were installed from a
snapshot themselves and have no history yet (ledger.md 3.1 no. 36 to 39); sometimes it comes back. Who is told that its leader
has no blocks for it takes the state of any member after a while: it stops at once, or goes on until then. Now and then one
installs what it could have applied by itself, with blocks above in its log that others count on.
"""

from random import Random
from typing import TYPE_CHECKING

from protocol.identifiers import Height
from simulations.core_node import CoreNode

if TYPE_CHECKING:
    from simulations.core_cluster import Cluster

_SEEDS = 0.4
_UNASKED = 0.2
_EVERY_S = (1.0, 5.0, 20.0)
_INSTALL_S_MAX = 2.0
_RETRY_S = 0.3


class Compaction:
    """What is dropped, fetched and installed in one seed."""

    def __init__(self, cluster: "Cluster", rng: Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._every_s = rng.choice(_EVERY_S)
        if rng.random() < _SEEDS:
            cluster.agenda.after(rng.expovariate(1 / self._every_s), self._drop)

    def told(self, node: CoreNode, height: Height) -> None:
        """Hear that a node's core needs state and blocks up to about a height otherwise than from its leader."""
        agenda, rng = self._cluster.agenda, self._rng
        self._cluster.record("behind", node.index, height)
        if rng.random() < 0.5:
            agenda.after(0.0, self._stop, node, node.lives)
        agenda.after(rng.uniform(0.0, _INSTALL_S_MAX), self._install, node, node.lives, height)

    def _stop(self, node: CoreNode, lives: int) -> None:
        if node.lives == lives:
            node.crash()

    def _install(self, node: CoreNode, lives: int, height: Height) -> None:
        """Install on a node that was told to, unless it lives anew or has come so far by itself."""
        if node.lives != lives or (node.life is not None and node.disk.applied >= height):
            return
        if not self._take(node):
            self._cluster.agenda.after(_RETRY_S, self._install, node, lives, height)

    def _take(self, node: CoreNode) -> bool:
        """Let a node go on from what another one has applied; return whether that was possible."""
        applied = node.disk.applied
        sources = [one for one in self._cluster.nodes if one.disk.applied > applied]
        if node.is_paused or node.is_full or not sources:
            return False
        source = self._rng.choice(sources)
        node.crash()
        node.disk.install(source.disk)
        self._cluster.record("install", node.index, source.index, node.disk.applied)
        node.start()
        return True

    def _drop(self) -> None:
        """Let one member, or all, drop history, or have it back; or let one install a snapshot unasked."""
        cluster, rng = self._cluster, self._rng
        cluster.agenda.after(rng.expovariate(1 / self._every_s), self._drop)
        if rng.random() < _UNASKED:
            self._take(rng.choice(cluster.nodes))
            return
        dice = rng.random()
        chosen = cluster.leader() if dice < 0.5 else rng.choice(cluster.nodes)
        for node in cluster.nodes if chosen is None or dice > 0.9 else (chosen,):
            if rng.random() < 0.7:
                node.disk.drop_history()
            else:
                node.disk.lowest = Height(0)
            cluster.record("history", node.index, node.disk.lowest)
