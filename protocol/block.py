"""Blocks: a header signed by the leader that cut it, and a body. A block *is* a Raft log entry; its bytes never change.

Body kinds: transactions (leaves of the tree); the *opening* of a term, whose body is the election certificate
(ledger.md 1.1 P0); a *configuration*, whose body is the one in force above it (7.2). Genesis is made from the configuration alone, unsigned, and the same for everybody.

`Block.raw = enc(header…, leader signature, opening or configuration, transactions)` is what is stored, sent and hashed into nothing: the
block's identity is its header hash, which covers the body through `tx_root`. A block that begins an epoch has no leader: in the
signature's place stand the consents to it, of which any that are enough make the same block.
"""

import functools
from dataclasses import dataclass
from typing import Annotated, Any

from protocol import codec, limits, merkle, signing, transaction
from protocol.claims import Claim, hold
from protocol.codec import Bytes32, Size, wire
from protocol.configuration import Configuration, change_fault
from protocol.errors import Invalid, Malformed
from protocol.identifiers import ZERO, Digest, Height, NetworkId, NodeId, PublicKey, Term, Txid
from protocol.merkle import Frontier
from protocol.transaction import SignedTransaction

APP_VERSION = 1
_SIGNATURE_BYTES = 64
_CONSENTS_BYTES_MAX = 256 * limits.MEMBERS_MAX


@wire("header")
@dataclass(frozen=True, slots=True)
class Header:
    """What a leader signs (ledger.md 1.1). `tree_size` and `tree_root` are those *before* this block.

    `tx_root` is the RFC 9162 root of the body's transactions; for a term's opening or a configuration (`n_tx` 0)
    the leaf hash of that. `epoch` counts recoveries. `next_config_hash` is ZERO but in configuration blocks.
    """

    net: Annotated[NetworkId, Size(32)]
    epoch: int
    height: Height
    prev_hash: Annotated[Digest, Size(32)]
    term: Term
    leader: Annotated[NodeId, Size(32)]
    time_ms: int
    n_tx: int
    tx_root: Annotated[Digest, Size(32)]
    tree_size: int
    tree_root: Annotated[Digest, Size(32)]
    config_hash: Annotated[Digest, Size(32)]
    next_config_hash: Bytes32
    app_version: int


def header_form(header: Header) -> bytes:
    """Return the bytes that a leader signs."""
    return signing.signed_form("header", header.net, *codec.fields_plain(header)[1:])


def config_hash_above(header: Header) -> Digest:
    """Return the hash of the configuration in force above the block with this header (ledger.md 7.2, 5)."""
    return header.config_hash if header.next_config_hash == ZERO else Digest(header.next_config_hash)


@functools.lru_cache(maxsize=limits.VERDICTS_CACHED)
def header_hash(header: Header) -> Digest:
    """Return the identity of the block with this header. One header comes many times: in proofs, certificates and links."""
    return signing.sha256(header_form(header))


