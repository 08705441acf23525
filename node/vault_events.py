"""What happened to a vault, read back from the ledger: its accepted transactions, in ledger order."""

from collections.abc import Iterator
from dataclasses import dataclass

from protocol.block import Block
from protocol.errors import Corruption
from protocol.identifiers import PublicKey, Vid
from protocol.ledger_rows import Receipt
from protocol.transaction import VaultTransaction
from storage.ledger_store import LedgerStore


@dataclass(frozen=True, slots=True)
class VaultEvent:
    """One accepted transaction, who signed it, and where it stands."""

    transaction: VaultTransaction
    signers: tuple[PublicKey, ...]
    receipt: Receipt


def events_of(store: LedgerStore, vid: Vid, *, newest_first: bool = False) -> Iterator[VaultEvent]:
    """Yield the accepted transactions of a vault.

    Raises:
        Corruption: a row or block that is needed is missing or damaged.
    """
    txids = store.events_of(vid)
    block: Block | None = None  # transactions of one vault often stand in one block
    for txid in reversed(txids) if newest_first else txids:
        receipt = store.receipt(txid)
        if receipt is None:
            raise Corruption(f"the receipt of transaction {txid.hex()[:16]} is missing from the ledger")
        if block is None or block.height != receipt.height:
            block = store.block(receipt.height)
        signed, found = block.entries()[receipt.index]
        if found != txid:
            raise Corruption(f"block {receipt.height} does not hold transaction {txid.hex()[:16]}")
        assert isinstance(signed.transaction, VaultTransaction), "listed under a vault"
        yield VaultEvent(signed.transaction, tuple([one.key for one in signed.signatures]), receipt)
