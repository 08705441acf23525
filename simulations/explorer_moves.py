"""What one node can do, remembered: states of single nodes and messages get numbers, and each step of the core is taken once.

A state of the world is three states of nodes, the messages in flight and a little history. The worlds are many, the
states of a node are few: what the core does with an input in a state is computed when it is met first and looked up ever
after (local model checking: Guerraoui and Yabandeh, "Model checking a networked system without the network", NSDI 2011).
"""

import hashlib
import traceback
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from protocol import codec
from protocol.block import Block, genesis_block
from protocol.errors import RemoteFault
from protocol.identifiers import ZERO, Height, NodeId, Term, Txid, Vid
from protocol.raft.messages import AppendEntries, Input, Message, author, check_append
from protocol.raft.state import Role
from protocol.signing import SigningKey
from protocol.transaction import Revoke, sign
from simulations.explorer_disk import Broken
from simulations.explorer_graph import Graphs
from simulations.explorer_node import NOW_MS, Members, Node

NODES: Final = 3
VOTERS: Final = ("voter",) * NODES


class Kind(IntEnum):
    """What can happen to a node. A delivery has the number of its message above `DELIVER`."""

    TIME_OUT = 0
    SILENCE = 1
    HEARTBEAT = 2
    PROPOSE = 3
    WRITE = 4
    CRASH = 5
    CRASH_UNAPPLIED = 6
    RESTART = 7
    TRANSFER_NEXT = 8
    TRANSFER_PREVIOUS = 9
    READ = 10
    NOTICE = 11
    DELIVER = 12


_TRANSFERS: Final = ((Kind.TRANSFER_NEXT, 1), (Kind.TRANSFER_PREVIOUS, -1))


@dataclass(frozen=True, slots=True)
class View:
    """What the invariants between nodes look at. Blocks are numbers of `Blocks`; `tip` is the durable one of a node that is down."""

    leads: bool
    is_up: bool
    term: Term
    tip: int
    committed: int
    durable: int


