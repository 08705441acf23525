"""`audit verify`: the ledger recomputed from genesis, trusting nothing that is stored beside the blocks.

For every block up to the applied height: that it decodes, follows its predecessor, is signed by its leader, hashes to
its roots, and that every transaction in it verifies; that a term's opening elects its leader; that certificates hold.
Then the state: `ledger_state.apply` over all blocks into an empty table, compared row by row with the stored one.
Damage is a finding that names the block or row, and the walk goes on as far as it can.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import trio

from node.damage_notice import DamageNotice
from node.ports import Workers
from node.tree import Tree
from protocol import block as blocks
from protocol import ledger_state
from protocol.block import Block
from protocol.catchup import Position
from protocol.certificate import check_opening
from protocol.errors import Corruption, RemoteFault
from protocol.finality import Certificate, check_certificate, linked_heights
from protocol.identifiers import ZERO, Digest, Height
from protocol.merkle import Frontier
from protocol.recovery_block import check_recovery_block, earlier_consents_of
from storage.ledger_store import LedgerStore
from storage.tree_store import TreeStore

PROBLEMS_MAX = 1_000
_REPAIRED = "the daemon repairs it by itself, from the other members: see carechain status, then verify again"
_COMPUTED_AGAIN = "it is computed again from them: verify again in a while"
_ROWS_PER_TURN = 500
_ROW_NAMES = {
    b"v": "vault",
    b"r": "record",
    b"w": "the list of records of vault",
    b"g": "grant",
    b"t": "the receipt of transaction",
    b"e": "the list of events of vault",
    b"n": "the nonce",
}


class Problems:
    """What was found, each once, at most `PROBLEMS_MAX` of them told."""

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}
        self._more = 0

    @property
    def any(self) -> bool:
        """Whether anything was found."""
        return bool(self._sentences)

    def add(self, sentence: str) -> None:
        """Add a finding that names a record, block or key."""
        if len(self._sentences) < PROBLEMS_MAX:
            self._sentences[sentence] = None
        elif sentence not in self._sentences:
            self._more += 1

    def sentences(self) -> list[str]:
        """Return the findings in the order they were made."""
        told = list(self._sentences)
        return [*told, f"and {self._more} more like these"] if self._more else told


@dataclass(slots=True)
class Findings:
    """How far a verification has come. `position` is None once the chain is broken: what follows has no root to check."""

    height: Height
    position: Position | None
    frontier: Frontier
    problems: Problems = field(default_factory=Problems)
    rows: dict[bytes, bytes] = field(default_factory=dict)
    next_certificate: Certificate | None = None
    nodes: TreeStore | None = None

    @property
    def is_replayable(self) -> bool:
        """Whether the recomputed state is that of all blocks so far."""
        return self.position is not None


class LedgerAudit:
    """Recomputes one node's ledger. Many may run at once; each has its own `Findings`."""

    def __init__(
        self,
        store: LedgerStore,
        workers: Workers,
        damage: DamageNotice | None = None,
        tree: Tree | None = None,
    ) -> None:
        """`damage` hears of blocks that cannot be read, or do not hold, so that they are repaired; `tree` of damaged nodes."""
        self._damage = damage or DamageNotice()
        self._tree = tree
        self._store = store
        self._workers = workers
        self._network = store.network

    def begin(self) -> Findings:
        """Return the findings of a verification that has not begun: genesis, from the configuration alone."""
        genesis = blocks.genesis_block(self._store.genesis)
        nodes = self._tree.reader() if self._tree is not None else None
        return Findings(
            Height(0), Position(genesis.header, genesis.hash, Frontier()), Frontier(), nodes=nodes
        )

    async def verify(self, findings: Findings) -> AsyncIterator[tuple[int, int]]:
        """Verify everything up to the applied height at the end; yield (blocks done, blocks in all).

        Raises:
            Unavailable: blocks below an installed snapshot are still being fetched.
        """
        self._store.check_history(Height(self._store.history_height() + 1))
        self._check_genesis(findings)
        while findings.height < (goal := self._store.applied().height):
            height = Height(findings.height + 1)
            await self._check_height(findings, height)
            findings.height = height
            if height % 64 == 0 or height == goal:
                yield height, goal
        self._check_above(findings)
        if not findings.is_replayable:
            findings.problems.add(
                "the ledger state could not be compared, because the chain of blocks is broken"
            )
            return
        suspects = await self._compare(findings)
        self._recheck(findings, suspects)
        self._check_mark(findings)

    # --- blocks -------------------------------------------------------------------------------------------------

    def _check_genesis(self, findings: Findings) -> None:
        try:
            stored = self._store.block(Height(0))
        except Corruption as error:
            findings.problems.add(str(error))
            return
        if stored.raw != blocks.genesis_block(self._store.genesis).raw:
            findings.problems.add("block 0 is not the genesis of this network")

    async def _check_height(self, findings: Findings, height: Height) -> None:
        try:
            block = self._store.block(height)
        except Corruption as error:
            self._break(findings, f"block {height}: {error}; {_REPAIRED}")
            return
        try:
            # The body's signatures are the costly part: beside the event loop.
            await self._workers.run(blocks.check_body, block)
            self._check_chain(findings, block)
        except RemoteFault as fault:
            self._break(findings, f"block {height} does not hold: {fault}")
            return
        self._check_certificate(findings, block)
        if findings.is_replayable:
            self._replay(findings, block)

    def _check_chain(self, findings: Findings, block: Block) -> None:
        position = findings.position
        if position is None:
            return
        configuration = self._store.configuration_at(block.height)
        if block.is_recovery:
            earlier = self._store.configurations.before_that_at(block.height)
            crossed = earlier if earlier_consents_of(block) else None
            check_recovery_block(block, position.header, position.frontier, configuration, crossed)
        else:
            blocks.check_link(block, position.header, position.hash, position.frontier, configuration)
        if block.opening:
            check_opening(block, configuration)
        self._check_nodes(findings, position, block)
        findings.frontier = position.frontier.append(block.leaves())
        findings.position = Position(block.header, block.hash, findings.frontier)

    def _check_nodes(self, findings: Findings, position: Position, block: Block) -> None:
        """Check the nodes of the tree that this block has brought; have them computed again if any is damaged."""
        if self._tree is None or findings.nodes is None:
            return
        wrong = self._tree.damaged_nodes(findings.nodes, position.frontier, block.leaves())
        for sentence in wrong:
            findings.problems.add(f"{sentence}; {_COMPUTED_AGAIN}")
        if wrong:
            self._tree.compute_again()
            self._damage.tell()  # if it is bytes that cannot be read, the tables have to be made anew

    def _check_certificate(self, findings: Findings, block: Block) -> None:
        """Check that a certificate covers the block: its own, or the next one above it."""
        certificate = findings.next_certificate
        try:
            if certificate is None or certificate.height < block.height:
                certificate = self._store.certificate_at_or_above(block.height)
                if certificate is None:
                    if not self._is_recovered(block.height):
                        findings.problems.add(f"block {block.height} is applied without a certificate")
                    return
                self._check_votes(certificate, block)
                if certificate.height < block.height:
                    findings.problems.add(
                        f"the certificate at or above block {block.height} is for an older block"
                    )
                    return
                findings.next_certificate = certificate
        except (Corruption, RemoteFault) as error:
            findings.next_certificate = None
            self._damage.tell()
            findings.problems.add(f"the certificate at or above block {block.height} does not hold: {error}")
            return
        if certificate.height == block.height and certificate.header != block.header:
            findings.problems.add(f"the certificate at block {block.height} is for another block")

    def _is_recovered(self, height: Height) -> bool:
        """Return whether a block that begins an epoch stands at or above a height: what it stands on needs no certificate."""
        newest = self._store.configurations.newest_height
        return newest >= height and self._store.header(newest).leader == ZERO

    def _check_votes(self, certificate: Certificate, block: Block) -> None:
        """Check a certificate at or above a block; who caught up has few, and that of a configuration block names two quorums."""
        signed = block if certificate.height == block.height else self._store.block(certificate.height)
        following = signed.next_configuration() if signed.is_configuration else None
        check_certificate(
            certificate, self._network, self._store.configuration_at(certificate.height), following
        )

    def _check_above(self, findings: Findings) -> None:
        """Check that a certificate for a block that is not applied yet is for a descendant of the last one that is."""
        certificate, position = findings.next_certificate, findings.position
        if certificate is None or position is None or certificate.height <= findings.height:
            return
        try:
            links = [self._store.header(Height(at)) for at in range(findings.height + 1, certificate.height)]
            linked_heights(position.header, (*links, certificate.header))
        except (Corruption, RemoteFault) as error:
            findings.problems.add(
                f"the certificate above block {findings.height}, which is applied, does not lead to it: {error}"
            )

    def _break(self, findings: Findings, sentence: str) -> None:
        findings.problems.add(sentence)
        findings.position = None
        self._damage.tell()

    # --- state --------------------------------------------------------------------------------------------------

    def _replay(self, findings: Findings, block: Block) -> None:
        applied = ledger_state.apply(findings.rows.get, self._store.configuration_at(block.height), block)
        for key, value in applied.writes.items():
            if value is None:
                findings.rows.pop(key, None)
            else:
                findings.rows[key] = value
        block.forget()

    async def _compare(self, findings: Findings) -> set[bytes]:
        """Return the keys whose stored value is not the recomputed one; blocks applied meanwhile change some rightly."""
        suspects: set[bytes] = set()
        for number, (key, value) in enumerate(tuple(findings.rows.items())):
            if self._stored(findings, key) != value:
                suspects.add(key)
            if number % _ROWS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        number = 0
        try:
            for key, _ in self._store.state_rows():
                if key not in findings.rows:
                    suspects.add(key)
                number += 1
                if number % _ROWS_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
        except Corruption as error:
            self._damage.tell()
            findings.problems.add(f"the rows of the ledger state cannot be listed: {error}")
        return suspects

    def _recheck(self, findings: Findings, suspects: set[bytes]) -> None:
        """Bring the recomputed state to the present height and judge the suspects there, without a pause in between."""
        while findings.height < self._store.applied().height:
            height = Height(findings.height + 1)
            try:
                block = self._store.block(height)
                blocks.check_body(block)
                self._check_chain(findings, block)
            except (Corruption, RemoteFault) as error:
                self._break(findings, f"block {height} does not hold: {error}")
                return
            self._check_certificate(findings, block)
            self._replay(findings, block)
            findings.height = height
        for key in sorted(suspects):
            if self._stored(findings, key) != findings.rows.get(key):
                findings.problems.add(f"{name_of_row(key)}: the stored state is not what the ledger says")

    def _stored(self, findings: Findings, key: bytes) -> bytes | None:
        try:
            return self._store.state(key)
        except Corruption as error:
            self._damage.tell()
            findings.problems.add(f"{name_of_row(key)} cannot be read: {error}")
            return findings.rows.get(key)

    def _check_mark(self, findings: Findings) -> None:
        position = findings.position
        if position is None:
            return
        mark = self._store.applied()
        expected = (findings.height, position.hash, position.header.time_ms, position.frontier)
        if (mark.height, Digest(mark.hash), mark.time_ms, mark.frontier) != expected:
            findings.problems.add(f"the mark of the applied height {mark.height} is not what the ledger says")


def name_of_row(key: bytes) -> str:
    """Return what a row of ledger state is about, as an operator can look it up."""
    prefix, rest = key[:1], key[1:]
    what = _ROW_NAMES.get(prefix, "the row")
    return f"{what} {(rest[:32] if prefix in _ROW_NAMES else key).hex()}"
