"""What must hold in every run of a test cluster (ledger.md section 3), and what has to be remembered to see whether it does."""

from protocol.block import Block, config_hash_above, genesis_block
from protocol.certificate import (
    Acknowledgement,
    CommitProof,
    ElectionGrant,
    check_commit_proof,
)
from protocol.configuration import Configuration, network_id
from protocol.finality import Certificate, CommitVote, check_certificate
from protocol.identifiers import Digest, Height, NodeId
from protocol.merkle import Frontier
from protocol.raft.machine import Raft
from protocol.raft.messages import AppendEntries, AppendReply, Message, VoteNotice, VoteReply
from protocol.raft.state import Contradiction, Ready, Role
from protocol.signing import SigningKey
from tests.protocol.raft.members import Disk


class Invariants:
    """The nodes of a cluster, by number, and all that has been ordered, certified, voted and promised by them."""

    def __init__(self, configuration: Configuration, keys: dict[int, SigningKey]) -> None:
        self.configuration = configuration
        self.configurations = {0: configuration}  # by the height that set it, as ordered
        self.network = network_id(configuration)
        self.keys = keys
        self.number = {NodeId(key.public): n for n, key in keys.items()}
        genesis = genesis_block(configuration)
        self.disks = {n: Disk(genesis) for n in keys}
        self.rafts: dict[int, Raft] = {}
        self.leader_of_term: dict[int, int] = {}
        self.chain: dict[int, Digest] = {0: genesis.hash}
        self.states: dict[int, tuple[Block, Frontier]] = {0: (genesis, Frontier())}
        self.proofs: dict[int, CommitProof] = {}
        self.certificates: dict[int, Certificate] = {}
        self.certified: dict[int, Digest] = {0: genesis.hash}
        self.votes: dict[int, list[CommitVote]] = {n: [] for n in self.keys}
        self.contradictions: list[tuple[int, Contradiction]] = []
        self.granted: dict[tuple[int, int], NodeId] = {}
        self.acknowledged: dict[tuple[int, int], Acknowledgement] = {}
        self.reads: dict[
            tuple[int, int], int
        ] = {}  # (node, number): what was committed anywhere when it began
        self.read_answers: dict[int, dict[int, int | None]] = {n: {} for n in self.keys}
        self.liars: set[int] = set()  # who acknowledges what it does not hold

    def configuration_at(self, height: int) -> Configuration:
        """Return the ordered configuration that block `height` is acknowledged in."""
        return self.configurations[max(at for at in self.configurations if at <= height)]

    def check(self, n: int) -> None:
        raft = self.rafts[n]
        in_log = config_hash_above(raft._voter.log.tip)
        assert raft.configuration.digest == in_log, "the configuration in force is the newest in the log"
        if raft.role is Role.LEADER:
            first = self.leader_of_term.setdefault(raft.term, n)
            assert first == n, f"two leaders of term {raft.term}"
            height = max(self.chain)
            log = raft._voter.log
            newest = max(self.leader_of_term)
            if raft.term == newest and height > log.committed:
                assert log.tip_height >= height, "a leader lacks a committed block"
                assert log.hash(Height(height)) == self.chain[height], "a leader lacks a committed block"
        if raft.commit_proof is not None:
            self.proofs[raft.commit_proof.header.height] = raft.commit_proof
        committed = raft.commit_height
        assert committed >= self.disks[n].applied
        known = self.chain.get(committed)
        log = raft._voter.log
        if known is None:
            for height in range(max(self.chain) + 1, committed + 1):
                block = log.block(Height(height))
                self.chain[height] = block.hash
                self.states[height] = block, self.states[height - 1][1].append(block.leaves())
                if block.is_configuration:
                    self.configurations[height] = block.next_configuration()
            counted = self.configuration_at(committed)
            holders = sum(
                disk.blocks.get(committed) is not None and disk.hash(committed) == log.hash(committed)
                for disk in (self.disks[self.number[node]] for node in counted.voters)
            )
            assert holders + len(self.liars) >= counted.raft_quorum, (
                "committed without being durable on a quorum"
            )
        else:
            assert known == log.hash(committed), f"two blocks are committed at {committed}"

    def note_certified(self, n: int, ready: Ready) -> None:
        """No two conflicting blocks are certified anywhere; the certificate holds; ordering came first."""
        for block in ready.certified:
            assert self.chain[block.height] == block.hash, "a node hands out another block than was ordered"
            assert self.certified.setdefault(block.height, block.hash) == block.hash, "two certified blocks"
        certificate = ready.certificate
        assert (certificate is None) == (not ready.certified)
        if certificate is not None:
            counted = self.configuration_at(certificate.height - 1)
            following = self.configuration_at(certificate.height)
            is_switch = following is not counted
            digest = check_certificate(certificate, self.network, counted, following if is_switch else None)
            assert digest == ready.certified[-1].hash
            assert not any(block.is_configuration for block in ready.certified[:-1]), "a group ends with one"
            self.certificates[certificate.height] = certificate

    def note_reads(self, n: int, ready: Ready) -> None:
        for read in ready.reads:
            began = self.reads[n, read.request]
            assert read.request not in self.read_answers[n], "a read is answered once"
            assert read.height is None or read.height >= began, "a stale read"
            self.read_answers[n][read.request] = read.height

    def check_promise(self, source: int, message: Message) -> None:
        disk = self.disks[source]
        if isinstance(message, VoteReply) and message.grant is not None:
            self.check_grant(disk, source, message.grant)
        if isinstance(message, AppendReply) and message.ack is not None:
            self.check_acknowledgement(disk, source, message.ack)
        if isinstance(message, AppendReply | VoteNotice) and message.vote is not None:
            self.check_vote(disk, source, message.vote)
        proof = message.proof if isinstance(message, AppendEntries) else None
        if proof is not None:
            check_commit_proof(proof, self.network, self.configuration_at(proof.header.height))

    def check_vote(self, disk: Disk, source: int, vote: CommitVote) -> None:
        """A vote is durable when it leaves, for a block that was ordered; a signer's votes are one chain between bases (E3)."""
        hard = disk.hard_state
        assert (hard.last_vote_height, hard.last_vote_hash) == (vote.height, vote.header_hash) or (
            hard.last_vote_height > vote.height
        ), "a vote left before it was durable"
        assert hard.certificate_height >= vote.base_height, "a base that could be forgotten"
        assert self.chain.get(vote.height) == vote.header_hash, "a vote for what was never ordered"
        if vote not in self.votes[source]:
            assert all(before.height <= vote.height for before in self.votes[source])
            self.votes[source].append(vote)

    def check_grant(self, disk: Disk, source: int, grant: ElectionGrant) -> None:
        assert disk.hard_state.term >= grant.term, "a vote left before it was durable"
        assert disk.hard_state.term > grant.term or disk.hard_state.vote == grant.candidate
        assert self.granted.setdefault((source, grant.term), grant.candidate) == grant.candidate, (
            "two votes in one term"
        )

    def check_acknowledgement(self, disk: Disk, source: int, ack: Acknowledgement) -> None:
        """A promise is durable when it leaves, and no two of one term contradict each other (E2)."""
        assert disk.hash(ack.height) == ack.header_hash, (
            "an acknowledgement left before its block was durable"
        )
        hard = disk.hard_state
        assert hard.term >= ack.term
        assert hard.ack_term > ack.term or (hard.ack_term == ack.term and hard.ack_height >= ack.height)
        before = self.acknowledged.get((source, ack.term))
        if before is not None and disk.lowest <= before.height <= ack.height:
            assert disk.hash(before.height) == before.header_hash, (
                "two acknowledgements of one term are not on one chain"
            )
        if before is None or before.height < ack.height:
            self.acknowledged[source, ack.term] = ack