@dataclass(frozen=True, slots=True)
class Move:
    """What came of one input in one state: the next state, the messages sent, whether anything was written.

    `asked` are the numbers of reads that began, `answers` those of reads that ended, each with its height or None.
    """

    after: int
    sent: tuple[int, ...]
    wrote: bool
    truncated: bool
    asked: tuple[int, ...] = ()
    answers: tuple[tuple[int, Height | None], ...] = ()
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message in flight."""

    source: int
    target: int
    message: Message
    checked: Input
    kind: str
    name: str


class Blocks:
    """All blocks that any node ever had, each with its predecessor: a log is the number of its tip."""

    def __init__(self, genesis: Block) -> None:
        self._numbers = {genesis.hash: 0}
        self.blocks = [genesis]
        self._parents = [0]

    def add(self, block: Block) -> int:
        """Return the number of a block whose predecessor is known."""
        number = self._numbers.get(block.hash)
        if number is None:
            number = self._numbers[block.hash] = len(self.blocks)
            self.blocks.append(block)
            self._parents.append(self._numbers[block.header.prev_hash])
        return number

    def chain(self, tip: int) -> tuple[int, ...]:
        """Return the blocks from genesis to `tip`."""
        numbers = [tip]
        while numbers[-1]:
            numbers.append(self._parents[numbers[-1]])
        return tuple(reversed(numbers))

    def holds(self, tip: int, block: int) -> bool:
        """Return whether the log that ends in `tip` contains `block`."""
        while self.blocks[tip].height > self.blocks[block].height:
            tip = self._parents[tip]
        return tip == block


class Moves:
    """The states of nodes met so far, and the steps between them."""

    def __init__(self, roles: tuple[str, ...] = VOTERS) -> None:
        """`roles`: of each node, "voter" or "witness"."""
        self._graphs = Graphs()
        self._members = Members.of(roles)
        self.voters = tuple([n for n, role in enumerate(roles) if role == "voter"])
        self.raft_quorum = self._members.configuration.raft_quorum
        self._index = {NodeId(key.public): n for n, key in enumerate(self._members.keys)}
        genesis = genesis_block(self._members.configuration)
        self.blocks = Blocks(genesis)
        owner = SigningKey(hashlib.sha256(b"owner").digest())
        revoke = Revoke(Vid(ZERO), Txid(ZERO), NOW_MS)
        self._transaction = codec.encode(sign(revoke, self._members.network, owner))
        self._nodes: list[Node] = []
        self._numbers: dict[bytes, int] = {}
        self._moves: dict[tuple[int, int, bool], Move] = {}
        self.views: list[int] = []
        """Number of the view of each state of a node."""
        self.view: list[View] = []
        self.inputs: list[tuple[Kind, ...]] = []
        """What can happen to a node in each state, besides deliveries."""
        self.envelopes: list[Envelope] = []
        self._envelope_numbers: dict[tuple[int, int, Message], int] = {}
        self._view_numbers: dict[View, int] = {}
        self.start = tuple([self._add(self._rested(Node(n, self._members, genesis))) for n in range(NODES)])

    @property
    def steps(self) -> int:
        """How many steps the core itself has taken."""
        return len(self._moves)

    @property
    def node_states(self) -> int:
        """How many states of single nodes have been met."""
        return len(self._nodes)

    def move(self, state: int, code: int, *, slow: bool = False) -> Move:
        """Return what comes of an input (a Kind, or DELIVER plus the number of a message) in a state of a node.

        `slow`: a write that this brings about stays under way.
        """
        key = state, code, slow
        found = self._moves.get(key)
        if found is None:
            found = self._moves[key] = self._step(state, code, slow=slow)
        return found

    def _step(self, state: int, code: int, *, slow: bool) -> Move:
        node = self._graphs.copy(self._nodes[state])
        before = self.view[self.views[state]].tip
        wrote, broken = False, None
        try:
            self._give(node, code)
            if node.raft is not None:
                wrote = node.drain(slow=slow)
        except Broken as violation:
            broken = str(violation)
        except RemoteFault as fault:
            broken = f"an honest node was taken for a liar: {fault}"
        except Exception as error:  # noqa: BLE001 - whatever ends a node is a finding
            line = traceback.extract_tb(error.__traceback__)[-1]
            broken = f"a node failed in {line.name}: {type(error).__name__}: {error}"
        if broken is not None:
            return Move(state, (), wrote=wrote, truncated=False, broken=broken)
        sent = tuple([self._send(node, target, message) for target, message in node.sent])
        asked = tuple(node.asked)
        answers = tuple([(answer.request, answer.height) for answer in node.answers])
        for seen in (node.sent, node.asked, node.answers):
            seen.clear()
        after = self._add(self._rested(node))
        was_up = self.view[self.views[state]].is_up
        tip = self.view[self.views[after]].tip
        truncated = was_up and node.raft is not None and not self.blocks.holds(tip, before)
        return Move(after, sent, wrote=wrote, truncated=truncated, asked=asked, answers=answers)

    def _give(self, node: Node, code: int) -> None:
        if code >= Kind.DELIVER:
            envelope = self.envelopes[code - Kind.DELIVER]
            node.deliver(author(envelope.message), envelope.checked)
            return
        match Kind(code):
            case Kind.TIME_OUT:
                node.time_out()
            case Kind.SILENCE:
                node.fall_silent()
            case Kind.HEARTBEAT:
                node.heartbeat()
            case Kind.PROPOSE:
                node.propose(self._transaction)
            case Kind.WRITE:
                node.finish_write()
            case Kind.CRASH:
                node.crash(applied=True)
            case Kind.CRASH_UNAPPLIED:
                node.crash(applied=False)
            case Kind.RESTART:
                node.start()
            case Kind.TRANSFER_NEXT:
                node.transfer((node.index + 1) % NODES)
            case Kind.TRANSFER_PREVIOUS:
                node.transfer((node.index - 1) % NODES)
            case Kind.READ:
                node.read()
            case Kind.NOTICE:
                node.notice()

    @staticmethod
    def _rested(node: Node) -> Node:
        node.rest()
        return node

    def _add(self, node: Node) -> int:
        key = self._graphs.fingerprint(node)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._nodes)
            self._nodes.append(node)
            view = self._view_of(node)
            known = self._view_numbers.setdefault(view, len(self.view))
            if known == len(self.view):
                self.view.append(view)
            self.views.append(known)
            self.inputs.append(_inputs(node))
        return number

    def _view_of(self, node: Node) -> View:
        log = node.log
        heights = range(1, log.tip_height + 1)
        numbers = [0, *[self.blocks.add(log.block(Height(height))) for height in heights]]
        durable = 0
        for height in range(1, node.disk.tip.height + 1):
            durable = self.blocks.add(node.disk.block(Height(height)))
        raft = node.raft
        leads = raft is not None and raft.role is Role.LEADER
        return View(leads, raft is not None, node.term, numbers[-1], numbers[log.committed], durable)

    def _send(self, node: Node, target: NodeId, message: Message) -> int:
        key = node.index, self._index[target], message
        number = self._envelope_numbers.get(key)
        if number is None:
            number = self._envelope_numbers[key] = len(self.envelopes)
            checked = check_append(message) if isinstance(message, AppendEntries) else message
            kind = codec.tag_of(type(message))
            digest = hashlib.sha256(codec.encode(message)).hexdigest()[:8]
            name = f"{node.index + 1}>{key[1] + 1} {kind} {digest}"
            self.envelopes.append(Envelope(node.index, key[1], message, checked, kind, name))
        return number


def _inputs(node: Node) -> tuple[Kind, ...]:
    """Return what can happen to a node, in the order in which it is tried."""
    raft = node.raft
    if raft is None:
        return (Kind.RESTART,)
    kinds = [Kind.TIME_OUT, Kind.CRASH]
    if node.disk.applied != node.disk.applied_at_start:
        kinds.append(Kind.CRASH_UNAPPLIED)
    if node.waiting is not None:
        kinds.append(Kind.WRITE)
    if raft.role is Role.LEADER:
        kinds.append(Kind.HEARTBEAT)
        if raft.may_propose:
            kinds.append(Kind.PROPOSE)
        if raft.successor is None:
            kinds += [kind for kind, by in _TRANSFERS if node.votes((node.index + by) % NODES)]
    elif node.is_leased:
        kinds.append(Kind.SILENCE)
    if raft.leader is not None:
        kinds.append(Kind.READ)
    if node.has_notice:
        kinds.append(Kind.NOTICE)
    return tuple(kinds)
