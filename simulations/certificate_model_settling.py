"""The promise that there will be more: without liars, with everybody back, every world of the model goes on.

ledger.md 1.1, Liveness: "Without liars and with r voters and q signers reachable, every committed block becomes final and
new ones keep coming." The members are led through the friendliest schedule there is; if even that ends nowhere, no time-outs
will help. With a liar the same schedule, in which it says nothing, measures how often honest votes are split for good.
"""

from collections.abc import Callable
from typing import Final

from simulations.certificate_model_guards import Act, Move
from simulations.certificate_model_moves import Moves
from simulations.certificate_model_rules import Rules
from simulations.certificate_model_states import Bounds, Kind, Role, World
from simulations.certificate_model_steps import Steps

_FAR: Final = 1_000
_ROUNDS: Final = 2
_MOVES_MAX: Final = 400


class Settling:
    """The schedule, over the rules of a model; the liar, if there is one, is out of reach."""

    def __init__(self, rules: Rules) -> None:
        quiet = Rules(rules.setting, rules.chain, rules.without, liar_helps=False)
        self._moves = Moves(quiet, Bounds(terms=_FAR, heights=_FAR, stands=_FAR, lying_tips=0))
        self._steps = Steps(self._moves)
        self._setting = rules.setting
        self._chain = rules.chain

    def goes_on(self, world: World) -> bool:
        """Return whether some leader gets a new block certified to every honest signer, and every member its voice back."""
        for _ in range(_ROUNDS):
            for member in self._setting.honest:
                world, is_done = self._lead(world, member)
                if is_done:
                    return True
        return False

    def _lead(self, world: World, member: int) -> tuple[World, bool]:
        """Let one member try to lead; return the world and whether its new block is final to all."""
        world = self._exhaust(world, Act.REJOIN, Act.LEARN)
        standing = Move(Act.STAND, member)
        highest = max(world.nodes[each].term for each in self._setting.honest)
        if world.nodes[member].role is Role.LEADER:
            world = self._steps.after(world, Move(Act.CRASH, member)).world
        if standing not in self._moves.possible(world, Act.STAND):
            return world, False
        while world.nodes[member].term <= highest:
            world = self._steps.after(world, standing).world
        term = world.nodes[member].term
        world = self._exhaust(world, Act.GRANT, only=lambda move: move.other == member)
        opening = list(self._moves.possible(world, Act.LEAD, (member,)))
        if not opening:
            return world, False
        world = self._steps.after(world, opening[0]).world
        world = self._certify(world)
        # Twice: first whoever waits for its Rejoin block gets one, then a block with everybody's voice.
        for kind in (Kind.REJOIN, Kind.DATA):
            moves = [move for move in self._moves.possible(world, Act.PROPOSE) if move.other == kind]
            for move in [each for each in moves if each.member == member][:1]:
                world = self._certify(self._steps.after(world, move).world)
        return world, self._is_final_to_all(world, member, term)

    def _certify(self, world: World) -> World:
        return self._exhaust(world, Act.ACKNOWLEDGE, Act.VOTE, Act.LEARN, Act.REJOIN)

    def _exhaust(self, world: World, *acts: Act, only: Callable[[Move], bool] = lambda _: True) -> World:
        """Take the moves of some kinds, those about the highest blocks first, until there is none."""
        height = self._chain.height
        for _ in range(_MOVES_MAX):
            moves = [move for act in acts for move in self._moves.possible(world, act) if only(move)]
            if not moves:
                return world
            world = self._steps.after(world, max(moves, key=lambda move: height[move.block])).world
        raise AssertionError("moves without end")

    def _is_final_to_all(self, world: World, leader: int, term: int) -> bool:
        chain = self._chain
        tip = self._moves.guards.sent_tip(world, leader, term)
        signers = self._setting.configurations[chain.configuration[tip]].signers
        honest = [world.nodes[member] for member in signers if member != self._setting.liar]
        return chain.blocks[tip].kind is Kind.DATA and all(
            chain.is_within(tip, node.certified) and not node.is_silent for node in honest
        )
