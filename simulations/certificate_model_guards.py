"""What the rules ask of one move: the conditions under which an honest member may do something, one for each act.

`Moves` enumerates with them, and a recorded trace is held against them (`certificate_replay`): there is one text of each
condition, so that what a search has looked at is what the real core is compared with.
"""

from enum import IntEnum
from typing import NamedTuple

from simulations.certificate_model_lies import Lies
from simulations.certificate_model_rules import Rule, Rules
from simulations.certificate_model_states import GENESIS, NOTHING, Bounds, Kind, Node, Role, World, members_of


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
    LEAVE = 11
    HEAR = 12


class Move(NamedTuple):
    """One step: `member` does `act`. `block` is what it is about, `other` and `detail` what else it takes.

    STAND: no more. GRANT: block = the tip shown, other = the candidate, detail = the term. LEAD: block = the tip, other =
    the term. PROPOSE: block = the parent, other = the kind, detail = that of the block. ACKNOWLEDGE:
    block = up to where, other = the tip of the leader's log. VOTE, LEARN, BELIEVE, REJOIN: the block. CRASH: block = what it
    still knows to be certified, NOTHING for all that it knew. LEAVE: block = what is certified in the tail's place. HEAR:
    detail = the term.
    """

    act: Act
    member: int
    block: int = NOTHING
    other: int = 0
    detail: int = 0


