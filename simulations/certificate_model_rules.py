"""P0 to P5, Rejoin and the switch as questions about a world, each rule with a name by which it can be left out.

What the liar signs is not part of a world: it signs whatever would help, so it is counted in wherever its word counts.
"""

from collections.abc import Iterable
from enum import StrEnum

from simulations.certificate_model_states import (
    NOTHING,
    Chain,
    Configuration,
    Kind,
    Node,
    Setting,
    World,
)


class Rule(StrEnum):
    """What can be left out of the published rules, or replaced by what first comes to mind."""

    TWO_PHASE = "two-phase"
    QUORUM = "quorum"
    CHAINED_VOTES = "chained-votes"
    BASE_ABOVE_FORK = "base-above-fork"
    VOTE_KEEPS_LOG = "vote-keeps-log"
    CERTIFICATE_BINDS = "certificate-binds"
    COMMIT_PROOF = "commit-proof"
    FINAL_BY_CERTIFICATE = "final-by-certificate"
    OWN_TERM = "own-term"
    ONE_TERM = "one-term"
    MARKER = "marker"
    CURRENT_TIP = "current-tip"
    DURABLE = "durable"
    REJOIN = "rejoin"
    REJOIN_UNAIDED = "rejoin-unaided"
    SWITCH_CERTIFIED = "switch-certified"
    SWITCH_ALONE = "switch-alone"
    SWITCH_JOINT = "switch-joint"
    REMOVED_STANDS = "removed-stands"
    LEFT_STANDS_NOT = "left-stands-not"
    EXACT_HEADERS = "exact-headers"
    EXACT_ACKNOWLEDGEMENTS = "exact-acknowledgements"
    EXACT_VOTES = "exact-votes"
    EXACT_BASE = "exact-base"
    EXACT_GRANTS = "exact-grants"
    EXACT_TIPS = "exact-tips"


MEANINGS = {
    Rule.TWO_PHASE: "P5: q votes certify, and not q acknowledgements",
    Rule.QUORUM: "q = floor((m + b) / 2) + 1, and not a majority",
    Rule.CHAINED_VOTES: "P4 (1): a vote descends from the last one, or its base lies above where they part",
    Rule.BASE_ABOVE_FORK: "P4 (1): the base lies in the new branch, and not in the trunk both share",
    Rule.VOTE_KEEPS_LOG: "P4 (3): a log is not shortened at or below the own vote",
    Rule.CERTIFICATE_BINDS: "P4 (2): nothing that conflicts with a known certificate is voted for or acknowledged",
    Rule.COMMIT_PROOF: "P3, P4: a signer votes for what is proven, and not for all that its log holds",
    Rule.FINAL_BY_CERTIFICATE: "decision 4: certified is final, and not what a leader calls committed",
    Rule.OWN_TERM: "P3 (a): a proof counts acknowledgements of the block's own term (Raft 5.4.2, Figure 8)",
    Rule.ONE_TERM: "P3 (b): the acknowledgements of a proof are of one term",
    Rule.MARKER: "P2: in one term nothing that conflicts with the last acknowledgement is appended",
    Rule.CURRENT_TIP: "Raft 5.4.1: a vote goes to a log as current as the own one",
    Rule.DURABLE: "decision 6: what was promised outlives a crash",
    Rule.REJOIN: "7.3: a member without its store says nothing before its Rejoin block is certified",
    Rule.REJOIN_UNAIDED: "7.3: that block is certified without the vote of whom it is about",
    Rule.SWITCH_CERTIFIED: "7.2 (1): the predecessor of a switch is certified (the membership bug of 2015)",
    Rule.SWITCH_ALONE: "7.2 (2): only openings stand upon a switch that is not certified",
    Rule.SWITCH_JOINT: "7.2 (4): a switch takes q of the old signers and q of the new, and all above it takes the switch",
    Rule.REMOVED_STANDS: "Raft thesis 4.2.2: a removed voter leads until its removal is certified (ledger.md does not say it)",
    Rule.LEFT_STANDS_NOT: "E5b: who has left its tail stands only upon a base that excuses the tip it shows (ledger.md does not say it)",
    Rule.EXACT_HEADERS: "E1 asks for one height, not only for one term",
    Rule.EXACT_ACKNOWLEDGEMENTS: "E2 asks for one term",
    Rule.EXACT_VOTES: "E3 looks at the bases",
    Rule.EXACT_BASE: "E3b is about the base, not about the block voted for",
    Rule.EXACT_GRANTS: "E4 asks for one incarnation",
    Rule.EXACT_TIPS: "E5 compares with the marker and heeds certificates",
}


