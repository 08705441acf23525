"""What must never be of votes and certificates: P4 and P5, checked on everything that is sent and written (ledger.md 1.1).

Like `checkers`: fed with what leaves a node or reaches its disk; none asks a node what it believes.
"""

from collections import deque

from protocol.block import Block, header_hash
from protocol.configuration import Configuration, network_id
from protocol.errors import Invalid
from protocol.finality import Certificate, CommitVote, check_certificate
from protocol.identifiers import Digest, Height, NodeId
from protocol.raft.state import HardState
from simulations.checkers import Report, short

_VOTES_KEPT = 16
"""Of each signer: an honest one returns to no branch that it has left this long ago."""


class Chains:
    """Which block follows which, of all that anybody has ever stored."""

    def __init__(self) -> None:
        self._below: dict[Digest, tuple[Height, Digest]] = {}

    def stored(self, block: Block) -> None:
        """Hear that a node stored a block."""
        self._below[block.hash] = block.height, Digest(block.header.prev_hash)

    def knows(self, block: Digest) -> bool:
        """Return whether anybody has stored a block, genesis excepted."""
        return block in self._below

    def parting(self, one: Digest, other: Digest) -> Height | None:
        """Return the lowest height at which the chains of two blocks differ; None where one continues the other."""
        while one != other:
            first, second = self._below[one], self._below[other]
            low = min(first[0], second[0])
            if first[0] > low:
                one = first[1]
            elif second[0] > low:
                other = second[1]
            elif first[1] == second[1]:
                return low
            else:
                one, other = first[1], second[1]
        return None


class OneChainOfVotes:
    """The votes of a signer lie on one chain from the higher of their bases on, and each was durable before it left (P4)."""

    def __init__(self, report: Report, chains: Chains) -> None:
        self._report = report
        self._chains = chains
        self._cast: dict[NodeId, deque[CommitVote]] = {}

    def sent(self, node: NodeId, vote: CommitVote, durable: HardState | None) -> None:
        """Hear of a vote that a node hands to its transport."""
        if vote.signer != node:
            return
        kept = self._cast.setdefault(node, deque(maxlen=_VOTES_KEPT))
        if vote in kept:
            return
        if durable is None or not self._covers(durable, vote):
            self._report(
                f"persist before send: {short(node)} voted for block {vote.height} before that was durable"
            )
        for earlier in kept:
            parting = self._chains.parting(Digest(earlier.header_hash), Digest(vote.header_hash))
            if parting is not None and parting > max(earlier.base_height, vote.base_height):
                self._report(
                    f"one chain of votes: {short(node)} voted for two blocks {parting} with no certificate between"
                )
        kept.append(vote)

    def _covers(self, durable: HardState, vote: CommitVote) -> bool:
        """Return whether what is durable keeps a signer from contradicting a vote: it, or a later one up its chain."""
        if durable.last_vote_height <= vote.height:
            return (durable.last_vote_height, durable.last_vote_hash) == (vote.height, vote.header_hash)
        # While the disk works two votes may be cast: they become durable together, and leave one after the other.
        parting = self._chains.parting(Digest(durable.last_vote_hash), Digest(vote.header_hash))
        return parting is None or parting <= durable.certificate_height


class OneCertifiedChain:
    """One block of a height is certified, and only by a quorum (P5)."""

    def __init__(self, report: Report, chains: Chains, configuration: Configuration) -> None:
        self._report = report
        self._chains = chains
        self._configuration = configuration
        self._network = network_id(configuration)
        self._known: dict[Height, Digest] = {}

    def conflicts(self, block: Digest) -> bool:
        """Return whether a certified block is known that stands on another branch than this one."""
        highest = max(self._known, default=None)
        if highest is None or not self._chains.knows(block):
            return False
        return self._chains.parting(self._known[highest], block) is not None

    def seen(self, node: NodeId, certificate: Certificate) -> None:
        """Hear that a node sent or stored a certificate."""
        digest = header_hash(certificate.header)
        known = self._known.get(certificate.height)
        if known == digest:
            return
        if known is not None:
            self._report(f"certified twice: {short(node)} holds another certified block {certificate.height}")
            return
        try:
            check_certificate(certificate, self._network, self._configuration)
        except Invalid as fault:
            self._report(f"certificate: {short(node)} has one for block {certificate.height}: {fault}")
        self._known[certificate.height] = digest
        below = max((height for height in self._known if height < certificate.height), default=None)
        if below is not None and self._chains.parting(self._known[below], digest) is not None:
            self._report(f"certified chain: block {certificate.height} does not descend from block {below}")
