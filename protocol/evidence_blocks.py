"""E7, a signed header over an invalid block, and E8, a broken promise (ledger.md 1.2).

A header vouches for its body by `tx_root`. Whoever relays a block can put another body beside an honest header, so a body
counts here only as far as it is shown to stand under that root.
"""

from dataclasses import dataclass
from typing import Annotated

from protocol import limits, merkle, signing, transaction
from protocol.block import (
    APP_VERSION,
    Block,
    Header,
    body_root,
    check_place,
    config_hash_above,
    header_hash,
)
from protocol.certificate import check_opening
from protocol.codec import Bytes64, Size, wire
from protocol.errors import RemoteFault
from protocol.evidence_certificates import Configurations
from protocol.evidence_lines import HeadersField, SignedHeader, ancestor
from protocol.evidence_statements import demand
from protocol.identifiers import Digest, Height, NetworkId, NodeId, Term, Txid
from protocol.merkle import Frontier

DigestField = Annotated[Digest, Size(32)]
DigestsField = Annotated[tuple[DigestField, ...], Size(0, limits.BLOCK_TRANSACTIONS_MAX)]


@wire("placed-entry")
@dataclass(frozen=True, slots=True)
class PlacedEntry:
    """One transaction of a block, with its inclusion path under `tx_root`."""

    index: int
    raw: bytes
    path: Annotated[tuple[DigestField, ...], Size(0, 16)]


@wire("invalid-block")
@dataclass(frozen=True, slots=True)
class InvalidBlock:
    """E7: a leader signed the header of a block that breaks P2, whatever the state.

    `special` is the body of an opening or a configuration, `entries` the transactions at fault: one that is invalid, or
    one that stands twice. `peaks` and `leaves` are for a wrong tree: the frontier before the predecessor, and the leaf
    hashes of the predecessor's transactions. A body that is too long in all is no evidence: voters refuse it, and that is all.
    """

    header: SignedHeader
    predecessor: Header
    special: bytes
    entries: Annotated[tuple[PlacedEntry, ...], Size(0, 2)]
    peaks: Annotated[tuple[DigestField, ...], Size(0, 64)]
    leaves: DigestsField

    def check(self, network: NetworkId, configurations: Configurations) -> NodeId:
        """Return the leader. Clocks, quotas and everything else that a validator cannot compute are no faults here."""
        header = self.header.header
        self.header.check(network)
        demand(header.prev_hash == header_hash(self.predecessor), "not the header's predecessor")
        # Other rules hold elsewhere: recovery begins an epoch, and a later program may know more than this one.
        demand(
            header.epoch == self.predecessor.epoch,
            "the first block of an epoch is not judged by its predecessor",
        )
        demand(header.app_version == APP_VERSION, "a block by other rules than these")
        demand(self._fault(configurations) is not None, "the block is not shown to break a rule")
        return header.leader

    def _fault(self, configurations: Configurations) -> str | None:
        header = self.header.header
        if header.n_tx > limits.BLOCK_TRANSACTIONS_MAX:
            return "too many transactions"
        if not self._continues_tree():
            return "tree size or root is wrong"
        self._check_special()
        block = Block(header, self.header.signature, self.special, ())
        in_force = configurations.get(config_hash_above(self.predecessor))
        demand(in_force is not None, "a block of a configuration that is not known here")
        assert in_force is not None
        entries = [self._shown(entry) for entry in self.entries]
        try:
            check_place(block, self.predecessor, header.prev_hash, in_force)
            if block.opening:
                check_opening(block, in_force)
            txids = [transaction.check(raw, header.net)[1] for raw in entries]
        except RemoteFault as fault:
            return str(fault)
        if len(set(txids)) < len({entry.index for entry in self.entries}):
            return "a transaction stands twice"
        return None

    def _check_special(self) -> None:
        """Raise Invalid unless `special` is what the header commits to.

        A block with one transaction has the root that an opening of the same bytes would have: the count tells them apart.
        """
        header = self.header.header
        if header.n_tx:
            demand(not self.special, "a block of transactions is not shown as an opening")
        else:
            demand(body_root(self.special, ()) == header.tx_root, "not the body that the header commits to")

    def _shown(self, entry: PlacedEntry) -> bytes:
        header = self.header.header
        leaf = merkle.leaf_hash(entry.raw)
        merkle.verify_inclusion(leaf, entry.index, header.n_tx, entry.path, header.tx_root)
        return entry.raw

    def _continues_tree(self) -> bool:
        """Return False when the header's tree is shown not to be the predecessor's with its transactions added."""
        header, before = self.header.header, self.predecessor
        if header.tree_size != before.tree_size + before.n_tx:
            return False
        if not before.n_tx:
            return header.tree_root == before.tree_root
        if not self.leaves:
            return True  # not shown
        frontier = Frontier(before.tree_size, self.peaks)
        demand(
            len(self.peaks) == before.tree_size.bit_count() and frontier.root() == before.tree_root,
            "not the tree before the predecessor",
        )
        demand(
            len(self.leaves) == before.n_tx and merkle.root_of_leaves(self.leaves) == before.tx_root,
            "not the transactions of the predecessor",
        )
        return frontier.append(self.leaves).root() == header.tree_root


