"""Reads a whole ledger database in small portions, so that what rots is found while others still have it whole.

Reading verifies the checksum of every table block passed. Of blocks more is checked: that one decodes, is the one that
its height says, that its body is the one that its header names, and that the next one follows it.
"""

from protocol.block import Block, body_root, check_shape
from protocol.errors import Corruption, RemoteFault
from protocol.identifiers import Digest, Height
from storage import keyspace
from storage.key_value import KeyValue
from storage.ledger_store import LedgerStore

_ROWS_PER_PORTION = 2_048
_BYTES_PER_PORTION = 1024 * 1024


class Walk:
    """One walk over all rows; `at` is the key where it goes on, to be kept for a later walk that resumes this one."""

    def __init__(self, rows: KeyValue, store: LedgerStore, at: bytes = b"") -> None:
        self._rows = rows
        self._store = store
        self.at = at
        self._before: tuple[Height, Digest] | None = None

    def read_portion(self) -> tuple[bool, tuple[Height, ...]]:
        """Read on; return whether there is more, and the applied blocks met that are not what the chain says. Fit for a thread.

        Where one block does not follow another, both are named: which of them is wrong, the hashes above tell.

        Raises:
            Corruption: at bytes that fail their checksum.
        """
        applied = self._store.applied().height
        wrong: list[Height] = []
        size = 0
        for count, (key, value) in enumerate(self._rows.scan(self.at, keyspace.SEQUENCE_END), start=1):
            if key[:1] == keyspace.BLOCK:
                wrong += self._check(Height(int.from_bytes(key[1:], "big")), value, applied)
            self.at = key + b"\0"
            size += len(key) + len(value)
            if count >= _ROWS_PER_PORTION or size >= _BYTES_PER_PORTION:
                return True, tuple(wrong)
        return False, tuple(wrong)

    def _check(self, height: Height, row: bytes, applied: Height) -> list[Height]:
        before, self._before = self._before, None
        if height > applied:
            return []  # the Raft log checks what it has not committed, and may write it again
        try:
            block = decoded(row, height)
        except Corruption:
            return [height]
        self._before = height, block.hash
        if before is None or before[0] + 1 != height or before[1] == block.header.prev_hash:
            return []
        return [before[0], height]


def decoded(row: bytes, height: Height) -> Block:
    """Return a stored block whose body is the one that its header names.

    Raises:
        Corruption: it is not.
    """
    try:
        block = Block.decode(row)
        check_shape(block)
        leaves = block.leaves()
    except RemoteFault as fault:
        raise Corruption(f"block {height}: {fault}") from None
    if block.height != height or body_root(block.special, leaves) != block.header.tx_root:
        raise Corruption(f"block {height} is not what its header says")
    return block
