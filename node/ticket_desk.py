"""The sponsor's side of tickets: making them, and taking each of them once."""

from node.endpoints import parse_endpoint
from node.membership_admission import admission_of, live_proposals
from node.ports import Clock, Disk, Entropy, PeerTransport
from node.ticket import CHANNEL, Redeem, Redeemed, Ticket, is_signed, sealed, ticket_text
from protocol import codec, limits
from protocol.configuration import Member
from protocol.errors import Refused
from protocol.governance import AddMember
from protocol.identifiers import NodeId, peer_id
from protocol.signing import SigningKey
from storage import keyspace
from storage.key_value import Batch, KeyValue
from storage.ledger_store import LedgerStore


class TicketDesk:
    """Makes tickets for proposed facilities, and answers those who redeem them."""

    def __init__(
        self,
        *,
        key: SigningKey,
        store: LedgerStore,
        rows: KeyValue,
        disk: Disk,
        transport: PeerTransport,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        """`key` is the node key, `rows` and `disk` are those of the ledger database."""
        self._key = key
        self._store = store
        self._rows = rows
        self._disk = disk
        self._transport = transport
        self._clock = clock
        self._entropy = entropy

    def serve(self) -> None:
        """Answer joiners from now on."""
        self._transport.serve(CHANNEL, self._answer)

    def issue(self, text: str, *, expires_ms: int) -> str:
        """Return the text of a ticket for the proposed facility that `text` names.

        Raises:
            Refused: nobody of that name is proposed, or this facility is no member itself.
        """
        store, me = self._store, NodeId(self._key.public)
        if me not in store.configuration.by_node:
            raise Refused("only a member of the network can make a ticket")
        candidate = self._candidate(text)
        mark, now_ms = store.applied(), self._clock.now_ms()
        ticket = Ticket(
            self._entropy.bytes(32),
            candidate.node,
            me,
            store.genesis,
            store.configuration,
            self._addresses(),
            mark.height,
            mark.hash,
            now_ms,
            now_ms + expires_ms,
            bytes(64),
        )
        return ticket_text(sealed(ticket, self._key))

    def _candidate(self, text: str) -> Member:
        actions = [proposal.propose.action for proposal in live_proposals(self._store)]
        known = {
            action.card.member.node: action.card.member for action in actions if isinstance(action, AddMember)
        }
        known |= dict(self._store.configuration.by_node)
        found = [
            member
            for member in known.values()
            if text in (member.name, peer_id(member.node)) or peer_id(member.node).startswith(text)
        ]
        if not text or len(found) != 1:
            raise Refused(
                f"no facility '{text}' is proposed; propose its card first: carechain member propose CARD"
            )
        return found[0]

    def _addresses(self) -> tuple[str, ...]:
        """Return where this node and the members it is connected with can be reached, this one first."""
        me = peer_id(self._transport.me)
        found = [f"{address}/p2p/{me}" for address in self._transport.addresses()]
        for peer in self._transport.peers():
            if peer.connected and peer.address:
                endpoint, _ = parse_endpoint(peer.address)
                found.append(f"{endpoint}/p2p/{peer_id(peer.node)}")
        return tuple(found[: limits.MEMBERS_MAX])

    async def _answer(self, peer: NodeId, body: bytes) -> bytes:
        redeem = codec.decode(body, Redeem)
        refusal = self._refusal(peer, redeem)
        if not refusal:
            batch = Batch()
            batch.put(keyspace.TICKET + redeem.ticket.id, redeem.nonce)
            # Durable before the answer: a ticket that was taken is never taken by another nonce.
            await self._disk.commit(batch, sync=True)
        return codec.encode(Redeemed(self._clock.now_ms(), refusal))

    def _refusal(self, peer: NodeId, redeem: Redeem) -> str:
        ticket = redeem.ticket
        taken = self._rows.get(keyspace.TICKET + ticket.id)
        if ticket.sponsor != self._transport.me or not is_signed(ticket):
            return "the ticket is not of this sponsor"
        if ticket.network != self._store.network:
            return "the ticket is of another network"
        if ticket.candidate != peer:
            return "the ticket is for another facility; ask for one for this home's card.json"
        if taken is not None and taken != redeem.nonce:
            return "the ticket has been used; ask the sponsor for another"
        if taken is None and self._clock.now_ms() > ticket.expires_ms:
            return "the ticket has expired; ask the sponsor for another"
        admission = admission_of(self._store)
        if not admission.is_member(peer) and peer not in admission.candidates:
            return (
                "no proposal to take this facility in is open any more; ask the sponsor to propose it again"
            )
        return ""
