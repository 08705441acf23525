"""What leaves a voter: one Ready at a time for the disk, and beside it what promises nothing."""

from protocol.identifiers import NodeId
from protocol.raft.messages import (
    AppendEntries,
    CertificateNotice,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
)
from protocol.raft.state import HardState, Ready
from protocol.raft.voter import Voter

_OF_A_TERM = AppendEntries | InstallSnapshot | Heartbeat | HeartbeatReply
_PROMISES_NOTHING = ReadIndexRequest | ReadIndexReply | CertificateNotice


class Output:
    """Makes Readies of what the phases have queued, and remembers which of them the driver still works on."""

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
        self._outstanding: Ready | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a Ready is with the driver: nothing may be promised before it has come back."""
        return self._outstanding is not None

    def everything(self) -> Ready | None:
        """Return all that is queued, to be advanced, or None. Its messages wait for its write."""
        voter = self._voter
        if not self._has_work():
            return None
        certified, certificate = voter.take_certified()
        truncate_from, append = voter.log.take_unpersisted()
        keep = voter.keeping.take(voter.certificate_at)
        hard_state = self._changed(is_written=truncate_from is not None or bool(append or keep))
        messages, voter.outbox = tuple(voter.outbox), []
        reads = voter.take_reads()
        behind, voter.behind = voter.behind, None
        contradictions, voter.contradictions = tuple(voter.contradictions), []
        work = hard_state or append or messages or certified or reads or contradictions or keep
        if not work and truncate_from is None and behind is None:
            return None
        self._outstanding = Ready(
            hard_state,
            truncate_from,
            append,
            messages,
            certified,
            certificate,
            reads,
            behind,
            contradictions,
            keep,
        )
        return self._outstanding

    def _has_work(self) -> bool:
        """Return whether there may be something: nearly always there is not, and this is asked at every turn."""
        voter = self._voter
        return bool(
            voter.hard is not voter.durable
            or voter.outbox
            or voter.undelivered
            or voter.log.has_unpersisted
            or voter.reads
            or voter.behind is not None
            or voter.contradictions
            or voter.keeping.is_due
        )

    def _changed(self, *, is_written: bool) -> HardState | None:
        """Return the hard state if it is to be written; `is_written`: there is a batch anyway."""
        voter = self._voter
        # Looked at before it is compared: nearly always it is the very same one.
        if is_written or (voter.hard is not voter.durable and voter.hard != voter.durable):
            voter.note_certificate()
        return voter.hard if voter.hard is not voter.durable and voter.hard != voter.durable else None

    def prompt(self) -> Ready | None:
        """Return what waits for no write, be one under way or not, or None."""
        voter = self._voter
        if not voter.outbox and not voter.reads:
            return None
        prompt: list[tuple[NodeId, Message]] = []
        rest: list[tuple[NodeId, Message]] = []
        for entry in voter.outbox:
            (prompt if self._is_prompt(entry[1]) else rest).append(entry)
        voter.outbox = rest
        reads = voter.take_reads()
        return Ready(None, None, (), tuple(prompt), (), None, reads) if prompt or reads else None

    def advance(self, ready: Ready) -> None:
        """Hear that a Ready is durable and sent."""
        if ready is not self._outstanding:
            assert not ready.must_persist, "Readies are advanced once, in order"
            return
        self._outstanding = None
        if ready.hard_state is not None:
            self._voter.durable = ready.hard_state
        self._voter.log.mark_persisted(ready.append)
        self._voter.keeping.mark_kept(ready.keep)

    def _is_prompt(self, message: Message) -> bool:
        # Leading or following in a term is a promise not to vote in an earlier one: the term itself must be durable.
        if isinstance(message, _OF_A_TERM):
            return message.term <= self._voter.durable.term
        return isinstance(message, _PROMISES_NOTHING)
