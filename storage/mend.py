"""A damaged ledger database made anew without an operator, when nothing is lost in it but what other members have too.

One byte changed in a table costs the rows of one table block. Blocks are fetched again from any member and checked by
hash; of the certificates any later one says as much. Everything else (state, applied mark, hard state, blocks not yet
applied, this facility's own rows) must be whole, and *the newest*: a stale vote or a stale row must never come back.

How that is known. Damage does not tell what it hit: the lost bytes may be a newer version of a row of which an older one
lies whole in another table. But the engine looks for a key from the newest place to the oldest and stops with an error at
the first that it cannot read, and a scan merges all places and stops where it would pass unreadable bytes in any. So a
value, or the absence of one, that the engine does return is the newest; a scan that ends has passed over nothing. Only
what was read so is carried over, each row once: an older version cannot return, because none is written.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from protocol import codec, limits
from protocol.block import Block, Header
from protocol.errors import Corruption, Malformed
from protocol.finality import Certificate
from protocol.identifiers import Height
from storage import keyspace
from storage.key_value import Batch, KeyValue
from storage.ledger_store import AppliedMark

_GENESIS = Height(0)
_BATCH_BYTES = 4 * limits.MIB
_ABOVE_BLOCKS = keyspace.prefix_range(keyspace.BLOCK)[1]
_ABOVE_TREE = keyspace.prefix_range(keyspace.TREE)[1]
_ABOVE_CERTIFICATES = keyspace.prefix_range(keyspace.CERTIFICATE)[1]


@dataclass(slots=True)
class Damage:
    """What is wrong with a ledger database, where it is blocks and certificates only.

    `is_met` when a table is damaged at all; `blocks` and `certificates` are the heights at or below `applied` of which the
    newest row may be lost. Where blocks were fetched and written again, none may be, and the table is still damaged.
    """

    is_met: bool = False
    blocks: list[Height] = field(default_factory=list)
    certificates: list[Height] = field(default_factory=list)
    applied: Height = _GENESIS


def intact_rows(rows: KeyValue, damage: Damage) -> Iterator[tuple[bytes, bytes]]:
    """Yield every row of a ledger database, in its newest version; note in `damage` the applied blocks and certificates that are lost.

    Raises:
        Corruption: something else is damaged, or may be. What was yielded is then no whole database.
    """
    applied = rows.get(keyspace.APPLIED)  # the only key below the blocks
    if applied is None:
        raise Corruption("the ledger holds no applied mark")
    yield keyspace.APPLIED, applied
    height = damage.applied = _applied_height(applied)
    yield from _family(rows, keyspace.BLOCK, damage, damage.blocks)
    yield from _unapplied(rows, height)
    yield from rows.scan(_ABOVE_BLOCKS, keyspace.TREE)
    yield from _tree(rows, damage)
    yield from rows.scan(_ABOVE_TREE, keyspace.CERTIFICATE)
    yield from _family(rows, keyspace.CERTIFICATE, damage, damage.certificates)
    yield from _certified_above(rows, damage)
    yield from rows.scan(_ABOVE_CERTIFICATES, keyspace.SEQUENCE_END)


class Survey:
    """Finds out what `mend` would find lost. Reads everything, in portions; rows may be written meanwhile."""

    def __init__(self, rows: KeyValue) -> None:
        self.damage = Damage()
        self._intact = intact_rows(rows, self.damage)

    def read_portion(self) -> bool:
        """Read on; return whether there is more. Fit for a thread.

        Raises:
            Corruption: `mend` would refuse.
        """
        size = 0
        for key, value in self._intact:
            size += len(key) + len(value)
            if size > _BATCH_BYTES:
                return True
        return False


def mend(damaged: KeyValue, fresh: KeyValue, genesis: Block) -> Damage:
    """Write every row of a damaged ledger database into an empty one; return what is lost, and noted there to be fetched.

    Durable only when `fresh` has been closed.

    Raises:
        Corruption: more than blocks and certificates is damaged, or may be, or a voter could not even say what its newest block
            is; nothing may be done with `fresh`.
        StorageFull, OSError: it could not be written.
    """
    damage, batch = Damage(), Batch()
    for key, value in intact_rows(damaged, damage):
        batch.put(key, value)
        if batch.bytes > _BATCH_BYTES:
            fresh.write(batch, sync=False)
            batch = Batch()
    if damage.applied in damage.blocks and damage.applied in damage.certificates and damage.applied > 0:
        raise Corruption(
            f"neither block {damage.applied}, which is the newest, nor its certificate can be read"
        )
    fresh.write(batch, sync=False)
    batch = Batch()
    for height in damage.blocks:
        if height > 0:
            put_lost(batch, height)
        else:
            _check_network(fresh, damage.applied, genesis)
            batch.put(_key(keyspace.BLOCK, 0), genesis.raw)
    if damage.applied in damage.certificates:
        put_lost(
            batch, damage.applied
        )  # no later certificate stands for this one: it comes back with its block
    fresh.write(batch, sync=True)
    return damage


# --- what is to be fetched --------------------------------------------------------------------------------------


def put_lost(batch: Batch, height: Height) -> None:
    """Note in a batch that an applied block, or its certificate, is to be fetched from another member."""
    batch.put(_key(keyspace.LOST, height), b"")


def clear_lost(batch: Batch, height: Height) -> None:
    """Add to a batch that nothing has to be fetched at this height any more."""
    batch.delete(_key(keyspace.LOST, height))


def drop_certificate(batch: Batch, height: Height) -> None:
    """Add the removal of a certificate that does not hold to a batch, and that another one is to be fetched."""
    batch.delete(_key(keyspace.CERTIFICATE, height))
    put_lost(batch, height)


def put_fetched(batch: Batch, blocks: Iterable[Block], certificates: Iterable[Certificate]) -> None:
    """Add blocks and certificates that came from another member to a batch. The caller has checked them."""
    for block in blocks:
        batch.put(_key(keyspace.BLOCK, block.height), block.raw)
    for certificate in certificates:
        batch.put(_key(keyspace.CERTIFICATE, certificate.header.height), codec.encode(certificate))


def lost_heights(rows: KeyValue) -> tuple[Height, ...]:
    """Return the heights noted by `put_lost`, ascending."""
    return tuple(_height(key) for key, _ in rows.scan(*keyspace.prefix_range(keyspace.LOST)))


# --- reading around the damage ----------------------------------------------------------------------------------


def _family(
    rows: KeyValue, prefix: bytes, damage: Damage, lost: list[Height]
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows of heights 0 to the applied one; note those that cannot be read, and perhaps never were."""
    height, last = 0, damage.applied
    stop = _key(prefix, last + 1)
    while height <= last:
        try:
            for key, value in rows.scan(_key(prefix, height), stop):
                yield key, value
                height = _height(key) + 1
        except Corruption:
            # A scan says only that it cannot go on. The point reads below say which heights it cannot go on with.
            damage.is_met = True
        else:
            return
        while height <= last:
            row = _row_or_lost(rows, prefix, Height(height), lost)
            height += 1
            if row is not None:
                yield _key(prefix, height - 1), row
                break


