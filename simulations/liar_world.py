"""A world of tier A with one liar in it: what honest members apply, and what whoever hears them all can prove.

Everything but the liar is as in `core_world`. The checkers of that world take everybody at their word, so most of them have no
meaning here; what must hold is that no two honest members apply different blocks for one height, and that whatever is
found convicts the liar and nobody else. One notebook hears what all honest members hear: they compare, as the rules demand.
"""

from collections import Counter
from dataclasses import dataclass
from random import Random

from protocol import evidence
from protocol.block import Block, Header, header_hash
from protocol.errors import RemoteFault
from protocol.evidence import Conviction, Evidence
from protocol.evidence_blocks import shown_invalid
from protocol.evidence_certificates import ConflictingCertificates
from protocol.identifiers import Digest, Height, NodeId, Term
from protocol.notebook import Notebook
from protocol.overheard import holds, overheard
from protocol.raft.messages import AppendEntries, CheckedAppend, Message
from protocol.raft.state import Ready
from simulations import determinism
from simulations.checkers import PersistBeforeSend
from simulations.core_checkers import HashAt, VoteChains
from simulations.core_clients import CoreClients
from simulations.core_cluster import Cluster
from simulations.core_network import Frame
from simulations.core_node import CoreNode
from simulations.liar import Liar, Lie
from simulations.story import Load

_FAULT_EVERY_S = 3.0
_LEADER_CRASHES = 0.7
_LIAR_IS_SPARED = 0.6
_CUT = 0.4
"""How often, between two faults, two members do not hear each other: what one is told the other learns from others."""


@dataclass(frozen=True, slots=True)
class LyingRun:
    """What came of one run: convictions that stand in the end; `forks`: heights at which honest members applied different blocks.

    `unproven` are those of them at which the two certificates, shown to each other, did not convict the liar there and then.
    """

    lies: int
    liar: NodeId
    convictions: tuple[Conviction, ...]
    forks: tuple[Height, ...]
    unproven: tuple[Height, ...]
    height: Height
    refused: dict[str, int]
    is_stormy: bool = False
    """The run ended early: a liar and its victim answered each other without a pause."""


class _DeafSends(PersistBeforeSend):
    """A checker that believes everybody, and is not asked: it would look at every message for nothing."""

    def sent(self, node: NodeId, message: object, hash_at: HashAt) -> None:
        """Hear nothing."""


class _DeafVotes(VoteChains):
    """Another one."""

    def sent(self, node: NodeId, message: object) -> None:
        """Hear nothing."""