def shown_invalid(
    block: Block, predecessor: Header, before: Frontier | None = None, leaves: tuple[Digest, ...] = ()
) -> InvalidBlock:
    """Return what can be shown of a block that was found invalid; whether it convicts is for `check` to say.

    `before` is the tree before the predecessor and `leaves` those of its transactions: they are shown where the tree is at fault.
    """
    seen, at_fault = dict[Txid, int](), tuple[int, ...]()
    for index, raw in enumerate(block.transactions):
        try:
            txid = transaction.check(raw, block.header.net)[1]
        except RemoteFault:
            at_fault = (index,)
            break
        if seen.setdefault(txid, index) != index:
            at_fault = (seen[txid], index)
            break
    if before is not None and before.append(leaves).root() == block.header.tree_root:
        before, leaves = None, ()  # a thousand leaves beside a transaction at fault would be too long
    return InvalidBlock(
        SignedHeader(block.header, block.signature),
        predecessor,
        block.special,
        tuple([_placed(block, index) for index in at_fault]),
        () if before is None else before.peaks,
        leaves,
    )


def _placed(block: Block, index: int) -> PlacedEntry:
    leaves = block.leaves()

    def subtree(level: int, at: int) -> Digest:
        return merkle.root_of_leaves(leaves[at << level : (at + 1) << level])

    path = merkle.inclusion_proof(index, len(leaves), subtree)
    return PlacedEntry(index, block.transactions[index], path)


@wire("promise")
@dataclass(frozen=True, slots=True)
class Promise:
    """A leader's word: this transaction will stand in a block of mine above `since` and no higher than `height`.

    It holds for one term. That a member has *received* a transaction is no promise.
    """

    leader: Annotated[NodeId, Size(32)]
    epoch: int
    term: Term
    txid: Annotated[Txid, Size(32)]
    since: Height
    height: Height
    signature: Bytes64


def promise(
    key: signing.SigningKey,
    network: NetworkId,
    *,
    epoch: int,
    term: Term,
    txid: Txid,
    since: Height,
    height: Height,
) -> Promise:
    """Return a signed promise. The transaction must not be in the ledger at or below `since`, nor about to be refused."""
    fields = epoch, term, txid, since, height
    form = signing.signed_form("promise", network, *fields)
    return Promise(NodeId(key.public), *fields, key.sign(form))


def promise_valid(given: Promise, network: NetworkId) -> bool:
    """Return whether the signature of a promise verifies."""
    form = signing.signed_form(
        "promise", network, given.epoch, given.term, given.txid, given.since, given.height
    )
    return signing.verify(given.leader, form, given.signature)


@wire("broken-promise")
@dataclass(frozen=True, slots=True)
class BrokenPromise:
    """E8: all blocks for which a promise was made, cut by that leader in that term, and none holds the transaction.

    `line` are the headers above `since` and below `header`, which is the one at the promised height. `bodies` are the
    transactions of each of these blocks, in order, the last one's included; blocks without any have none here.
    """

    promise: Promise
    header: SignedHeader
    line: HeadersField
    bodies: Annotated[
        tuple[Annotated[tuple[bytes, ...], Size(0, limits.BLOCK_TRANSACTIONS_MAX)], ...],
        Size(1, limits.EVIDENCE_HEADERS_MAX + 1),
    ]

    def check(self, network: NetworkId) -> NodeId:
        """Return the leader. One that lost its office before the promised height has broken nothing."""
        given, headers = self.promise, (*self.line, self.header.header)
        self.header.check(network)
        demand(promise_valid(given, network), "the signature of a promise does not verify")
        demand(
            given.since < given.height == self.header.header.height, "not the block at the promised height"
        )
        ancestor(self.header.point, headers, given.since)
        demand(len(headers) == len(self.bodies), "a body for each block, and no more")
        for header, body in zip(headers, self.bodies, strict=True):
            own = (header.leader, header.epoch, header.term) == (given.leader, given.epoch, given.term)
            demand(own, "a block of another leader, epoch or term")
            self._check_absent(header, body, network)
        return given.leader

    def _check_absent(self, header: Header, body: tuple[bytes, ...], network: NetworkId) -> None:
        demand(len(body) == header.n_tx, "a body is not complete")
        if not body:
            return
        root = merkle.root_of(body)
        demand(root == header.tx_root, "a body is not the one that its header commits to")
        # By ids, not by leaves: a copy with other signatures is the same transaction.
        ids = [transaction.parse(raw, network)[1] for raw in body]
        demand(self.promise.txid not in ids, "the promise was kept")