class Block:
    """One immutable block, with its bytes kept beside the parsed view. Equality is that of the bytes."""

    __slots__ = ("_entries", "_leaves", "hash", "header", "raw", "signature", "special", "transactions")

    def __init__(
        self,
        header: Header,
        signature: bytes,
        special: bytes,
        transactions: tuple[bytes, ...],
        raw: bytes | None = None,
    ) -> None:
        """`special` is the election certificate of an opening, the configuration of a configuration block, else empty."""
        self.header = header
        self.signature = signature
        self.special = special
        self.transactions = transactions
        self.raw = raw or codec.pack(codec.to_plain(header), signature, special, transactions)
        self.hash = header_hash(header)
        self._entries: tuple[tuple[SignedTransaction, Txid], ...] | None = None
        self._leaves: tuple[Digest, ...] | None = None

    @staticmethod
    def decode(raw: bytes) -> "Block":
        """Parse a block; nothing is verified but its form.

        Raises:
            Malformed: not the canonical encoding of a block.
        """
        plain = codec.load(raw)  # the kind of each value is looked at below
        if len(plain) != 4:
            raise Malformed("a block has four parts")
        head, signature, opening, transactions = plain
        if type(head) is not tuple or type(transactions) is not tuple:
            raise Malformed("a block has a header and a list of transactions")
        if type(signature) is not bytes or type(opening) is not bytes:
            raise Malformed("a block's signature and opening are byte strings")
        if any(type(entry) is not bytes for entry in transactions):
            raise Malformed("a transaction in a block is a byte string")
        block = Block(codec.from_plain(head, Header), signature, opening, transactions, raw)
        length_max = _CONSENTS_BYTES_MAX if block.is_recovery else _SIGNATURE_BYTES
        if len(signature) > length_max or (not block.is_recovery and len(signature) not in (0, length_max)):
            raise Malformed("a block's signature is 64 bytes, or the consents to a recovery")
        return block

    @property
    def opening(self) -> bytes:
        """The election certificate, encoded, when the block opens a term; else empty."""
        return b"" if self.is_configuration else self.special

    @property
    def is_configuration(self) -> bool:
        """Whether the block sets the configuration in force above it."""
        return self.header.next_config_hash != ZERO

    @property
    def is_recovery(self) -> bool:
        """Whether the block claims to begin an epoch: no leader cut it (`protocol.recovery`)."""
        return self.header.leader == ZERO and self.header.height > 0

    def next_configuration(self) -> Configuration:
        """Return the configuration in force above this block, which is a configuration block and begins no epoch.

        Raises:
            Invalid: the body is not what the header names.
            Malformed: it is no configuration.
        """
        configuration = codec.decode(self.special, Configuration)
        if configuration.digest != self.header.next_config_hash:
            raise Invalid(f"block {self.height} carries another configuration than it names")
        return configuration

    @property
    def height(self) -> Height:
        """The block's height, which is its Raft log index."""
        return self.header.height

    @property
    def term(self) -> Term:
        """The term of the leader that cut it."""
        return self.header.term

    def leaves(self) -> tuple[Digest, ...]:
        """Return the leaf hashes of its transactions: needed to check, to append and to apply it, hashed once."""
        if self._leaves is None:
            self._leaves = tuple([merkle.leaf_hash(entry) for entry in self.transactions])
        return self._leaves

    def entries(self) -> tuple[tuple[SignedTransaction, Txid], ...]:
        """Return the parsed transactions with their ids; their signatures are `check_body`'s business.

        Parsed once and kept until `forget`, because checking and applying a block are moments apart.
        """
        if self._entries is None:
            self._entries = tuple([transaction.parse(entry, self.header.net) for entry in self.transactions])
        return self._entries

    def remember(self, entries: "Entries") -> None:
        """Take the parsed transactions, in order, from whoever has checked each of them."""
        self._entries = entries

    def forget(self) -> None:
        """Drop what was parsed and hashed: an applied block in a cache need not cost three times its bytes."""
        self._entries = self._leaves = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"Block(height={self.height}, term={self.term}, n_tx={self.header.n_tx}, hash={self.hash.hex()[:12]})"


def body_root(special: bytes, leaves: tuple[Digest, ...]) -> Digest:
    """Return the `tx_root` of a body, from the leaf hashes of its transactions."""
    return merkle.leaf_hash(special) if special else merkle.root_of_leaves(leaves)


def genesis_block(configuration: Configuration) -> Block:
    """Return block 0, the same bytes for everybody who has the genesis configuration."""
    network = NetworkId(configuration.digest)
    header = Header(
        network,
        0,
        Height(0),
        Digest(ZERO),
        Term(0),
        NodeId(ZERO),
        0,
        0,
        body_root(b"", ()),
        0,
        merkle.EMPTY_ROOT,
        configuration.digest,
        ZERO,
        APP_VERSION,
    )
    return Block(header, b"", b"", ())


def cut(
    transactions: tuple[bytes, ...],
    *,
    opening: bytes = b"",
    configuration: Configuration | None = None,
    predecessor: Header,
    predecessor_hash: Digest,
    frontier: Frontier,
    term: Term,
    key: signing.SigningKey,
    now_ms: int,
) -> Block:
    """Return the next block, signed. `frontier` is the tree after `predecessor`; time is max(now, predecessor + 1).

    `configuration` is the one in force above the block, when this is what it says; it is alone in its block then.
    """
    assert configuration is None or not (opening or transactions), "a configuration is alone in its block"
    special = opening if configuration is None else codec.encode(configuration)
    leaves = tuple([merkle.leaf_hash(entry) for entry in transactions])
    header = Header(
        predecessor.net,
        predecessor.epoch,
        Height(predecessor.height + 1),
        predecessor_hash,
        term,
        NodeId(key.public),
        max(now_ms, predecessor.time_ms + 1),
        len(transactions),
        body_root(special, leaves),
        frontier.size,
        frontier.root(),
        config_hash_above(predecessor),
        ZERO if configuration is None else configuration.digest,
        APP_VERSION,
    )
    block = Block(header, key.sign(header_form(header)), special, transactions)
    block._leaves = leaves  # noqa: SLF001  (this module's own class: hashed once)
    return block


def take(pool: list[bytes]) -> int:
    """Return how many transactions at the head of `pool` go into one block (BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX)."""
    total = 0
    for count, entry in enumerate(pool[: limits.BLOCK_TRANSACTIONS_MAX]):
        total += len(entry)
        if total > limits.BLOCK_BYTES_MAX and count:
            return count
    return min(len(pool), limits.BLOCK_TRANSACTIONS_MAX)


