"""The whole error tree. Each class answers two questions: whose fault, and what should the caller do.

CarechainError
├── RemoteFault        a peer broke the protocol: drop the message, score the peer, carry on
│   ├── Malformed      bytes that are not the canonical encoding of what was expected
│   └── Invalid        well formed, but breaks a rule (signature, link, quorum, size)
│       └── Conflicting  certified, and contradicts what is certified already: keep both, they convict
│       └── OtherChain blocks that continue another chain than ours: perhaps a fork, to be looked into
├── LocalFault         our bug: let it crash
├── Unavailable        not now: retry later
│   ├── NotLeader      proposed to a follower
│   ├── NotFinal       safely queued, becomes final by itself later
│   └── StorageFull    the disk's reserve is reached: writes refused, reads go on
├── Corruption         stored bytes fail their check: stop serving them, repair from peers
│   └── Unreadable     it is the engine that cannot read them: nothing but the files is wrong
├── Forbidden          no consent, or not the custodian
├── Superseded         another process signs with this member's key: end, people must say which one stays
├── Erased             it was there, and is gone for good: nobody can bring it back
└── Refused            the caller's input cannot be taken: one sentence says what, why, what next

No message ever carries personal data.
"""


class CarechainError(Exception):
    """Base of every error raised on purpose; its text is one sentence fit for a user."""


class RemoteFault(CarechainError):
    """A peer broke the protocol. Drop what it sent and carry on."""


class Malformed(RemoteFault):
    """Bytes that are not the canonical encoding of the expected type."""


class Invalid(RemoteFault):
    """Well formed, but breaks a rule of the protocol."""


class Conflicting(Invalid):
    """Certified, and contradicts what is certified already. Keep both: together they convict whoever signed both."""


class OtherChain(Invalid):
    """A block in the place of the next one that does not follow our last one. Ask its sender where the chains part."""


class LocalFault(CarechainError):
    """An invariant of our own code does not hold. Never caught: the process ends."""


class Unavailable(CarechainError):
    """What was asked for cannot be had now. Retry later."""


class NotLeader(Unavailable):
    """Proposed to a follower. Retry at `leader`; if None, wait one election time-out."""

    def __init__(self, leader: bytes | None) -> None:
        super().__init__(f"not the leader; the leader is {leader.hex()[:16] if leader else 'unknown'}")
        self.leader = leader


class NotFinal(Unavailable):
    """Safely queued, not final yet. `ids` are stable: asking again reports the same.

    `details` is the JSON document the caller would have got, with states that say what is not final.
    """

    def __init__(
        self, message: str, ids: tuple[str, ...] = (), details: dict[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.ids = ids
        self.details: dict[str, object] = details or {}


class StorageFull(Unavailable):
    """The disk's reserve is reached: writes are refused, reads and consensus go on.

    `until_restart`: the disk filled up within a write, and the database takes no more of them until it is opened anew.
    """

    def __init__(self, message: str, *, until_restart: bool = False) -> None:
        super().__init__(message)
        self.until_restart = until_restart


class Corruption(CarechainError):
    """Stored bytes fail their check. Never serve them; repair from peers."""


class Unreadable(Corruption):
    """The files of a database are damaged, whatever was stored in them: it can be made anew without asking anybody."""


class Forbidden(CarechainError):
    """The ledger does not allow this. The text is the same whether the thing exists or not."""


class Superseded(CarechainError):
    """Another process signs with this member's key. This one ends: two of them would contradict each other."""


class Erased(CarechainError):
    """What was asked for has been erased for good. Said only to whom it would have been open."""


class Refused(CarechainError):
    """The caller's input cannot be taken, and nothing of it was kept."""
