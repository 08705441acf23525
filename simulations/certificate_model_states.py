"""What the model of certificates knows: blocks, members, what each has signed, and a world of them.

Everything here is a value. Signed statements are never taken back, so a world keeps them all and has no messages in
flight: whatever was signed may reach anybody at any time, in any order, any number of times, or never. That is at least as
much as a network can do, and it is what makes delays, losses, duplicates and withholding cost no state of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final, NamedTuple

GENESIS: Final = 0
NOBODY: Final = -1
NOTHING: Final = -1
"""In the place of a block: no vote, no acknowledgement."""


class Kind(IntEnum):
    """What a block holds. `detail` of a SWITCH is the new configuration's number, of a REJOIN the member and its new life.

    Of the others it tells the versions of a lying leader apart.
    """

    GENESIS = 0
    OPENING = 1
    DATA = 2
    SWITCH = 3
    REJOIN = 4


class Role(IntEnum):
    """What a voter is to Raft. What else it forgets in a crash is nothing the model needs."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2


class Configuration(NamedTuple):
    """Members by role; everything else is derived (ledger.md, head)."""

    voters: tuple[int, ...]
    witnesses: tuple[int, ...] = ()

    @property
    def signers(self) -> tuple[int, ...]:
        """Voters and witnesses."""
        return self.voters + self.witnesses

    @property
    def raft_quorum(self) -> int:
        """r: a majority of the voters."""
        return len(self.voters) // 2 + 1

    @property
    def liars_tolerated(self) -> int:
        """Liars tolerated: b = floor((m - 1) / 3)."""
        return (len(self.signers) - 1) // 3

    @property
    def certificate_quorum(self) -> int:
        """Votes that certify: q = floor((m + b) / 2) + 1."""
        return (len(self.signers) + self.liars_tolerated) // 2 + 1


@dataclass(frozen=True)
class Setting:
    """Who takes part. Members are counted from 0; `configurations[0]` is that of genesis.

    `changes` are the pairs of configuration numbers that a ballot may lead to. `liar` signs whatever it likes.
    """

    members: int
    configurations: tuple[Configuration, ...]
    changes: tuple[tuple[int, int], ...] = ()
    liar: int = NOBODY

    @cached_property
    def honest(self) -> tuple[int, ...]:
        """All members but the liar."""
        return tuple([member for member in range(self.members) if member != self.liar])

    def tolerates_its_liar(self) -> bool:
        """Return whether every configuration is large enough for the lies told in it."""
        return all(self.liar not in each.signers or each.liars_tolerated > 0 for each in self.configurations)

    def stands_a_loss(self) -> bool:
        """Return whether every configuration goes on without one of its voters; with two voters a loss is section 7.4."""
        return all(
            len(each.voters) > each.raft_quorum and len(each.signers) > each.certificate_quorum
            for each in self.configurations
        )


class Block(NamedTuple):
    """A header as far as certificates go; two with equal fields are one block."""

    parent: int
    height: int
    term: int
    leader: int
    kind: Kind
    detail: int = 0


class Chain:
    """All blocks of a search, numbered in the order of their first making; genesis is 0.

    A set of blocks is an integer with their bits set, so that questions about ancestors are single operations.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._numbers: dict[Block, int] = {}
        self.blocks: list[Block] = []
        self.height: list[int] = []
        self.term: list[int] = []
        self.leader: list[int] = []
        self.ancestors: list[int] = []
        self.configuration: list[int] = []
        self.configuration_below: list[int] = []
        self.last_switch: list[int] = []
        self.only_openings: list[bool] = []
        self.rejoined: list[frozenset[int]] = []
        self.made_by = [0] * (setting.members + 1)
        """For each member the set of blocks it has led; the last is nobody's: genesis."""
        self.number(Block(GENESIS, 0, 0, NOBODY, Kind.GENESIS))

    def number(self, block: Block) -> int:
        """Return the number of a block; it is noted when it is met first."""
        known = self._numbers.get(block)
        if known is not None:
            return known
        number = self._numbers[block] = len(self.blocks)
        is_first, parent = not number, block.parent
        is_switch = block.kind is Kind.SWITCH
        below = 0 if is_first else self.configuration[parent]
        self.blocks.append(block)
        self.height.append(block.height)
        self.term.append(block.term)
        self.leader.append(block.leader)
        self.made_by[block.leader] |= 1 << number
        self.ancestors.append((0 if is_first else self.ancestors[parent]) | 1 << number)
        self.configuration_below.append(below)
        self.configuration.append(block.detail if is_switch else below)
        self.last_switch.append(number if is_switch else NOTHING if is_first else self.last_switch[parent])
        opens = block.kind is Kind.OPENING and not is_first and self.only_openings[parent]
        before = frozenset[int]() if is_first else self.rejoined[parent]
        self.rejoined.append(before | {block.detail} if block.kind is Kind.REJOIN else before)
        self.only_openings.append(is_first or is_switch or opens)
        return number

    def child(self, parent: int, term: int, leader: int, kind: Kind, detail: int = 0) -> int:
        """Return the number of a block upon another."""
        return self.number(Block(parent, self.height[parent] + 1, term, leader, kind, detail))

    def is_within(self, block: int, chain: int) -> bool:
        """Return whether `block` is `chain` or an ancestor of it."""
        return bool(self.ancestors[chain] >> block & 1)

    def conflict(self, one: int, other: int) -> bool:
        """Return whether two blocks are not on one chain."""
        return not (self.ancestors[one] >> other & 1 or self.ancestors[other] >> one & 1)

    def parting(self, one: int, other: int) -> int:
        """Return the lowest height at which the chains of two conflicting blocks differ."""
        return (self.ancestors[one] & self.ancestors[other]).bit_count()


