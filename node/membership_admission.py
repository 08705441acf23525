"""Who may connect, and what they may ask: one small value, made from the configuration in force and the open proposals.

member      in the configuration in force, not suspended: everything
candidate   in an open or decided proposal to be taken in, or suspended: the blocks, snapshots, and its ticket
former      let go: one answer, the blocks up to the one that let it go, then the connection is closed; or that by Raft
anybody else is refused right after the handshake

Who has been let go and knows it parts from all others: it has nothing to ask for, and they would have to turn it away for
ever. Now and then, and after a start, it asks again for a while, because it may have been taken in once more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from node.applier import AppliedHeight
from node.event_log import EventLog
from node.ports import Clock
from protocol import ballots, codec
from protocol.ballots import Governance, Proposal
from protocol.governance import AddMember, RotateKeys
from protocol.identifiers import NodeId
from storage.ledger_store import LedgerStore

CANDIDATE_CHANNELS = frozenset({"blocks", "snapshot", "snapshot-manifest", "snapshot-chunks", "join", "time"})
"""Catching up, redeeming a ticket, and comparing clocks."""
FORMER_CHANNELS = frozenset({"blocks", "consensus", "heartbeat", "watermark", "recovery", "recovery-tail"})
"""The blocks, and the word that a new epoch has begun; and Raft with its recall, for its leader tells a voter that asks for votes after its leaving (`raft.departures`)."""
LINGER_MS = 30_000
"""How long who is let go stays connected without hearing of a block: a leader's last ones have to reach the others, too."""
APART_MS = 120_000
"""How long it stays apart until it asks again."""
_LOOK_MS = 1_000


@dataclass(frozen=True, slots=True)
class Admission:
    """Members with the addresses they announced, and those to whom less is open."""

    members: Mapping[NodeId, tuple[str, ...]]
    candidates: frozenset[NodeId] = field(default=frozenset())
    former: frozenset[NodeId] = field(default=frozenset())

    def is_member(self, node: NodeId) -> bool:
        """Return whether everything is open to a node."""
        return node in self.members

    def is_admitted(self, node: NodeId) -> bool:
        """Return whether a node may connect at all."""
        return node in self.members or node in self.candidates or node in self.former

    def may(self, node: NodeId, channel: str) -> bool:
        """Return whether a node may send to, call, or fetch from a channel."""
        if node in self.members:
            return True
        return channel in (CANDIDATE_CHANNELS if node in self.candidates else FORMER_CHANNELS)


class Gate:
    """The admission that counts at the moment, asked by everything that meets a peer."""

    def __init__(self, admission: Admission, me: NodeId) -> None:
        self.admission = admission
        self._me = me

    def is_member(self, node: NodeId) -> bool:
        """Return whether everything is open to a node."""
        return self.admission.is_member(node)

    def is_admitted(self, node: NodeId) -> bool:
        """Return whether another node may connect at all."""
        return node != self._me and self.admission.is_admitted(node)

    def may(self, node: NodeId, channel: str) -> bool:
        """Return whether a node may use a channel."""
        return self.admission.may(node, channel)


def governance_of(store: LedgerStore) -> Governance:
    """Return the open proposals and the configuration that is decided and not in force yet."""
    row = store.state(ballots.GOVERNANCE_KEY)
    return codec.decode(row, Governance) if row is not None else ballots.EMPTY


def proposals_of(store: LedgerStore) -> tuple[Proposal, ...]:
    """Return all proposals ever made, oldest first."""
    found = [codec.decode(row, Proposal) for _, row in store.state_rows(ballots.PROPOSAL_PREFIX)]
    return tuple(sorted(found, key=lambda one: (one.height, one.txid)))


def live_proposals(store: LedgerStore) -> tuple[Proposal, ...]:
    """Return the proposals that are open, and the one that is decided and not in force yet."""
    governance = governance_of(store)
    txids = (*governance.open, *((governance.decided_by,) if governance.pending is not None else ()))
    rows = (store.state(ballots.proposal_key(txid)) for txid in txids)
    return tuple(codec.decode(row, Proposal) for row in rows if row is not None)


def admission_of(store: LedgerStore) -> Admission:
    """Return who is admitted at the applied height."""
    configuration = store.configuration
    members = {
        member.node: member.addresses
        for member in configuration.members
        if configuration.takes_part(member.node)
    }
    proposed = [
        proposal.propose.action.card.member.node
        for proposal in live_proposals(store)
        if isinstance(proposal.propose.action, AddMember | RotateKeys)
    ]
    candidates = (set(proposed) | set(configuration.by_node)) - set(members)
    former = set(store.configurations.former()) - candidates - set(members)
    return Admission(members, frozenset(candidates), frozenset(former))


class AdmissionKeeper:
    """The task that tells the transport of every change. A node that is no member yet admits those that are."""

    def __init__(
        self,
        store: LedgerStore,
        applied: AppliedHeight,
        admit: Callable[[Admission], None],
        log: EventLog,
        *,
        me: NodeId,
        clock: Clock,
        contacts: Mapping[NodeId, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        """`contacts` are those whom a ticket names: met as members until the ledger here says who they are."""
        self._contacts = contacts
        self._me = me
        self._clock = clock
        self._store = store
        self._applied = applied
        self._admit = admit
        self._log = log

    async def run(self) -> None:
        """Watch until cancelled."""
        told: Admission | None = None
        has_parted = False
        while True:
            height = self._applied.value
            admission = admission_of(self._store)
            if self._contacts and self._store.configurations.newest_height == 0:
                admission = replace(admission, members={**self._contacts, **admission.members})
            if admission != told:
                told = admission
                self._admit(admission)
                tell = self._log.debug if has_parted else self._log.info
                tell(
                    "admitted by the ledger",
                    members=len(admission.members),
                    candidates=len(admission.candidates),
                    height=height,
                )
            if self._is_let_go() and not await self._is_taken_in_again():
                self._admit(Admission({}))  # connections end with this
                if not has_parted:
                    self._log.info("parted from the network that has let this facility go", height=height)
                has_parted, told = True, None
                await self._clock.sleep_ms(APART_MS)
                continue
            has_parted = False
            if self._applied.value == height:
                await self._applied.wait_above(height)

    def _is_let_go(self) -> bool:
        return self._store.configurations.left_at(self._me) is not None

    async def _is_taken_in_again(self) -> bool:
        """Wait until no block has come for `LINGER_MS`, or this facility is a member again; return whether it is."""
        height, quiet_ms = self._applied.value, 0
        while self._is_let_go() and quiet_ms < LINGER_MS:
            await self._clock.sleep_ms(_LOOK_MS)
            quiet_ms = quiet_ms + _LOOK_MS if self._applied.value == height else 0
            height = self._applied.value
        return not self._is_let_go()
