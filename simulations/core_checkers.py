"""The invariants that need every disk at once, or what a core has handed out: the rest of ledger.md section 3's list.

As those of `checkers`, each is fed with what happened and reports a sentence for what must never be.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol import ledger_state
from protocol.block import Block, config_hash_above
from protocol.configuration import Configuration, network_id
from protocol.errors import Invalid
from protocol.finality import Certificate, CommitVote, check_certificate
from protocol.identifiers import Digest, Height, NodeId, Term
from protocol.merkle import Frontier
from protocol.raft.messages import AppendReply, VoteNotice
from simulations.checkers import DurableState, Report, short

HashAt = Callable[[Height], Digest | None]


class TreeRoots:
    """Every header's tree size and root are those recomputed from the leaves below it (RFC 9162 section 2.1)."""

    def __init__(self, report: Report, genesis: Block) -> None:
        self._report = report
        self._after: dict[Digest, Frontier] = {genesis.hash: Frontier()}

    def stored(self, block: Block) -> None:
        """Hear that somebody stored a block."""
        if block.hash in self._after:
            return
        before = self._after.get(block.header.prev_hash)
        if before is None:
            self._report(f"tree root: block {block.height} was stored and its predecessor never was")
            return
        if (block.header.tree_size, block.header.tree_root) != (before.size, before.root()):
            self._report(f"tree root: block {block.height} does not name the tree of the blocks below it")
        self._after[block.hash] = before.append(block.leaves())

    def after(self, digest: Digest) -> Frontier | None:
        """Return the tree after a stored block."""
        return self._after.get(digest)


class Configurations:
    """The configuration in force is the newest one in the log, certified or not (ledger.md 7.2, 3)."""

    def __init__(self, report: Report, genesis: Configuration) -> None:
        self._report = report
        self._known = {genesis.digest: genesis}

    def stored(self, block: Block) -> None:
        """Hear that somebody stored a block."""
        if block.is_configuration and block.header.next_config_hash not in self._known:
            following = block.next_configuration()
            self._known[following.digest] = following

    def above(self, block: Block) -> Configuration:
        """Return the configuration in force above a stored block, which is the one it is acknowledged in too."""
        return self._known[config_hash_above(block.header)]

    def in_force(self, node: NodeId, configuration: Configuration, tip: Block) -> None:
        """Hear what counts at a node whose whole log is durable and ends with `tip`."""
        if configuration.digest != config_hash_above(tip.header):
            self._report(
                f"configuration: what counts at {short(node)} is not the newest in its log, {tip.height}"
            )


def ordered_term(certificate: Certificate) -> Term:
    """Return a term by the end of which the certified block was ordered: that of the highest block voted for."""
    return certificate.links[-1].term if certificate.links else certificate.header.term


@dataclass(frozen=True, slots=True)
class _Certified:
    digest: Digest
    ordered_term: Term


class Commits:
    """What is certified is one chain, proven, durable on both quorums, in every later leader's log, and never taken back.

    (Raft §5.4, Figure 3: leader completeness and state-machine safety, here before anything is applied; ledger.md P5.)
    """

    def __init__(self, report: Report, genesis: Block, configurations: Configurations) -> None:
        self._report = report
        self._configurations = configurations
        self._network = network_id(configurations.above(genesis))
        self._chain = [_Certified(genesis.hash, Term(0))]
        self._heights: dict[NodeId, Height] = {}
        self.configuration = configurations.above(genesis)
        """The newest that is certified."""

    @property
    def height(self) -> Height:
        """The highest block that any node has handed out as certified."""
        return Height(len(self._chain) - 1)

    def is_certified(self, height: Height, digest: Digest) -> bool:
        """Return whether any node has handed out this block as certified."""
        return height <= self.height and self._chain[height].digest == digest

    def started(self, node: NodeId, applied: Height) -> None:
        """Hear from where a node goes on after a start."""
        self._heights[node] = applied

    def reached(self, node: NodeId, height: Height) -> None:
        """Hear the committed height of a node: within one life it only rises."""
        before = self._heights.get(node, Height(0))
        if height < before:
            self._report(f"commit monotone: {short(node)} went back from {before} to {height}")
        self._heights[node] = height

    def handed_out(
        self,
        node: NodeId,
        blocks: tuple[Block, ...],
        certificate: Certificate,
        holders: Callable[[Block], frozenset[NodeId]],
    ) -> None:
        """Hear that a node's core gave blocks out as certified; `holders` are the nodes with a block on their disks."""
        for block in blocks:
            if block.height > len(self._chain):
                self._report(f"commit: {short(node)} certified block {block.height} beyond all others' + 1")
                return
            if block.height < len(self._chain):
                if self._chain[block.height].digest != block.hash:
                    self._report(f"commit: two blocks are certified at height {block.height}")
                continue
            if block.header.prev_hash != self._chain[-1].digest:
                self._report(f"commit: block {block.height} does not follow the certified block below it")
            self._first(block, certificate, holders(block))

    def _first(self, block: Block, certificate: Certificate, holders: frozenset[NodeId]) -> None:
        before, configuration = self.configuration, self._configurations.above(block)
        if len(holders.intersection(configuration.voters)) < configuration.raft_quorum:
            self._report(f"commit: block {block.height} is certified without being durable on a Raft quorum")
        if len(holders.intersection(before.signers)) < before.certificate_quorum:
            self._report(f"commit: block {block.height} is certified without being durable on q signers")
        if certificate.header == block.header:
            following = configuration if block.is_configuration else None
            try:
                check_certificate(certificate, self._network, before, following)
            except Invalid as fault:
                self._report(f"commit: the certificate of block {block.height} does not hold: {fault}")
        self._chain.append(_Certified(block.hash, ordered_term(certificate)))
        self.configuration = configuration

    def led(self, term: Term, leader: NodeId, hash_at: HashAt) -> None:
        """Check that a new leader's log holds all that was certified by the end of earlier terms (leader completeness)."""
        height = self.height
        while height > 0 and self._chain[height].ordered_term >= term:
            height = Height(height - 1)
        if hash_at(height) != self._chain[height].digest:
            self._report(
                f"leader completeness: {short(leader)} leads term {term} without certified block {height}"
            )


