"""Who watches the world: the checkers, fed with what is written, sent and applied, and the logs of all nodes."""

from collections import deque
from typing import Any

import trio

from node import consensus_reception as consensus
from node.core import Core
from protocol import codec
from protocol.block import Block, genesis_block
from protocol.configuration import Configuration
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, NodeId
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    CertificateNotice,
    Heartbeat,
    Message,
    RequestVote,
    VoteNotice,
    VoteReply,
)
from protocol.raft.state import HardState
from simulations.certified import Chains, OneCertifiedChain, OneChainOfVotes
from simulations.checkers import (
    DurableState,
    ElectionSafety,
    LogMatching,
    PersistBeforeSend,
    Promises,
    StateMachineSafety,
)
from simulations.history import History
from simulations.machine import Node
from storage import keyspace
from storage.key_value import Batch
from storage.ledger_store import LedgerStore

_CHANNELS = (consensus.CHANNEL, consensus.URGENT_CHANNEL)
_PROMISES = tuple(
    codec.tag_of(kind).encode()
    for kind in (RequestVote, VoteReply, AppendEntries, AppendReply, Heartbeat, VoteNotice, CertificateNotice)
)
_VIOLATIONS_MAX = 20
_LOG_LINES_MAX = 200
_FORGETFUL = ("the ledger was rebuilt", "this ledger lacks what this voter had acknowledged")
"""How a voter begins to say that it lacks what it promised: right only where the disk has lost that."""
_DAMAGED = "the ledger holds damaged blocks"
_UNSURE = "voting again without the word of every other voter"
_INSTALLED = "installed a snapshot of the state"
_AHEAD = "ahead of the clock"
"""What a node says of a peer whose clock, or its own, is wrong."""


class ForgivingDurableState(DurableState):
    """The promises of voters, without those that a voter may forget: its disk lied, or its ledger was rebuilt."""

    def forgot(self, node: NodeId) -> None:
        """Hear that a node cannot know any more what it wrote; it must not sign before it has asked its peers."""
        self._last.pop(node, None)


