"""Members of one ledger that sign checkpoints, and a witness of logs outside: all in one process, without a network."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from node.checkpoints import Checkpoints
from node.damage_notice import DamageNotice
from node.evidence import EvidenceDesk
from node.http_client import Answer
from node.log_settings import OutsideWitness
from node.log_witness import LogWitness, cosigning_key
from node.tree import Tree
from node.verification import Verification
from node.witness_client import WitnessClient
from protocol import codec
from protocol.checkpoint import Checkpoint, NoteKey, SignedCheckpoint, sign_checkpoint
from protocol.identifiers import Digest, NetworkId, NodeId, PublicKey, Vid
from protocol.log_witness import SIZE_MEDIA_TYPE, Declined, KnownLog
from protocol.passphrase import Hardness
from protocol.signing import SigningKey
from protocol.transaction import VaultOpen, sign
from storage.keystore import Keystore
from storage.memory import MemoryStore
from tests.node.ledger_double import (
    DoubleClock,
    InlineDisk,
    InlineWorkers,
    LedgerDouble,
    MemberDouble,
    SeededEntropy,
    SilentLog,
)
from tests.protocol.chain import UNTIL_MS, filled, key

URL = "https://witness.example/w"


@dataclass
class Signer:
    """A member with its tree and its checkpoints."""

    member: MemberDouble
    tree: Tree
    checkpoints: Checkpoints

    def newest_size(self) -> int:
        note = self.checkpoints.newest()
        return note.checkpoint.size if note is not None else 0

    def names(self, note: SignedCheckpoint) -> int:
        """How many members have signed a note, all of them truly."""
        return len(note.signed_by(self.checkpoints.log_keys))

    def events(self, level: str) -> list[str]:
        return [event for noted, event, _ in self.member.log.events if noted == level]


def signer_of(
    ledger: LedgerDouble,
    member: MemberDouble,
    cosigners: tuple[NoteKey, ...] = (),
    evidence: EvidenceDesk | None = None,
) -> Signer:
    tree = Tree(
        member.store,
        member.rows,
        disk=member.disk,
        workers=InlineWorkers(),
        clock=ledger.clock,
        log=member.log,
        damage=DamageNotice(),
    )
    checkpoints = Checkpoints(
        store=member.store,
        rows=member.rows,
        disk=member.disk,
        applier=member.applier,
        tree=tree,
        secret=SigningKey(member.identity.checkpoint),
        cosigners=cosigners,
        evidence=evidence,
        transport=member.transport,
        verification=Verification(ledger.network, InlineWorkers(), member.log),
        clock=ledger.clock,
        log=member.log,
    )
    return Signer(member, tree, checkpoints)


def transaction(network: NetworkId, number: int) -> bytes:
    owner, public = key(f"owner {number}"), PublicKey(key(f"owner {number}").public)
    custodian = NodeId(key("facility").public)
    vid = Vid(filled(f"vault {network.hex()} {number}"))
    opening = VaultOpen(vid, public, public, public, public, 0, custodian, (custodian,), 1, UNTIL_MS)
    return codec.encode(sign(opening, network, owner, key("facility")))


async def order(ledger: LedgerDouble, *numbers: int) -> None:
    """One block of transactions."""
    await ledger.order(tuple(transaction(ledger.network, number) for number in numbers))


@asynccontextmanager
async def opened(ledger: LedgerDouble, *signers: Signer) -> AsyncIterator[None]:
    """The term is open, and these members sign."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ledger.run)
        for signer in signers:
            nursery.start_soon(signer.checkpoints.run)
        while any(one.transport.is_up and one.store.applied().height == 0 for one in ledger.members):
            await trio.lowlevel.checkpoint()
        yield
        nursery.cancel_scope.cancel()


def signed_by(signers: tuple[Signer, ...], size: int, root: Digest) -> SignedCheckpoint:
    """A checkpoint that these members sign, whatever their ledger says."""
    checkpoint = Checkpoint(signers[0].checkpoints.origin, size, root)
    secrets = [SigningKey(signer.member.identity.checkpoint) for signer in signers]
    return SignedCheckpoint(checkpoint, tuple(sign_checkpoint(one, checkpoint) for one in secrets))


class OutsideHouse:
    """A witness outside the network, called without HTTP; `answers` replaces what it answers, `down` makes it unreachable."""

    def __init__(self) -> None:
        self.rows, entropy = MemoryStore(), SeededEntropy("outside")
        keystore = Keystore.create(MemoryStore(), "x", entropy.bytes, hardness=Hardness(1, 8192))
        stranger = LedgerDouble(1, seed="another network")
        own = signer_of(stranger, stranger.members[0])
        self.logs: tuple[KnownLog, ...] = ()
        self.witness = LogWitness(
            self.rows,
            name="witness.example/w",
            secret=cosigning_key(self.rows, keystore, entropy),
            logs=lambda: self.logs,
            own=(own.checkpoints.origin, own.tree),
            disk=InlineDisk(self.rows),
            clock=DoubleClock(),
            log=SilentLog(),
        )
        self.asked: list[bytes] = []
        self.answers: list[Answer | Exception] = []

    @property
    def settings(self) -> OutsideWitness:
        return OutsideWitness(URL, self.witness.key)

    async def post(self, url: str, body: bytes) -> Answer:
        assert url == f"{URL}/add-checkpoint"
        self.asked.append(body)
        await trio.lowlevel.checkpoint()
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        try:
            return Answer(200, "text/plain", (await self.witness.add_checkpoint(body)).encode())
        except Declined as refusal:
            if refusal.status == 409:
                return Answer(409, SIZE_MEDIA_TYPE, f"{refusal.size}\n".encode())
            return Answer(refusal.status, "text/plain", b"no\n")

    def client(self, signer: Signer) -> WitnessClient:
        return WitnessClient(
            self.settings,
            checkpoints=signer.checkpoints,
            tree=signer.tree,
            post=self.post,
            clock=signer.member.clock,
            log=signer.member.log,
        )

    def trusts(self, signer: Signer, threshold: int = 1) -> None:
        self.logs = (KnownLog(signer.checkpoints.origin, signer.checkpoints.log_keys, threshold),)


def other_root(note: SignedCheckpoint) -> SignedCheckpoint:
    """The same note with another root, so that no signature holds."""
    return replace(note, checkpoint=replace(note.checkpoint, root=Digest(filled("another root"))))
