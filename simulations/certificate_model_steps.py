"""What a move leads to, and whether the world it leads to breaks a promise of ledger.md.

fork: two conflicting blocks are final. order undone: two conflicting blocks have commit proofs though nobody lied.
conviction: evidence names a member that kept to the rules.
"""

from collections.abc import Callable
from typing import NamedTuple

from simulations.certificate_model_evidence import Evidence
from simulations.certificate_model_guards import Act, Move
from simulations.certificate_model_moves import Moves
from simulations.certificate_model_rules import Rule
from simulations.certificate_model_states import (
    GENESIS,
    NOBODY,
    NOTHING,
    Acknowledgement,
    Grant,
    Kind,
    Node,
    Request,
    Role,
    Statements,
    Vote,
    World,
    members_of,
)
from simulations.certificate_model_text import label


class Step(NamedTuple):
    """The world after a move. `broken` is the promise it breaks, or None."""

    world: World
    broken: str | None


class Steps:
    """All that moves do, over the chain and the rules of `moves`. `promise`: how the sentences begin that are told."""

    def __init__(self, moves: Moves, promise: str = "", *, convicts: bool = True) -> None:
        """`convicts`: each statement is held against its signer at once; for a long trace its end is soon enough."""
        self._promise = promise
        self._convicts = convicts
        self._rules = moves.rules
        self._chain = moves.chain
        self._moves = moves
        self._setting = moves.setting
        self._evidence = Evidence(moves.chain, moves.rules.without)
        self._after: dict[Act, Callable[[World, Move, Node], Step]] = {
            Act.STAND: self._stand,
            Act.GRANT: self._grant,
            Act.LEAD: self._lead,
            Act.PROPOSE: self._propose,
            Act.ACKNOWLEDGE: self._acknowledge,
            Act.VOTE: self._vote,
            Act.LEARN: self._learn,
            Act.BELIEVE: self._believe,
            Act.CRASH: self._crash,
            Act.LOSE: self._lose,
            Act.REJOIN: self._rejoin,
            Act.LEAVE: self._leave,
            Act.HEAR: self._hear,
        }

    def after(self, world: World, move: Move) -> Step:
        """Return what a move leads to; it must be possible."""
        step = self._after[move.act](world, move, world.nodes[move.member])
        if step.broken is not None and not step.broken.startswith(self._promise):
            return Step(step.world, None)
        return step

    # --- elections ------------------------------------------------------------------------------------------------

    def _stand(self, world: World, move: Move, node: Node) -> Step:
        term, said = node.term + 1, node.statements
        granted = Grant(node.incarnation, term, move.member, node.log)
        asked = Request(node.incarnation, term, node.log, node.marker_term, node.certified)
        said = said._replace(grants=(*said.grants, granted), requests=(*said.requests, asked))
        node = node._replace(term=term, spent=term, role=Role.CANDIDATE, statements=said)
        return self._said(world, move.member, node)

    def _grant(self, world: World, move: Move, node: Node) -> Step:
        granted = Grant(node.incarnation, move.detail, move.other, move.block)
        said = node.statements._replace(grants=(*node.statements.grants, granted))
        node = node._replace(term=move.detail, spent=move.detail, role=Role.FOLLOWER, statements=said)
        world = world._replace(blocks=world.blocks | self._chain.ancestors[move.block])
        return self._said(world, move.member, node)

    def _lead(self, world: World, move: Move, node: Node) -> Step:
        world = world.with_node(move.member, node._replace(role=Role.LEADER))
        block = self._chain.child(move.block, move.other, move.member, Kind.OPENING)
        return self._made(world, move.member, block)

    def _propose(self, world: World, move: Move, _node: Node) -> Step:
        chain = self._chain
        term = chain.term[move.block]
        return self._made(
            world, move.member, chain.child(move.block, term, move.member, Kind(move.other), move.detail)
        )

    def _made(self, world: World, leader: int, block: int) -> Step:
        world = world._replace(blocks=world.blocks | 1 << block)
        return Step(world, self._conviction(world, leader))

    # --- acknowledgements, votes, certificates --------------------------------------------------------------------

    def _acknowledge(self, world: World, move: Move, node: Node) -> Step:
        chain, block, term = self._chain, move.block, self._chain.term[move.other]
        is_own = chain.leader[move.other] == move.member
        # One batch: the entries, the term, the marker. Only then the acknowledgement is signed (decision 6).
        node = node._replace(
            term=term,
            role=Role.LEADER if is_own else Role.FOLLOWER,
            log=node.log if chain.is_within(block, node.log) else block,
            marker_term=term,
            marker=block,
            statements=self._with_acknowledgement(node, term, block),
        )
        world = world.with_node(move.member, node)._replace(blocks=world.blocks | chain.ancestors[move.other])
        broken = self._conviction(world, move.member)
        for each in members_of(chain.ancestors[block] & ~world.proven):
            if self._rules.is_proven(world, each):
                broken = self._order_undone(world, each) or broken
                # A proof commits every ancestor, whatever its term.
                world = world._replace(proven=world.proven | chain.ancestors[each])
        if self._rules.votes_certify:
            return Step(world, broken)
        return self._finalised(world, block, broken)

    def _with_acknowledgement(self, node: Node, term: int, block: int) -> Statements:
        """Return what a member has said with one more; one for a descendant in the same term stands for its ancestors too."""
        said = node.statements
        kept = []
        for ack in said.acknowledgements:
            if ack.incarnation == node.incarnation and ack.term == term:
                if self._chain.is_within(block, ack.block):
                    return said
                if self._chain.is_within(ack.block, block):
                    continue
            kept.append(ack)
        return said._replace(
            acknowledgements=(*kept, Acknowledgement(node.incarnation, term, block)),
        )

    def _vote(self, world: World, move: Move, node: Node) -> Step:
        chain, said = self._chain, node.statements
        base = node.certified if chain.is_within(node.certified, move.block) else GENESIS
        said = said._replace(votes=(*said.votes, Vote(node.incarnation, move.block, base)))
        world = world.with_node(move.member, node._replace(vote=move.block, statements=said))
        return self._finalised(world, move.block, self._conviction(world, move.member))

    def _finalised(self, world: World, block: int, broken: str | None) -> Step:
        """Return the world with all that is certified now, on the chain of `block` or upon a switch on it."""
        chain, candidates = self._chain, self._chain.ancestors[block] & ~world.final
        has_more = True
        while has_more:
            has_more = False
            for each in members_of(candidates & ~world.final):
                if not self._rules.is_certified(world, each):
                    continue
                broken = self._fork(world, each) or broken
                world = world._replace(final=world.final | 1 << each)
                if chain.blocks[each].kind is Kind.SWITCH:
                    candidates, has_more = world.blocks, True
                broken = broken or self._late_conviction(world)
        return Step(world, broken)

    def _learn(self, world: World, move: Move, node: Node) -> Step:
        """P5: raise the term to the block's, roll a conflicting tail back, step aside; a shorter log may be filled up."""
        chain, block = self._chain, move.block
        is_kept = chain.is_within(block, node.log)
        steps_aside = (
            not is_kept
            or chain.term[block] > node.term
            or (node.vote != NOTHING and chain.conflict(node.vote, block))
        )
        node = node._replace(
            certified=block,
            term=max(node.term, chain.term[block]),
            log=node.log if is_kept else block,
            role=Role.FOLLOWER if steps_aside else node.role,
        )
        return Step(world.with_node(move.member, node), None)

    def _believe(self, world: World, move: Move, _node: Node) -> Step:
        broken = None
        for each in members_of(self._chain.ancestors[move.block] & ~world.final):
            broken = broken or self._fork(world, each)
            world = world._replace(final=world.final | 1 << each)
        return Step(world, broken)

    # --- faults ---------------------------------------------------------------------------------------------------

    def _crash(self, world: World, move: Move, node: Node) -> Step:
        certified = node.certified if move.block == NOTHING else move.block
        node = node._replace(role=Role.FOLLOWER, certified=certified)
        if not self._rules.has(Rule.DURABLE):
            node = node._replace(spent=0, marker_term=0, marker=GENESIS, vote=NOTHING)
        return Step(world.with_node(move.member, node), None)

    def _lose(self, world: World, move: Move, node: Node) -> Step:
        is_known = self._rules.has(Rule.REJOIN)
        incarnation = node.incarnation + int(is_known)
        node = Node(incarnation=incarnation, is_silent=is_known, statements=node.statements)
        return Step(world.with_node(move.member, node), None)

    def _rejoin(self, world: World, move: Move, node: Node) -> Step:
        """7.3: the Rejoin block is log, certificate and base; the vote of its term is spent."""
        term = self._chain.term[move.block]
        node = node._replace(
            is_silent=False, log=move.block, certified=move.block, term=term, spent=term, role=Role.FOLLOWER
        )
        return Step(world.with_node(move.member, node), None)

    def _leave(self, world: World, move: Move, node: Node) -> Step:
        """P5: all above the base goes, and nothing more is said in a term in which some of it was acknowledged (E2)."""
        is_marked = node.marker_term == node.term and not self._chain.is_within(node.marker, node.certified)
        term = max(node.term + is_marked, self._chain.term[move.block])
        node = node._replace(log=node.certified, term=term, role=Role.FOLLOWER)
        return Step(world.with_node(move.member, node), None)

    def _hear(self, world: World, move: Move, node: Node) -> Step:
        node = node._replace(term=move.detail, role=Role.FOLLOWER)
        return Step(world.with_node(move.member, node), None)

    # --- promises -------------------------------------------------------------------------------------------------

    def _said(self, world: World, member: int, node: Node) -> Step:
        world = world.with_node(member, node)
        return Step(world, self._conviction(world, member))

    def _conviction(self, world: World, member: int) -> str | None:
        if member == self._setting.liar or not self._convicts:
            return None
        name = self._evidence.convicts(member, world.nodes[member].statements, world)
        return f"conviction: {name} names member {member + 1}, who kept to the rules" if name else None

    def _late_conviction(self, world: World) -> str | None:
        """Return whom a new certificate convicts: those who voted before (E3b)."""
        found = (self._conviction(world, member) for member in self._setting.honest)
        return next((each for each in found if each is not None), None)

    def _fork(self, world: World, block: int) -> str | None:
        for other in members_of(world.final):
            if self._chain.conflict(block, other):
                one, two = sorted((label(self._chain, block), label(self._chain, other)))
                return f"fork: {one} and {two} are both final"
        return None

    def _order_undone(self, world: World, block: int) -> str | None:
        if self._setting.liar != NOBODY:
            return None
        for other in members_of(world.proven | world.final):
            if self._chain.conflict(block, other):
                one, two = sorted((label(self._chain, block), label(self._chain, other)))
                return f"order undone: {one} and {two} are both proven, and nobody lied"
        return None
