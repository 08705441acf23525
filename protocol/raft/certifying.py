"""What makes blocks final: commit votes are cast and counted, certificates made and learnt (ledger.md 1.1, P4 to P6).

```
  commit proof ─► vote cast ─► durable ─► AppendReply ─► leader: q votes ─► certificate ─► every frame after that
                                   └─ no certificate in time: VoteNotice to all signers ─► whoever has q ─► CertificateNotice
```
The rules of P4 that keep a signer's votes on one chain between bases are all here; those about its log are in `following`.
"""

import dataclasses
from collections.abc import Iterable

from protocol import finality, limits
from protocol.configuration import Configuration
from protocol.errors import Invalid
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import ZERO, Height, NodeId
from protocol.raft.messages import CertificateNotice, VoteNotice
from protocol.raft.quorum import assemble_certificate, quorum_height
from protocol.raft.state import Contradiction
from protocol.raft.voter import Voter


class Certifying:
    """One node's part in certificates: a signer casts votes, and everybody who sees votes or certificates makes use of them."""

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
        self._own: CommitVote | None = None
        self._since_tick = 0  # from when on this node has an uncertified vote
        self._votes: dict[NodeId, CommitVote] = {}  # verified, and countable when they came
        self._waiting: dict[NodeId, CommitVote] = {}  # verified, of blocks or upon bases not known here yet
        self._ahead: Certificate | None = None
        self._parting: Certificate | None = None
        self.seen: dict[NodeId, CommitVote] = {}
        """The newest verified vote of each other signer."""

    # --- votes ----------------------------------------------------------------------------------------------------

    @property
    def uncertified_vote(self) -> CommitVote | None:
        """The newest own vote while no certificate of its block is known."""
        own = self._own
        return own if own is not None and own.height > self._voter.log.certified else None

    @property
    def ahead(self) -> Certificate | None:
        """The verified certificate that is remembered because its block is not in this log."""
        ahead, log = self._ahead, self._voter.log
        if ahead is None or (ahead.height <= log.tip_height and log.header(ahead.height) == ahead.header):
            return None
        return ahead

    def cast(self) -> None:
        """Vote for the highest ordered block, if that is a new vote. It may leave and count only when it is durable (P4).

        Called once per batch, however many blocks have been ordered since the last one.
        """
        voter, own = self._voter, self._own
        height = self._target()
        if height is None:
            return
        digest = voter.log.hash(height)
        if own is not None and own.header_hash == digest:
            return
        if self.uncertified_vote is None:
            self._since_tick = voter.tick
        hard = voter.hard
        base_height, base = voter.base
        self._own = finality.cast_vote(
            voter.key,
            voter.network,
            epoch=hard.epoch,
            incarnation=hard.incarnation,
            height=height,
            tip=digest,
            base_height=base_height,
            base=base,
        )
        voter.note_certificate()  # a base that a crash forgot could stand below the next one
        if hard.last_vote_hash != digest:
            voter.hard = dataclasses.replace(
                voter.hard, last_vote_height=height, last_vote_hash=digest, left_height=Height(0)
            )

    def take_vote(self, vote: CommitVote) -> None:
        """Take another signer's vote; one that cannot be counted yet is kept, the newest of each.

        Raises:
            Invalid: its signature does not verify.
        """
        voter, signer = self._voter, vote.signer
        if vote in (self._votes.get(signer), self._waiting.get(signer)):
            return
        if signer == voter.me or signer not in voter.signers or vote.epoch != voter.hard.epoch:
            return  # a newcomer's, before its configuration has come here
        log = voter.log
        is_past = vote.height <= log.certified
        if is_past and (vote.height < log.first() or log.hash(vote.height) == vote.header_hash):
            return
        if not finality.vote_valid(vote, voter.network):
            raise Invalid("a commit vote's signature does not verify")
        if is_past:
            self._note_conflict(vote)
            return
        newest = self.seen.get(signer)
        if newest is None or vote.height > newest.height:
            self.seen[signer] = vote
        if not self._counts(vote):
            self._waiting[signer] = vote
        else:
            self._take_countable(vote)

    def count(self) -> None:
        """Certify the highest block that q signers stand for, if there is one (P5); tell all when this node does not lead."""
        voter = self._voter
        own = self.uncertified_vote
        if own is not None and own.header_hash == voter.durable.last_vote_hash:
            # Persist before counting: what is in a certificate has been sent.
            self._votes[voter.me] = own
        if self._ahead is not None:
            self.catch_up()
        if self._waiting:
            self._look_again()
        while self._votes and self.parting is None and (certificate := self._assemble()) is not None:
            notice = CertificateNotice(voter.me, certificate)
            if certificate.header.next_config_hash != ZERO and voter.is_leaving(voter.me):
                self._parting = certificate
                self._tell([node for node in voter.other_signers if not voter.is_leaving(node)], notice)
                continue
            self._certify(certificate)
            if voter.leader != voter.me:
                self._tell(voter.other_signers, notice)

    @property
    def parting(self) -> Certificate | None:
        """The certificate of the own leaving, which this node has made and not taken yet (`departures`)."""
        parting = self._parting
        return parting if parting is not None and parting.height > self._voter.log.certified else None

    def part(self) -> None:
        """Take the certificate of the own leaving: those who stay hold it."""
        if self.parting is not None:
            self._certify(self.parting)

    def tick(self, stalled_ticks: int) -> None:
        """Tell all signers of the own vote when no certificate has come of it (P6): a leader must not be able to withhold.

        Who has nothing to vote for, and waits, says what it knows to be certified: so all see whether q signers are there.
        """
        own, voter = self.uncertified_vote, self._voter
        if own is not None:
            late = voter.tick - self._since_tick - limits.VOTE_NOTICE_TICKS
            if late >= 0 and late % limits.VOTE_NOTICE_AGAIN_TICKS == 0:
                self._tell(voter.other_signers, VoteNotice(own, voter.log.certified))
        elif stalled_ticks > 0 and stalled_ticks % limits.VOTE_NOTICE_AGAIN_TICKS == 0:
            newest = voter.certificate_at(voter.log.certified)
            if newest is not None and voter.me in voter.signers:
                self._tell(voter.other_signers, CertificateNotice(voter.me, newest))

    def _tell(self, signers: Iterable[NodeId], message: VoteNotice | CertificateNotice) -> None:
        for node in signers:
            self._voter.send(node, message)

    def answer_notice(self, notice: VoteNotice) -> None:
        """Send the certificates that a signer lacks: its vote is for what is certified here."""
        voter, log = self._voter, self._voter.log
        if notice.vote.height > log.certified:
            return
        # The newest one is of no use before that of a configuration block below it (ledger.md 7.2, 4).
        needed = (
            voter.certificate_for(notice.certified_height, log.certified),
            voter.certificate_at(log.certified),
        )
        for certificate in dict.fromkeys(one for one in needed if one is not None):
            voter.send(notice.vote.signer, CertificateNotice(voter.me, certificate))

    # --- certificates ---------------------------------------------------------------------------------------------

    def learn(self, certificate: Certificate) -> bool:
        """Take a certificate from whoever has it (P5); return whether the own tail conflicted with it, and was given up.

        Of a block not here yet it is remembered, the newest one; under a configuration not here yet it is not, for it
        cannot be checked: it comes again.

        Raises:
            Invalid: it does not hold.
        """
        voter, log, header = self._voter, self._voter.log, certificate.header
        height = header.height
        is_here = log.certified < height <= log.tip_height and log.header(height) == header
        is_ahead = height > log.tip_height
        is_other = log.first() <= height <= log.certified and log.header(height) != header
        if not (is_here or is_other) and (
            height <= voter.base_height or (is_ahead and self._is_remembered(height))
        ):
            return False
        configurations = self._configurations(certificate)
        if configurations is None:
            return False
        verified = {*self._votes.values()}
        finality.check_certificate(certificate, voter.network, *configurations, verified)
        if is_other:
            voter.contradictions.append(Contradiction("fork", certificate, log.header(height)))
            return False
        if is_here and not self._is_above_switch(height):
            self._certify(certificate)
            return False
        self._ahead = certificate
        # Terms never fall along a chain, so a block above this log's tip and of an older term stands on another one.
        is_bound = header.term < log.tip.term if is_ahead else height <= voter.bound
        if is_here or not is_bound or voter.bound <= voter.base_height:
            return False  # what nobody relies on makes way for the next leader's blocks, as ever in Raft
        self.give_up_tail()
        return True

    def give_up_tail(self) -> None:
        """Leave the tail for the chain of the certificate that is remembered."""
        assert self._ahead is not None, "a tail is given up for a certificate only (P4, 3)"
        self._voter.roll_back(self._ahead)
        if self._own is not None and self._own.height > self._voter.log.tip_height:
            self._own = None

    def catch_up(self) -> None:
        """Certify what was remembered, when its block has come."""
        ahead, log = self._ahead, self._voter.log
        if ahead is None or ahead.height > log.tip_height:
            return
        is_here = log.header(ahead.height) == ahead.header
        if is_here and ahead.height > log.certified and not self._is_above_switch(ahead.height):
            self._certify(ahead)
        if ahead.height <= log.certified:
            self._ahead = None

    def _is_remembered(self, height: Height) -> bool:
        return self._ahead is not None and height <= self._ahead.height

    def _certify(self, certificate: Certificate) -> None:
        voter = self._voter
        voter.certify(certificate)
        self._since_tick = voter.tick
        for votes in (self._votes, self._waiting):
            for signer in [signer for signer, vote in votes.items() if vote.height <= certificate.height]:
                del votes[signer]

    def _configurations(self, certificate: Certificate) -> tuple[Configuration, Configuration | None] | None:
        """Return in which configuration a certificate counts, and which its block sets; None when that is not known here."""
        voter, header = self._voter, certificate.header
        known: dict[bytes, Configuration] = {
            one.digest: one for _, one in voter.membership.since(voter.log.certified)
        }
        configuration = known.get(header.config_hash)
        following = known.get(header.next_config_hash)
        if configuration is None or (following is None) != (header.next_config_hash == ZERO):
            return None
        return configuration, following

    def _is_above_switch(self, height: Height) -> bool:
        """Return whether a configuration block that is not certified stands below `height` (ledger.md 7.2, 4)."""
        changes = self._voter.membership.since(self._voter.log.certified)[1:]
        return bool(changes) and height > changes[0][0]

    # --- counting -------------------------------------------------------------------------------------------------

    def _target(self) -> Height | None:
        """Return for which block to vote, if for any (P4, 1; ledger.md 7.2, 4)."""
        voter, log, hard = self._voter, self._voter.log, self._voter.hard
        base_height, ordered = voter.base_height, log.committed
        if ordered <= base_height and hard.last_vote_height <= base_height:
            return None  # nearly always, and this is asked at every turn
        height = min(ordered, Height(log.certified + limits.UNCERTIFIED_BLOCKS_MAX))
        if log.holds(hard.last_vote_height, hard.last_vote_hash):
            height = max(height, hard.last_vote_height)
        elif hard.last_vote_height > base_height and not 0 < hard.left_height <= base_height:
            return None  # it does not descend from the last vote, nor is the base known to be above the fork
        if voter.changing:
            before, switch = voter.membership.replaced, voter.membership.height
            if voter.me not in voter.configuration.signers:
                height = min(height, switch)  # who leaves votes for its leaving, and for nothing above
            elif before is None or (voter.me not in before.signers and height < switch):
                return None
        return height if height > base_height and voter.me in voter.signers else None

    def _counts(self, vote: CommitVote) -> bool:
        """Return whether a verified vote is for a block of this log, and its base known to be certified (P4, end)."""
        voter, log = self._voter, self._voter.log
        return (
            vote.base_height <= voter.base_height
            and log.certified < vote.height <= log.tip_height
            and log.hash(vote.height) == vote.header_hash
            and log.holds(vote.base_height, vote.base_hash)
        )

    def _look_again(self) -> None:
        """Count what has waited for its block or base."""
        for signer, vote in list(self._waiting.items()):
            if self._counts(vote):
                del self._waiting[signer]
                self._take_countable(vote)

    def _take_countable(self, vote: CommitVote) -> None:
        known = self._votes.get(vote.signer)
        if known is None or vote.height >= known.height or not self._counts(known):
            self._votes[vote.signer] = vote

    def _assemble(self) -> Certificate | None:
        """Return a certificate of the highest block that enough votes stand for, or None."""
        voter, log = self._voter, self._voter.log
        if len(self._votes) < voter.configuration.certificate_quorum:
            return None  # a quorum of the newest configuration is needed in any case
        votes = [vote for vote in self._votes.values() if self._counts(vote)]
        known = voter.membership.since(log.certified)[:2]
        configurations = [configuration for _, configuration in known]
        height = min(_reached(votes, one) for one in configurations)
        if len(known) > 1:
            # Above a configuration block nothing is certified before it is (ledger.md 7.2, 4).
            height = min(height, known[1][0])
        if height <= log.certified:
            return None
        reaching = [vote for vote in votes if vote.base_height < height <= vote.height]
        if any(_reached(reaching, one) < height for one in configurations):
            return None  # after a restart a base may stand above what is applied here
        return assemble_certificate(log, height, reaching, configurations)

    def _note_conflict(self, vote: CommitVote) -> None:
        voter = self._voter
        before = self.seen.get(vote.signer)
        if before != vote:
            self.seen[vote.signer] = vote
            voter.contradictions.append(Contradiction("E3", vote, voter.log.header(vote.height)))


def _reached(votes: list[CommitVote], configuration: Configuration) -> Height:
    heights = {vote.signer: vote.height for vote in votes}
    return quorum_height(
        [heights.get(signer, 0) for signer in configuration.signers], configuration.certificate_quorum
    )
