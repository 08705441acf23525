"""`member`: who is in the network, what is proposed, ballots. Answers are the documents that the command line prints.

Ballots and proposals are signed by this facility's governance key, which only the daemon can open.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import Any

from node.card_file import parse_card
from node.consent import iso_time
from node.evidence import convicted_documents
from node.key_rotation import KeyRotation
from node.membership_admission import live_proposals, proposals_of
from node.membership_wish import Wish
from node.receipts import Submitter
from node.ticket_desk import TicketDesk
from protocol import ballots, governance, limits
from protocol.ballots import Proposal
from protocol.configuration import SUSPENDED, Configuration
from protocol.errors import NotFinal, Refused, Unavailable
from protocol.governance import (
    Action,
    AddMember,
    Ballot,
    ChangeRole,
    Propose,
    RemoveMember,
    RotateKeys,
    SetMinB,
    Standing,
    Withdraw,
)
from protocol.identifiers import Height, NodeId, Txid, peer_id
from protocol.transaction import GovernanceTransaction, sign, txid_of
from storage.ledger_store import LedgerStore

Document = dict[str, Any]
_RISK = "repeat with --accept-risk if that is meant"


class Membership:
    """What the routes call `members`."""

    def __init__(
        self,
        *,
        me: NodeId,
        keys: KeyRotation,
        store: LedgerStore,
        submitter: Submitter,
        tickets: TicketDesk,
        now_ms: Callable[[], int],
        catch_up: Callable[[], Awaitable[object]],
    ) -> None:
        """`catch_up` returns when all that was final anywhere is applied here; it raises NotFinal or Unavailable."""
        self._catch_up = catch_up
        self._tickets = tickets
        self._me = me
        self._keys = keys
        self._store = store
        self._submitter = submitter
        self._now_ms = now_ms

    def members(self) -> Document:
        """Return the `member list` document: members, former members, proposals, and what the network withstands."""
        store = self._store
        configuration = store.configuration
        rows = [
            {
                "name": member.name,
                "kind": member.kind,
                "role": member.role,
                "peer_id": peer_id(member.node),
                "addresses": list(member.addresses),
            }
            for member in configuration.members
        ]
        former = [
            {
                "name": store.configurations.name_ever(node),
                "peer_id": peer_id(node),
                "left": store.configurations.left_at(node),
            }
            for node in store.configurations.former()
            if store.configurations.present(node)
            == node  # a node key that was given up is nobody who has left
        ]
        return {
            "members": sorted(rows, key=lambda row: str(row["name"])),
            "former": former,
            "proposals": [self._document(one) for one in proposals_of(store)],
            "configuration": configuration.number,
            "withstands": asdict(Standing.of(configuration)),
            "evidence": convicted_documents(store),
        }

    async def propose(self, wish: Wish, *, expires_ms: int, accept_risk: bool) -> Document:
        """Propose a change, with this facility's yes where it has a ballot; return the proposal when it is final.

        Raises:
            Refused: no such member or card, no lawful change, or a risk that was not accepted.
            NotFinal: no quorum in time.
        """
        return await self._propose(self._action(wish), expires_ms=expires_ms, accept_risk=accept_risk)

    async def _propose(self, action: Action, *, expires_ms: int, accept_risk: bool) -> Document:
        configuration = self._store.configuration
        following = governance.after(configuration, action, self._store.network)
        same = next(
            (one for one in live_proposals(self._store) if one.propose.action == action), None
        )  # a repeated command has no second effect
        if same is not None:
            return self._document(same)
        has_ballot = self._me in governance.organisations(configuration, action)
        risk = governance.change_risk(configuration, following)
        if has_ballot and risk is not None and not accept_risk:
            raise Refused(f"this costs safety: {risk}; {_RISK}")
        if not 0 < expires_ms <= limits.PROPOSAL_MS_MAX:
            raise Refused("a proposal lasts for at most 90 days; name a shorter time")
        propose = Propose(
            self._me,
            action,
            self._now_ms() + expires_ms,
            configuration.digest,
            accept_risk,
            self._submitter.valid_until(),
        )
        await self._submit(propose)
        return self._document(self._known(txid_of(propose, self._store.network)))

    async def leave(self, *, expires_ms: int, accept_risk: bool) -> Document:
        """Propose that this facility leaves the network. Raises as `propose`."""
        wish = Wish(peer_id(self._me), leaves=True)
        return await self.propose(wish, expires_ms=expires_ms, accept_risk=accept_risk)

    async def rotate(self, keys: Iterable[str], *, expires_ms: int) -> Document:
        """Propose new keys for this facility ("governance", "checkpoint", "node"). Raises as `propose`."""
        action = self._keys.prepare(keys, self._store.configuration, self._store.network)
        return await self._propose(action, expires_ms=expires_ms, accept_risk=False)

    async def vote(self, proposal: str, *, is_yes: bool, accept_risk: bool) -> Document:
        """Cast this facility's ballot; return the proposal when the ballot is final.

        Raises:
            Refused: no such open proposal, no ballot here, or a risk that was not accepted.
            NotFinal: no quorum in time.
        """
        found = await self._found(proposal)
        wanted = next((one for one in found.ballots if one.organisation == self._me), None)
        if wanted is not None and (wanted.is_yes, wanted.accept_risk) == (is_yes, accept_risk):
            return self._document(found)
        risk = self._risk(found.propose.action) if found.state == ballots.OPEN else None
        if is_yes and risk is not None and not accept_risk:
            raise Refused(f"this costs safety: {risk}; {_RISK}")
        valid_until = self._submitter.valid_until()
        await self._submit(Ballot(self._me, found.txid, is_yes, accept_risk, valid_until))
        return self._document(self._known(found.txid))

    async def withdraw(self, proposal: str) -> Document:
        """Take back a proposal of this facility. Raises Refused and NotFinal as `vote`."""
        found = await self._found(proposal)
        if found.state != ballots.WITHDRAWN:
            await self._submit(Withdraw(self._me, found.txid, self._submitter.valid_until()))
        return self._document(self._known(found.txid))

    def ticket(self, facility: str, *, expires_ms: int) -> Document:
        """Return a ticket for a proposed facility, as {"facility", "ticket" (the file's text)}.

        Raises:
            Refused: nobody of that name is proposed.
        """
        if not 0 < expires_ms <= limits.PROPOSAL_MS_MAX:
            raise Refused("a ticket lasts for at most 90 days; name a shorter time")
        return {"facility": facility, "ticket": self._tickets.issue(facility, expires_ms=expires_ms)}

    def find(self, text: str) -> Proposal:
        """Return the proposal whose id is, or begins with, `text`.

        Raises:
            Refused: none, or several.
        """
        found = [one for one in proposals_of(self._store) if text and one.txid.hex().startswith(text)]
        if len(found) != 1:
            what = "no proposal has" if not found else f"{len(found)} proposals have"
            raise Refused(f"{what} the id '{text}'; see carechain member list")
        return found[0]

    async def _found(self, text: str) -> Proposal:
        """Return a proposal; one that was made elsewhere a moment ago may only be on its way here. Raises as `find`."""
        try:
            return self.find(text)
        except Refused:
            # Where nothing tells how far the others are, what is here decides.
            with contextlib.suppress(NotFinal, Unavailable):
                await self._catch_up()
            return self.find(text)

    def _known(self, txid: Txid) -> Proposal:
        return self.find(txid.hex())

    async def _submit(self, transaction: GovernanceTransaction) -> Height:
        key = self._keys.governance_key(self._store.configuration)
        receipt = await self._submitter.submit(sign(transaction, self._store.network, key))
        if not receipt.is_accepted:
            raise Refused(f"the ledger {receipt.verdict}")
        return receipt.height

    def _action(self, wish: Wish) -> Action:
        configuration = self._store.configuration
        if wish.min_b is not None:
            if wish.name or wish.card is not None or wish.role is not None or wish.leaves:
                raise Refused("how many liars to tolerate is proposed by itself; leave out the member")
            return SetMinB(wish.min_b)
        if wish.card is not None:
            card = parse_card(wish.card, source=wish.name)
            # Who asks to vote begins as a learner: it counts when it holds what the others hold.
            wanted = wish.role or card.member.role
            return AddMember(card, "learner" if wanted == "voter" else wanted)
        member = configuration.find(wish.name)
        if wish.leaves:
            return RemoveMember(member.node)
        if wish.role is None:
            raise Refused(f"what is proposed for {member.name}? name a --role, or --remove")
        return ChangeRole(member.node, wish.role)

    # --- documents ----------------------------------------------------------------------------------------------

    def _risk(self, action: Action) -> str | None:
        following = self._following(action)
        return governance.change_risk(self._store.configuration, following) if following else None

    def _following(self, action: Action) -> Configuration | None:
        try:
            return governance.after(self._store.configuration, action, self._store.network)
        except Refused:
            return None

    def _document(self, proposal: Proposal) -> Document:
        action, store = proposal.propose.action, self._store
        base = store.configuration_at(proposal.height)
        counted = governance.organisations(base, action)
        name = store.configurations.name_ever
        document = {
            "proposal": proposal.txid.hex(),
            "action": self._told(action),
            "proposer": name(proposal.propose.proposer),
            "state": proposal.state,
            "yes": proposal.said(True),
            "no": proposal.said(False),
            "needed": governance.ballots_needed(len(counted)),
            "ballots": [{"facility": name(one.organisation), "yes": one.is_yes} for one in proposal.ballots],
            "expires": iso_time(proposal.propose.expiry_ms),
            "height": proposal.height,
            "risk": None,
        }
        following = self._following(action) if proposal.state == ballots.OPEN else None
        if following is not None:
            document |= {
                "risk": governance.change_risk(store.configuration, following),
                "before": asdict(Standing.of(store.configuration)),
                "after": asdict(Standing.of(following)),
            }
        return document

    def _told(self, action: Action) -> str:
        name = self._store.configurations.name_ever
        match action:
            case AddMember(card, role):
                return f"add {card.member.name} as {role}"
            case ChangeRole(node, role):
                return f"suspend {name(node)}" if role == SUSPENDED else f"make {name(node)} {role}"
            case RemoveMember(node):
                return f"remove {name(node)}"
            case RotateKeys(node, card, _) if card.member.node != node:
                return f"rotate the node key of {name(node)}; its peer id becomes {peer_id(card.member.node)}"
            case RotateKeys(node, _, _):
                return f"rotate the keys of {name(node)}"
            case SetMinB(min_b):
                return f"tolerate at least {min_b} liars"
