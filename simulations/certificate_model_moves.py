"""What can happen in the model: every move of an honest member that the rules allow.

The liar has no moves of its own: what it signs is counted in (see `certificate_model_rules`), and it makes a block when
somebody is to see it (see `certificate_model_lies`).
"""

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

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


class Act(IntEnum):
    """What a member does."""

    STAND = 0
    GRANT = 1
    LEAD = 2
    PROPOSE = 3
    ACKNOWLEDGE = 4
    VOTE = 5
    LEARN = 6
    BELIEVE = 7
    CRASH = 8
    LOSE = 9
    REJOIN = 10


class Move(NamedTuple):
    """One step: `member` does `act`. `block` is what it is about, `other` and `detail` what else it takes.

    STAND: no more. GRANT: block = the tip shown, other = the candidate, detail = the term. LEAD: block = the tip, other =
    the term. PROPOSE: block = the parent, other = the kind, detail = that of the block. ACKNOWLEDGE:
    block = up to where, other = the tip of the leader's log. VOTE, LEARN, BELIEVE, REJOIN: the block.
    """

    act: Act
    member: int
    block: int = NOTHING
    other: int = 0
    detail: int = 0


class Moves:
    """The moves of one setting, under the rules in force."""

    def __init__(self, rules: Rules, bounds: Bounds) -> None:
        self.rules = rules
        self.chain = rules.chain
        self.setting = rules.setting
        self.bounds = bounds
        self.lies = Lies(rules, bounds)
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
            if node.role is Role.LEADER or node.is_silent or node.term >= self.bounds.terms:
                continue
            if self.rules.may_lead(member, node):
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
                if candidate != member and self._would_grant(node, term, tip):
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
                if not is_too_many and self._would_grant(node, term, tip):
                    yield Move(Act.GRANT, member, tip, liar, term)

    def _would_grant(self, node: Node, term: int, tip: int) -> bool:
        if term < node.term or term <= node.spent or (term == node.term and node.role is not Role.FOLLOWER):
            return False
        chain = self.chain
        shown, own = (chain.term[tip], chain.height[tip]), (chain.term[node.log], chain.height[node.log])
        return shown >= own or not self.rules.has(Rule.CURRENT_TIP)

    def _leads(self, world: World, members: Members) -> Iterator[Move]:
        chain, heights = self.chain, self.bounds.heights
        for member in members:
            node = world.nodes[member]
            if node.role is not Role.CANDIDATE or chain.height[node.log] >= heights:
                continue
            if node.statements.requests[-1].tip != node.log:
                continue
            if self.rules.is_elected(world, member, node.term, node.log):
                yield Move(Act.LEAD, member, node.log, node.term)

    # --- blocks ---------------------------------------------------------------------------------------------------

    def _proposals(self, world: World, members: Members) -> Iterator[Move]:
        for member in members:
            node = world.nodes[member]
            if node.role is not Role.LEADER:
                continue
            sent = self.sent_tip(world, member, node.term)
            if self.lies.may_build(member, sent):
                yield from self._honest_proposals(world, member, node, sent)

    def sent_tip(self, world: World, member: int, term: int) -> int:
        """Return the highest block that an honest leader has made in a term: its log, durable or not."""
        chain = self.chain
        own = [b for b in members_of(world.blocks) if chain.leader[b] == member and chain.term[b] == term]
        return max(own, key=chain.height.__getitem__)

    def _honest_proposals(self, world: World, member: int, node: Node, parent: int) -> Iterator[Move]:
        rules, chain = self.rules, self.chain
        switch = chain.last_switch[parent]
        is_settled = switch == NOTHING or chain.is_within(switch, node.certified)
        for kind, detail in self.lies.children(world, parent):
            if kind is Kind.SWITCH:
                may_stand = not rules.has(Rule.SWITCH_CERTIFIED) or chain.is_within(parent, node.certified)
            else:
                may_stand = is_settled or not rules.has(Rule.SWITCH_ALONE)
            if may_stand:
                yield Move(Act.PROPOSE, member, parent, kind, detail)

    # --- acknowledgements and votes -------------------------------------------------------------------------------

    def _acknowledgements(self, world: World, members: Members) -> Iterator[Move]:
        """Any block is the tip of its leader's log at some time, and stands for the AppendEntries that ends there."""
        chain = self.chain
        tips = [block for block in members_of(self.lies.offered(world)) if block != GENESIS]
        for member in members:
            node = world.nodes[member]
            for tip in tips:
                if not self._follows(member, node, tip):
                    continue
                for block in self._parts(member, tip):
                    if block != NOTHING and self._may_acknowledge(member, node, block, chain.term[tip]):
                        yield Move(Act.ACKNOWLEDGE, member, block, tip)

    def _parts(self, member: int, tip: int) -> Iterable[int]:
        """Return up to where a member may have what its leader has; one that a switch removes ends there."""
        if self.bounds.part_way:
            return members_of(self.chain.ancestors[tip] & ~(1 << GENESIS))
        return (tip,) if self.rules.follows(member, tip) else (self.chain.last_switch[tip],)

    def _follows(self, member: int, node: Node, tip: int) -> bool:
        """Return whether the member takes AppendEntries with this tip from the leader that made it (P0, P2, P4)."""
        rules, chain = self.rules, self.chain
        term, leads = chain.term[tip], node.role is Role.LEADER
        if node.is_silent or term < node.term:
            return False
        if chain.leader[tip] == member:
            if not leads or term != node.term:
                return False
        elif leads and term == node.term:
            return False
        if term == node.marker_term and chain.conflict(node.marker, tip) and rules.has(Rule.MARKER):
            return False
        return not (chain.conflict(node.certified, tip) and rules.has(Rule.CERTIFICATE_BINDS))

    def _may_acknowledge(self, member: int, node: Node, block: int, term: int) -> bool:
        """Return whether the member's log may be made the leader's up to `block`, and whether it says anything new."""
        rules, chain = self.rules, self.chain
        if not rules.follows(member, block) or not rules.switches_settled(node, block):
            return False
        if node.marker_term == term and chain.is_within(block, node.marker):
            return False
        if not rules.has(Rule.VOTE_KEEPS_LOG):
            return True
        return rules.frees(node, block)

    def _votes(self, world: World, members: Members) -> Iterator[Move]:
        rules, chain = self.rules, self.chain
        is_proven_first = rules.has(Rule.COMMIT_PROOF)
        for member in members:
            node = world.nodes[member]
            if node.is_silent or not rules.votes_certify:
                continue
            for block in members_of(world.proven if is_proven_first else world.blocks):
                if not rules.may_sign(member, block) or chain.is_within(block, node.certified):
                    continue
                if rules.follows(member, block) and not chain.is_within(block, node.log):
                    continue  # a witness stores what it votes for without following anybody
                if self._may_vote(node, block):
                    yield Move(Act.VOTE, member, block)

    def _may_vote(self, node: Node, block: int) -> bool:
        rules, chain = self.rules, self.chain
        if node.vote != NOTHING and chain.is_within(block, node.vote):
            return False
        if rules.has(Rule.CERTIFICATE_BINDS) and chain.conflict(node.certified, block):
            return False
        return rules.frees(node, block) or not rules.has(Rule.CHAINED_VOTES)

    def _lessons(self, world: World, members: Members) -> Iterator[Move]:
        chain = self.chain
        for member in members:
            node = world.nodes[member]
            if node.is_silent:
                continue
            for block in members_of(world.final):
                if not chain.is_within(block, node.certified) and not chain.conflict(block, node.certified):
                    yield Move(Act.LEARN, member, block)

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
