"""Signs the heads of the ledger, and gathers the signatures of the other signers and of outside witnesses on them.

Signers need to sign the *same* heads for their signatures to come together. Under load that is the tree before the first
block of a second of ledger time, which all members see alike; when nothing more comes, what is applied. At most one a second.

Members exchange: who has something new calls the others with it, and each answers with what it has. Nobody is believed:
signatures are verified under the keys of the configuration in force, and roots are compared with the own ledger.
"""

import contextlib
from collections.abc import Collection

import trio

from node.applier import Applier
from node.event_log import EventLog
from node.evidence import EvidenceDesk
from node.ports import Clock, Disk, PeerTransport
from node.tree import Tree
from node.verification import Verification
from protocol import limits
from protocol.checkpoint import (
    Checkpoint,
    NoteKey,
    Signature,
    SignedCheckpoint,
    log_key,
    origin_of,
    sign_checkpoint,
)
from protocol.checkpoint_book import CheckpointBook
from protocol.errors import Invalid, RemoteFault, Unavailable
from protocol.identifiers import NodeId
from protocol.merkle import Head
from protocol.notebook import SignedNote
from protocol.signing import SigningKey
from storage import keyspace
from storage.key_value import Batch, KeyValue
from storage.ledger_store import LedgerStore

CHANNEL = "checkpoint"
_TICK_MS = 1_000
_ASK_AGAIN_TICKS = 10
_TIMEOUT_MS = 2_000
_SIZES_MAX = 4 * limits.CHECKPOINTS_KEPT
"""Between two ticks, whatever members bring."""


