"""The joiner's side of a ticket: the sponsor takes it, and both clocks agree, before anything is joined."""

import trio

from node.applier import AppliedHeight
from node.event_log import EventLog
from node.ports import Clock, PeerTransport
from node.ticket import CHANNEL, CLOCK_OFF_MS_MAX, Invitation, Redeem, Redeemed, Ticket
from protocol import codec
from protocol.errors import Refused, RemoteFault, Unavailable
from protocol.identifiers import Height, peer_id
from storage.ledger_store import LedgerStore

_CALL_MS = 3_000
_AGAIN_MS = 250
_PATIENCE_S = 60.0


async def redeem(invitation: Invitation, *, transport: PeerTransport, clock: Clock, log: EventLog) -> None:
    """Have the sponsor take the ticket. Repeating it with the same nonce is harmless.

    Raises:
        Refused: the sponsor does not take it, the clocks differ, or the sponsor cannot be reached; what to do.
    """
    ticket = invitation.ticket
    log.info("redeeming the ticket", sponsor=peer_id(ticket.sponsor))
    body = codec.encode(Redeem(ticket, invitation.nonce))
    with trio.move_on_after(_PATIENCE_S):
        while True:
            asked_ms = clock.now_ms()
            try:
                answer = codec.decode(
                    await transport.call(ticket.sponsor, CHANNEL, body, timeout_ms=_CALL_MS), Redeemed
                )
            except Unavailable:
                await clock.sleep_ms(_AGAIN_MS)
                continue
            except RemoteFault as fault:
                raise Refused(f"the sponsor did not take the ticket: {fault}") from None
            middle_ms = (asked_ms + clock.now_ms()) // 2
            if abs(answer.now_ms - middle_ms) > CLOCK_OFF_MS_MAX:
                minutes = abs(answer.now_ms - middle_ms) // 60_000
                raise Refused(
                    f"this machine's clock is {minutes} minutes off the sponsor's; set it by NTP and start again"
                )
            if answer.refusal:
                raise Refused(answer.refusal)
            log.info("the sponsor took the ticket")
            return
    raise Refused(
        f"the sponsor {peer_id(ticket.sponsor)} cannot be reached at the addresses in the ticket; see that it runs, "
        "and start again, or ask another member for a ticket"
    )


async def find_named_block(ticket: Ticket, store: LedgerStore, history: AppliedHeight, log: EventLog) -> bool:
    """Wait until every block up to the one that the ticket names is here; return whether it is the one the sponsor knew."""
    await history.wait_above(Height(ticket.height - 1))
    found = store.hash(ticket.height)
    if found != ticket.block_hash:
        log.error(
            "the ledger here is not the sponsor's: two histories are being told; keep the ticket, it is signed evidence",
            height=ticket.height,
            here=found.hex(),
            sponsors=ticket.block_hash.hex(),
        )
    return found == ticket.block_hash