Entries = tuple[tuple[SignedTransaction, Txid], ...]


def check_shape(block: Block) -> None:
    """Check counts and sizes of a block's body: what costs nothing, before what costs a signature for each transaction.

    Raises:
        Invalid: one of them is out of bounds.
    """
    header = block.header
    if header.n_tx != len(block.transactions) or header.n_tx > limits.BLOCK_TRANSACTIONS_MAX:
        raise Invalid(
            f"block {header.height} counts {header.n_tx} transactions and carries {len(block.transactions)}"
        )
    if block.special and block.transactions:
        raise Invalid(f"block {header.height} is special and carries transactions")
    if sum(map(len, block.transactions)) > limits.BLOCK_BYTES_MAX + limits.TRANSACTION_BYTES_MAX:
        raise Invalid(f"block {header.height} is oversized")


def check_body(block: Block, checked: Entries | None = None) -> tuple[Txid, ...]:
    """Check everything about a block's body that its header commits to (P2, the part that costs time).

    `checked` are the block's transactions, in order, where the caller has verified each of them already. Returns the
    transaction ids, in order. Releases the interpreter lock while verifying: fit for a worker thread.

    Raises:
        RemoteFault: a count, size, root, schema or signature does not hold, or a transaction stands twice.
    """
    check_shape(block)
    header = block.header
    if body_root(block.special, block.leaves()) != header.tx_root:
        raise Invalid(f"block {header.height} does not hash to its tx_root")
    entries = checked or tuple([transaction.check(entry, header.net) for entry in block.transactions])
    txids = tuple([txid for _, txid in entries])
    if len(set(txids)) != len(txids):
        raise Invalid(f"block {header.height} carries a transaction twice")
    block.remember(entries)
    return txids


def check_link(
    block: Block,
    predecessor: Header,
    predecessor_hash: Digest,
    frontier: Frontier,
    configuration: Configuration,
    *,
    signature: bool = True,
) -> None:
    """Check a block against its predecessor, the tree frontier and the configuration in force (P2, the cheap part).

    Without `signature` the leader's is left to whoever has `leader_claim` verified.

    Raises:
        Invalid: which rule does not hold.
    """
    header = block.header
    check_place(block, predecessor, predecessor_hash, configuration)
    if header.tree_size != frontier.size or header.tree_root != frontier.root():
        raise Invalid(f"block {header.height}: tree size or root is wrong")
    if signature and not hold([leader_claim(block)]):
        raise Invalid(f"block {header.height}: the leader's signature does not verify")


def leader_claim(block: Block) -> Claim:
    """Return what the leader of a block that begins no epoch is claimed to have signed."""
    return Claim(PublicKey(block.header.leader), header_form(block.header), block.signature)


def check_place(
    block: Block, predecessor: Header, predecessor_hash: Digest, configuration: Configuration
) -> None:
    """Check what needs neither tree nor signature, and of the body no transactions: enough to judge a header by (E7).

    A term's opening may be of a leader that `configuration` lets go: until its leaving is committed it may be the only
    one that can lead (Raft thesis §4.2.2), and its election certificate, of voters of `configuration`, says that it did
    (`check_opening`). Who was a voter before is not asked: one that has started since cannot know it.

    Raises:
        Invalid: which rule does not hold.
    """
    header = block.header

    def demand(rule: Any, text: str) -> None:  # Any: a truth value of any kind
        if not rule:
            raise Invalid(f"block {header.height}: {text}")

    demand(header.net == predecessor.net and header.epoch == predecessor.epoch, "of another network or epoch")
    demand(
        header.height == predecessor.height + 1 and header.prev_hash == predecessor_hash,
        "does not follow its predecessor",
    )
    demand(header.term >= predecessor.term, "its term is below its predecessor's")
    demand(header.time_ms > predecessor.time_ms, "its time is not above its predecessor's")
    demand(
        header.config_hash == configuration.digest,
        "of another configuration",
    )
    demand(header.app_version == APP_VERSION, "of another version of the rules")
    demand(header.leader in configuration.voters or block.opening, "not cut by a voter")
    if block.is_configuration:
        demand(block.special and not block.transactions, "not a configuration alone in its block")
        fault = change_fault(configuration, block.next_configuration())
        demand(fault is None, f"no lawful change: {fault}")
    demand(
        bool(block.opening) == (header.term > predecessor.term),
        "a term opens with its election certificate, and only then",
    )
    demand(
        header.term > predecessor.term or header.leader == predecessor.leader,
        "cut in its predecessor's term by another leader",
    )
