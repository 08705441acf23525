"""A history made up on the spot: real blocks, votes and certificates under signers that come and go, without a network.

What the benchmark of receipts measures on, and what tests of proofs are made of. Keys follow from names: same names,
same bytes.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol import block, codec, finality, receipt_file, recovery, transaction
from protocol.block import Block
from protocol.change_proof import (
    Change,
    ConfigurationChange,
    CrossingRecovery,
    FinalityProof,
    height_of,
    recovery_in,
)
from protocol.configuration import Configuration, Member, network_id
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import NetworkId, NodeId, Term, Txid, Vid
from protocol.merkle import Frontier
from protocol.receipt_file import ReceiptFile
from protocol.recovery import Recovery, RecoverySignature, SignedRecovery
from protocol.recovery_block import recovery_block
from protocol.signing import SigningKey
from protocol.transaction import Revoke

BEGIN_MS = 1_700_000_000_000


def signing_key(name: str) -> SigningKey:
    """Return the key that a name stands for."""
    return SigningKey(hashlib.sha256(name.encode()).digest())


def member(name: str, role: str = "voter") -> Member:
    """Return a facility whose keys follow from its name."""
    kex, team, governance, checkpoint = [
        signing_key(f"{name} {part}").public for part in ("kex", "team", "governance", "checkpoint")
    ]
    node = NodeId(signing_key(name).public)
    address = f"/dns4/{name.replace(' ', '-')}.example/tcp/4001"
    return Member(name, "hospital", role, node, kex, team, governance, checkpoint, (address,))


def with_members(before: Configuration, members: Iterable[Member]) -> Configuration:
    """Return the configuration that follows `before`, with other members."""
    ordered = tuple(sorted(members, key=lambda one: one.node))
    return dataclasses.replace(before, members=ordered, number=before.number + 1)


def transactions(count: int, network: NetworkId) -> tuple[bytes, ...]:
    """Return signed transactions, each another one."""
    owner, vid = signing_key("owner"), Vid(hashlib.sha256(b"vault").digest())
    grants = [Txid(hashlib.sha256(f"grant {n}".encode()).digest()) for n in range(count)]
    signed = [transaction.sign(Revoke(vid, gid, BEGIN_MS), network, owner) for gid in grants]
    return tuple(map(codec.encode, signed))


def _set_by(change: Change) -> Configuration:
    step = recovery_in(change)
    if step is not None:
        return step.configuration
    assert isinstance(change, ConfigurationChange), "what is no recovery has a certificate"
    return change.configuration


@dataclass
class MadeHistory:
    """A chain that grows block by block. Every block can be certified, by whoever signs at its height."""

    configuration: Configuration
    blocks: list[Block] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    frontier: Frontier = field(default_factory=Frontier)
    keys: dict[NodeId, SigningKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.genesis = self.configuration
        self.blocks.append(block.genesis_block(self.genesis))
        self._learn_keys()

    @classmethod
    def of(cls, *voters: str, witnesses: tuple[str, ...] = (), nonce: str = "nonce") -> "MadeHistory":
        """Return the history of a network that these facilities found."""
        members = [member(name) for name in voters] + [member(name, "witness") for name in witnesses]
        members.sort(key=lambda one: one.node)
        return cls(Configuration(1, tuple(members), 0, (0,), hashlib.sha256(nonce.encode()).digest()))

    @property
    def network(self) -> NetworkId:
        """The network's id."""
        return network_id(self.genesis)

    @property
    def certified_changes(self) -> tuple[ConfigurationChange, ...]:
        """The changes of configuration that are no recoveries."""
        return tuple(one for one in self.changes if isinstance(one, ConfigurationChange))

    def _learn_keys(self) -> None:
        self.keys |= {one.node: signing_key(one.name) for one in self.configuration.members}

    def cut(self, *body: bytes, configuration: Configuration | None = None) -> Block:
        """Add a block: lawful in everything that a proof looks at, its term's opening left out."""
        tip = self.blocks[-1]
        cut = block.cut(
            body,
            configuration=configuration,
            predecessor=tip.header,
            predecessor_hash=tip.hash,
            frontier=self.frontier,
            term=Term(max(tip.term, 1)),
            key=self.keys[self.configuration.voters[0]],
            now_ms=BEGIN_MS,
        )
        self.frontier = self.frontier.append(cut.leaves())
        self.blocks.append(cut)
        return cut

    def change(self, configuration: Configuration) -> ConfigurationChange:
        """Add the block that sets `configuration`, certified under old and new signers."""
        cut, before = self.cut(configuration=configuration), self.configuration
        self.configuration = configuration
        self._learn_keys()
        change = ConfigurationChange(self.certificate(cut, before, configuration), configuration)
        self.changes.append(change)
        return change

    def rotate(self, count: int) -> None:
        """Change the configuration `count` times: a learner comes, becomes a voter, and the oldest voter leaves."""
        for turn in range(count):
            members = list(self.configuration.members)
            newest = f"newcomer {turn // 3}"
            if turn % 3 == 0:
                members.append(member(newest, "learner"))
            elif turn % 3 == 1:
                members = [member(newest) if one.name == newest else one for one in members]
            else:
                voters = [one for one in members if one.role == "voter"]
                members.remove(min(voters, key=lambda one: (one.name.startswith("newcomer"), one.name)))
            self.change(with_members(self.configuration, members))

    def recover(self, *lost: str) -> SignedRecovery:
        """Add the block that begins the next epoch above the tip, without the facilities that are lost."""
        signed = self._asked(*lost)
        self._begin(signed, signed)
        return signed

    def recover_across(self, *lost: str) -> CrossingRecovery:
        """Do the same where nobody has ever seen a certificate of the last change of the configuration."""
        signed, change = self._asked(*lost), self.changes.pop()
        assert isinstance(change, ConfigurationChange), "there is a change to cross"
        first, before = change.certificate.height, self.in_force(change.certificate.height)
        headers = tuple(one.header for one in self.blocks[first:])
        earlier = self.consents(signed.recovery, before)
        crossing = CrossingRecovery(headers, change.configuration, earlier, signed)
        self._begin(signed, crossing, earlier)
        return crossing

    def consents(self, asked: Recovery, before: Configuration) -> tuple[RecoverySignature, ...]:
        """Return the consents of all organisations of a configuration that have a say and are not lost."""
        return tuple(
            recovery.consent(signing_key(f"{one.name} governance"), self.network, asked, one.node)
            for one in before.members
            if one.node in before.signers and one.node not in asked.lost
        )

    def _begin(
        self, signed: SignedRecovery, change: Change, earlier: tuple[RecoverySignature, ...] = ()
    ) -> None:
        self.blocks.append(recovery_block(signed, self.blocks[-1].header, self.frontier, earlier))
        self.configuration = signed.recovery.configuration
        self.changes.append(change)

    def _asked(self, *lost: str) -> SignedRecovery:
        tip, before = self.blocks[-1].header, self.configuration
        left = [one for one in before.members if one.name not in lost]
        asked = Recovery(
            tip.epoch + 1,
            tip.height,
            self.blocks[-1].hash,
            Term(tip.term + 1),
            tip.time_ms + 1,
            before.digest,
            with_members(before, left),
            tuple(one.node for one in before.members if one.name in lost),
            (),
            "lost",
        )
        return SignedRecovery(asked, self.consents(asked, before))

    def in_force(self, height: int) -> Configuration:
        """Return the configuration in force at a height: the last one set below it."""
        found = self.genesis
        for change in self.changes:
            if isinstance(change, CrossingRecovery) and change.headers[0].height < height:
                found = change.configuration
            if height_of(change) < height:
                found = _set_by(change)
        return found

    def vote(self, node: NodeId, cut: Block) -> CommitVote:
        """Return a member's vote for a block, upon genesis."""
        return finality.cast_vote(
            self.keys[node],
            self.network,
            epoch=cut.header.epoch,
            incarnation=0,
            height=cut.height,
            tip=cut.hash,
            base_height=self.blocks[0].height,
            base=self.blocks[0].hash,
        )

    def certificate(
        self,
        cut: Block,
        *configurations: Configuration,
        voted: Block | None = None,
        by: Iterable[NodeId] = (),
    ) -> Certificate:
        """Return a certificate of `cut`: the votes `by` these, else of as many signers of `configurations` as suffice.

        Without `configurations` it is the one in force at its height. `voted` is the block above that the votes name.
        """
        asked = configurations or (self.in_force(cut.height),)
        chosen = set(by)
        # Those who sign in all of them first: nobody is then superfluous in the end.
        in_all = set.intersection(*(set(one.signers) for one in asked))
        for one in () if by else asked:
            for node in sorted(one.signers, key=lambda node: (node not in in_all, node)):
                if len(chosen & set(one.signers)) < one.certificate_quorum:
                    chosen.add(node)
        top = voted or cut
        links = tuple(above.header for above in self.blocks[cut.height + 1 : top.height + 1])
        return Certificate(cut.header, links, tuple(self.vote(node, top) for node in sorted(chosen)))

    def proof(self, height: int, certificate: Certificate) -> FinalityProof:
        """Return the proof that the block at `height` is final, through a certificate of it or of one above it."""
        between = tuple(one.header for one in self.blocks[height : certificate.height])
        changes = tuple(one for one in self.changes if height_of(one) < certificate.height)
        return FinalityProof(self.genesis, changes, between, certificate)

    def receipt(
        self, height: int, position: int = 0, *, certificate: Certificate | None = None, told: bool = True
    ) -> ReceiptFile:
        """Return the receipt of one transaction; without `certificate` its block is certified itself."""
        cut = self.blocks[height]
        proof = self.proof(height, certificate or self.certificate(cut))
        return receipt_file.make(cut, position, proof, told=told)
