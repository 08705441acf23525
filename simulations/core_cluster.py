"""The members of tier A, the network between them, and the checkers that watch both."""

from collections.abc import Callable
from random import Random

from protocol.block import Block, genesis_block
from protocol.configuration import Card, Configuration, Member, found, network_id
from protocol.errors import RemoteFault
from protocol.identifiers import NodeId, PublicKey, Term
from protocol.raft.machine import Raft
from protocol.raft.messages import Message
from protocol.raft.state import Ready, Role
from protocol.signing import SigningKey
from simulations import determinism
from simulations.checkers import (
    DurableState,
    ElectionSafety,
    LogMatching,
    PersistBeforeSend,
    Promises,
    StateMachineSafety,
)
from simulations.core_agenda import Agenda, CoreHistory
from simulations.core_checkers import Commits, Configurations, FreshReads, TreeRoots, VoteChains
from simulations.core_compaction import Compaction
from simulations.core_network import CoreNetwork, Frames
from simulations.core_node import CoreNode

_VIOLATIONS_MAX = 20
_CODEC_SEEDS = 0.1
_SLOW_APPLY_SEEDS = 0.2
_WITNESS_SEEDS = 0.3
_CLOCK_OFFSET_MS_MAX = 400
_CLOCK_DRIFT_MAX = 100e-6