class Acknowledgement(NamedTuple):
    """P2: in `term` the own log was the leader's up to `block`. One stands for those of its ancestors in the same term."""

    incarnation: int
    term: int
    block: int


class Vote(NamedTuple):
    """P4: a commit vote for `block` and its ancestors above `base`."""

    incarnation: int
    block: int
    base: int


class Grant(NamedTuple):
    """P0: a vote in an election, which names the tip that the candidate showed."""

    incarnation: int
    term: int
    candidate: int
    tip: int


class Request(NamedTuple):
    """E5: what a candidate signs; `acknowledged_term` is that of its marker, `base` the highest certified block it knows."""

    incarnation: int
    term: int
    tip: int
    acknowledged_term: int
    base: int


class Statements(NamedTuple):
    """All that one member has signed, but the headers, which a world has."""

    acknowledgements: tuple[Acknowledgement, ...] = ()
    votes: tuple[Vote, ...] = ()
    grants: tuple[Grant, ...] = ()
    requests: tuple[Request, ...] = ()


class Node(NamedTuple):
    """What an honest member remembers, and what it has signed.

    spent: the last term in which its vote is spent. marker_term, marker: its last acknowledgement (P2). certified: the
    highest block it knows to be certified. is_silent: it has lost its store and waits for its Rejoin block.
    """

    term: int = 0
    role: Role = Role.FOLLOWER
    spent: int = 0
    log: int = GENESIS
    marker_term: int = 0
    marker: int = GENESIS
    vote: int = NOTHING
    certified: int = GENESIS
    incarnation: int = 0
    is_silent: bool = False
    statements: Statements = Statements()


class Bounds(NamedTuple):
    """How far a search goes: terms, heights, how often an honest member stands for leader, crashes, losses of a store.

    lying_tips: with how many tips the liar finds somebody's vote in one term. With four voters no second one elects it.
    part_way: a member may acknowledge a part of what its leader has, as it does when it is far behind. forgets: a crash may
    cost a member the newest certificates that it knew, and it may vote for its last block again upon what it then learns.
    leaves: it may give up its tail for a certified block before it has got that.
    """

    terms: int = 2
    heights: int = 2
    stands: int = 2
    lying_tips: int = 1
    crashes: int = 0
    losses: int = 0
    part_way: bool = False
    forgets: bool = False
    leaves: bool = False


class World(NamedTuple):
    """A state of the model. `blocks`, `proven` (P3) and `final` (P5) are sets of blocks: made, provable, certifiable.

    The liar has a node that is never looked at.
    """

    blocks: int
    nodes: tuple[Node, ...]
    proven: int
    final: int

    def with_node(self, member: int, node: Node) -> "World":
        """Return the world in which one member has changed."""
        nodes = (*self.nodes[:member], node, *self.nodes[member + 1 :])
        return World(self.blocks, nodes, self.proven, self.final)


def first_world(setting: Setting) -> World:
    """Return the world in which there is genesis and nobody has said anything."""
    only_genesis = 1 << GENESIS
    return World(only_genesis, tuple([Node()] * setting.members), only_genesis, only_genesis)


def members_of(blocks: int) -> Iterator[int]:
    """Yield the numbers in a set of blocks, lowest first."""
    while blocks:
        lowest = blocks & -blocks
        yield lowest.bit_length() - 1
        blocks ^= lowest


def rejoin_detail(member: int, incarnation: int) -> int:
    """Return the `detail` of the Rejoin block of a member's incarnation."""
    return member << 8 | incarnation