class Guards:
    """The conditions under the rules in force. A member that is silent does nothing of all this."""

    def __init__(self, rules: Rules, bounds: Bounds, lies: Lies) -> None:
        self._rules = rules
        self._chain = rules.chain
        self._liar = rules.setting.liar
        self._bounds = bounds
        self._lies = lies

    # --- elections ------------------------------------------------------------------------------------------------

    def stands(self, member: int, node: Node) -> bool:
        """Return whether a member may stand for leader in the term after its own."""
        if node.role is Role.LEADER or not self._rules.may_lead(member, node):
            return False
        return not self._rules.has(Rule.LEFT_STANDS_NOT) or self._shows_enough(node)

    def _shows_enough(self, node: Node) -> bool:
        """Return whether no acknowledgement speaks against the log, unless a certificate that is known excuses it (E5b)."""
        chain, marker = self._chain, node.marker
        if chain.is_within(marker, node.log):
            return True
        return (
            chain.conflict(marker, node.log)
            and chain.is_within(node.certified, node.log)
            and chain.parting(marker, node.log) <= chain.height[node.certified]
        )

    def grants(self, node: Node, term: int, tip: int) -> bool:
        """Return whether a member may vote for a candidate of a term that shows a tip (P0, Raft 5.4.1)."""
        if term < node.term or term <= node.spent or (term == node.term and node.role is not Role.FOLLOWER):
            return False
        chain = self._chain
        shown, own = (chain.term[tip], chain.height[tip]), (chain.term[node.log], chain.height[node.log])
        return shown >= own or not self._rules.has(Rule.CURRENT_TIP)

    def is_asked(self, world: World, candidate: int, term: int, tip: int) -> bool:
        """Return whether a candidate has ever asked for a vote like this; the liar shows what it likes, also forged tips."""
        if candidate == self._liar:
            return True
        asked = world.nodes[candidate].statements.requests
        return any((request.term, request.tip) == (term, tip) for request in asked)

    def leads(self, world: World, member: int, node: Node) -> bool:
        """Return whether a candidate is elected upon the tip that it showed, and holds it still."""
        if node.role is not Role.CANDIDATE or self._chain.height[node.log] >= self._bounds.heights:
            return False
        if node.statements.requests[-1].tip != node.log:
            return False
        return self._rules.is_elected(world, member, node.term, node.log)

    # --- blocks ---------------------------------------------------------------------------------------------------

    def sent_tip(self, world: World, member: int, term: int) -> int:
        """Return the highest block that an honest leader has made in a term: its log, durable or not."""
        chain = self._chain
        own = [b for b in members_of(world.blocks & chain.made_by[member]) if chain.term[b] == term]
        return max(own, key=chain.height.__getitem__)

    def cuts(self, node: Node, parent: int, kind: Kind) -> bool:
        """Return whether a leader may cut a block of a kind, but an opening, upon its last one (7.2 (1), (2))."""
        rules, chain = self._rules, self._chain
        if kind is Kind.SWITCH:
            return not rules.has(Rule.SWITCH_CERTIFIED) or chain.is_within(parent, node.certified)
        switch = chain.last_switch[parent]
        is_settled = switch == NOTHING or chain.is_within(switch, node.certified)
        return is_settled or not rules.has(Rule.SWITCH_ALONE)

    def follows(self, member: int, node: Node, tip: int, block: int) -> bool:
        """Return whether the member takes up to `block` from the leader that made `tip` (P0, P2, P4).

        Of what lies above `block` it has seen nothing yet.
        """
        rules, chain = self._rules, self._chain
        term, leads = chain.term[tip], node.role is Role.LEADER
        if term < node.term:
            return False
        if chain.leader[tip] == member:
            if not leads or term != node.term:
                return False
        elif leads and term == node.term:
            return False
        if term == node.marker_term and chain.conflict(node.marker, block) and rules.has(Rule.MARKER):
            return False
        return not (chain.conflict(node.certified, block) and rules.has(Rule.CERTIFICATE_BINDS))

    def acknowledges(self, member: int, node: Node, block: int, term: int) -> bool:
        """Return whether the member's log may be made the leader's up to `block`, and whether it says anything new."""
        rules, chain = self._rules, self._chain
        if not rules.follows(member, block) or not rules.switches_settled(node, block):
            return False
        if node.marker_term == term and chain.is_within(block, node.marker):
            return False
        return not rules.has(Rule.VOTE_KEEPS_LOG) or rules.frees(node, block)

    # --- votes and certificates -----------------------------------------------------------------------------------

    def votes(self, world: World, member: int, node: Node, block: int) -> bool:
        """Return whether a signer may vote for a block (P4)."""
        rules, chain = self._rules, self._chain
        known = world.proven if rules.has(Rule.COMMIT_PROOF) else world.blocks
        if not known >> block & 1 or not rules.votes_certify:
            return False
        if not rules.may_sign(member, block) or chain.is_within(block, node.certified):
            return False
        if rules.follows(member, block) and not chain.is_within(block, node.log):
            return False  # a witness stores what it votes for without following anybody
        if node.vote != NOTHING and chain.is_within(block, node.vote) and not self._votes_again(node, block):
            return False
        if rules.has(Rule.CERTIFICATE_BINDS) and chain.conflict(node.certified, block):
            return False
        return rules.frees(node, block) or not rules.has(Rule.CHAINED_VOTES)

    def _votes_again(self, node: Node, block: int) -> bool:
        """Return whether this is the last vote once more, upon what is known to be certified by now: after a restart."""
        if not self._bounds.forgets or block != node.vote or not node.statements.votes:
            return False
        last = node.statements.votes[-1].base
        return last != node.certified and self._chain.is_within(last, node.certified)

    def learns(self, world: World, node: Node, block: int) -> bool:
        """Return whether there is a certificate for a block, and it tells the member something (P5)."""
        chain = self._chain
        is_news = not chain.is_within(block, node.certified) and not chain.conflict(block, node.certified)
        return bool(world.final >> block & 1) and is_news

    def leaves(self, world: World, node: Node, block: int) -> bool:
        """Return whether the tail may be given up for a certified block that is not here yet (P4 (3), P5)."""
        return self.learns(world, node, block) and self._chain.conflict(block, node.log)

    def forgets(self, node: Node, block: int) -> bool:
        """Return whether a crash may leave `block` the highest one known to be certified: the last vote's base is durable."""
        votes = node.statements.votes
        base = votes[-1].base if votes and votes[-1].incarnation == node.incarnation else GENESIS
        chain = self._chain
        is_less = block != node.certified and chain.is_within(block, node.certified)
        return is_less and chain.is_within(base, block)

    # --- one move -------------------------------------------------------------------------------------------------

    def allows(self, world: World, move: Move) -> bool:
        """Return whether the rules let a member do this here.

        That is what `Moves` enumerates within all bounds, and what it leaves out for speed: a grant to a candidate that has
        moved on since, an acknowledgement of genesis, and to hear of a later term. They only bind whoever does them.

        Raises:
            ValueError: an act that no trace has: belief, and the loss of a store.
        """
        member, block = move.member, move.block
        node = world.nodes[member]
        if node.is_silent:
            return False
        match move.act:
            case Act.STAND:
                return self.stands(member, node)
            case Act.GRANT:
                is_asked = self.is_asked(world, move.other, move.detail, block)
                return is_asked and self.grants(node, move.detail, block)
            case Act.LEAD:
                return (block, move.other) == (node.log, node.term) and self.leads(world, member, node)
            case Act.PROPOSE:
                return self._allows_block(world, move, node)
            case Act.ACKNOWLEDGE:
                return self._allows_acknowledgement(world, move, node)
            case Act.VOTE:
                return self.votes(world, member, node, block)
            case Act.LEARN:
                return self.learns(world, node, block)
            case Act.LEAVE:
                return self.leaves(world, node, block)
            case Act.CRASH:
                return block == NOTHING or self.forgets(node, block)
            case Act.HEAR:
                return move.detail > node.term
            case _:
                raise ValueError(f"not to be met in a trace: {move}")

    def _allows_block(self, world: World, move: Move, node: Node) -> bool:
        if node.role is not Role.LEADER or move.block != self.sent_tip(world, move.member, node.term):
            return False
        kind = Kind(move.other)
        is_valid = (kind, move.detail) in self._lies.children(world, move.block)
        return (
            is_valid and self._lies.may_build(move.member, move.block) and self.cuts(node, move.block, kind)
        )

    def _allows_acknowledgement(self, world: World, move: Move, node: Node) -> bool:
        member, block, tip = move.member, move.block, move.other
        if not self._chain.is_within(block, tip) or not self._lies.can_be_made(world, tip):
            return False
        if not self.follows(member, node, tip, block):
            return False
        return self.acknowledges(member, node, block, self._chain.term[tip])