class Checkpoints:
    """The signer and gatherer (`run`). `trouble` is a sentence for the operator, "" when there is nothing to say."""

    def __init__(
        self,
        *,
        store: LedgerStore,
        rows: KeyValue,
        disk: Disk,
        applier: Applier,
        tree: Tree,
        secret: SigningKey,
        cosigners: Collection[NoteKey],
        evidence: EvidenceDesk | None = None,
        transport: PeerTransport,
        verification: Verification,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """`secret` is this member's checkpoint key: it signs only while the configuration in force counts it among the signers.

        `evidence` hears of every checkpoint that a member has signed, so that it notices two that no tree can have both.
        """
        self._store = store
        self._rows = rows
        self._disk = disk
        self._applier = applier
        self._tree = tree
        self._secret = secret
        self.network = store.network
        self.origin = origin_of(self.network)
        self._mine = log_key(self.network, secret.public)
        self.cosigners = frozenset(cosigners)
        self._evidence = evidence
        self._transport = transport
        self._verification = verification
        self._clock = clock
        self._log = log
        self._book = CheckpointBook(limits.CHECKPOINTS_KEPT)
        self._signed_size = self._quiet_size = 0
        self._stored: dict[int, bytes] = {}
        self._asked: set[NodeId] = set()
        self.conflict: SignedCheckpoint | None = None
        """A signer's word for another ledger than ours: with ours, evidence (ledger.md E6)."""
        self.trouble = ""

    # --- what is known --------------------------------------------------------------------------------------------

    @property
    def log_keys(self) -> tuple[NoteKey, ...]:
        """The keys that sign this network's checkpoints now, sorted by node id of their members."""
        configuration = self._store.configuration
        return tuple(
            log_key(self.network, configuration.by_node[node].checkpoint) for node in configuration.signers
        )

    def newest(self) -> SignedCheckpoint | None:
        """Return the largest checkpoint that a certificate quorum of signers has signed, or None before the first."""
        return self._book.note(self._newest_size())

    def witnessed(self) -> SignedCheckpoint | None:
        """Return the largest checkpoint that one of our outside witnesses has cosigned as well, or None."""
        return self._book.note(self._witnessed_size())

    def _newest_size(self) -> int:
        return self._book.newest(self.log_keys, self._store.configuration.certificate_quorum)

    def _witnessed_size(self) -> int:
        return self._book.newest(self.cosigners, 1)

    def add(self, note: SignedCheckpoint) -> bool:
        """Take what is new in a note; return whether anything was.

        Raises:
            Invalid: another log's, a false signature, or a signer's word for another ledger (kept in `conflict`).
            Unavailable: it is of a head that this node has not come to, or that it cannot compare now.
        """
        checkpoint = note.checkpoint
        if checkpoint.origin != self.origin or checkpoint.extensions or not checkpoint.size:
            raise Invalid("not a checkpoint of this network")
        fresh = tuple(one for one in note.signatures if not self._book.holds(one, checkpoint))
        signed = SignedCheckpoint(checkpoint, fresh).signed_by((*self.log_keys, *self.cosigners))
        if not signed:
            return False
        self._tell(checkpoint, signed)
        if not self._is_ours(checkpoint):
            self._note_conflict(note, signed)
            raise Invalid("a signed checkpoint of another ledger")
        is_news = self._book.add(checkpoint, signed)
        if len(self._book.sizes) > _SIZES_MAX:
            self._trim()
        return is_news

    def _tell(self, checkpoint: Checkpoint, signed: dict[NoteKey, Signature]) -> None:
        if self._evidence is None:
            return
        for node, key in zip(self._store.configuration.signers, self.log_keys, strict=True):
            if key in signed:
                note = SignedCheckpoint(checkpoint, (signed[key],))  # one spelling for one statement
                self._evidence.see(SignedNote(node, note.encode()))

    def _is_ours(self, checkpoint: Checkpoint) -> bool:
        known = self._book.checkpoint(checkpoint.size)
        # Reading a root from the tree takes a millisecond or two: once a size, not for every member that brings it.
        return known == checkpoint or self._tree.is_head(checkpoint.size, checkpoint.root)

    def _note_conflict(self, note: SignedCheckpoint, signed: Collection[NoteKey]) -> None:
        if self.conflict is not None:
            return
        self.conflict = note
        members = self._store.configuration.by_node
        signers = zip(self._store.configuration.signers, self.log_keys, strict=True)
        names = [members[node].name for node, key in signers if key in signed]
        names += [key.name for key in self.cosigners if key in signed]
        self.trouble = (
            f"a checkpoint of {note.checkpoint.size} transactions that is not of this ledger is signed by {', '.join(names)}: "
            "two histories are being shown; compare `carechain status` with the other members"
        )
        self._log.error("a signed checkpoint is of another ledger", size=note.checkpoint.size)

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sign, gather and keep until cancelled."""
        self._load()
        self._transport.serve(CHANNEL, self._answer)
        ticks = 0
        async with trio.open_nursery() as nursery:
            while True:
                await self._clock.sleep_ms(_TICK_MS)
                ticks += 1
                size = self._sign(self._due())
                if size or (ticks % _ASK_AGAIN_TICKS == 0 and not self._is_complete()):
                    self._exchange(nursery, size or self._book.newest(self.log_keys, 1))
                await self._keep()

    def _due(self) -> Head | None:
        """Return the head to sign now, if any; called once a tick."""
        frontier = self._applier.mark.frontier
        is_quiet, self._quiet_size = frontier.size == self._quiet_size, frontier.size
        head = Head(frontier.size, frontier.root()) if is_quiet else self._applier.second
        return head if head is not None and head.size > self._signed_size else None

    def _sign(self, head: Head | None) -> int:
        """Sign a head if this member is a signer; return its size, 0 when nothing was signed."""
        if head is None or self._mine not in self.log_keys:
            return 0
        # Only what is applied, and so certified, is signed: no two heads of it can ever disagree.
        checkpoint = Checkpoint(self.origin, head.size, head.root)
        self._book.add(checkpoint, {self._mine: sign_checkpoint(self._secret, checkpoint)})
        self._signed_size = head.size
        return head.size

    def _is_complete(self) -> bool:
        """Whether every signer's signature on the present head is here."""
        return self._book.signed(self._applier.mark.tree_size) >= set(self.log_keys)

    # --- exchange -------------------------------------------------------------------------------------------------

    def _exchange(self, nursery: trio.Nursery, size: int) -> None:
        """Exchange with every member that is not still busy with the last time: the tick waits for nobody."""
        for peer in self._transport.peers():
            if peer.connected and peer.node not in self._asked:
                self._asked.add(peer.node)
                nursery.start_soon(self._exchange_with, peer.node, size)

    async def _exchange_with(self, peer: NodeId, size: int) -> None:
        try:
            await self._ask(peer, size)
        finally:
            self._asked.discard(peer)

    async def _ask(self, peer: NodeId, size: int) -> None:
        note = self._book.note(size)
        body = note.encode() if note is not None else b""
        try:
            answer = await self._transport.call(peer, CHANNEL, body, timeout_ms=_TIMEOUT_MS)
        except (Unavailable, RemoteFault):
            return  # away, just starting, or of another mind than we: then it says so where it is
        try:
            if answer:
                self.add(SignedCheckpoint.parse(answer))
        except Unavailable:
            return  # we are behind: we ask again
        except RemoteFault as fault:
            self._verification.reject(peer, fault)

    async def _answer(self, _peer: NodeId, body: bytes) -> bytes:
        """Take what a member has, and answer with what is known here of the same size, or of the newest."""
        size = self._newest_size()
        if body:
            note = SignedCheckpoint.parse(body)
            with contextlib.suppress(Unavailable):  # we are behind: the caller brings it again, or we ask
                self.add(note)
                size = note.checkpoint.size
        answer = self._book.note(size)
        return answer.encode() if answer is not None else b""

    # --- keeping ----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        keys = (*self.log_keys, *self.cosigners)
        for key, value in self._rows.scan(*keyspace.prefix_range(keyspace.CHECKPOINT)):
            self._stored[int.from_bytes(key[len(keyspace.CHECKPOINT) :], "big")] = value
            try:
                # Compared with the ledger when it was stored; signed by those who count now, or of no use any more.
                note = SignedCheckpoint.parse(value)
                self._book.add(note.checkpoint, note.signed_by(keys))
            except RemoteFault:
                self._log.debug("a kept checkpoint is of no use any more")
        mine = [size for size in self._book.sizes if self._mine in self._book.signed(size)]
        self._signed_size = max(mine, default=0)

    async def _keep(self) -> None:
        """Keep the newest complete checkpoint and the newest cosigned one over a restart: cosignatures are hard to come by."""
        notes = ((size, self._book.note(size)) for size in self._trim())
        wanted = {size: note.encode() for size, note in notes if note is not None}
        if wanted == self._stored:
            return
        batch = Batch()
        for size in self._stored.keys() - wanted.keys():
            batch.delete(keyspace.CHECKPOINT + keyspace.sequence_key(size))
        for size, raw in wanted.items():
            batch.put(keyspace.CHECKPOINT + keyspace.sequence_key(size), raw)
        await self._disk.commit(batch, sync=False)
        self._stored = wanted

    def _trim(self) -> set[int]:
        """Forget sizes that are of no use; return those to keep over a restart."""
        wanted = {size for size in (self._newest_size(), self._witnessed_size()) if size}
        self._book.trim(wanted, self._mine)
        return wanted
