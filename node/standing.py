"""What is known of a transaction that is not final: received here, or ordered (ledger.md decision 4).

**received**: this member has it and submits it until it is final or expired. **ordered**: a commit proof was seen for a block
that holds it; it survives any crash and is undone only if somebody lied. Members that follow by gossip hear of final blocks
only, so that to them everything else is received.
"""

from collections.abc import Callable, Iterable

from protocol.errors import Corruption, Unavailable
from protocol.identifiers import Height, NodeId
from protocol.raft.machine import Raft
from storage.ledger_store import LedgerStore

_PAUSE_MS = 10_000


class Standing:
    """Looks at the blocks between the applied and the ordered height."""

    def __init__(
        self,
        me: NodeId,
        store: LedgerStore,
        applied: Callable[[], Height],
        raft: Callable[[], Raft | None],
    ) -> None:
        """`raft` is None where and while this member takes no part in consensus."""
        self._me = me
        self._store = store
        self._applied = applied
        self._raft = raft
        self._seen: tuple[Height, Height] = (Height(0), Height(0))
        self._ordered: dict[bytes, Height] = {}

    @property
    def ordered_height(self) -> Height:
        """The height up to which a commit proof was seen: never below the applied one."""
        raft = self._raft()
        return max(raft.commit_height if raft is not None else Height(0), self._applied())

    def height_of(self, raw: bytes) -> Height | None:
        """Return the height of the ordered block that holds a transaction's bytes; None while it is received, or when final."""
        above, ordered = self._applied(), self.ordered_height
        if (above, ordered) != self._seen:
            # Looked up for every record of a list: the blocks are read once.
            self._ordered = dict(self._between(above, ordered))
            self._seen = above, ordered
        return self._ordered.get(raw)

    def _between(self, above: Height, ordered: Height) -> Iterable[tuple[bytes, Height]]:
        try:
            for block in self._store.blocks(Height(above + 1), ordered):
                for raw in block.transactions:
                    yield raw, block.height
        except (Corruption, Unavailable):
            return  # a leader may hear of a proof before its own disk has the block

    def votes_missing(self, height: Height) -> int:
        """Return how many commit votes an ordered block still needs, as far as this signer has heard."""
        raft = self._raft()
        if raft is None:
            return 0
        configuration = self._store.configuration
        # This one votes for what it has seen ordered.
        others = [raft.last_vote_of(signer) for signer in configuration.signers if signer != self._me]
        cast = sum(vote is not None and vote.height >= height for vote in others)
        cast += self._me in configuration.signers
        return max(0, configuration.certificate_quorum - cast)

    def pause(self, now_ms: int) -> str | None:
        """Return a sentence when finality pauses: ordered blocks have waited long for the votes of enough signers."""
        first, ordered = Height(self._applied() + 1), self.ordered_height
        if ordered < first:
            return None
        try:
            since_ms = self._store.header(first).time_ms
        except (Corruption, Unavailable):
            return None  # not on this disk yet: too young to wait for long
        if now_ms - since_ms < _PAUSE_MS:
            return None
        quorum = self._store.configuration.certificate_quorum
        return (
            f"blocks {first} to {ordered} are ordered and not final: {self.votes_missing(ordered)} of {quorum} signers are "
            "missing; nothing is lost, see whether enough members are connected"
        )

    def sentence(self, raw: Iterable[bytes]) -> str | None:
        """Return what all of these transactions wait for, to follow "it"; None unless all of them are ordered."""
        heights = [self.height_of(one) for one in raw]
        known = [height for height in heights if height is not None]
        if not known or len(known) < len(heights):
            return None
        quorum = self._store.configuration.certificate_quorum
        return f"is ordered and waits for {self.votes_missing(max(known))} of {quorum} signers"
