"""`foreign`: other networks that this facility follows by their headers, and records on its own ledger (ledger.md 8).

Everything comes in by hand, as a file from a member of the other network: its genesis once, then updates. Nothing of that
member is believed. An anchor is kept durably before anything is said about it: an older one in its place would take back
what it has seen.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import trio

from node.card_file import parse_genesis
from node.consent import iso_time
from node.ports import Clock, Disk, Workers
from node.receipts import Submitter
from protocol import codec, limits
from protocol.block import header_hash
from protocol.codec import Size, wire
from protocol.cross_anchoring import ForeignCheckpoint, ForeignHeads, foreign_key
from protocol.errors import Conflicting, Corruption, Malformed, NotFinal, Refused, RemoteFault
from protocol.identifiers import NetworkId, NodeId
from protocol.light_client import Anchor, Freshness, Update, advance, anchor_at
from protocol.signing import SigningKey
from protocol.transaction import sign
from protocol.trust_policy import CERTIFICATE_ALONE, TrustPolicy, parse_policy
from storage import keyspace
from storage.key_value import Batch, KeyValue
from storage.ledger_store import LedgerStore

# Any: the values of a JSON document.
Document = dict[str, Any]


@wire("followed")
@dataclass(frozen=True, slots=True)
class Followed:
    """Another network: what is known of it, the policy file, and the first update that contradicts what is known."""

    anchor: Anchor
    policy: Annotated[bytes, Size(0, limits.POLICY_BYTES_MAX)]
    conflict: Annotated[bytes, Size(0, limits.MESSAGE_BYTES_MAX)]

    def trust(self) -> TrustPolicy:
        """Return whose word counts."""
        return parse_policy(self.policy, source="the policy") if self.policy else CERTIFICATE_ALONE


class ForeignNetworks:
    """What the routes call `foreign`."""

    def __init__(
        self,
        *,
        key: SigningKey,
        store: LedgerStore,
        rows: KeyValue,
        disk: Disk,
        workers: Workers,
        clock: Clock,
        submitter: Submitter,
    ) -> None:
        """`key` is the node key, `rows` and `disk` are those of the ledger database."""
        self._key = key
        self._store = store
        self._rows = rows
        self._disk = disk
        self._workers = workers
        self._clock = clock
        self._submitter = submitter
        # A row is read, checked in a worker, and written: of two updates at once the older could come last.
        self._writing = trio.Lock()

    def networks(self) -> Document:
        """Return {"networks": […]}: how far each is known, and how fresh that is."""
        rows = self._rows.scan(*keyspace.prefix_range(keyspace.FOREIGN))
        return {"networks": [self._document(_opened(row)) for _, row in rows]}

    async def add(self, genesis: str, policy: str) -> Document:
        """Follow the network of a genesis file, by a policy file or none; repeated, take the new policy.

        Raises:
            Refused: no such file, our own network, or one too many.
        """
        configuration = parse_genesis(genesis, source="the genesis file")
        anchor, data = anchor_at(configuration, self._clock.now_ms()), policy.encode()
        Followed(anchor, data, b"").trust()
        if anchor.network == self._store.network:
            raise Refused("this is our own network; name the genesis file of another one")
        async with self._writing:
            known = self._row(anchor.network)
            if known is None and len(self.networks()["networks"]) >= limits.FOREIGN_NETWORKS_MAX:
                raise Refused(
                    f"{limits.FOREIGN_NETWORKS_MAX} networks are followed already, which is the most"
                )
            followed = Followed(anchor, data, b"") if known is None else replace(known, policy=data)
            await self._put(followed)
        return self._document(followed)

    async def update(self, data: bytes) -> Document:
        """Bring a network's anchor further, and record its newest header on our ledger.

        Raises:
            Refused: the update does not hold, or its network is not followed, or too long unconfirmed.
            NotFinal: the anchor is kept; its record on our ledger is queued.
        """
        try:
            update = codec.decode(data, Update)
        except Malformed as fault:
            raise Refused(f"this is no update: {fault}; ask a member of the network for another") from None
        async with self._writing:
            network = update.certificate.header.net
            known = self._row(network)
            if known is None:
                raise Refused(f"network {network.hex()} is not followed; add its genesis file first")
            followed = await self._advanced(known, update, data)
            await self._put(followed)
        return await self._record(followed)

    async def _advanced(self, known: Followed, update: Update, data: bytes) -> Followed:
        now_ms = self._clock.now_ms()
        try:
            anchor = await self._workers.run(advance, known.anchor, update, known.trust(), now_ms)
        except Conflicting as fork:
            if not known.conflict:
                await self._put(replace(known, conflict=data))
            raise Refused(
                f"a second history of network {known.anchor.network.hex()[:16]}: {fork}; both are kept as proof, tell its members"
            ) from None
        except RemoteFault as fault:
            raise Refused(f"the update does not hold: {fault}; ask another member of the network") from None
        return replace(known, anchor=anchor)

    async def confirm(self, network: str, newest: str) -> Document:
        """Take it from the caller that members of the network confirm its newest header known here, by its hash.

        Raises:
            Refused: no such network, or another header.
        """
        async with self._writing:
            found = [one for one in self._all() if network and one.anchor.network.hex().startswith(network)]
            if len(found) != 1:
                raise Refused(
                    f"no network, or more than one, begins with '{network[:64]}'; see carechain foreign status"
                )
            anchor = found[0].anchor
            if header_hash(anchor.header).hex() != newest.lower():
                raise Refused(
                    f"the newest header known here is {header_hash(anchor.header).hex()} of block {anchor.height}; "
                    "if members of the network do not know it, one of you sees another history"
                )
            followed = replace(found[0], anchor=replace(anchor, confirmed_ms=self._clock.now_ms()))
            await self._put(followed)
        return self._document(followed)

    # --- rows ---------------------------------------------------------------------------------------------------

    def _all(self) -> list[Followed]:
        return [_opened(row) for _, row in self._rows.scan(*keyspace.prefix_range(keyspace.FOREIGN))]

    def _row(self, network: NetworkId) -> Followed | None:
        row = self._rows.get(keyspace.FOREIGN + network)
        return _opened(row) if row is not None else None

    async def _put(self, followed: Followed) -> None:
        batch = Batch()
        batch.put(keyspace.FOREIGN + followed.anchor.network, codec.encode(followed))
        await self._disk.commit(batch, sync=True)

    async def _record(self, followed: Followed) -> Document:
        """Put the anchor's header on our ledger, once; return the document with what became of it."""
        header, me = followed.anchor.header, NodeId(self._key.public)
        row = self._store.state(foreign_key(me))
        heads = codec.decode(row, ForeignHeads).heads if row is not None else ()
        if any((one.foreign, one.height) == (header.net, header.height) for one in heads):
            return self._document(followed)
        checkpoint = ForeignCheckpoint(
            me,
            header.net,
            header.epoch,
            header.height,
            header.tree_size,
            header.tree_root,
            header_hash(header),
            self._submitter.valid_until(),
        )
        try:
            receipt = await self._submitter.submit(sign(checkpoint, self._store.network, self._key))
        except NotFinal as queued:
            raise NotFinal(str(queued), queued.ids, self._document(followed)) from None
        if not receipt.is_accepted:
            raise Refused(f"the update is kept, and our ledger did not take its record: {receipt.verdict}")
        return {**self._document(followed), "transaction": receipt.txid.hex()}

    def _document(self, followed: Followed) -> Document:
        anchor = followed.anchor
        freshness = anchor.freshness(self._clock.now_ms())
        return {
            "network": anchor.network.hex(),
            "height": anchor.height,
            "header_hash": header_hash(anchor.header).hex(),
            "epoch": anchor.header.epoch,
            "tree_size": anchor.header.tree_size,
            "tree_root": anchor.header.tree_root.hex(),
            "signers": len(anchor.configuration.signers),
            "confirmed": iso_time(anchor.confirmed_ms),
            "freshness": freshness.value,
            "usable": freshness is not Freshness.EXPIRED and not followed.conflict,
            "conflict": bool(followed.conflict),
        }


def _opened(row: bytes) -> Followed:
    try:
        return codec.decode(row, Followed)
    except Malformed as error:
        raise Corruption(f"the row of another network does not decode: {error}") from None
