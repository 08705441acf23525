"""Reads a whole ledger database in small portions, so that what rots is found while others still have it whole.

Reading verifies the checksum of every table block passed. Of blocks more is checked: that one decodes, is the one that
its height says, that its body is the one that its header names, that its leader signed it, and that the next one follows it; of certificates, that
they hold, and are for the block of their height.
"""

from dataclasses import dataclass

from protocol import codec, signing
from protocol.block import Block, body_root, check_shape, header_form
from protocol.errors import Corruption, RemoteFault, Unavailable
from protocol.finality import Certificate, check_certificate
from protocol.identifiers import ZERO, Digest, Height
from protocol.recovery_block import configuration_set_by
from storage import keyspace
from storage.key_value import KeyValue
from storage.ledger_store import LedgerStore

_ROWS_PER_PORTION = 2_048
_BYTES_PER_PORTION = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Portion:
    """What one portion held: applied blocks that are not what the chain says, certificates that do not hold, and whether there is more."""

    is_more: bool
    blocks: tuple[Height, ...] = ()
    certificates: tuple[Height, ...] = ()


class Walk:
    """One walk over all rows; `at` is the key where it goes on, to be kept for a later walk that resumes this one."""

    def __init__(self, rows: KeyValue, store: LedgerStore, at: bytes = b"") -> None:
        self._rows = rows
        self._store = store
        self.at = at
        self._before: tuple[Height, Digest] | None = None

    def read_portion(self) -> Portion:
        """Read on; return what was found wrong. Fit for a thread.

        Where one block does not follow another, both are named: which of them is wrong, the hashes above tell.

        Raises:
            Corruption: at bytes that fail their checksum.
        """
        applied = self._store.applied().height
        wrong: list[Height] = []
        unfounded: list[Height] = []
        size = 0
        for count, (key, value) in enumerate(self._rows.scan(self.at, keyspace.SEQUENCE_END), start=1):
            if key[:1] == keyspace.BLOCK:
                wrong += self._check(Height(int.from_bytes(key[1:], "big")), value, applied)
            elif key[:1] == keyspace.CERTIFICATE:
                height = Height(int.from_bytes(key[1:], "big"))
                unfounded += [height] if height <= applied and not self._is_founded(height, value) else []
            self.at = key + b"\0"
            size += len(key) + len(value)
            if count >= _ROWS_PER_PORTION or size >= _BYTES_PER_PORTION:
                return Portion(True, tuple(wrong), tuple(unfounded))
        return Portion(False, tuple(wrong), tuple(unfounded))

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

    def _is_founded(self, height: Height, row: bytes) -> bool:
        """Return whether a certificate holds; also when its block cannot be read, which is then to be fetched first."""
        try:
            block = self._store.block(height)
        except (Corruption, Unavailable):
            return True
        try:
            certificate = codec.decode(row, Certificate)
            following = configuration_set_by(block) if block.is_configuration else None
            configuration = self._store.configuration_at(height)
            named = check_certificate(certificate, self._store.network, configuration, following)
        except RemoteFault:
            return False
        return named == block.hash


def decoded(row: bytes, height: Height) -> Block:
    """Return a stored block whose body is the one that its header names, and whose leader signed it.

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
    # The one part of a block that neither its hash nor a certificate covers. Genesis and the first block of an epoch have no leader.
    header = block.header
    if header.leader != ZERO and not signing.verify(header.leader, header_form(header), block.signature):
        raise Corruption(f"block {height}: the leader's signature does not verify")
    return block