class LyingCluster(Cluster):
    """A cluster whose member 0 lies."""

    messages_per_s_max = 2_000
    """Six times what four cores send when one of them lies; a liar can call forth answers one by one, which the core bounds."""

    def __init__(self, seed: int, lie: Lie, *, voters: int) -> None:
        super().__init__(seed, voters=voters, learners=0)
        rng = determinism.stream(seed, "liar")
        self.liar = Liar(self.nodes[0].key, self.network_id, self.configuration, lie, rng)
        self.refusals = Counter[str]()
        self.proven: list[Evidence] = []
        self.forks: set[Height] = set()
        self.unproven: set[Height] = set()
        self._known = {self.configuration.digest: self.configuration}
        self._notebook = Notebook(self.network_id, lambda: self._known)
        self._headers: dict[Digest, Header] = {self.genesis.hash: self.genesis.header}
        self._applied: dict[Height, Digest] = {}
        self._overheard: Frame | None = None

    def _make_checkers(self) -> None:
        super()._make_checkers()
        self.sends = _DeafSends(self.report, self.durable)
        self.votes = _DeafVotes(self.report, self.durable, self.commits)

    def report(self, violation: str) -> None:
        """Note what a checker that believes everybody found: between a liar and its victims that means little."""
        if violation.startswith("storm"):
            self.agenda.stop()

    def post(self, source: int, target: NodeId, load: object, *, lane: int) -> None:
        """Send what a node wants sent, or what the liar says instead."""
        if source != 0 or not isinstance(load, Frame):
            super().post(source, target, load, lane=lane)
            return
        for message in self.liar.outgoing(target, load.message):
            super().post(source, target, self.frames.frame(message), lane=lane)

    def refused(self, node: CoreNode, _source: CoreNode, message: Message, fault: RemoteFault) -> None:
        """Hear that a core refused a message; an invalid block is shown to everybody."""
        self.refusals[str(fault)] += node.index != 0
        if node.index and isinstance(message, AppendEntries):
            for block in map(Block.decode, message.blocks):
                predecessor = self._headers.get(block.header.prev_hash)
                if predecessor is not None and self._notebook.is_news(
                    found := shown_invalid(block, predecessor)
                ):
                    self.proven.append(found)

    def written(self, _node: CoreNode, ready: Ready) -> None:
        """Hear what a node has made durable; only the headers matter here."""
        for block in ready.append:
            self.trees.stored(block)
            self.configurations.stored(block)

    def applied(self, node: CoreNode, block: Block, _proof_term: Term) -> None:
        """Hear that a node has applied a block."""
        if node.index:
            self.record("applied", node.index, block.height, block.hash, len(block.transactions))
            certificate = node.disk.certificate(block.height)
            if certificate is not None:
                # Whoever stands upon it can show it; who hears them all has seen it (ledger.md, E3b).
                self.proven += self._notebook.see(certificate)
            if self._applied.setdefault(block.height, block.hash) != block.hash:
                self.forks.add(block.height)
                if not any(self.liar.me in one.nodes for one in self._standing()):
                    self.unproven.add(block.height)

    def outcome(self) -> LyingRun:
        """Return what has come of it so far."""
        return LyingRun(
            self.liar.told,
            self.liar.me,
            self._standing(),
            tuple(sorted(self.forks)),
            tuple(sorted(self.unproven)),
            max(Height(node.disk.applied) for node in self.nodes[1:]),
            dict(self.refusals),
            self.agenda.is_stopped,
        )

    def _standing(self) -> tuple[Conviction, ...]:
        """Return the convictions that no certificate has cleared since."""
        standing = list[Conviction]()
        for found in self.proven:
            conviction = evidence.check(found, self.network_id, self._known)
            if isinstance(found, ConflictingCertificates):
                cleared = conviction.cleared
                standing = [one for one in standing if one.nodes != (cleared,) or not found.clears(one.claim)]
            standing += [conviction] if conviction.nodes else []
        return tuple(standing)

    def _overhear(self, frame: Frame) -> None:
        """Note what a message says under signatures that hold; headers of one statement may be needed for another."""
        if frame is self._overheard:
            return  # the same to several members
        self._overheard = frame
        try:
            said = frame.input()
        except RemoteFault:
            message = frame.message
            assert isinstance(message, AppendEntries), "nothing else has a body"
            said = CheckedAppend(message, tuple(map(Block.decode, message.blocks)))
        statements, headers = overheard(said)
        self._headers.update((header_hash(header), header) for header in headers)
        for statement in statements:
            if not self._notebook.has_seen(statement) and holds(statement, self.network_id, self._known):
                self.proven += self._notebook.see(statement, headers)

    def _deliver(self, source: int, target: int, load: object) -> None:
        if not isinstance(load, Frame):
            super()._deliver(source, target, load)
            return
        if target:
            self._overhear(load)
            super()._deliver(source, target, load)
            return
        seen, said = self.liar.incoming(self.nodes[source].id, load.message)
        for message in said:
            for node in self.nodes[1:]:
                super().post(0, node.id, self.frames.frame(message), lane=0)
        if seen is not None:
            super()._deliver(source, target, load if seen is load.message else self.frames.frame(seen))


def run_lying(seed: int, lie: Lie, *, voters: int = 4, virtual_s: float = 20.0) -> LyingRun:
    """Run one seed: clients, leaders that crash, and one liar."""
    # Signatures which anybody could forge, and the liar does not.
    with determinism.fake_signatures(), determinism.no_collector():
        cluster = LyingCluster(seed, lie, voters=voters)
        tell(cluster, virtual_s)
        return cluster.outcome()


def tell(cluster: LyingCluster, virtual_s: float) -> None:
    """Let a cluster live for so long, with clients, and crashes of whoever leads."""
    rng = determinism.stream(cluster.seed, "crashes")
    CoreClients(cluster, determinism.stream(cluster.seed, "clients"), Load(mean_s=0.3))
    for node in cluster.nodes:
        node.start()
    while cluster.agenda.now < virtual_s and not cluster.agenda.is_stopped:
        cluster.network.heal()
        if rng.random() < _CUT:
            one, other = rng.sample(range(len(cluster.nodes)), 2)
            cluster.network.cut(((one, other), (other, one)))
        cluster.agenda.run_until(cluster.agenda.now + rng.uniform(1, _FAULT_EVERY_S))
        victim = _victim(cluster, rng)
        if victim is not None:
            victim.crash()
        for node in cluster.nodes:
            if node is not victim:
                node.start()


def _victim(cluster: LyingCluster, rng: Random) -> CoreNode | None:
    """Return who crashes: whoever leads, sometimes another, so that the liar leads, votes, and is out-voted."""
    up = cluster.up()
    if len(up) < len(cluster.nodes):
        return None
    leader = cluster.leader()
    victim = leader if rng.random() < _LEADER_CRASHES else rng.choice(up)
    return None if victim is cluster.nodes[0] and rng.random() < _LIAR_IS_SPARED else victim
