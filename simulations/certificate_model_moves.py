"""What can happen in the model: every move of an honest member that the rules allow.

The liar has no moves of its own: what it signs is counted in (see `certificate_model_rules`), and it makes a block when
somebody is to see it (see `certificate_model_lies`).
"""

from collections.abc import Callable, Iterable, Iterator

from simulations.certificate_model_guards import Act, Guards, Move
from simulations.certificate_model_lies import Lies
from simulations.certificate_model_rules import Rule, Rules
from simulations.certificate_model_states import (
    GENESIS,
    NOTHING,
    Bounds,
    Kind,
    Node,
    Role,
    Statements,
    World,
    members_of,
    rejoin_detail,
)

Members = tuple[int, ...]


class Moves:
    """The moves of one setting, under the rules in force."""

    def __init__(self, rules: Rules, bounds: Bounds) -> None:
        self.rules = rules
        self.chain = rules.chain
        self.setting = rules.setting
        self.bounds = bounds
        self.lies = Lies(rules, bounds)
        self.guards = Guards(rules, bounds, self.lies)
        self._possible: dict[Act, Callable[[World, Members], Iterator[Move]]] = {
            Act.STAND: self._stands,
            Act.GRANT: self._grants,
            Act.LEAD: self._leads,
            Act.PROPOSE: self._proposals,
            Act.ACKNOWLEDGE: self._acknowledgements,
            Act.VOTE: self._votes,
            Act.LEARN: self._lessons,
            Act.BELIEVE: self._beliefs,
            Act.CRASH: self._crashes,
            Act.LOSE: self._losses,
            Act.REJOIN: self._rejoins,
            Act.LEAVE: self._leavings,
            # Whoever hears of a later term may do less: a search gets to the same terms by standing more often.
            Act.HEAR: lambda _world, _members: iter(()),
        }

    def possible(
        self, world: World, act: Act | None = None, members: Members | None = None
    ) -> Iterator[Move]:
        """Yield the moves out of a world, of one kind or of all, of some honest members or of all."""
        for each in Act if act is None else (act,):
            yield from self._possible[each](world, self.setting.honest if members is None else members)

    # --- elections ------------------------------------------------------------------------------------------------

    def _stands(self, world: World, members: Members) -> Iterator[Move]:
        stood = sum(len(world.nodes[member].statements.requests) for member in self.setting.honest)
        if stood >= self.bounds.stands:
            return
        for member in members:
            node = world.nodes[member]
            if node.is_silent or node.term >= self.bounds.terms:
                continue
            if self.guards.stands(member, node):
                yield Move(Act.STAND, member)

    def _grants(self, world: World, members: Members) -> Iterator[Move]:
        # One to a candidate that has moved on would raise the own term and spend a vote, and so does to stand oneself.
        candidates = [(each, world.nodes[each]) for each in self.setting.honest]
        asked = {
            (member, node.term, node.statements.requests[-1].tip)
            for member, node in candidates
            if node.role is Role.CANDIDATE
        }
        for member in members:
            node = world.nodes[member]
            if node.is_silent:
                continue
            for candidate, term, tip in sorted(asked):
                if candidate != member and self.guards.grants(node, term, tip):
                    yield Move(Act.GRANT, member, tip, candidate, term)
            if self.setting.liar >= 0 and self.rules.liar_helps:
                yield from self._grants_to_liar(world, member, node)

    def _grants_to_liar(self, world: World, member: int, node: Node) -> Iterator[Move]:
        """The liar stands whenever it likes, and shows any tip there is: a forged one leads to no block anybody takes."""
        liar = self.setting.liar
        terms = range(max(node.term, node.spent + 1, 1), self.bounds.terms + 1)
        if not terms:
            return
        asked: dict[int, set[int]] = {term: set() for term in terms}
        for each in self.setting.honest:
            for grant in world.nodes[each].statements.grants:
                if grant.candidate == liar and grant.term in asked:
                    asked[grant.term].add(grant.tip)
        for tip in members_of(self.lies.offered(world)):
            if not self.rules.may_open(liar, tip):
                continue
            for term, tips in asked.items():
                is_too_many = tip not in tips and len(tips) >= self.bounds.lying_tips
                if not is_too_many and self.guards.grants(node, term, tip):
                    yield Move(Act.GRANT, member, tip, liar, term)

    def _leads(self, world: World, members: Members) -> Iterator[Move]:
        for member in members:
            node = world.nodes[member]
            if self.guards.leads(world, member, node):
                yield Move(Act.LEAD, member, node.log, node.term)

    # --- blocks ---------------------------------------------------------------------------------------------------

    def _proposals(self, world: World, members: Members) -> Iterator[Move]:
        for member in members:
            node = world.nodes[member]
            if node.role is not Role.LEADER:
                continue
            sent = self.guards.sent_tip(world, member, node.term)
            if self.lies.may_build(member, sent):
                yield from self._honest_proposals(world, member, node, sent)

    def _honest_proposals(self, world: World, member: int, node: Node, parent: int) -> Iterator[Move]:
        for kind, detail in self.lies.children(world, parent):
            if self.guards.cuts(node, parent, kind):
                yield Move(Act.PROPOSE, member, parent, kind, detail)

    # --- acknowledgements and votes -------------------------------------------------------------------------------

    def _acknowledgements(self, world: World, members: Members) -> Iterator[Move]:
        """Any block is the tip of its leader's log at some time, and stands for the AppendEntries that ends there."""
        chain = self.chain
        tips = [block for block in members_of(self.lies.offered(world)) if block != GENESIS]
        for member in members:
            node = world.nodes[member]
            if node.is_silent:
                continue
            for tip in tips:
                if chain.term[tip] < node.term:
                    continue
                for block in self._parts(member, tip):
                    if block == NOTHING or not self.guards.follows(member, node, tip, block):
                        continue
                    if self.guards.acknowledges(member, node, block, chain.term[tip]):
                        yield Move(Act.ACKNOWLEDGE, member, block, tip)

    def _parts(self, member: int, tip: int) -> Iterable[int]:
        """Return up to where a member may have what its leader has; one that a switch removes ends there."""
        if self.bounds.part_way:
            return members_of(self.chain.ancestors[tip] & ~(1 << GENESIS))
        return (tip,) if self.rules.follows(member, tip) else (self.chain.last_switch[tip],)

    def _votes(self, world: World, members: Members) -> Iterator[Move]:
        known = world.proven if self.rules.has(Rule.COMMIT_PROOF) else world.blocks
        for member in members:
            node = world.nodes[member]
            if node.is_silent or not self.rules.votes_certify:
                continue
            for block in members_of(known & ~self.chain.ancestors[node.certified]):
                if self.guards.votes(world, member, node, block):
                    yield Move(Act.VOTE, member, block)

    def _lessons(self, world: World, members: Members) -> Iterator[Move]:
        for member in members:
            node = world.nodes[member]
            if node.is_silent:
                continue
            for block in members_of(world.final):
                if self.guards.learns(world, node, block):
                    yield Move(Act.LEARN, member, block)

    def _leavings(self, world: World, members: Members) -> Iterator[Move]:
        for member in members if self.bounds.leaves else ():
            node = world.nodes[member]
            if node.is_silent:
                continue
            for block in members_of(world.final):
                if self.guards.leaves(world, node, block):
                    yield Move(Act.LEAVE, member, block)

    def _beliefs(self, world: World, members: Members) -> Iterator[Move]:
        """Without FINAL_BY_CERTIFICATE: what a leader calls committed is final to whoever has it in its log."""
        if self.rules.has(Rule.FINAL_BY_CERTIFICATE):
            return
        chain = self.chain
        for member in members:
            node = world.nodes[member]
            block, term = node.marker, node.marker_term
            is_told = chain.leader[block] == self.setting.liar or world.proven >> block & 1
            if term == node.term > 0 and is_told and not world.final >> block & 1:
                yield Move(Act.BELIEVE, member, block)

    # --- faults ---------------------------------------------------------------------------------------------------

    def _crashes(self, world: World, members: Members) -> Iterator[Move]:
        for member in members if self.bounds.crashes else ():
            node = world.nodes[member]
            forgets = not self.rules.has(Rule.DURABLE) and node.spent > 0
            if node.role is not Role.FOLLOWER or forgets:
                yield Move(Act.CRASH, member)
            for block in members_of(self.chain.ancestors[node.certified]) if self.bounds.forgets else ():
                if self.guards.forgets(node, block):
                    yield Move(Act.CRASH, member, block)

    def _losses(self, world: World, members: Members) -> Iterator[Move]:
        """At most one member is without its store at a time, and only so many incarnations are looked at."""
        if not self.bounds.losses or any(world.nodes[member].is_silent for member in self.setting.honest):
            return
        if sum(world.nodes[member].incarnation for member in self.setting.honest) < self.bounds.losses:
            for member in members:
                if world.nodes[member].statements != Statements():
                    yield Move(Act.LOSE, member)

    def _rejoins(self, world: World, members: Members) -> Iterator[Move]:
        chain, rules = self.chain, self.rules
        for member in members:
            node = world.nodes[member]
            if not node.is_silent:
                continue
            detail = rejoin_detail(member, node.incarnation)
            for block in members_of(world.final):
                if chain.blocks[block].kind is Kind.REJOIN and chain.blocks[block].detail == detail:
                    aided = not rules.has(Rule.REJOIN_UNAIDED)
                    if aided or rules.is_certified(world, block, leaving_out=member):
                        yield Move(Act.REJOIN, member, block)