class Witness:
    """The checkers of one world and what they have found."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.history = History()
        self.violations: list[str] = []
        self.violated = trio.Event()
        self.log: deque[str] = deque(maxlen=_LOG_LINES_MAX)
        self.is_excused = False
        """More has failed at once than the ledger withstands (`World.lie_disk` says when): nothing is demanded any more."""
        self.are_clocks_wrong = False
        """Whether a clock was ever set off its time."""
        self.elections = ElectionSafety(self.report)
        self.logs = LogMatching(self.report)
        chains = self.chains = Chains()
        self.votes = OneChainOfVotes(self.report, chains)
        self.certificates = OneCertifiedChain(self.report, chains, configuration)
        self.durable = ForgivingDurableState(self.report, self.certificates.conflicts)
        self.sends = PersistBeforeSend(self.report, self.durable)
        self.chain = StateMachineSafety(self.report, configuration, genesis_block(configuration))
        self.promises = Promises(self.report, self.chain)
        self._sent_last: tuple[bytes, Message] | None = None
        self._blocks: dict[bytes, Block] = {}

    def report(self, violation: str) -> None:
        """Note what must never be; the run ends at the next opportunity."""
        if self.is_excused:
            self.history.record("excused", violation)
            return
        self.history.record("violation", violation)
        if len(self.violations) < _VIOLATIONS_MAX:
            self.violations.append(f"at {trio.current_time():.6f} s: {violation}")
        self.violated.set()

    def excuse(self) -> None:
        """Demand nothing any more: more has failed at once than the ledger withstands."""
        if not self.is_excused:
            self.history.record("excuse")
            self.is_excused = True

    def log_of(self, node: Node) -> "NodeLog":
        """Return the log of a node, whose warnings are findings."""
        return NodeLog(self, node)

    def saw_start(self, node: Node, hard_state: HardState | None, applied: Height) -> None:
        """Hear what a node found on its disk when it started."""
        self.durable.started(node.id, hard_state)
        self.chain.started(node.id, applied)

    def saw_written(self, node: Node, batch: Batch, *, sync: bool) -> None:
        """Hear what a node's disk has written."""
        if keyspace.REBUILT in batch.writes:
            # It says that it lacks what it promised, or that it has asked its peers and may promise again.
            self.durable.forgot(node.id)
        certified: list[Certificate] = []
        for key, value in batch.writes.items():
            if value is None:
                continue
            if key == keyspace.HARD_STATE:
                self.durable.written(node.id, codec.decode(value, HardState), sync=sync)
            elif key.startswith(keyspace.BLOCK):
                # The block of an installed snapshot was cut long ago, also where this very node had led then.
                self._stored(node, self._block(value), is_news=keyspace.STATE_IN_USE not in batch.writes)
            elif key.startswith(keyspace.CERTIFICATE):
                certified.append(codec.decode(value, Certificate))
        for certificate in certified:
            self.certificates.seen(node.id, certificate)

    def _stored(self, node: Node, block: Block, *, is_news: bool) -> None:
        self.logs.stored(block)
        self.chains.stored(block)
        self.elections.led(block.term, block.header.leader)
        if is_news and block.opening and block.header.leader == node.id:
            self.history.record("leader", node.index, block.term)
            self.chain.led(block.term, node.id, lambda height: self._hash_at(node, height))

    def saw_sent(self, node: Node, channel: str, body: bytes) -> None:
        """Hear what a node hands to its transport."""
        # Only what promises something is worth decoding: a message's tag follows two bytes of MessagePack.
        if channel in _CHANNELS and body.startswith(_PROMISES, 2):
            message = self._message(body)
            self.sends.sent(node.id, message, lambda height: self._hash_at(node, height))
            if isinstance(message, AppendReply | VoteNotice) and message.vote is not None:
                self.votes.sent(node.id, message.vote, self.durable.last(node.id))
            if (
                isinstance(message, AppendEntries | AppendReply | CertificateNotice)
                and message.certificate is not None
            ):
                self.certificates.seen(node.id, message.certificate)

    def _message(self, body: bytes) -> Message:
        """Return a message that is sent, decoded once for all to whom it goes."""
        if self._sent_last is None or self._sent_last[0] is not body:
            self._sent_last = body, codec.decode_union(body, Message)
        return self._sent_last[1]

    def _block(self, raw: bytes) -> Block:
        """Return a block by its bytes, which are decoded once for all nodes."""
        block = self._blocks.get(raw)
        if block is None:
            block = self._blocks[raw] = Block.decode(raw)
        return block

    def _hash_at(self, node: Node, height: Height) -> Digest | None:
        row = node.rows.undamaged().get(keyspace.BLOCK + height.to_bytes(8, "big"))
        return self._block(row).hash if row is not None else None

    async def watch(self, node: Node, core: Core) -> None:
        """See what a node applies, until cancelled; what lies below a snapshot it installs, when it has fetched that."""
        mark = core.applier.history.value
        store = LedgerStore(node.rows.undamaged(), self.configuration)
        while True:
            height = await core.applier.history.wait_above(mark)
            store.refresh()
            for block in store.blocks(Height(mark + 1), height):
                certificate = store.certificate_at_or_above(block.height)
                is_recovered = store.epochs.current > block.header.epoch or block.is_recovery
                assert certificate is not None or is_recovered, "applied with a certificate"
                # Who voted for a descendant had seen it committed, and the block with it, in that one's term.
                voted = block.header if certificate is None else (certificate.header, *certificate.links)[-1]
                self.history.record("applied", node.index, block.height, block.hash, len(block.transactions))
                self.chain.applied(node.id, block, voted.term)
            mark = height


class NodeLog:
    """A node's log: kept for whoever reads a failure. Warnings and errors of honest nodes are findings."""

    def __init__(self, witness: Witness, node: Node) -> None:
        self._witness = witness
        self._node = node

    def debug(self, event: str, **values: Any) -> None:
        """Drop it."""

    def info(self, event: str, **values: Any) -> None:
        """Keep it."""
        self._keep("info", event, values)
        if event == _INSTALLED:
            self._witness.history.record("installed", self._node.index, values["height"])
        if self._node.was_lied_to and event == _UNSURE:
            self._witness.excuse()

    def warning(self, event: str, **values: Any) -> None:
        """Keep it and report it: nobody lies here, so no peer can have broken the protocol."""
        self._keep("warning", event, values)
        if self._node.is_forgetful and event.startswith(_FORGETFUL):
            return
        if self._witness.are_clocks_wrong and _AHEAD in str(values.get("fault")):
            return
        self._witness.report(f"node {self._node.index} warns: {event} {values}")

    def error(self, event: str, **values: Any) -> None:
        """Keep it and report it."""
        self._keep("error", event, values)
        if event.startswith(_DAMAGED) and self._node.rows.damaged:
            return
        self._witness.report(f"node {self._node.index} reports an error: {event} {values}")

    def _keep(self, level: str, event: str, values: dict[str, Any]) -> None:
        self._witness.log.append(f"{trio.current_time():.6f} {self._node.index} {level} {event} {values}")
