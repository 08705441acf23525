"""Who can be convicted of what: E1 to E5 over the statements of one member (ledger.md 1.2).

A predicate takes two statements and the chain that links their blocks, nothing else: no clock, no log, no belief. Each has
its obvious short form too, behind a rule that can be switched off; a search must find the honest member that it convicts.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from simulations.certificate_model_rules import Rule
from simulations.certificate_model_states import (
    Acknowledgement,
    Chain,
    Grant,
    Request,
    Statements,
    Vote,
    World,
    members_of,
)

T = TypeVar("T")


class Evidence:
    """The evidence rules in force. `without` are rules replaced by their short forms."""

    def __init__(self, chain: Chain, without: frozenset[Rule] = frozenset()) -> None:
        self._chain = chain
        self._exact = {rule: rule not in without for rule in Rule}
        self._known: dict[tuple[Statements, int, int], str | None] = {}

    def convicts(self, member: int, said: Statements, world: World) -> str | None:
        """Return the first rule by which what one member signed convicts it, given what is certified; None is the hope."""
        headers = world.blocks & self._chain.made_by[member]
        key = said, headers, world.final
        if key not in self._known:
            self._known[key] = next(self.convictions(said, headers, world.final), None)
        return self._known[key]

    def convictions(self, said: Statements, headers: int, certified: int) -> Iterator[str]:
        """Yield every rule by which the statements and headers of one member convict it."""
        own = list(members_of(headers))
        yield from _pairs("E1", own, self.two_headers)
        yield from _pairs("E2", said.acknowledgements, self.two_acknowledgements)
        yield from _pairs("E3", said.votes, self.two_votes)
        yield from _pairs("E4", said.grants, self.two_grants)
        for request in said.requests:
            if any(self.hidden_term(request, ack) for ack in said.acknowledgements):
                yield "E5a"
            if any(self.hidden_log(request, ack) for ack in said.acknowledgements):
                yield "E5b"
            if any(self.other_tip(request, header) for header in own):
                yield "E5c"
        if any(self.false_base(vote, block) for vote in said.votes for block in members_of(certified)):
            yield "E3b"

    def two_headers(self, one: int, other: int) -> bool:
        """E1: two headers signed by the same leader with one height and term and different hashes."""
        chain = self._chain
        if one == other or chain.term[one] != chain.term[other]:
            return False
        return chain.height[one] == chain.height[other] or not self._exact[Rule.EXACT_HEADERS]

    def two_acknowledgements(self, one: Acknowledgement, other: Acknowledgement) -> bool:
        """E2: two acknowledgements of one incarnation and term whose blocks are not on one chain."""
        if self._exact[Rule.EXACT_ACKNOWLEDGEMENTS] and one[:2] != other[:2]:
            return False
        return self._chain.conflict(one.block, other.block)

    def two_votes(self, one: Vote, other: Vote) -> bool:
        """E3: two votes not on one chain that part above the bases of both."""
        chain = self._chain
        if not chain.conflict(one.block, other.block):
            return False
        if not self._exact[Rule.EXACT_VOTES]:
            return True
        parting = chain.parting(one.block, other.block)
        return parting > chain.height[one.base] and parting > chain.height[other.base]

    def false_base(self, vote: Vote, certified: int) -> bool:
        """E3b: a vote whose base conflicts with a certified block. The short form looks at the block voted for."""
        named = vote.base if self._exact[Rule.EXACT_BASE] else vote.block
        return self._chain.conflict(named, certified)

    def two_grants(self, one: Grant, other: Grant) -> bool:
        """E4: two granted votes in one incarnation and term. Granting one request twice is one grant."""
        if one == other or one.term != other.term:
            return False
        return one.incarnation == other.incarnation or not self._exact[Rule.EXACT_GRANTS]

    def hidden_term(self, request: Request, ack: Acknowledgement) -> bool:
        """E5a: the candidate acknowledged something in a term between the one it admits and the one it stands in."""
        if request.incarnation != ack.incarnation:
            return False
        return request.acknowledged_term < ack.term < request.term

    def hidden_log(self, request: Request, ack: Acknowledgement) -> bool:
        """E5b: it acknowledged, in the term it admits, a block that its tip leaves out, and no certificate excuses it.

        The short form: the tip contradicts any acknowledgement of an earlier term.
        """
        chain = self._chain
        if chain.is_within(ack.block, request.tip):
            return False
        if not self._exact[Rule.EXACT_TIPS]:
            return ack.term < request.term
        if request.incarnation != ack.incarnation or request.acknowledged_term != ack.term:
            return False
        if not chain.conflict(ack.block, request.tip):
            return True  # the tip is shorter
        parting = chain.parting(ack.block, request.tip)
        return not (parting <= chain.height[request.base] and chain.is_within(request.base, request.tip))

    def other_tip(self, request: Request, header: int) -> bool:
        """E5c: it signed a block of the term it stood in that does not descend from the tip it showed."""
        chain = self._chain
        return chain.term[header] == request.term and not chain.is_within(request.tip, header)


def _pairs(name: str, said: Sequence[T], convicts: Callable[[T, T], bool]) -> Iterator[str]:
    """Yield the name when two of the statements convict whoever signed them."""
    if any(convicts(one, other) for one, other in itertools.combinations(said, 2)):
        yield name
