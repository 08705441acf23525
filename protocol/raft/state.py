"""What a voter must remember, and what it hands to its driver: hard state, role, Ready."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated

from protocol.block import Block, Header
from protocol.codec import Bytes32, Size, wire
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import ZERO, Digest, Height, NodeId, Term
from protocol.raft.messages import Message


class Role(Enum):
    """Where a voter stands in the current term (drawn in the package docstring)."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@wire("hard-state")
@dataclass(frozen=True, slots=True)
class HardState:
    """All that must survive a crash besides the log: ONE record, one write (ledger.md decision 6).

    Two records could be torn apart by a crash: a term without its vote lets a voter vote twice (hashicorp/raft #661).
    `vote` ZERO means none in `term`. The marker (`ack_term`, `ack_height`, `ack_hash`) is the newest acknowledgement;
    `ack_hash` ZERO means none, or that a certificate undid it. The certificate is the highest one known when the record was
    last written: it may lag behind what is applied, so that no certificate costs a write of its own, but never behind the
    base of the last vote. `left_height` is that of a certificate that made this log leave what its node had voted for, 0
    for none: until the certified height has reached it, the node neither votes nor stands for election, for its
    statements would contradict each other as far as anybody could see (ledger.md 1.2, E3, E5b).
    """

    epoch: int
    incarnation: int
    term: Term
    vote: Bytes32
    ack_term: Term
    ack_height: Height
    ack_hash: Bytes32
    last_vote_height: Height
    last_vote_hash: Bytes32
    certificate_height: Height
    certificate_hash: Annotated[Digest, Size(32)]
    left_height: Height

    def leaving(self, height: Height) -> "HardState":
        """Return what is remembered when the tail makes way for the certified block at `height`, which it did not lead to."""
        return replace(self, left_height=max(self.left_height, height))

    @staticmethod
    def initial(*, epoch: int = 0, incarnation: int = 0) -> "HardState":
        """Return the state of a voter that has never taken part."""
        none, genesis = ZERO, Height(0)
        return HardState(
            epoch,
            incarnation,
            Term(0),
            none,
            Term(0),
            genesis,
            none,
            genesis,
            none,
            genesis,
            Digest(none),
            genesis,
        )


@dataclass(frozen=True, slots=True)
class ReadState:
    """The answer to `Raft.read_index`: what has been applied up to `height` may be read, and is not stale.

    None: the leadership moved, or nobody answered in time; ask again. It is never an old height instead.
    """

    request: int
    height: Height | None


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two statements that no honest node makes both of, or that speak against a certified chain (ledger.md 1.2).

    `rule` "E1": two blocks of one leader, epoch, height and term. "E3": a verified vote, and the header that is certified at
    its height; what is missing to convict, another vote or the base's certificate, is for whoever collects.
    "fork": a certificate that holds, and the header that is certified here at its height.
    """

    rule: str
    first: Block | CommitVote | Certificate
    second: Block | Header


@dataclass(frozen=True, slots=True)
class Ready:
    """One step's work for the driver, in this order: persist, send, hand on, `Raft.advance`.

    `hard_state`, `truncate_from`, `append` and `keep` go into one synchronous batch: blocks at and above `truncate_from` are
    deleted first, then `append` is written. `keep` are certificates, rising, that a crash must not forget; each is handed
    on as well. `messages` may leave only after that batch is durable. `certified` blocks
    are durable already and follow each other without a gap; `certificate` is for the last of them (None when there is none).
    `reads` wait for nothing but the applied height that they name. `behind` is the height of an offer: the leader holds no
    blocks that continue this log, so that state and blocks up to about there must come otherwise (see the package).
    `contradictions` are worth keeping: somebody lied.
    """

    hard_state: HardState | None
    truncate_from: Height | None
    append: tuple[Block, ...]
    messages: tuple[tuple[NodeId, Message], ...]
    certified: tuple[Block, ...]
    certificate: Certificate | None
    reads: tuple[ReadState, ...] = ()
    behind: Height | None = None
    contradictions: tuple[Contradiction, ...] = ()
    keep: tuple[Certificate, ...] = ()

    @property
    def must_persist(self) -> bool:
        """Whether there is something to write before the messages may leave."""
        return self.hard_state is not None or self.truncate_from is not None or bool(self.append or self.keep)
