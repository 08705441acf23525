"""E3c: a commit vote after a freeze statement, by whoever had promised to cast none (ledger.md 7.4).

Statements carry no time. What shows that a vote came later is that an honest signer could not have cast it before: it names
its last vote, and never votes for an ancestor of what it has voted for (P4). Nothing else shows it. A base above the certificate that the
statement names, or a vote above that certificate's block where it names no vote, may be older: the memory of a certificate,
unlike that of a vote, need not survive a crash.
"""

from dataclasses import dataclass

from protocol.codec import wire
from protocol.evidence_lines import HeadersField, is_within
from protocol.evidence_statements import check_vote, demand, voted
from protocol.finality import CommitVote
from protocol.identifiers import NetworkId, NodeId
from protocol.recovery import FreezeStatement, check_freeze


@wire("frozen-vote")
@dataclass(frozen=True, slots=True)
class FrozenVote:
    """E3c: a signer stated what it had voted for last, and voted for a descendant of that.

    `line` are the headers above the block of the statement's vote, up to the voted one.
    """

    statement: FreezeStatement
    vote: CommitVote
    line: HeadersField

    def check(self, network: NetworkId) -> NodeId:
        """Return the signer. One that lost its store after the statement votes in another incarnation."""
        statement, vote, last = self.statement, self.vote, self.statement.vote
        demand(statement.node == vote.signer, "a freeze statement and a vote of two signers")
        demand(
            (statement.epoch, statement.incarnation) == (vote.epoch, vote.incarnation),
            "a freeze statement and a vote of two epochs or incarnations",
        )
        demand(last is not None, "the freeze statement names no vote")
        assert last is not None
        demand(
            vote.height > last.height and is_within(voted(last), voted(vote), self.line),
            "the vote may be older than the freeze statement",
        )
        check_freeze(statement, network)
        check_vote(vote, network)
        return vote.signer
