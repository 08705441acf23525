"""Keeps one connection to every member: whom to dial, where, and when.

    disconnected ──► (higher id: wait 3 s for the other to dial) ──► try each address ──► connected
         ▲                                                               │ none answered
         │                                                               ▼
         └──────────── lost ◄── connected            back off 0.25 s … 5 s, cut short by news of the peer

The lower node id dials at once, so that two daemons that start together do not dial each other.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

import trio

from node.address_book import AddressBook
from node.endpoints import parse_endpoint
from node.event_log import EventLog
from node.ports import Clock, Entropy
from protocol import limits
from protocol.errors import Invalid, Refused, Unavailable
from protocol.identifiers import NodeId, peer_id

STABLE_MS = 5_000
"""A connection that lasted this long resets the back-off; a shorter one counts as a failed attempt."""
SHUNNED_MS = 60_000
"""How long an address is left alone after somebody else was found there."""

Connect = Callable[[NodeId, str], Awaitable[None]]
"""Connects to a node at an address. Raises Unavailable when nobody answers, Invalid when somebody else does."""


class _Peer:
    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}  # multiaddr → found_by; tried from the last to the first
        self.shunned_until_ms: dict[str, int] = {}
        self.connected = False
        self.connected_at_ms = 0
        self.was_stable = True
        self.has_news = False
        self.is_gone = False
        self.changed = trio.Event()

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Dialer:
    """Dials the members that are not connected. `connected` and `disconnected` must be reported to it."""

    def __init__(
        self,
        *,
        me: NodeId,
        members: Iterable[NodeId],
        connect: Connect,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self._me = me
        self._peers = {node: _Peer() for node in members if node != me}
        self._parted: dict[NodeId, dict[str, str]] = {}
        """Where those were found who are left alone for now: they may be members again."""
        self._tasks: trio.Nursery | None = None
        self._connect = connect
        self._clock = clock
        self._entropy = entropy
        self._log = log

    async def run(self) -> None:
        """Dial until cancelled."""
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            for node, peer in self._peers.items():
                nursery.start_soon(self._tend, node, peer)
            await trio.sleep_forever()  # also with nobody to dial: there may be somebody later

    def keep(self, members: Mapping[NodeId, tuple[str, ...]], connected: Callable[[NodeId], bool]) -> None:
        """Take up new members, with their addresses, and leave alone who is none any more. `connected` tells who is so now."""
        wanted = set(members) - {self._me}
        for node in self._peers.keys() - wanted:
            gone = self._peers.pop(node)
            self._parted[node] = gone.addresses
            gone.is_gone = True
            gone.change()
        for node in sorted(wanted - self._peers.keys()):
            peer = self._peers[node] = _Peer()
            peer.addresses = self._parted.pop(node, {})
            peer.connected, peer.connected_at_ms = connected(node), self._clock.now_ms()
            if self._tasks is not None:
                self._tasks.start_soon(self._tend, node, peer)
        for node, addresses in members.items():
            for address in addresses:
                self.learn(node, address, "ledger")

    def learn(self, node: NodeId, address: str, found_by: str, *, fresh: bool = False) -> None:
        """Note an address of a member. `fresh`: it was heard just now; it is tried first, and at once."""
        peer = self._peers.get(node)
        if peer is None:
            return
        try:
            address = str(parse_endpoint(address)[0])
        except ValueError:
            self._log.info("address ignored: not a TCP multiaddr", peer=peer_id(node), found_by=found_by)
            return
        if fresh:
            known = peer.addresses.pop(address, None)
            peer.shunned_until_ms.pop(address, None)
            peer.addresses[address] = known or found_by
            peer.has_news = True
            peer.change()
        else:
            # The first teller is tried last: fixed addresses first into the table, fresher ones after them.
            peer.addresses.setdefault(address, found_by)
        _forget_surplus(peer.addresses)

    def found_by(self, node: NodeId, address: str) -> str:
        """Return who told us an address."""
        peer = self._peers.get(node)
        return peer.addresses.get(address, "") if peer is not None else ""

    def best_address(self, node: NodeId) -> tuple[str, str]:
        """Return (multiaddr, found_by) of the address that would be tried first, or two empty strings."""
        peer = self._peers.get(node)
        known = peer.addresses if peer is not None else {}
        return next(reversed(known.items()), ("", ""))

    def connected(self, node: NodeId) -> None:
        """Stop dialling a member: there is a connection, whoever made it."""
        peer = self._peers.get(node)
        if peer is not None:  # who is admitted and no member is not dialled
            peer.connected, peer.connected_at_ms = True, self._clock.now_ms()
            peer.change()

    def disconnected(self, node: NodeId) -> None:
        """Start dialling a member again."""
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.was_stable = self._clock.now_ms() - peer.connected_at_ms >= STABLE_MS
        peer.connected = False
        peer.change()

    async def _tend(self, node: NodeId, peer: _Peer) -> None:
        delay_ms = limits.DIAL_BACKOFF_MS_MIN
        while not peer.is_gone:
            while peer.connected and not peer.is_gone:
                await peer.changed.wait()
            if peer.was_stable:
                delay_ms = limits.DIAL_BACKOFF_MS_MIN
            else:
                delay_ms = await self._back_off(peer, delay_ms)
            if self._me > node:
                await self._wait_for_connection(peer, limits.DIAL_YIELD_MS)
            while not peer.connected and not peer.is_gone:
                await self._try_addresses(node, peer)
                if not peer.connected and not peer.is_gone:
                    delay_ms = await self._back_off(peer, delay_ms)

    async def _try_addresses(self, node: NodeId, peer: _Peer) -> None:
        for address in reversed(list(peer.addresses)):
            if peer.connected or peer.is_gone:
                return
            if peer.shunned_until_ms.get(address, 0) > self._clock.now_ms():
                continue
            try:
                await self._connect(node, address)
            except Unavailable:
                continue
            except Invalid:
                self._log.debug("another node answers at this address", peer=peer_id(node), address=address)
                peer.shunned_until_ms[address] = self._clock.now_ms() + SHUNNED_MS
                continue
            # Last in the table is first to be tried: the address that worked.
            peer.addresses[address] = peer.addresses.pop(address, "book")
            return

    async def _back_off(self, peer: _Peer, delay_ms: int) -> int:
        """Sleep for half to all of the delay, or until something is heard of the peer. Return the next delay."""
        jitter = self._entropy.bytes(1)[0]
        deadline_ms = self._clock.now_ms() + delay_ms * (256 + jitter) // 512
        peer.has_news = False
        while not (peer.connected or peer.is_gone) and (left_ms := deadline_ms - self._clock.now_ms()) > 0:
            await self._wait_for_change(peer, left_ms)
            if peer.has_news:
                return limits.DIAL_BACKOFF_MS_MIN
        return min(2 * delay_ms, limits.DIAL_BACKOFF_MS_MAX)

    async def _wait_for_connection(self, peer: _Peer, duration_ms: int) -> None:
        deadline_ms = self._clock.now_ms() + duration_ms
        while not (peer.connected or peer.is_gone) and (left_ms := deadline_ms - self._clock.now_ms()) > 0:
            await self._wait_for_change(peer, left_ms)

    async def _wait_for_change(self, peer: _Peer, duration_ms: int) -> None:
        async with trio.open_nursery() as nursery:

            async def sleep() -> None:
                await self._clock.sleep_ms(duration_ms)
                nursery.cancel_scope.cancel()

            nursery.start_soon(sleep)
            await peer.changed.wait()
            nursery.cancel_scope.cancel()


def _forget_surplus(addresses: dict[str, str]) -> None:
    told = [address for address, found_by in addresses.items() if found_by not in ("genesis", "config")]
    for address in told[: -limits.PEER_ADDRESSES_MAX]:
        del addresses[address]


def fixed_addresses(
    me: NodeId,
    members: Mapping[NodeId, tuple[str, ...]],
    extra_peers: Iterable[str],
    book: AddressBook,
    log: EventLog,
) -> Iterator[tuple[NodeId, str, str]]:
    """Yield (member, address, where from) of all that is known before anybody was met.

    The last one learned is tried first: the address book is the freshest of these.

    Raises:
        Refused: an operator's peer address is not a multiaddr.
    """
    others = [node for node in members if node != me]
    for node in others:
        for address in members[node]:
            yield node, address, "genesis"
    for address in extra_peers:
        try:
            _, named = parse_endpoint(address)
        except ValueError as error:
            raise Refused(f"cannot use the peer address {address[:100]}: {error}") from None
        if named is not None and named not in others:
            log.warning("peer address ignored: not of another member", peer=peer_id(named))
            continue
        # Without a peer id it may be anybody's: whoever is missing is tried there, and the handshake tells.
        for node in others if named is None else [named]:
            yield node, address, "config"
    for node in others:
        for address in reversed(book.addresses(node)):
            yield node, address, "book"