class VoteChains:
    """A signer's commit votes are on one chain, durable when they leave, and upon bases that are certified (P4, E3).

    Nobody lies here, so there is one chain: a vote beside what is certified in the end convicts its signer.
    """

    def __init__(self, report: Report, durable: DurableState, commits: Commits) -> None:
        self._report = report
        self._durable = durable
        self._commits = commits
        self._votes: dict[NodeId, CommitVote] = {}
        self._at: dict[Height, Digest] = {}

    def sent(self, node: NodeId, message: object) -> None:
        """Hear what a node has sent."""
        vote = message.vote if isinstance(message, AppendReply | VoteNotice) else None
        before = self._votes.get(node)
        if vote is None or vote == before:
            return
        self._votes[node] = vote
        hard = self._durable.last(node)
        if hard is None or hard.last_vote_height < vote.height or hard.certificate_height < vote.base_height:
            self._report(f"votes: {short(node)} voted for block {vote.height} before that was durable")
        if before is not None and vote.height < before.height:
            self._report(f"votes: {short(node)} voted for {vote.height} after it had for {before.height}")
        if vote.base_height <= self._commits.height and not self._commits.is_certified(
            vote.base_height, vote.base_hash
        ):
            self._report(f"votes: {short(node)} named a base at {vote.base_height} that is not certified")
        if self._at.setdefault(vote.height, vote.header_hash) != vote.header_hash:
            self._report(f"votes: two blocks of height {vote.height} were voted for")
        if vote.height <= self._commits.height and not self._commits.is_certified(
            vote.height, vote.header_hash
        ):
            self._report(f"votes: {short(node)} voted for block {vote.height}, and another is certified")


class FreshReads:
    """A linearizable read sees all that was certified or acknowledged anywhere when it began (Raft thesis §6.4)."""

    def __init__(self, report: Report, commits: Commits) -> None:
        self._report = report
        self._commits = commits
        self._floors: dict[tuple[NodeId, int], Height] = {}
        self.answered_count = 0

    def began(self, node: NodeId, request: int) -> None:
        """Hear that a read began at a node."""
        if (node, request) in self._floors:
            self._report(f"reads: {short(node)} gave the number {request} twice")
        self._floors[node, request] = self._commits.height

    def answered(self, node: NodeId, request: int, height: Height | None) -> None:
        """Hear the answer of the core; None is no answer, and never wrong."""
        floor = self._floors.pop((node, request), None)
        if floor is None:
            self._report(f"reads: {short(node)} answered a read that nobody waits for")
        elif height is not None:
            self.answered_count += 1
            if height < floor:
                self._report(f"stale read: {short(node)} answered {height} when {floor} was certified")

    def lost(self, node: NodeId) -> None:
        """Hear that a node stopped: its reads get no answer."""
        for asked in [asked for asked in self._floors if asked[0] == node]:
            del self._floors[asked]


def replay(blocks: Iterable[Block], configuration: Configuration) -> tuple[dict[bytes, bytes], Frontier]:
    """Return the rows and the tree that blocks from height 1 on mean, computed from nothing."""
    rows: dict[bytes, bytes] = {}
    frontier = Frontier()
    for block in blocks:
        for key, value in ledger_state.apply(rows.get, configuration, block).writes.items():
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        frontier = frontier.append(block.leaves())
        block.forget()
    return rows, frontier
