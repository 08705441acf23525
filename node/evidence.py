"""Evidence at one node: noted as statements come by, kept, gossiped, and brought onto the ledger (ledger.md 1.2).

    consensus, catchup ─► see ─► Notebook ─┐
                                           ├─► kept on disk ─► gossip ─► Accusation ─► final: forgotten here
                  gossip ─► checked ───────┘

Whoever leads may be the one accused, and keep the accusation out: so every member that hears of evidence keeps it, and hands
it in again until the ledger has it. Nothing follows by itself from being convicted: members vote on that.
"""

from collections.abc import Iterable, Mapping

import trio

from node.event_log import EventLog
from node.hearing import Heard, Hearing
from node.ports import Clock, Disk, PeerTransport, Workers
from node.receipts import Submitter
from protocol import convictions, evidence, limits, merkle, transaction
from protocol.block import Block, Header
from protocol.configuration import Configuration
from protocol.convictions import CONVICTED_PREFIX, Convicted
from protocol.errors import CarechainError, Corruption, NotFinal, RemoteFault, Unavailable
from protocol.evidence import Conviction, Evidence
from protocol.evidence_blocks import shown_invalid
from protocol.evidence_lines import SignedHeader
from protocol.identifiers import Digest, Height, NetworkId, NodeId, peer_id
from protocol.merkle import Frontier
from protocol.notebook import Notebook, Statement
from protocol.overheard import holds
from protocol.signing import SigningKey, sha256
from protocol.transaction import Accusation
from storage import keyspace
from storage.key_value import Batch, KeyValue
from storage.ledger_store import LedgerStore
from storage.tree_store import TreeStore

TOPIC = "evidence"
_HEARD_MAX = 16
"""Gossip that waits to be checked; when it is full more is dropped, as gossip may be."""
_PATIENCE_MS = 2_000
_PATIENT_MAX = 5
"""How long handing in is left to the members before this one, for each of them: or all would hand in the same."""
_AGAIN_MS = 30_000
_GIVEN_UP_MS = 24 * 3_600_000
"""Then it is given up: there was no quorum for so long, or nobody to be cleared."""

MEANINGS = {
    "E1": "cut two blocks for one height",
    "E2": "acknowledged two histories in one term",
    "E3": "voted for two histories",
    "E3b": "voted upon a block that is not certified",
    "E3c": "voted after it had promised to stand still",
    "E4": "voted twice in one term",
    "E5a": "stood for election and hid a term in which it had acknowledged blocks",
    "E5b": "stood for election and hid blocks that it had acknowledged",
    "E5c": "was elected with one log and went on with another",
    "E6": "signed two checkpoints that no tree can have both",
    "E7": "signed a block that breaks the rules",
    "E8": "left out a transaction that it had promised to include",
}


