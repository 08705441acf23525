"""Which blocks there can be: those that the rules find valid, and among them those that a lying leader could make.

What a liar makes and nobody sees makes no difference, so it makes a block at the moment when somebody is to see it.
"""

from collections.abc import Iterator
from typing import Final

from simulations.certificate_model_rules import Rules
from simulations.certificate_model_states import Bounds, Grant, Kind, World, members_of, rejoin_detail

LIAR_VERSIONS: Final = 2
"""Blocks of one kind that a lying leader makes upon one parent: two are enough to differ."""
LIES_AHEAD: Final = 2
"""Blocks that a lying leader makes at once; with the first acknowledgement of one it can make more."""
_VERSIONED: Final = (Kind.OPENING, Kind.DATA)


class Lies:
    """The blocks of one setting, within the bounds; what has been worked out is remembered."""

    def __init__(self, rules: Rules, bounds: Bounds) -> None:
        self._rules = rules
        self._chain = rules.chain
        self._setting = rules.setting
        self._bounds = bounds
        self._offered: dict[tuple[int, tuple[tuple[Grant, ...], ...], tuple[int, ...]], int] = {}
        self._lies: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}

    def children(self, world: World, parent: int) -> Iterator[tuple[Kind, int]]:
        """Yield kind and detail of the blocks but openings that are valid upon a parent, whoever leads."""
        chain = self._chain
        yield Kind.DATA, 0
        for old, new in self._setting.changes:
            if old == chain.configuration[parent]:
                yield Kind.SWITCH, new
        for silent in self._setting.honest:
            node = world.nodes[silent]
            detail = rejoin_detail(silent, node.incarnation)
            if node.is_silent and detail not in chain.rejoined[parent]:
                yield Kind.REJOIN, detail

    def may_build(self, member: int, parent: int) -> bool:
        """Return whether a leader may add a block but an opening: a voter of the configuration there, within the bounds."""
        return self._chain.height[parent] < self._bounds.heights and self._rules.is_voter(member, parent)

    def offered(self, world: World) -> int:
        """Return the blocks that exist, and those that the liar could make now.

        It makes one when somebody is to see it, and its second version only after the first: worlds in which it keeps
        blocks to itself, or has them in another order, would differ in nothing that anybody else can tell.
        """
        liar = self._setting.liar
        if liar < 0 or not self._rules.liar_helps:
            return world.blocks
        nodes = [world.nodes[member] for member in self._setting.honest]
        granted = tuple(
            [tuple([grant for grant in node.statements.grants if grant.candidate == liar]) for node in nodes]
        )
        key = world.blocks, granted, tuple([node.incarnation * node.is_silent for node in nodes])
        if key not in self._offered:
            asked = sorted({(grant.term, grant.tip) for grants in granted for grant in grants})
            elected = [each for each in asked if self._rules.is_elected(world, liar, *each)]
            self._offered[key] = self._with_lies(world, elected)
        return self._offered[key]

    def can_be_made(self, world: World, block: int) -> bool:
        """Return whether a block exists, or is one that the liar could make: in a term that it was elected in, upon its own."""
        chain = self._chain
        missing = chain.ancestors[block] & ~world.blocks
        return all(self._could_make(world, each) for each in members_of(missing))

    def _could_make(self, world: World, block: int) -> bool:
        chain, rules, liar, made = self._chain, self._rules, self._setting.liar, self._chain.blocks[block]
        if made.leader != liar:
            return False
        if made.kind is Kind.OPENING:
            is_later = made.term > chain.term[made.parent] and rules.may_open(liar, made.parent)
            return is_later and rules.is_elected(world, liar, made.term, made.parent)
        is_own = (chain.leader[made.parent], chain.term[made.parent]) == (liar, made.term)
        return is_own and rules.is_voter(liar, made.parent)

    def _with_lies(self, world: World, elected: list[tuple[int, int]]) -> int:
        """Return the blocks of a world and all that the liar can build on them in the terms it was elected in."""
        chain, liar, heights = self._chain, self._setting.liar, self._bounds.heights
        offered, waiting = world.blocks, []
        for term, tip in elected:
            if chain.height[tip] < heights:
                waiting += [chain.child(tip, term, liar, Kind.OPENING, each) for each in range(LIAR_VERSIONS)]
        waiting += members_of(world.blocks & chain.made_by[liar])
        silent = tuple([self._silent_detail(world, each) for each in self._setting.honest])
        while waiting:
            block = waiting.pop()
            made = chain.blocks[block]
            if made.kind in _VERSIONED and made.detail:
                first = chain.number(made._replace(detail=made.detail - 1))
                if not world.blocks >> first & 1:
                    continue
            offered |= 1 << block
            unseen = (chain.ancestors[block] & ~world.blocks).bit_count()
            if unseen < LIES_AHEAD and self.may_build(liar, block):
                children = self._lying_children(world, block, silent)
                waiting += [child for child in children if not offered >> child & 1]
        return offered

    def _lying_children(self, world: World, block: int, silent: tuple[int, ...]) -> tuple[int, ...]:
        """Return what the liar can make upon a block of its own, remembered by who waits for a Rejoin block."""
        known = self._lies.get((block, silent))
        if known is None:
            chain, liar, children = self._chain, self._setting.liar, list[int]()
            for kind, detail in self.children(world, block):
                versions = range(LIAR_VERSIONS) if kind is Kind.DATA else (detail,)
                children += [chain.child(block, chain.term[block], liar, kind, each) for each in versions]
            known = self._lies[block, silent] = tuple(children)
        return known

    def _silent_detail(self, world: World, member: int) -> int:
        node = world.nodes[member]
        return rejoin_detail(member, node.incarnation) if node.is_silent else 0