class Rules:
    """The rules in force over one chain of one setting. `liar_helps`: what the liar could sign is counted in."""

    def __init__(
        self, setting: Setting, chain: Chain, without: Iterable[Rule] = (), *, liar_helps: bool = True
    ) -> None:
        self.setting = setting
        self.chain = chain
        self.without = frozenset(without)
        self.liar_helps = liar_helps
        off = self.without
        self.votes_certify = Rule.TWO_PHASE not in off
        self.own_term = Rule.OWN_TERM not in off
        self.one_term = Rule.ONE_TERM not in off
        self.switch_joint = Rule.SWITCH_JOINT not in off
        # Acknowledgements certify only where all signers acknowledge: a witness has no part in it.
        signed = [
            each if self.votes_certify else Configuration(each.voters) for each in setting.configurations
        ]
        self._quorums = [self._quorum(each) for each in signed]
        self._voters = [self._honest(each.voters) for each in setting.configurations]
        self._signers = [self._honest(each.signers) for each in signed]
        self._lies = [int(liar_helps and setting.liar in each.signers) for each in signed]
        self._lying_votes = [
            int(liar_helps and setting.liar in each.voters) for each in setting.configurations
        ]

    def has(self, rule: Rule) -> bool:
        """Return whether a rule is in force."""
        return rule not in self.without

    # --- elections and proofs -------------------------------------------------------------------------------------

    def is_elected(self, world: World, candidate: int, term: int, tip: int) -> bool:
        """Return whether grants of a Raft quorum of the configuration at `tip` name the candidate, term and tip (P0)."""
        number = self.chain.configuration[tip]
        granted = self._lying_votes[number]
        for voter in self._voters[number]:
            grants = world.nodes[voter].statements.grants
            granted += any(grant[1:] == (term, candidate, tip) for grant in grants)
        return granted >= self.setting.configurations[number].raft_quorum

    def is_proven(self, world: World, block: int) -> bool:
        """Return whether a commit proof can be put together (P3). The set after a switch counts for the switch too."""
        number = self.chain.configuration[block]
        needed = self.setting.configurations[number].raft_quorum - self._lying_votes[number]
        return self._acknowledgers(world, block, self._voters[number]) >= needed

    def _acknowledgers(self, world: World, block: int, members: tuple[int, ...]) -> int:
        """Return how many of the members acknowledged the block or a descendant, by the best term that may be counted."""
        ancestors, own = self.chain.ancestors, self.chain.term[block]
        terms = [
            {
                ack.term
                for ack in world.nodes[member].statements.acknowledgements
                if ancestors[ack.block] >> block & 1
            }
            for member in members
        ]
        if not self.one_term:
            return sum(map(bool, terms))
        if self.own_term:
            return sum(own in each for each in terms)
        return max((sum(term in each for each in terms) for term in set().union(*terms)), default=0)

    # --- certificates ---------------------------------------------------------------------------------------------

    def is_certified(self, world: World, block: int, *, leaving_out: int | None = None) -> bool:
        """Return whether a certificate can be put together (P5), of old and new signers for a switch (7.2 (4))."""
        chain = self.chain
        number = chain.configuration_below[block]
        if not self._has_quorum(world, block, number, leaving_out):
            return False
        if not self.switch_joint:
            return True
        if chain.blocks[block].kind is Kind.SWITCH:
            return self._has_quorum(world, block, chain.configuration[block], leaving_out)
        switch = chain.last_switch[block]
        return switch == NOTHING or bool(world.final >> switch & 1)

    def _has_quorum(self, world: World, block: int, number: int, leaving_out: int | None) -> bool:
        signers = self._signers[number]
        if leaving_out is not None:
            signers = tuple([signer for signer in signers if signer != leaving_out])
        needed = self._quorums[number] - self._lies[number]
        if not self.votes_certify:
            return self._acknowledgers(world, block, signers) >= needed
        ancestors, height = self.chain.ancestors, self.chain.height
        at = height[block]
        for signer in signers:
            for vote in world.nodes[signer].statements.votes:
                if ancestors[vote.block] >> block & 1 and height[vote.base] < at:
                    needed -= 1
                    break
        return needed <= 0

    def may_sign(self, member: int, block: int) -> bool:
        """Return whether a vote of the member counts for the block: old and new signers for a switch (7.2 (4))."""
        configurations, chain = self.setting.configurations, self.chain
        if member in configurations[chain.configuration_below[block]].signers:
            return True
        return member in configurations[chain.configuration[block]].signers

    # --- what a member may do -------------------------------------------------------------------------------------

    def frees(self, node: Node, block: int) -> bool:
        """Return whether the own last vote lets the member go on to a block that may conflict with it (P4 (1))."""
        chain, vote = self.chain, node.vote
        if vote == NOTHING or not chain.conflict(vote, block):
            return True
        base, parting = node.certified, chain.parting(vote, block)
        if not self.has(Rule.BASE_ABOVE_FORK):
            parting -= 1
        return chain.height[base] >= parting and not chain.conflict(base, block)

    def switches_settled(self, node: Node, block: int) -> bool:
        """Return whether 7.2 (1) and (2) let the member acknowledge a chain, or cut its last block."""
        chain = self.chain
        switch = chain.last_switch[block]
        if switch == NOTHING or chain.is_within(switch, node.certified):
            return True
        if self.has(Rule.SWITCH_ALONE) and not chain.only_openings[block]:
            return False
        if not self.has(Rule.SWITCH_CERTIFIED):
            return True
        return chain.is_within(chain.blocks[switch].parent, node.certified)

    def is_voter(self, member: int, block: int) -> bool:
        """Return whether acknowledgements of the member count at a block: for a switch in the new set (7.2 (5))."""
        return member in self.setting.configurations[self.chain.configuration[block]].voters

    def may_lead(self, member: int, node: Node) -> bool:
        """Return whether the member may stand for leader: a voter of its own log, or one whose removal is not certified."""
        if not self.may_open(member, node.log):
            return False
        return self.is_voter(member, node.log) or not self.chain.is_within(
            self.chain.last_switch[node.log], node.certified
        )

    def may_open(self, member: int, tip: int) -> bool:
        """Return whether an opening upon `tip` by the member is valid: by a voter, or one that the switch there removes."""
        if self.is_voter(member, tip):
            return True
        return self.has(Rule.REMOVED_STANDS) and self._is_leaving(member, tip)

    def follows(self, member: int, block: int) -> bool:
        """Return whether the member takes the block from its leader as a voter does.

        Also the switch that removes it, and the openings above that: until its removal is certified it may have to lead.
        """
        return self.is_voter(member, block) or self._is_leaving(member, block)

    def _is_leaving(self, member: int, block: int) -> bool:
        """Return whether nothing but openings stands above a switch here that removes the member."""
        chain = self.chain
        switch = chain.last_switch[block]
        if switch == NOTHING or not chain.only_openings[block]:
            return False
        return member in self.setting.configurations[chain.configuration_below[switch]].voters

    def _quorum(self, configuration: Configuration) -> int:
        if self.has(Rule.QUORUM):
            return configuration.certificate_quorum
        return len(configuration.signers) // 2 + 1

    def _honest(self, members: tuple[int, ...]) -> tuple[int, ...]:
        return tuple([member for member in members if member != self.setting.liar])