class Cluster:
    """Everything that one seed is made of, but for what goes wrong and what clients do. Observers of a story are learners or witnesses."""

    messages_per_s_max = 20_000
    """Over a hundred times what the cores send when all is well: beyond, answers call forth more answers."""

    def __init__(self, seed: int, *, voters: int, learners: int) -> None:
        self.seed = seed
        self.agenda = Agenda()
        self.history = CoreHistory(self.agenda)
        self.record = self.history.record
        self.violations: list[str] = []
        keys = [
            SigningKey(determinism.stream(seed, f"key/{index}").randbytes(32))
            for index in range(voters + learners)
        ]
        self.configuration = _configuration(seed, keys, voters)
        """In some seeds who does not vote is a witness, else a learner."""
        self.network_id = network_id(self.configuration)
        self.genesis = genesis_block(self.configuration)
        self._make_checkers()
        rng = determinism.stream(seed, "core")
        self.frames = Frames(cross_codec=rng.random() < _CODEC_SEEDS)
        self.apply_s = 0.5 if rng.random() < _SLOW_APPLY_SEEDS else 0.001
        """The longest time between a certificate and the application of its block."""
        self.make_core: Callable[..., Raft] = Raft
        """What a member runs; whoever wants to look into cores puts in another."""
        self.changes_members = False
        self.sets_clocks = False
        self.voters_min = 1
        """How many voters an operator leaves. Where a clock jumps, three: of two, one that is an hour ahead and has blocks
        that are not certified stops both until that hour has come (ledger.md 1.1, Time), and nothing heals it sooner."""
        self.network = CoreNetwork(self.agenda, determinism.stream(seed, "network"), self._deliver)
        self._second_ends, self._storm_above = 0.0, 0
        self.nodes = tuple(
            CoreNode(self, index, key, determinism.stream(seed, f"node/{index}"))
            for index, key in enumerate(keys)
        )
        self._by_id = {node.id: node for node in self.nodes}
        self.compaction = Compaction(self, determinism.stream(seed, "compaction"))
        self._clocks = determinism.stream(seed, "clocks")
        for node in self.nodes:
            self.reset_clock(node)

    def _make_checkers(self) -> None:
        self.elections = ElectionSafety(self.report)
        self.logs = LogMatching(self.report)
        self.durable = DurableState(self.report)
        self.sends = PersistBeforeSend(self.report, self.durable)
        self.chain = StateMachineSafety(self.report, self.configuration, self.genesis)
        self.promises = Promises(self.report, self.chain)
        self.trees = TreeRoots(self.report, self.genesis)
        self.configurations = Configurations(self.report, self.configuration)
        self.commits = Commits(self.report, self.genesis, self.configurations)
        self.reads = FreshReads(self.report, self.commits)
        self.votes = VoteChains(self.report, self.durable, self.commits)

    def report(self, violation: str) -> None:
        """Note what must never be; the run ends after the present action."""
        self.history.record("violation", violation)
        if len(self.violations) < _VIOLATIONS_MAX:
            self.violations.append(f"at {self.agenda.now:.6f} s: {violation}")
        self.agenda.stop()

    # --- who is there ---------------------------------------------------------------------------------------------

    def up(self) -> tuple[CoreNode, ...]:
        """Return the running nodes, in order."""
        return tuple([node for node in self.nodes if node.life is not None])

    def leader(self) -> CoreNode | None:
        """Return who leads in the highest term, if anybody does."""
        best: tuple[Term, CoreNode] | None = None
        for node in self.nodes:
            if node.life is None or node.life.raft.role is not Role.LEADER:
                continue
            if best is None or node.life.raft.term > best[0]:
                best = node.life.raft.term, node
        return best[1] if best else None

    def members(self) -> tuple[CoreNode, ...]:
        """Return those that sign or learn in the newest certified configuration, in order; but see `bring`."""
        configuration = self.commits.configuration
        taking_part = {*configuration.signers, *configuration.learners}
        return tuple([node for node in self.nodes if node.id in taking_part and node.takes_part])

    def bring(self, node: CoreNode) -> None:
        """Start a member that is down, if need be with what a joiner brings: the chain that made it a member (ledger.md 7.3).

        What it has signed before stays on its disk. When its log is not a part of that chain it stays down: it would need a
        new key, and `members` passes it over.
        """
        if node.life is not None:
            return
        if not node.takes_part:
            tip = node.disk.blocks[-1]
            for source in self.nodes:
                above = self.configurations.above(source.disk.blocks[source.disk.applied])
                knows_it = node.id in (*above.signers, *above.learners)
                is_longer = source.disk.applied >= tip.height and source.disk.hash_at(tip.height) == tip.hash
                if knows_it and is_longer:
                    node.disk.copy_certified(source.disk)
                    break
        node.start()

    def reset_clock(self, node: CoreNode) -> None:
        """Set a clock as well as NTP does in a bad week."""
        rng: Random = self._clocks
        node.set_clock(
            offset_ms=rng.randint(-_CLOCK_OFFSET_MS_MAX, _CLOCK_OFFSET_MS_MAX),
            drift=rng.uniform(-_CLOCK_DRIFT_MAX, _CLOCK_DRIFT_MAX),
        )

    # --- messages -------------------------------------------------------------------------------------------------

    def post(self, source: int, target: NodeId, load: object, *, lane: int) -> None:
        """Send something from a node to another."""
        self.network.send(source, self._by_id[target].index, load, lane=lane)
        if self.agenda.now >= self._second_ends:
            self._second_ends, self._storm_above = (
                self.agenda.now + 1,
                self.network.sent + self.messages_per_s_max,
            )
        elif self.network.sent > self._storm_above:
            self.report(f"storm: over {self.messages_per_s_max} messages within a second")

    def _deliver(self, source: int, target: int, load: object) -> None:
        self.nodes[target].receive(self.nodes[source], load)

    def refused(self, node: CoreNode, source: CoreNode, message: Message, fault: RemoteFault) -> None:
        """Hear that a core refused a message: nobody lies here, so that is a finding.

        But who has just joined, or has left, is not known to all; and a clock that is far ahead is told apart from a lie by
        nobody (ledger.md 1.1, Time).
        """
        self.record("fault", node.index, source.index, type(message).__name__)
        if not (self.changes_members or self.sets_clocks):
            self.report(f"node {node.index} refuses what node {source.index} sent: {fault}")

    # --- what is seen ---------------------------------------------------------------------------------------------

    def written(self, node: CoreNode, ready: Ready) -> None:
        """Hear what a node has made durable."""
        if ready.hard_state is not None:
            self.durable.written(node.id, ready.hard_state)
        for block in ready.append:
            self.trees.stored(block)
            self.configurations.stored(block)
            self.logs.stored(block)
            self.elections.led(block.term, block.header.leader)
            if block.header.leader == node.id and block.opening:
                self.record("leader", node.index, block.term)
                self.chain.led(block.term, node.id, node.disk.hash_at)
                self.commits.led(block.term, node.id, node.disk.hash_at)

    def holders(self, block: Block) -> frozenset[NodeId]:
        """Return the nodes that have a block on their disks."""
        return frozenset([node.id for node in self.nodes if node.disk.hash_at(block.height) == block.hash])

    def applied(self, node: CoreNode, block: Block, proof_term: Term) -> None:
        """Hear that a node has applied a block."""
        self.record("applied", node.index, block.height, block.hash, len(block.transactions))
        self.chain.applied(node.id, block, proof_term)


def _configuration(seed: int, keys: list[SigningKey], voters: int) -> Configuration:
    beside = "witness" if determinism.stream(seed, "roles").random() < _WITNESS_SEEDS else "learner"
    cards = []
    for index, key in enumerate(keys):
        role = "voter" if index < voters else beside
        public = PublicKey(key.public)
        member = Member(f"member-{index}", "clinic", role, NodeId(public), public, public, public, public, ())
        cards.append(Card.make(member, key))
    return found(tuple(cards), nonce=determinism.stream(seed, "nonce").randbytes(32))
