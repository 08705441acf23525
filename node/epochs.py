"""Category epochs of every vault on the ledger: their public keys, and the way from a newer secret to an older one.

A row for each (vault, epoch), written by `grant_watcher` from certified blocks, so that nobody has to read a vault's
whole history to find the one EpochRotate that matters. The way itself is the chain of links (cryptography.md section
3): whoever holds the secret of epoch e + 1 opens the link attachment and holds that of epoch e.
"""

from dataclasses import dataclass

from node.attachments import Attachments
from node.ports import Disk
from protocol import codec
from protocol.codec import Bytes32, wire
from protocol.errors import Corruption, RemoteFault, Unavailable
from protocol.hpke import x25519_public
from protocol.identifiers import ZERO, Digest, PublicKey, Vid
from protocol.patient_keys import open_epoch_link
from protocol.transaction import EpochRotate, VaultOpen
from storage.key_value import Batch
from storage.keyspace import EPOCH


@wire("epoch-row")
@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch: its category key, and the attachments of the EpochRotate that began it (ZERO for epoch 0)."""

    cat_pk: Bytes32
    link_hash: Bytes32
    wraps_hash: Bytes32


class Epochs:
    """Reads epoch rows and walks their links."""

    def __init__(self, disk: Disk, attachments: Attachments) -> None:
        self._disk = disk
        self._attachments = attachments

    @staticmethod
    def stage(batch: Batch, transaction: VaultOpen | EpochRotate) -> None:
        """Add the row of the epoch that a certified transaction begins."""
        if isinstance(transaction, VaultOpen):
            batch.put(_key(transaction.vid, 0), codec.encode(EpochRow(transaction.cat_pk, ZERO, ZERO)))
        else:
            row = EpochRow(transaction.cat_pk, transaction.link_hash, transaction.wraps_hash)
            batch.put(_key(transaction.vid, transaction.epoch), codec.encode(row))

    def row(self, vid: Vid, epoch: int) -> EpochRow:
        """Return an epoch's row.

        Raises:
            Unavailable: not read from the ledger yet.
        """
        row = self._disk.read(_key(vid, epoch))
        if row is None:
            raise Unavailable("this facility is still reading that part of the ledger; retry in a moment")
        return codec.decode(row, EpochRow)

    async def older_secret(self, vid: Vid, epoch: int, *, known_epoch: int, known_secret: bytes) -> bytes:
        """Return the category secret of `epoch` from that of a newer (or the same) one.

        Raises:
            Unavailable: a link, or the key of an epoch after the known one, is not here yet.
            Corruption: a link does not lead to the key that the ledger names.
        """
        if epoch > known_epoch:
            raise Unavailable(
                "the key for the newest records of this vault has not arrived yet; retry in a moment"
            )
        secret = known_secret
        for newer in range(known_epoch, epoch, -1):
            link = await self._attachments.get(Digest(self.row(vid, newer).link_hash))
            try:
                secret = open_epoch_link(vid, newer - 1, link, newer=secret)
            except RemoteFault:
                raise Corruption(
                    f"the link to epoch {newer - 1} of vault {vid.hex()[:16]} does not open"
                ) from None
        if PublicKey(self.row(vid, epoch).cat_pk) != x25519_public(secret):
            raise Corruption(f"the key of epoch {epoch} of vault {vid.hex()[:16]} is not the ledger's")
        return secret


def _key(vid: Vid, epoch: int) -> bytes:
    return EPOCH + vid + epoch.to_bytes(8, "big")
