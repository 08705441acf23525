"""Worlds that differ only in who is who: honest members of equal roles may change places (Clarke et al., 1996).

No rule of the model looks at a member's number, only at its roles and at whether it lies, so a renaming that keeps every
configuration turns moves into moves and broken promises into broken promises. One world of each set is looked at.
"""

import itertools
from typing import Final, NamedTuple

from simulations.certificate_model_guards import Act, Move
from simulations.certificate_model_states import (
    NOTHING,
    Block,
    Chain,
    Kind,
    Node,
    Setting,
    Statements,
    World,
    members_of,
    rejoin_detail,
)

IDENTITY: Final = 0
"""The number of the renaming that changes nothing."""

Key = tuple[int, ...]
"""A world as numbers: blocks, proven, final, and the number of each member's node."""


class Known(NamedTuple):
    """A world's key after the renaming with the given number, which makes it the least of its like."""

    key: Key
    renaming: int


class Symmetry:
    """The renamings of a setting, and the numbers of the nodes met so far."""

    def __init__(self, setting: Setting, chain: Chain, *, merges: bool = True) -> None:
        self._chain = chain
        orders = itertools.permutations(setting.honest) if merges else iter([setting.honest])
        named = [tuple(_renaming(setting, order)) for order in orders]
        self.renamings = [each for each in named if _keeps(setting, each)]
        count = len(self.renamings)
        self._blocks: list[list[int]] = [[] for _ in range(count)]
        self._sets: list[dict[int, int]] = [{} for _ in range(count)]
        self._renamed: list[dict[int, int]] = [{} for _ in range(count)]
        self._numbers: dict[Node, int] = {}
        self._nodes: list[Node] = []

    @property
    def nodes(self) -> int:
        """How many states of members have been met."""
        return len(self._nodes)

    def world(self, key: Key) -> World:
        """Return the world of a key."""
        blocks, proven, final, *nodes = key
        return World(blocks, tuple([self._nodes[number] for number in nodes]), proven, final)

    def known(self, world: World) -> Known:
        """Return the least key among all renamings of a world."""
        numbers = tuple([self._number(node) for node in world.nodes])
        least = Known((world.blocks, world.proven, world.final, *numbers), IDENTITY)
        for renaming in range(1, len(self.renamings)):
            blocks = self._set(renaming, world.blocks)
            if blocks > least.key[0]:
                continue
            key = self._key(renaming, world, numbers, blocks)
            if key < least.key:
                least = Known(key, renaming)
        return least

    def move(self, renaming: int, move: Move) -> Move:
        """Return a move with every name in it changed."""
        names, block = self.renamings[renaming], self.block(renaming, move.block)
        other, detail = move.other, move.detail
        if move.act is Act.GRANT:
            other = names[other]
        elif move.act is Act.ACKNOWLEDGE:
            other = self.block(renaming, other)
        elif move.act is Act.PROPOSE:
            detail = _renamed_detail(names, Kind(other), detail)
        return Move(move.act, names[move.member], block, other, detail)

    def inverse(self, renaming: int) -> int:
        """Return the renaming that takes another one back."""
        names = self.renamings[renaming]
        return self.renamings.index(tuple([names.index(member) for member in range(len(names))]))

    def then(self, first: int, second: int) -> int:
        """Return the renaming that does the one and then the other."""
        later = self.renamings[second]
        return self.renamings.index(tuple([later[name] for name in self.renamings[first]]))

    def block(self, renaming: int, block: int) -> int:
        """Return a block with every name in it changed, and in its ancestors."""
        if block == NOTHING:
            return block
        known = self._blocks[renaming]
        while len(known) <= block:
            # The renamed block may be met here first; its parent was met before it, as that of every block.
            known.append(self._rename_block(renaming, len(known)))
        return known[block]

    # --- parts ----------------------------------------------------------------------------------------------------

    def _key(self, renaming: int, world: World, numbers: Key, blocks: int) -> Key:
        names = self.renamings[renaming]
        nodes = [0] * len(numbers)
        for member, number in enumerate(numbers):
            nodes[names[member]] = self._rename_number(renaming, number)
        return (blocks, self._set(renaming, world.proven), self._set(renaming, world.final), *nodes)

    def _number(self, node: Node) -> int:
        number = self._numbers.setdefault(node, len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(node)
        return number

    def _set(self, renaming: int, blocks: int) -> int:
        known = self._sets[renaming]
        if blocks not in known:
            known[blocks] = sum(1 << self.block(renaming, block) for block in members_of(blocks))
        return known[blocks]

    def _rename_number(self, renaming: int, number: int) -> int:
        known = self._renamed[renaming]
        if number not in known:
            known[number] = self._number(self._rename_node(renaming, self._nodes[number]))
        return known[number]

    def _rename_block(self, renaming: int, number: int) -> int:
        names, made = self.renamings[renaming], self._chain.blocks[number]
        if made.kind is Kind.GENESIS:
            return number
        detail = _renamed_detail(names, made.kind, made.detail)
        parent, leader = self._blocks[renaming][made.parent], names[made.leader]
        return self._chain.number(Block(parent, made.height, made.term, leader, made.kind, detail))

    def _rename_node(self, renaming: int, node: Node) -> Node:
        names, said = self.renamings[renaming], node.statements

        def block(number: int) -> int:
            return self.block(renaming, number)

        statements = Statements(
            tuple([ack._replace(block=block(ack.block)) for ack in said.acknowledgements]),
            tuple([vote._replace(block=block(vote.block), base=block(vote.base)) for vote in said.votes]),
            tuple(
                [
                    grant._replace(candidate=names[grant.candidate], tip=block(grant.tip))
                    for grant in said.grants
                ]
            ),
            tuple(
                [
                    request._replace(tip=block(request.tip), base=block(request.base))
                    for request in said.requests
                ]
            ),
        )
        return node._replace(
            log=block(node.log),
            marker=block(node.marker),
            vote=block(node.vote),
            certified=block(node.certified),
            statements=statements,
        )


def _renaming(setting: Setting, order: tuple[int, ...]) -> list[int]:
    """Return the new name of each member when the honest ones take each other's places in this order."""
    names = list(range(setting.members))
    for member, name in zip(setting.honest, order, strict=True):
        names[member] = name
    return names


def _keeps(setting: Setting, names: tuple[int, ...]) -> bool:
    def renamed(members: tuple[int, ...]) -> set[int]:
        return {names[member] for member in members}

    return all(
        renamed(each.voters) == set(each.voters) and renamed(each.witnesses) == set(each.witnesses)
        for each in setting.configurations
    )


def _renamed_detail(names: tuple[int, ...], kind: Kind, detail: int) -> int:
    return rejoin_detail(names[detail >> 8], detail & 0xFF) if kind is Kind.REJOIN else detail
