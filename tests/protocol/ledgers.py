"""A ledger without consensus for tests: signed transactions in, the real `ledger_state.apply`, receipts out."""

import hashlib
from dataclasses import dataclass, field

from protocol import ledger_state, transaction
from protocol.block import Block, cut, genesis_block
from protocol.codec import encode
from protocol.configuration import Card, Configuration, Member, found, network_id
from protocol.identifiers import ZERO, Digest, NodeId, PublicKey, Rid, Term, Txid, Vid
from protocol.ledger_rows import Receipt
from protocol.merkle import Frontier
from protocol.signing import SigningKey, sha256
from protocol.transaction import (
    EnvelopeReceipt,
    Grant,
    Read,
    RecordCommit,
    SignedTransaction,
    Transaction,
    VaultOpen,
)

NOW = 1_700_000_000_000
DAY = 86_400_000


def key(name: str) -> SigningKey:
    """Return the signing key of a name."""
    return SigningKey(hashlib.sha256(name.encode()).digest())


def named(name: str) -> bytes:
    """Return 32 bytes that stand for a name."""
    return hashlib.sha256(b"id" + name.encode()).digest()


def member(name: str, role: str = "voter") -> Member:
    """Return a facility whose keys are made from its name."""
    public = key(name).public
    return Member(
        name, "hospital", role, NodeId(public), public, key(name + "/team").public, public, public, ()
    )


def configuration(*names: str, observers: tuple[str, ...] = ()) -> Configuration:
    """Return a genesis of voters and observers."""
    cards = [Card.make(member(name), key(name)) for name in names]
    cards += [Card.make(member(name, "observer"), key(name)) for name in observers]
    return found(tuple(cards), nonce=bytes(32))


@dataclass
class Ledger:
    """Rows, the chain so far, and ledger time."""

    genesis: Configuration
    rows: dict[bytes, bytes] = field(default_factory=dict)
    chain: list[Block] = field(default_factory=list)
    frontier: Frontier = field(default_factory=Frontier)
    now_ms: int = NOW

    def __post_init__(self) -> None:
        self.chain.append(genesis_block(self.genesis))
        self.network = network_id(self.genesis)
        self.configuration = self.genesis

    def commit(
        self, *signed: SignedTransaction, configuration: Configuration | None = None
    ) -> tuple[Receipt, ...]:
        """Put transactions, or a configuration, into one block, apply it, and return the receipts."""
        tip = self.chain[-1]
        self.now_ms += 1000
        block = cut(
            tuple(encode(one) for one in signed),
            configuration=configuration,
            predecessor=tip.header,
            predecessor_hash=tip.hash,
            frontier=self.frontier,
            term=Term(0),
            key=key("hospital"),
            now_ms=self.now_ms,
        )
        applied = ledger_state.apply(self.rows.get, self.configuration, block)
        self.configuration = configuration or self.configuration
        for row, value in applied.writes.items():
            if value is None:
                self.rows.pop(row, None)
            else:
                self.rows[row] = value
        self.chain.append(block)
        self.frontier = self.frontier.append(block.leaves())
        return tuple(outcome.receipt for outcome in applied.outcomes)

    def verdict(self, body: Transaction, *signers: str) -> str:
        """Commit one transaction signed by named keys and return its verdict."""
        return self.commit(self.sign(body, *signers))[0].verdict

    def sign(self, body: Transaction, *signers: str) -> SignedTransaction:
        """Return a transaction signed by named keys."""
        return transaction.sign(body, self.network, *(key(name) for name in signers))

    def txid(self, body: Transaction) -> Txid:
        """Return a transaction's id."""
        return transaction.txid_of(body, self.network)

    @property
    def soon(self) -> int:
        """A fitting valid_until."""
        return self.now_ms + 3_600_000


def vault_open(
    ledger: Ledger,
    name: str = "vault",
    *,
    custodian: str = "hospital",
    writers: tuple[str, ...] = ("hospital",),
) -> VaultOpen:
    """Return the opening of a vault whose keys are `NAME/auth`, `NAME/rec`."""
    return VaultOpen(
        Vid(named(name)), key(name + "/auth").public, key(name + "/rec").public, PublicKey(named(name + "/cat0")),
        PublicKey(named(name + "/audit")), 0, NodeId(key(custodian).public),
        tuple(NodeId(key(writer).public) for writer in writers), 3, ledger.soon,
    )  # fmt: skip


def record_commit(
    ledger: Ledger, rid: str, vault: str = "vault", *, author: str = "hospital", epoch: int = 0,
    receipts_by: tuple[str, ...] = ("hospital", "clinic"),
) -> RecordCommit:  # fmt: skip
    """Return a record with genuine receipts of named members."""
    vid, rid_, env_hash = Vid(named(vault)), Rid(named(rid)), sha256(rid.encode())
    form = transaction.receipt_form(ledger.network, vid, rid_, env_hash)
    receipts = sorted(
        (EnvelopeReceipt(NodeId(key(name).public), key(name).sign(form)) for name in receipts_by),
        key=lambda one: one.node,
    )
    return RecordCommit(
        vid, rid_, epoch, NodeId(key(author).public), env_hash, tuple(receipts), Rid(ZERO), ledger.soon
    )


def grant_to(
    ledger: Ledger, facility: str = "clinic", vault: str = "vault", *, rights: str = "R", epoch: int = 0, exp_ms: int = DAY,
    max_reads: int = 0, rec_to: int = 2**63,
) -> Grant:  # fmt: skip
    """Return a grant to a facility's team for treatment."""
    return Grant(
        Vid(named(vault)), key(facility + "/team").public, NodeId(key(facility).public), transaction.KIND_TEAM, rights, ("TREAT",),
        ledger.now_ms, ledger.now_ms + exp_ms, 0, rec_to, max_reads, epoch, Digest(named("wrap")), Digest(ZERO), ledger.soon,
    )  # fmt: skip


def read_of(
    ledger: Ledger, *rids: str, gid: bytes = ZERO, actor: str = "vault/auth", vault: str = "vault", purpose: str = "TREAT",
    nonce: str = "nonce",
) -> Read:  # fmt: skip
    """Return a Read of records by an actor's key."""
    return Read(
        Vid(named(vault)), tuple(Rid(named(rid)) for rid in rids), Txid(gid), purpose, key(actor).public, Digest(ZERO),
        PublicKey(named("epk")), named(nonce), Digest(named("who")), ledger.soon,
    )  # fmt: skip