class EvidenceDesk:
    """Run `run` beside the core, whose `hearing` it compares. `see` is for whoever has verified a statement; it never waits."""

    def __init__(
        self,
        *,
        key: SigningKey,
        hearing: Hearing,
        store: LedgerStore,
        rows: KeyValue,
        disk: Disk,
        submitter: Submitter,
        transport: PeerTransport,
        workers: Workers,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """`key` is the node key; `disk` writes the database that `rows` reads."""
        self._key = key
        self._me = NodeId(key.public)
        self._store = store
        self._rows = rows
        self._disk = disk
        self._submitter = submitter
        self._transport = transport
        self._workers = workers
        self._clock = clock
        self._log = log
        self._known = (-1, dict[Digest, Configuration]())
        self._notebook = Notebook(store.network, self._configurations)
        self._hearing = hearing
        self._heard = transport.subscribe(TOPIC, _HEARD_MAX)
        self._found, self._to_keep = trio.open_memory_channel[Evidence](limits.EVIDENCE_PENDING_MAX)
        self._pending = set[Digest]()

    @property
    def _network(self) -> NetworkId:
        return self._store.network

    def see(self, statement: Statement, headers: Iterable[Header] = ()) -> None:
        """Note what somebody signed, with headers that came along."""
        for found in self._notebook.see(statement, headers):
            self._take(found)

    def take(self, found: Evidence) -> None:
        """Take evidence that was put together elsewhere; what convicts nobody is passed over."""
        if self._notebook.is_news(found):
            self._take(found)

    async def run(self) -> None:
        """Keep, spread and hand in what is found, until cancelled."""
        async with trio.open_nursery() as tasks:
            for _, raw in list(self._rows.scan(*keyspace.prefix_range(keyspace.EVIDENCE))):
                self._pending.add(sha256(raw))
                tasks.start_soon(self._hand_in, raw)
            tasks.start_soon(self._listen)
            tasks.start_soon(self._compare)
            async for found in self._to_keep:
                raw = evidence.encode(found)
                await self._keep(raw)
                try:
                    await self._transport.publish(TOPIC, raw)
                except CarechainError as error:
                    self._log.debug("evidence not gossiped; the ledger spreads it", reason=str(error))
                tasks.start_soon(self._hand_in, raw)

    async def _listen(self) -> None:
        async with trio.open_nursery() as tasks:
            async for _, raw in self._heard:
                if sha256(raw) in self._pending or len(self._pending) >= limits.EVIDENCE_PENDING_MAX:
                    continue
                try:
                    found = evidence.decode(raw)
                    await self._workers.run(evidence.check, found, self._network, self._configurations())
                except CarechainError as error:
                    self._log.debug("gossip that is no evidence", reason=str(error))
                    continue
                await self._read(self._hearing.aside())  # a certificate in it may clear who is accused
                for rebuttal in self._notebook.rebut(found):
                    self._take(rebuttal)
                if self._notebook.is_news(found):
                    await self._keep(raw)
                    tasks.start_soon(self._hand_in, raw)

    async def _compare(self) -> None:
        """Compare what is heard, a little at a time: nothing that is urgent waits for it."""
        async for heard in self._hearing.heard:
            await self._read(heard)
            await self._judge(heard.refused)

    async def _read(self, heard: Heard) -> None:
        # Also what the core has verified: it passes over what is old, and a statement that does not hold would hide one that does.
        new = [statement for statement in heard.said if not self._notebook.has_seen(statement)]
        held = await self._workers.run(_which_hold, new, self._network, self._configurations())
        for statement in held:
            self.see(statement, heard.headers)
            await trio.lowlevel.checkpoint()

    async def _judge(self, refused: tuple[Block, ...]) -> None:
        """Look for what is invalid in blocks that were refused."""
        below: Header | None = None
        for block in refused:
            predecessor = below or self._header(Height(block.height - 1))
            below = block.header
            if predecessor is None or not await self._workers.run(_is_signed, block, self._network):
                continue
            tree, leaves = self._tree_before(predecessor)
            found = await self._workers.run(shown_invalid, block, predecessor, tree, leaves)
            if self._notebook.is_news(found):
                self._take(found)
                return

    def _header(self, height: Height) -> Header | None:
        try:
            return self._store.header(height)
        except (Corruption, Unavailable):
            return None

    def _tree_before(self, predecessor: Header) -> tuple[Frontier | None, tuple[Digest, ...]]:
        """Return the tree before a block of this log, and the leaves that this one adds: what shows that a root is wrong."""
        try:
            block = self._store.block(predecessor.height)
            return merkle.frontier_of(predecessor.tree_size, TreeStore(self._rows).subtree), block.leaves()
        except (Corruption, Unavailable):
            return None, ()  # not to be shown here; others may

    def _take(self, found: Evidence) -> None:
        conviction = evidence.check(found, self._network, self._configurations())
        self._log.warning("found evidence", kind=conviction.kind, members=self._ids(conviction.nodes))
        try:
            self._found.send_nowait(found)
        except trio.WouldBlock:
            self._log.warning("evidence dropped: too much of it waits", kind=conviction.kind)

    async def _keep(self, raw: bytes) -> None:
        # Before anybody is told: who lies may be about to take over, and this node to crash.
        self._pending.add(sha256(raw))
        batch = Batch()
        batch.put(keyspace.EVIDENCE + sha256(raw), raw)
        await self._disk.commit(batch, sync=True)

    async def _hand_in(self, raw: bytes) -> None:
        await self._clock.sleep_ms(_PATIENCE_MS * min(self._place(), _PATIENT_MAX))
        try:
            conviction = evidence.check(evidence.decode(raw), self._network, self._configurations())
        except RemoteFault as error:
            # Kept by a program that judged otherwise.
            self._log.warning("kept evidence convicts nobody", reason=str(error))
        else:
            await self._until_judged(raw, conviction)
        batch = Batch()
        batch.delete(keyspace.EVIDENCE + sha256(raw))
        await self._disk.commit(batch, sync=False)
        self._pending.discard(sha256(raw))

    async def _until_judged(self, raw: bytes, conviction: Conviction) -> None:
        # An accusation that is not true stands no longer than it must: what clears of it is handed in as soon as it is there.
        pause_ms = _AGAIN_MS if conviction.cleared is None else _PATIENCE_MS
        for _ in range(_GIVEN_UP_MS // pause_ms):
            if self._is_recorded(conviction):
                return
            if self._is_due(conviction) and await self._submit(raw):
                return
            await self._clock.sleep_ms(pause_ms)

    async def _submit(self, raw: bytes) -> bool:
        """Hand evidence in; return whether the ledger has judged it."""
        body = Accusation(self._me, raw, self._submitter.valid_until())
        try:
            receipt = await self._submitter.submit(transaction.sign(body, self._network, self._key))
        except NotFinal:
            return False
        self._log.info("handed in evidence", verdict=receipt.verdict)
        return True

    def _is_recorded(self, conviction: Conviction) -> bool:
        """Return whether the ledger knows all that evidence says; what clears somebody is handed in whoever did before."""
        rows = [convictions.convicted_key(node, conviction.kind) for node in conviction.nodes]
        return conviction.cleared is None and all(self._store.state(row) is not None for row in rows)

    def _is_due(self, conviction: Conviction) -> bool:
        """Return whether the ledger could do something with it: only who stands accused there can be cleared."""
        cleared = conviction.cleared
        rows = [convictions.convicted_key(cleared, kind) for kind in evidence.CLEARABLE] if cleared else []
        return cleared is None or any(self._store.state(row) is not None for row in rows)

    def _configurations(self) -> Mapping[Digest, Configuration]:
        height = self._store.configurations.newest_height
        if self._known[0] != height:
            self._known = height, self._store.configurations.by_digest()
        return self._known[1]

    def _place(self) -> int:
        nodes = sorted(self._store.configuration.by_node)
        return nodes.index(self._me) if self._me in nodes else len(nodes)

    @staticmethod
    def _ids(nodes: Iterable[NodeId]) -> list[str]:
        return [peer_id(node) for node in nodes]


def _which_hold(
    statements: list[Statement], network: NetworkId, configurations: Mapping[Digest, Configuration]
) -> list[Statement]:
    return [statement for statement in statements if holds(statement, network, configurations)]


def _is_signed(block: Block, network: NetworkId) -> bool:
    """Return whether its leader has signed a block: who only relays must not make us look at bodies for nothing."""
    return holds(SignedHeader(block.header, block.signature), network, {})


def convicted(store: LedgerStore) -> tuple[Convicted, ...]:
    """Return what the ledger says members are convicted of, oldest first."""
    return convictions.rows_of(store.state_rows(CONVICTED_PREFIX))


def convicted_documents(store: LedgerStore) -> list[dict[str, object]]:
    """Return the same for JSON documents."""
    return [
        {
            "kind": one.kind,
            "height": one.about,
            "member": store.configurations.name_ever(one.node),
            "peer_id": peer_id(one.node),
            "meaning": MEANINGS[one.kind],
            "block": one.height,
            "txid": one.txid.hex(),
        }
        for one in convicted(store)
    ]
