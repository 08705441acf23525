"""A witness of logs: cosigns that they only ever grow, as C2SP tlog-witness asks (the rules: `protocol.log_witness`).

What it has cosigned is in the ledger database; the key is in the keystore, under the name of that memory. A witness whose
memory is gone, by a rebuild or a restored backup, could cosign a second history: so it then gets a new key, and the old one
signs nothing any more. Whoever trusts it is told the new one.
"""

from collections.abc import Callable

import trio

from node.event_log import EventLog
from node.ports import Clock, Disk, Entropy
from node.tree import Tree
from protocol import codec, signing
from protocol.checkpoint import Checkpoint, KeyKind, NoteKey, cosign_checkpoint
from protocol.errors import Corruption, Malformed, Unavailable
from protocol.identifiers import NodeId, PublicKey, peer_id
from protocol.log_witness import (
    NOTHING,
    AddCheckpoint,
    Declined,
    KnownLog,
    Witnessed,
    check_growth,
    check_signed,
)
from protocol.signing import SigningKey
from storage import keyspace
from storage.key_value import Batch, KeyValue
from storage.keystore import Keystore

_MEMORY_ID_BYTES = 16
_SEED_BYTES = 32


def cosigning_key(rows: KeyValue, keystore: Keystore, entropy: Entropy) -> SigningKey:
    """Return the key that belongs to what this witness remembers; both are made at the first use."""
    memory = rows.get(keyspace.LOG_WITNESS)
    if memory is None:
        memory = entropy.bytes(_MEMORY_ID_BYTES)
        keystore.put(_name(memory), entropy.bytes(_SEED_BYTES))
        # Persist the key before its memory's name: a name without a key would be a witness that never starts.
        batch = Batch()
        batch.put(keyspace.LOG_WITNESS, memory)
        rows.write(batch, sync=True)
    seed = keystore.get(_name(memory))
    if seed is None:
        raise Corruption(
            "the key of the log witness is missing from the key store; restore the home from a copy"
        )
    return SigningKey(seed)


def key_name(node: NodeId) -> str:
    """Return the name under which a node cosigns."""
    return f"carechain/{peer_id(node)}"


def _decoded(stored: bytes) -> Witnessed:
    try:
        return codec.decode(stored, Witnessed)
    except Malformed:
        raise Corruption(
            "what this witness remembers of a log is damaged: it cosigns that log no more"
        ) from None


def _name(memory: bytes) -> str:
    return f"log-witness/{memory.hex()}"


class LogWitness:
    """Answers add-checkpoint. Requests for one log are judged one after the other."""

    def __init__(
        self,
        rows: KeyValue,
        *,
        name: str,
        secret: SigningKey,
        logs: Callable[[], tuple[KnownLog, ...]],
        own: tuple[str, Tree],
        disk: Disk,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """`logs` are those known at the moment; `own` the origin of our ledger, of which we know more than what we cosigned."""
        self._rows = rows
        self._name = name
        self._secret = secret
        self._logs = logs
        self._own_origin, self._own_tree = own
        self._disk = disk
        self._clock = clock
        self._log = log
        self._changing: dict[bytes, trio.Lock] = {}

    @property
    def key(self) -> NoteKey:
        """What others are configured with to know our cosignatures."""
        return NoteKey(self._name, KeyKind.COSIGNER, PublicKey(self._secret.public))

    async def add_checkpoint(self, body: bytes) -> str:
        """Return the signature line for a checkpoint that continues what was cosigned before.

        Raises:
            Declined: we do not cosign it; with the HTTP status to answer.
            StorageFull, Unavailable: not now.
        """
        try:
            request = AddCheckpoint.parse(body)
        except Malformed as fault:
            raise Declined(400, str(fault)) from None
        checkpoint = request.note.checkpoint
        known = next((one for one in self._logs() if one.origin == checkpoint.origin), None)
        check_signed(request, known)
        self._check_own(checkpoint)
        row = keyspace.LOG_WITNESS + signing.sha256(checkpoint.origin.encode())
        # Until it is signed nobody else decides on this log: or a smaller head would follow a larger one, in the record or in time.
        async with self._changing.setdefault(row, trio.Lock()):
            await self._record(row, request)
            # Persisted before signing: a cosignature that is forgotten in a crash could be given again, for another history.
            time_s = self._clock.now_ms() // 1000
            return cosign_checkpoint(self._secret, self._name, checkpoint, time_s).line

    async def _record(self, row: bytes, request: AddCheckpoint) -> None:
        stored = self._disk.read(row)
        record = _decoded(stored) if stored is not None else NOTHING
        try:
            following = check_growth(request, record)
        except Declined as refusal:
            self._log.warning("a checkpoint was not cosigned", status=refusal.status, reason=str(refusal))
            raise
        if following == record and stored is not None:
            return
        batch = Batch()
        batch.put(row, codec.encode(following))
        await self._disk.commit(batch, sync=True)

    def _check_own(self, checkpoint: Checkpoint) -> None:
        """Check a checkpoint of our own network against our own ledger.

        Raises:
            Declined: 422, it is not of our ledger; 503, our ledger is not that far.
        """
        if checkpoint.origin != self._own_origin:
            return
        try:
            is_ours = self._own_tree.is_head(checkpoint.size, checkpoint.root)
        except Unavailable as reason:
            raise Declined(503, str(reason)) from None
        if not is_ours:
            self._log.error("a checkpoint signed by members is not of this ledger", size=checkpoint.size)
            raise Declined(422, "the checkpoint is not of the ledger that this witness holds")
