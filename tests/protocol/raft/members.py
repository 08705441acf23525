"""The members of test clusters, and what each of them has on its disk."""

import hashlib

from protocol import signing
from protocol.block import Block, Header
from protocol.configuration import Configuration, Member
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, NodeId, PublicKey
from protocol.merkle import Frontier
from protocol.raft.log import Log
from protocol.raft.state import HardState, Ready


def key_of(number: int) -> signing.SigningKey:
    return signing.SigningKey(hashlib.sha256(b"raft voter %d" % number).digest())


def member(n: int, role: str = "voter") -> Member:
    stands = PublicKey(bytes([n] * 32))
    return Member(
        f"facility {n}", "hospital", role, NodeId(key_of(n).public), stands, stands, stands, stands, ()
    )


def configuration_of(
    count: int, learners: tuple[int, ...] = (), witnesses: tuple[int, ...] = ()
) -> Configuration:
    """Return a configuration of voters 1 to `count`, of learners and of witnesses."""
    return configuration_with(
        **{str(n): "voter" for n in range(1, count + 1)},
        **{str(n): "learner" for n in learners},
        **{str(n): "witness" for n in witnesses},
    )


def configuration_with(**roles: str) -> Configuration:
    """Return the configuration of numbered members in these roles."""
    members = [member(int(n), role) for n, role in roles.items()]
    return Configuration(1, tuple(sorted(members, key=lambda member: member.node)), 0, (0,), b"\x07" * 32)


def evict(log: Log, below: int) -> None:
    """Let a log have nothing below a height in memory."""
    while log._first < below:
        log._bytes -= len(log._entries.pop(log._first).block.raw)
        log._first += 1


class Disk:
    """What one node has durably: the reader of its log as well."""

    def __init__(self, genesis: Block) -> None:
        self.hard_state = HardState.initial()
        self.blocks: dict[int, Block] = {0: genesis}
        self.applied = Height(0)
        self.lowest = Height(0)  # what lies below, but for genesis, is not held any more
        self.frontier = Frontier()
        self.certificates: dict[int, Certificate] = {}
        self.kept: dict[int, Certificate] = {}  # those that were written synchronously

    def first(self) -> Height:
        return self.lowest

    def header(self, height: Height) -> Header:
        return self.block(height).header

    def hash(self, height: Height) -> Digest:
        return self.block(height).hash

    def block(self, height: Height) -> Block:
        assert height == 0 or height >= self.lowest, "a block below what is held was asked for"
        return self.blocks[height]

    def certificate(self, height: Height) -> Certificate | None:
        below = [at for at in self.certificates if at <= height]
        return self.certificates[max(below)] if below else None

    def install(self, block: Block, frontier: Frontier, certificate: Certificate) -> None:
        """Begin at a certified block, and keep what is above it and follows it."""
        above = self.blocks.get(block.height + 1)
        links = above is not None and above.header.prev_hash == block.hash
        here = self.blocks.get(block.height)
        if here is not None and here.hash != block.hash:
            self.hard_state = self.hard_state.leaving(block.height)
        kept = {at: kept for at, kept in self.blocks.items() if at > block.height and links}
        self.blocks = {0: self.blocks[0], block.height: block, **kept}
        self.applied = self.lowest = block.height
        self.frontier, self.certificates = frontier, {block.height: certificate}

    def persist(self, ready: Ready) -> None:
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.truncate_from is not None:
            assert ready.truncate_from > self.applied, "a certified block would be truncated"
            for height in [at for at in self.blocks if at >= ready.truncate_from]:
                del self.blocks[height]
        for block in ready.append:
            assert block.height == max(self.blocks) + 1
            assert block.header.prev_hash == self.blocks[block.height - 1].hash
            self.blocks[block.height] = block
        self.kept.update((certificate.height, certificate) for certificate in ready.keep)
        self.certificates.update(self.kept)

    def apply(self, ready: Ready) -> None:
        for block in ready.certified:
            assert block.height == self.applied + 1, "certified blocks are handed out in order, once"
            assert self.blocks[block.height] == block, (
                "a certified block is handed out only when it is durable"
            )
            self.frontier = self.frontier.append(block.leaves())
            self.applied = block.height
        if ready.certified:
            assert ready.certificate is not None
            assert ready.certificate.header == ready.certified[-1].header
            self.certificates[ready.certificate.height] = ready.certificate
