"""What proposals and ballots do to ledger state, and what a configuration block does (ledger.md 7.1, 7.2).

Rows: one for each proposal, kept for ever; one `Governance` row with what is open and what is decided; and one for each
configuration under the height that set it, so that the history of configurations is state: rebuilt by applying, carried by
snapshots, covered by their digests. The genesis configuration has no row, it is known to everybody.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from protocol import codec, governance, limits
from protocol.codec import Size, wire
from protocol.configuration import SUSPENDED, Configuration
from protocol.errors import Refused
from protocol.governance import AddMember, Ballot, Propose, RotateKeys, Withdraw
from protocol.identifiers import ZERO, Height, NetworkId, NodeId, PublicKey, Txid
from protocol.ledger_rows import origin_key

OPEN = "open"
ACCEPTED = "accepted"
IN_FORCE = "in force"
REJECTED, WITHDRAWN, EXPIRED, VOID = "rejected", "withdrawn", "expired", "void"

TxidField = Annotated[Txid, Size(32)]
_CONFIGURATION = b"k"
_PROPOSAL = b"y"
GOVERNANCE_KEY = b"z"
"""The row of `Governance`."""


@wire("cast-ballot")
@dataclass(frozen=True, slots=True)
class CastBallot:
    """One organisation's word on a proposal."""

    organisation: Annotated[NodeId, Size(32)]
    is_yes: bool
    accept_risk: bool


