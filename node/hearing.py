"""What a node hears members say, on its way to whoever looks for lies in it (`node.evidence`).

    consensus, catch-up ─► hear, final, refused ─► of one chain? put aside ─┐
                                                  else, with all of that ───┴─► `heard` ─► the desk of evidence

Nothing here waits, verifies or compares: the task that owns Raft calls it for every message.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from protocol.block import Block, Header
from protocol.evidence_lines import SignedHeader
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import NodeId
from protocol.notebook import Statement
from protocol.overheard import overheard
from protocol.raft.messages import Input
from protocol.raft.state import Contradiction
from protocol.recovery import FreezeStatement
from protocol.routine import Routine

_HEARD_MAX = 64
"""Groups of statements that wait to be compared. When full, more is dropped: who floods its peers so hides nothing for long,
because what it signed is said again by whoever builds upon it."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Statements in the order they are compared in, with headers that came along; or blocks of one frame that were refused."""

    said: tuple[Statement, ...]
    headers: tuple[Header, ...]
    refused: tuple[Block, ...] = ()


class Hearing:
    """One node's ear. `heard` is what has to be looked at."""

    def __init__(self) -> None:
        self._routine = Routine()
        self._send, self.heard = trio.open_memory_channel[Heard](_HEARD_MAX)
        self.dropped = 0
        """Groups that found no room."""

    def hear(self, source: NodeId, message: Input) -> None:
        """Take a message that the core has stepped without a fault."""
        if not self._routine.take(source, message):
            statements, headers = overheard(message)
            self._pass_on(statements, headers)

    def follow(self, blocks: Iterable[Block]) -> None:
        """Take blocks that are in the log here, whoever cut them."""
        for block in blocks:
            if not self._routine.follow(block):
                self._pass_on([SignedHeader(block.header, block.signature)], [block.header])

    def final(self, certificate: Certificate) -> None:
        """Take a certificate that was made or checked here."""
        self._routine.put_aside(certificate)

    def contradiction(self, found: Contradiction) -> None:
        """Take what the core has found by itself: all that it names has to be compared."""
        said: list[Statement] = []
        headers: list[Header] = []
        for one in (found.first, found.second):
            match one:
                case Block():
                    said.append(SignedHeader(one.header, one.signature))
                    headers.append(one.header)
                case Header():
                    headers.append(one)
                case CommitVote():
                    said.append(one)
                case Certificate():
                    said.append(one)
                    headers += (one.header, *one.links)
        self._pass_on(said, headers)

    def stories(self, certificates: Iterable[Certificate], headers: Iterable[Header]) -> None:
        """Take certificates that tell two stories, with headers from where those part."""
        self._pass_on(certificates, headers)

    def frozen(self, statement: FreezeStatement) -> None:
        """Take a freeze statement, whose signature was verified."""
        certificate = statement.certificate
        votes = certificate.votes if certificate is not None else ()
        headers = [certificate.header, *certificate.links] if certificate is not None else []
        self._pass_on([statement, *votes], [*headers, *statement.links])

    def refused(self, blocks: tuple[Block, ...]) -> None:
        """Take the blocks of a frame that the core, or the check of their bodies, has refused."""
        if blocks:
            self._pass_on((), (), blocks)

    def aside(self) -> Heard:
        """Return what was put aside, for whoever needs to have read it at once."""
        return Heard(*self._routine.read())

    def _pass_on(
        self, said: Iterable[Statement], headers: Iterable[Header], refused: tuple[Block, ...] = ()
    ) -> None:
        if self._send.statistics().current_buffer_used >= _HEARD_MAX:
            self.dropped += 1  # what was put aside stays there
            return
        aside, line = self._routine.read()
        self._send.send_nowait(Heard((*aside, *said), (*line, *headers), refused))
