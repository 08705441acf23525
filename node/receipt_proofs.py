"""Makes receipt files of final transactions: collects what the ledger store holds, and checks it as a stranger would.

A member that was there when a block became final has its certificate, or one a few blocks above it; one that caught up
later may only have one further above, and then its receipts carry the headers between.
"""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from node.ports import Workers
from node.recovery_base import step_of
from protocol import limits, receipt_file
from protocol.block import Block, Header
from protocol.change_proof import (
    Change,
    ConfigurationChange,
    CrossingRecovery,
    FinalityProof,
    Step,
    without_unsigned,
)
from protocol.errors import Corruption, Refused, RemoteFault, Unavailable
from protocol.finality import Certificate
from protocol.identifiers import ZERO, Height, Txid
from protocol.ledger_rows import Receipt, receipt_key
from protocol.receipt_file import Finding
from protocol.recovery_block import signed_recovery_of
from storage.ledger_store import LedgerStore

_PREFIX_MIN = 4
_ID_CHARACTERS = 64
_HEADERS_PER_TURN = 16
"""A header is read with its block, of up to 1 MiB; then others have their turn."""


@dataclass(frozen=True, slots=True)
class MadeReceipt:
    """A receipt as a file, what it proves, and what this member's ledger says of the transaction besides."""

    data: bytes
    finding: Finding
    receipt: Receipt


class ReceiptProofs:
    """Answers `audit receipt`."""

    def __init__(
        self,
        store: LedgerStore,
        workers: Workers,
        certificate_at_or_above: Callable[[Height], Certificate | None],
    ) -> None:
        """`certificate_at_or_above` gives the certificate of the lowest certified block at or above a height."""
        self._store = store
        self._workers = workers
        self._certificate_at_or_above = certificate_at_or_above

    async def make(self, transaction: str, *, told: bool) -> MadeReceipt:
        """Return the receipt of the final transaction whose id begins with `transaction`; `told` if it holds its bytes.

        Raises:
            Refused: no final transaction has such an id, or more than one begins so.
            Unavailable: the blocks or the certificate that it needs are not here (any more, or yet).
            Corruption: what is stored here proves nothing.
        """
        receipt = self._find(transaction)
        block = self._store.block(receipt.height)
        if receipt.index >= len(block.transactions):
            raise Corruption(f"block {receipt.height} does not hold transaction {receipt.txid.hex()[:16]}")
        proof = await self._proof(block.header)
        made = receipt_file.make(block, receipt.index, proof, told=told)
        try:
            data, finding = await self._workers.run(self._checked, made)
        except RemoteFault as fault:
            raise Corruption(
                f"the receipt would prove nothing: {fault}; run carechain audit verify to see what is damaged"
            ) from None
        if finding.txid not in (None, receipt.txid):
            raise Corruption(f"block {receipt.height} does not hold transaction {receipt.txid.hex()[:16]}")
        return MadeReceipt(data, finding, receipt)

    def _checked(self, made: receipt_file.ReceiptFile) -> tuple[bytes, Finding]:
        """Return a receipt's bytes, and what whoever reads them will find."""
        data = receipt_file.encode(made)
        return data, receipt_file.check(receipt_file.decode(data), self._store.network)

    def _find(self, transaction: str) -> Receipt:
        prefix = transaction.strip().lower()
        if not _PREFIX_MIN <= len(prefix) <= _ID_CHARACTERS or set(prefix) - set("0123456789abcdef"):
            raise Refused(
                f"'{transaction[:80]}' is no transaction id; give at least {_PREFIX_MIN} of its {_ID_CHARACTERS} hexadecimal digits"
            )
        base = receipt_key(Txid(b""))
        found: list[Txid] = []
        for key, _ in self._store.state_rows(base + bytes.fromhex(prefix[: len(prefix) // 2 * 2])):
            txid = Txid(key[len(base) :])
            if txid.hex().startswith(prefix):
                found.append(txid)
            if len(found) > 1:
                raise Refused(f"more than one transaction begins with {prefix}; give more of its id")
        receipt = self._store.receipt(found[0]) if found else None
        if receipt is None:
            raise Refused(
                f"no transaction that begins with {prefix} is final here; carechain record status tells what is not final yet"
            )
        return receipt

    async def _proof(self, header: Header) -> FinalityProof:
        certificate = self._certificate_at_or_above(header.height)
        while certificate is not None and certificate.header.next_config_hash != ZERO:
            # That of a configuration block comes among the changes; who caught up may have no other below the next one.
            certificate = self._certificate_at_or_above(Height(certificate.height + 1))
        if certificate is None:
            raise Unavailable(f"the certificate of block {header.height} is not here yet; retry in a moment")
        if certificate.height - header.height > limits.PROOF_HEADERS_MAX:
            raise Unavailable(
                f"this member caught up later: its next certificate after block {header.height} is of block "
                f"{certificate.height}; ask a member that was there"
            )
        ancestors: list[Header] = []
        for height in range(header.height, certificate.height):
            ancestors.append(self._store.header(Height(height)))
            if len(ancestors) % _HEADERS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        changes = self.changes(Height(0), certificate.height)
        return FinalityProof(self._store.genesis, changes, tuple(ancestors), without_unsigned(certificate))

    def changes(self, above: Height, below: Height) -> tuple[Change, ...]:
        """Return every change of the configuration between two heights, with its certificate or the consents to it.

        Raises:
            Unavailable: one of the certificates is not here.
        """
        changes: list[Change] = []
        uncertified: Height | None = None
        for height, configuration in self._store.configurations.set_below(below):
            if height <= above:
                continue
            block = self._store.block(height)
            if block.is_recovery:
                # The block that begins an epoch is of no leader, and needs no certificate (ledger.md 7.4).
                changes.append(self._recovery(block, uncertified))
                uncertified = None
                continue
            certificate = self._certificate_at_or_above(height)
            if uncertified is not None:
                raise Unavailable(_without_certificate(uncertified))
            if certificate is None or certificate.height != height:
                uncertified = height
            else:
                changes.append(ConfigurationChange(without_unsigned(certificate), configuration))
        if uncertified is not None:
            raise Unavailable(_without_certificate(uncertified))
        return tuple(changes)

    def _recovery(self, block: Block, uncertified: Height | None) -> Step:
        """Return what a block that begins an epoch proves, and with it the change below that has no certificate here."""
        if uncertified is None:
            return signed_recovery_of(block)
        step = step_of(self._store, block)
        if not isinstance(step, CrossingRecovery):
            raise Unavailable(_without_certificate(uncertified))
        return step


def _without_certificate(height: Height) -> str:
    return f"the certificate of configuration block {height} is not here; ask a member that was there"