@wire("proposal")
@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposal and what has become of it; `height` and `time_ms` are those of its block."""

    txid: TxidField
    propose: Propose
    height: Height
    time_ms: int
    ballots: Annotated[tuple[CastBallot, ...], Size(0, limits.BALLOTS_MAX)]
    state: Annotated[str, Size(1, 16)]

    def said(self, is_yes: bool) -> int:
        """Return how many said yes, or no."""
        return sum(ballot.is_yes is is_yes for ballot in self.ballots)


@wire("governance")
@dataclass(frozen=True, slots=True)
class Governance:
    """The open proposals, and the configuration that is decided and not in force yet, with the proposal it comes from.

    `pending_until_ms` is that proposal's expiry: what nobody could bring into force until then, gives way to others.
    """

    open: Annotated[tuple[TxidField, ...], Size(0, limits.PROPOSALS_OPEN_MAX)]
    pending: Configuration | None
    decided_by: TxidField
    pending_until_ms: int


EMPTY = Governance((), None, Txid(ZERO), 0)
"""Nothing proposed, nothing decided."""


def configuration_key(height: int) -> bytes:
    """Return the row of the configuration that the block at `height` sets."""
    return _CONFIGURATION + height.to_bytes(8, "big")


def proposal_key(txid: Txid) -> bytes:
    """Return the row of a proposal."""
    return _PROPOSAL + txid


CONFIGURATION_PREFIX, PROPOSAL_PREFIX = _CONFIGURATION, _PROPOSAL
"""What the keys of all configurations, and of all proposals, begin with."""


class Governing:
    """The governance rows as seen inside one block: read by `get`, written to `writes`."""

    def __init__(
        self,
        get: Callable[[bytes], bytes | None],
        writes: dict[bytes, bytes | None],
        configuration: Configuration,
        *,
        network: NetworkId,
        time_ms: int,
        height: Height,
    ) -> None:
        self._get = get
        self._writes = writes
        self._configuration = configuration
        self._network = network
        self._time_ms = time_ms
        self._height = height

    def is_signed(self, transaction: Propose | Ballot | Withdraw, signers: tuple[PublicKey, ...]) -> bool:
        """Return whether the governance key of the member that a transaction names has signed it."""
        node = transaction.organisation if isinstance(transaction, Ballot) else transaction.proposer
        member = self._configuration.by_node.get(node)
        return member is not None and member.role != SUSPENDED and signers == (member.governance,)

    def propose(self, propose: Propose, txid: Txid) -> None:
        """Open a proposal, with the proposer's yes where it counts.

        Raises:
            Refused: why it may not be.
        """
        state = self._tidied()
        if propose.base_config_hash != self._configuration.digest:
            raise Refused("the configuration has changed since; propose it again")
        if not self._time_ms < propose.expiry_ms <= self._time_ms + limits.PROPOSAL_MS_MAX:
            raise Refused("a proposal ends later than now and within 90 days")
        is_own = propose.proposer == governance.subject(propose.action)
        if propose.proposer not in self._configuration.signers and not is_own:
            raise Refused("only voters and witnesses propose what is not about themselves")
        if state.pending is not None:
            raise Refused("another change is decided and comes into force; propose again after it")
        if len(state.open) >= limits.PROPOSALS_OPEN_MAX:
            raise Refused("too many open proposals")
        action = propose.action
        if isinstance(action, AddMember | RotateKeys) and self._is_given_up(action.card.member.node):
            raise Refused(
                "a node key that was given up cannot come back: its rights are those of its successor"
            )
        governance.after(self._configuration, action, self._network)
        proposal = Proposal(txid, propose, self._height, self._time_ms, (), OPEN)
        state = replace(state, open=(*state.open, txid))
        if propose.proposer in governance.organisations(self._configuration, propose.action):
            own = CastBallot(propose.proposer, True, propose.accept_risk)
            self._cast(state, proposal, own)
        else:
            self._put(state, proposal)

    def vote(self, ballot: Ballot) -> None:
        """Count a ballot; an earlier one of the same organisation gives way to it.

        Raises:
            Refused: why it does not count.
        """
        state = self._tidied()
        proposal = self._open_proposal(state, ballot.proposal)
        if ballot.organisation not in governance.organisations(self._configuration, proposal.propose.action):
            raise Refused("only voters and witnesses that are not to leave have a ballot")
        if state.pending is not None:
            raise Refused("another change is decided and comes into force; propose again after it")
        self._cast(state, proposal, CastBallot(ballot.organisation, ballot.is_yes, ballot.accept_risk))

    def withdraw(self, withdraw: Withdraw) -> None:
        """Close a proposal at its proposer's wish.

        Raises:
            Refused: it is not open, in force already, or somebody else's.
        """
        state = self._tidied()
        proposal = self.proposal(withdraw.proposal)
        if proposal is None or proposal.propose.proposer != withdraw.proposer:
            raise Refused("no proposal of that member")
        if state.pending is not None and state.decided_by == proposal.txid:
            state = Governance(state.open, None, Txid(ZERO), 0)
        elif proposal.state != OPEN:
            raise Refused(f"the proposal is {proposal.state}")
        self._close(state, proposal, WITHDRAWN)

    def switch(self, following: Configuration) -> None:
        """Bring a configuration into force above this block: what was proposed before is void."""
        state = self.governance()
        for txid in state.open:
            self._write(replace(self._known(txid), state=VOID))
        if state.pending is not None:
            came = state.pending.digest == following.digest
            self._write(replace(self._known(state.decided_by), state=IN_FORCE if came else VOID))
        self._writes[GOVERNANCE_KEY] = None
        self._writes[configuration_key(self._height)] = codec.encode(following)
        for new, old in governance.successions(self._configuration, following).items():
            # What was granted to a facility stays its own: its first node id is what the others lead to.
            origin = self._get(origin_key(old)) or old
            self._writes |= {origin_key(old): origin, origin_key(new): origin}

    def governance(self) -> Governance:
        """Return what is open and what is decided."""
        row = self._get(GOVERNANCE_KEY)
        return codec.decode(row, Governance) if row is not None else EMPTY

    def proposal(self, txid: Txid) -> Proposal | None:
        """Return a proposal."""
        row = self._get(proposal_key(txid))
        return codec.decode(row, Proposal) if row is not None else None

    def _is_given_up(self, node: NodeId) -> bool:
        return node not in self._configuration.by_node and self._get(origin_key(node)) is not None

    def _known(self, txid: Txid) -> Proposal:
        proposal = self.proposal(txid)
        assert proposal is not None, "what is listed has a row"
        return proposal

    def _open_proposal(self, state: Governance, txid: Txid) -> Proposal:
        proposal = self.proposal(txid)
        if proposal is None:
            raise Refused("unknown proposal")
        if txid not in state.open:
            # Expired in this very block, where its row does not say so yet.
            raise Refused(f"the proposal is {EXPIRED if proposal.state == OPEN else proposal.state}")
        return proposal

    def _tidied(self) -> Governance:
        """Return the state without what has expired; nothing is written unless the transaction is accepted."""
        state = self.governance()
        live = tuple([txid for txid in state.open if self._time_ms <= self._known(txid).propose.expiry_ms])
        state = replace(state, open=live)
        if state.pending is not None and self._time_ms > state.pending_until_ms:
            state = Governance(live, None, Txid(ZERO), 0)
        return state

    def _cast(self, state: Governance, proposal: Proposal, cast: CastBallot) -> None:
        action = proposal.propose.action
        following = governance.after(self._configuration, action, self._network)
        risk = governance.change_risk(self._configuration, following)
        if cast.is_yes and risk is not None and not cast.accept_risk:
            raise Refused("the change costs safety: say yes with the risk accepted, or no")
        others = [one for one in proposal.ballots if one.organisation != cast.organisation]
        ballots = tuple(sorted((*others, cast), key=lambda one: one.organisation))
        proposal = replace(proposal, ballots=ballots)
        counted = len(governance.organisations(self._configuration, action))
        needed = governance.ballots_needed(counted)
        if proposal.said(True) >= needed:
            state = replace(
                state,
                pending=following,
                decided_by=proposal.txid,
                pending_until_ms=proposal.propose.expiry_ms,
            )
            self._close(state, proposal, ACCEPTED)
        elif counted - proposal.said(False) < needed:
            self._close(state, proposal, REJECTED)
        else:
            self._put(state, proposal)

    def _close(self, state: Governance, proposal: Proposal, verdict: str) -> None:
        still = tuple([txid for txid in state.open if txid != proposal.txid])
        self._put(replace(state, open=still), replace(proposal, state=verdict))

    def _put(self, state: Governance, proposal: Proposal) -> None:
        before = self.governance()
        for txid in before.open:
            if txid not in state.open and txid != proposal.txid:
                self._write(replace(self._known(txid), state=EXPIRED))
        if before.pending is not None and state.pending is None and before.decided_by != proposal.txid:
            self._write(replace(self._known(before.decided_by), state=EXPIRED))
        self._writes[GOVERNANCE_KEY] = codec.encode(state)
        self._write(proposal)

    def _write(self, proposal: Proposal) -> None:
        self._writes[proposal_key(proposal.txid)] = codec.encode(proposal)
