"""The judgement at the end of a run: from what clients were told, and from the ledgers that the daemons left on disk."""

from collections import Counter
from dataclasses import dataclass

from node.card_file import read_genesis
from protocol.identifiers import Digest, Height, Txid, Vid
from protocol.ledger_rows import Receipt
from protocol.transaction import Grant, RecordCommit, Revoke, VaultTransaction
from simulations.linearizability import Verdict, check
from storage.databases import open_ledger
from storage.ledger_store import LedgerStore
from tests.real.daemons import Daemon
from tests.real.journal import (
    AccessModel,
    AddRecord,
    EndGrant,
    Entry,
    GiveGrant,
    Journal,
    OrderModel,
    Position,
    Wish,
)

_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Ledger:
    """One daemon's ledger as its disk has it."""

    name: str
    height: Height
    tip: Digest
    digests: tuple[Digest, ...]
    receipts: dict[str, Receipt]
    """Of every transaction in a block, by id."""
    copies: int
    """How often a transaction stands in a block once more; a copy has no effect."""
    accepted: Counter[str]
    """Accepted transactions by kind."""
    events_twice: tuple[str, ...]
    """Transactions that took effect twice in a vault, or in two."""


def ledger_of(daemon: Daemon) -> Ledger:
    """Read the ledger of a stopped daemon."""
    database = open_ledger(daemon.home.path, create=False)
    try:
        store = LedgerStore(database, read_genesis(daemon.home.genesis))
        mark = store.applied()
        digests, appearances, kinds = [], Counter[Txid](), Counter[str]()
        receipts: dict[str, Receipt] = {}
        vaults: set[Vid] = set()
        for block in store.blocks(Height(0), mark.height):
            digests.append(block.hash)
            for signed, txid in block.entries():
                appearances[txid] += 1
                receipt = store.receipt(txid)
                if receipt is None or appearances[txid] > 1:
                    continue
                receipts[txid.hex()] = receipt
                if receipt.is_accepted:
                    kinds[type(signed.transaction).__name__] += 1
                    if isinstance(signed.transaction, VaultTransaction):
                        vaults.add(Vid(signed.transaction.vid))
        events = Counter(txid for vid in sorted(vaults) for txid in store.events_of(vid))
        return Ledger(
            daemon.name,
            mark.height,
            mark.hash,
            tuple(digests),
            receipts,
            appearances.total() - len(appearances),
            kinds,
            tuple(txid.hex() for txid, count in events.items() if count > 1),
        )
    finally:
        database.close()


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found."""

    problems: tuple[str, ...]
    height: int
    transactions: int
    copies: int
    access: Verdict
    order: Verdict


def judge(journal: Journal, ledgers: tuple[Ledger, ...]) -> Judgement:
    """Compare the daemons' ledgers with each other and with what the clients were told."""
    first = ledgers[0]
    entries = journal.entries()
    positions: dict[str, Position] = {
        txid: (receipt.height, receipt.index)
        for txid, receipt in first.receipts.items()
        if receipt.is_accepted
    }
    access = check(journal.access(), AccessModel())
    order = check(journal.order(positions), OrderModel())
    problems = [
        *_differences(ledgers),
        *_lost(entries, ledgers),
        *_twice(entries, ledgers),
        *(f"access at {part.part}: {part.explanation}" for part in access.violations),
        *(f"order on the {part.part}: {part.explanation}" for part in order.violations),
        *(f"undecided: {part.part} after {part.steps} steps" for part in access.undecided + order.undecided),
    ]
    return Judgement(
        tuple(problems[:_SHOWN_MAX]), first.height, len(first.receipts), first.copies, access, order
    )


def _differences(ledgers: tuple[Ledger, ...]) -> list[str]:
    """Return where two daemons hold different blocks or receipts."""
    first, problems = ledgers[0], []
    for other in ledgers[1:]:
        common = min(len(first.digests), len(other.digests))
        if first.digests[:common] != other.digests[:common]:
            height = next(h for h in range(common) if first.digests[h] != other.digests[h])
            problems.append(f"{first.name} and {other.name} hold different blocks at height {height}")
        if (first.height, first.tip) != (other.height, other.tip):
            problems.append(f"{first.name} ended at block {first.height}, {other.name} at {other.height}")
        elif first.receipts != other.receipts:
            problems.append(f"{first.name} and {other.name} hold different receipts")
    return problems


def _lost(entries: tuple[Entry, ...], ledgers: tuple[Ledger, ...]) -> list[str]:
    """Return what was reported final and is not, at each daemon."""
    problems = []
    for entry in entries:
        if entry.is_done and not entry.transactions:
            problems.append(f"{entry.client}: {entry.wish} was reported done without a transaction")
        for transaction in entry.transactions:
            for ledger in ledgers:
                receipt = ledger.receipts.get(transaction)
                if receipt is None or not receipt.is_accepted:
                    what = "lost" if receipt is None else receipt.verdict
                    problems.append(
                        f"{entry.client}: {entry.wish} was reported final, and {transaction[:16]} is {what} at {ledger.name}"
                    )
    return problems


def _twice(entries: tuple[Entry, ...], ledgers: tuple[Ledger, ...]) -> list[str]:
    """Return what took effect more often than it was asked for, or was reported for two different wishes."""
    problems = [
        f"{txid[:16]} took effect twice at {ledger.name}"
        for ledger in ledgers
        for txid in ledger.events_twice
    ]
    told: dict[str, Wish] = {}
    problems += [
        f"{transaction[:16]} was reported for {told[transaction]} and for {entry.wish}"
        for entry in entries
        for transaction in entry.transactions
        if told.setdefault(transaction, entry.wish) is not entry.wish
    ]
    for wish, kind in ((GiveGrant, Grant), (EndGrant, Revoke), (AddRecord, RecordCommit)):
        asked = [entry for entry in entries if isinstance(entry.wish, wish)]
        done = sum(entry.is_done for entry in asked)
        for ledger in ledgers:
            took_effect = ledger.accepted[kind.__name__]
            if not done <= took_effect <= len(asked):
                problems.append(
                    f"{ledger.name} holds {took_effect} transactions {kind.__name__}, where {len(asked)} were asked for "
                    f"and {done} reported final"
                )
    return problems