def _row_or_lost(rows: KeyValue, prefix: bytes, height: Height, lost: list[Height]) -> bytes | None:
    try:
        return rows.get(_key(prefix, height))
    except Corruption:
        lost.append(height)
        return None


def _tree(rows: KeyValue, damage: Damage) -> Iterator[tuple[bytes, bytes]]:
    """Yield the nodes of the tree up to the first that cannot be read: without their mark, the last row, all are computed again."""
    try:
        yield from rows.scan(*keyspace.prefix_range(keyspace.TREE))
    except Corruption:
        damage.is_met = True


def _unapplied(rows: KeyValue, applied: Height) -> Iterator[tuple[bytes, bytes]]:
    """Yield the blocks above the applied one, which this voter has acknowledged: none of them may be missing.

    Not a scan: it would also read the table block that ends with the applied block. They follow each other without a
    gap (`LedgerStore.truncate` removes all above a height), so the first that is known to be absent ends them.
    """
    height = applied + 1
    while (row := rows.get(_key(keyspace.BLOCK, height))) is not None:
        yield _key(keyspace.BLOCK, height), row
        height += 1


def _certified_above(rows: KeyValue, damage: Damage) -> Iterator[tuple[bytes, bytes]]:
    """Yield the certificate that was stored before the last of its blocks was applied. Not a scan either."""
    for height in range(damage.applied + 1, damage.applied + limits.UNCERTIFIED_BLOCKS_MAX + 1):
        key = _key(keyspace.CERTIFICATE, height)
        try:
            row = rows.get(key)
        except Corruption:
            damage.is_met = True  # if it was there at all, its blocks bring it again when they are applied
            continue
        if row is not None:
            yield key, row


# --- details ------------------------------------------------------------------------------------------------------


def _applied_height(row: bytes) -> Height:
    try:
        return codec.decode(row, AppliedMark).height
    except Malformed as error:
        raise Corruption(f"the applied mark of the ledger does not decode: {error}") from None


def _check_network(fresh: KeyValue, applied: Height, genesis: Block) -> None:
    """Check by the newest block, or its certificate, that genesis is the lost block 0: a home may have been given another's."""
    block, certificate = (
        fresh.get(_key(prefix, applied)) for prefix in (keyspace.BLOCK, keyspace.CERTIFICATE)
    )
    try:
        header: Header | None = None
        if block is not None:
            header = Block.decode(block).header
        elif certificate is not None:
            header = codec.decode(certificate, Certificate).header
    except Malformed as error:
        raise Corruption(f"block {applied} of the ledger does not decode: {error}") from None
    if header is None or header.net != genesis.header.net:
        raise Corruption("block 0 is damaged, and nothing tells that this ledger belongs to this network")


def _key(prefix: bytes, height: int) -> bytes:
    return prefix + keyspace.sequence_key(height)


def _height(key: bytes) -> Height:
    return Height(int.from_bytes(key[-8:], "big"))
