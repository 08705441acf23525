"""Offers: what a leader says to a follower whose next block it does not hold, and when that is over (Raft §7).

A leader that was itself installed from a snapshot leads before history has come back to it, so its log begins at a height,
and a follower may need what lies below. Blocks and state are verified by hashes and by a quorum's word, whoever sends
them: so the leader does not stream its state, it only says that its blocks do not continue this log. The follower's driver
gets both from any member, and starts a new machine there (see the package).

Unlike in Raft nothing of this belongs to a term: an installation outlives the leader that brought it about
(scylladb #29092), and a snapshot that is at hand is no reason to install it (camunda #6092, ledger.md 3.1 no. 38).
"""

from protocol import finality
from protocol.block import header_hash
from protocol.certificate import ElectionCertificate
from protocol.errors import Invalid
from protocol.finality import Certificate
from protocol.identifiers import ZERO, Digest, Height, NodeId
from protocol.raft.leader_forms import offer_form
from protocol.raft.messages import InstallSnapshot
from protocol.raft.progress import Progress
from protocol.raft.voter import Voter


class Offers:
    """The offers of one leadership."""

    def __init__(self, voter: Voter, election: ElectionCertificate) -> None:
        self._voter = voter
        self._election = election
        self._signed: tuple[Height, Digest, bytes] | None = (
            None  # first, hash and signature: most offers repeat the last
        )

    def serve(self, node: NodeId, progress: Progress) -> bool:
        """Return whether a follower gets offers instead of blocks, having queued one if it is due.

        Blocks follow one that both logs hold, so the lowest one held can be built upon but not be sent.
        """
        first = self._voter.log.first()
        if progress.next_height > first:
            if progress.snapshotting:
                # History has come back meanwhile: blocks are better.
                progress.probe_from(progress.next_height, blocks=True)
            return False
        if not progress.snapshotting:
            progress.offer_snapshot()
        if progress.nudge_due:
            progress.nudge_due = False
            self._offer(node, progress, first)
        return True

    def take_reply(self, progress: Progress) -> None:
        """Hear of a reply: who has certified or acknowledged a block that is held here can be sent the next."""
        if not progress.snapshotting:
            return
        height = max(progress.certified_height, progress.match_height)
        if height >= self._voter.log.first():
            progress.probe_from(Height(height + 1), blocks=True)

    def _offer(self, node: NodeId, progress: Progress, first: Height) -> None:
        voter = self._voter
        certificate = voter.certificate_at(voter.log.certified)
        if certificate is None or certificate.height < first:
            return  # nothing can be proven yet: the opening of this term will be
        epoch, term = voter.hard.epoch, voter.term
        election = self._election if progress.election_due else None
        signature = self._sign(first, certificate)
        offer = InstallSnapshot(epoch, term, voter.me, first, certificate, election, signature)
        voter.send(node, offer)

    def _sign(self, first: Height, certificate: Certificate) -> bytes:
        voter, offered_hash = self._voter, header_hash(certificate.header)
        if self._signed is None or self._signed[:2] != (first, offered_hash):
            form = offer_form(
                voter.network,
                epoch=voter.hard.epoch,
                term=voter.term,
                leader=voter.me,
                first=first,
                offered_hash=offered_hash,
            )
            self._signed = first, offered_hash, voter.key.sign(form)
        return self._signed[2]


def check_offer(voter: Voter, offer: InstallSnapshot) -> None:
    """Check that what a leader offers was certified, as well as a log can tell that ends before it.

    Whoever installs something checks it again, by hashes and in the configurations on the way there.

    Raises:
        Invalid: its certificate does not hold, or it leaves out what is offered.
    """
    certificate = offer.certificate
    if offer.first > offer.height or offer.term < certificate.header.term:
        raise Invalid("an offer of a block that its leader cannot have")
    configuration = voter.membership.of(certificate.header.config_hash)
    if configuration is not None and certificate.header.next_config_hash == ZERO:
        finality.check_certificate(certificate, voter.network, configuration)
        return
    # The membership has changed meanwhile. As with elections, somebody known here must stand for it.
    known = [vote for vote in certificate.votes if voter.membership.remembers(vote.signer)]
    if certificate.header.net != voter.network or not known:
        raise Invalid("an offer without a commit vote of anybody known here")
    if not all(finality.vote_valid(vote, voter.network) for vote in known):
        raise Invalid("a commit vote in an offer does not verify")
