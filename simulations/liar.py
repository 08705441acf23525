"""A member that lies: sits between a real core and the network, and changes what leaves in the core's name.

Here only, and nowhere in what is installed as a daemon: a fault switch that a facility could reach would be one that it could
be accused of. The liar knows its own keys and what it has heard, nothing else; what it sends is as well formed and as well
signed as what honest members send, or it would not be believed.
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from random import Random

from protocol import codec, signing
from protocol.block import Block, Header, body_root, cut, header_form, header_hash
from protocol.certificate import (
    Acknowledgement,
    CommitProof,
    ElectionCertificate,
    ElectionGrant,
    acknowledge,
    grant_vote,
)
from protocol.checkpoint import Checkpoint, SignedCheckpoint, origin_of, sign_checkpoint
from protocol.configuration import Configuration
from protocol.finality import Certificate, CommitVote, cast_vote
from protocol.identifiers import Digest, Height, NetworkId, NodeId, Term
from protocol.merkle import Frontier, leaf_hash
from protocol.raft.leader_forms import append_form
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    Message,
    RequestVote,
    VoteReply,
    request_vote_form,
)

_FORGED_AHEAD = 1_000


class Lie(StrEnum):
    """What a liar does, in ledger.md's words."""

    EQUIVOCATE = "equivocating leader"
    FORGE_TIP = "forged tip"
    FALSE_COMMIT = "false commit"
    WITHHOLD = "withheld certificate"
    INVALID_BLOCK = "invalid block"
    DOUBLE_VOTE = "double vote"


class Liar:
    """One lying member. `outgoing` says what really leaves for what its core sends, `incoming` what its core gets to see."""

    def __init__(
        self, key: signing.SigningKey, network: NetworkId, configuration: Configuration, lie: Lie, rng: Random
    ) -> None:
        self.me = NodeId(key.public)
        self.lie = lie
        self.told = 0
        """Lies that left."""
        self._key = key
        self._network = network
        self._configuration = configuration
        self._rng = rng
        self._victims: dict[Term, frozenset[NodeId]] = {}
        self._twins: dict[Digest, Digest] = {}
        self._twin_blocks: dict[Digest, Block] = {}
        self._twin_acks: dict[Digest, dict[NodeId, Acknowledgement]] = {}
        self._twin_votes: dict[Digest, dict[NodeId, CommitVote]] = {}
        self._real: dict[Term, RequestVote] = {}
        self._grants: dict[Term, dict[NodeId, ElectionGrant]] = {}

    def outgoing(self, target: NodeId, message: Message) -> tuple[Message, ...]:
        """Return what is sent to a member in the place of what the core wants sent to it."""
        match self.lie, message:
            case Lie.EQUIVOCATE, AppendEntries():
                return (self._split(target, message),)
            case Lie.FORGE_TIP, RequestVote():
                return (self._forge(message),)
            case Lie.FALSE_COMMIT, AppendEntries():
                return (self._commit_alone(message),)
            case Lie.WITHHOLD, AppendEntries():
                return (self._withhold(message),)
            case Lie.INVALID_BLOCK, AppendEntries():
                return (self._spoil(message),)
            case Lie.WITHHOLD, _ if codec.tag_of(type(message)) in ("vote-notice", "certificate-notice"):
                self.told += 1
                return ()
            case _:
                return (message,)

    def incoming(self, source: NodeId, message: Message) -> tuple[Message | None, tuple[Message, ...]]:
        """Return what the core gets to see of a message, and what is sent to everybody at once because of it."""
        match self.lie, message:
            case Lie.DOUBLE_VOTE, RequestVote():
                return message, (self._grant_another(source, message),)
            case Lie.EQUIVOCATE, AppendReply():
                return self._take_from_victim(source, message), ()
            case Lie.FORGE_TIP, VoteReply() if message.grant is not None and message.grant.term in self._real:
                return None, self._count(message.grant)
            case _:
                pass  # nothing that this lie needs to know
        return message, ()

    # --- two blocks for one height --------------------------------------------------------------------------------

    def _split(self, target: NodeId, append: AppendEntries) -> AppendEntries:
        """Tell some members one history, the others another, and help both to be committed."""
        others = [node for node in self._configuration.voters if node != self.me]
        if append.term not in self._victims:
            count = self._rng.randrange(1, len(others))
            self._victims[append.term] = frozenset(self._rng.sample(others, count))
        if target not in self._victims[append.term]:
            return append
        blocks = tuple([self._twin(raw, append.term) for raw in append.blocks])
        prev_hash = self._twins.get(append.prev_hash, append.prev_hash)
        tip_hash = self._twins.get(append.tip_hash, append.tip_hash)
        proof = append.proof
        if proof is not None and header_hash(proof.header) in self._twins:
            proof = None
        certificate = append.certificate
        if certificate is not None and header_hash(certificate.header) in self._twins:
            certificate = None
        changed = replace(
            append,
            blocks=blocks,
            prev_hash=prev_hash,
            tip_hash=tip_hash,
            proof=self._twin_proof() or proof,
            certificate=self._twin_certificate() or certificate,
        )
        return self._signed(changed)

    def _twin(self, raw: bytes, term: Term) -> bytes:
        block = Block.decode(raw)
        if block.header.leader != self.me or block.term != term:
            return raw
        if block.hash not in self._twins:
            prev_hash = self._twins.get(block.header.prev_hash, block.header.prev_hash)
            twin = self._cut_again(block, time_ms=block.header.time_ms + 1, prev_hash=prev_hash)
            self._twins[block.hash] = twin.hash
            self._twin_blocks[twin.hash] = twin
            self.told += 1
        return self._twin_blocks[self._twins[block.hash]].raw

    def _take_from_victim(self, source: NodeId, reply: AppendReply) -> AppendReply:
        """Keep what a victim signs for its history; the core shall not see it."""
        if reply.ack is not None and reply.ack.header_hash in self._twin_blocks:
            self._twin_acks.setdefault(reply.ack.header_hash, {})[source] = reply.ack
            reply = replace(reply, ack=None)
        if reply.vote is not None and reply.vote.header_hash in self._twin_blocks:
            self._twin_votes.setdefault(reply.vote.header_hash, {})[source] = reply.vote
            reply = replace(reply, vote=None)
        return reply

    def _twin_certificate(self) -> Certificate | None:
        """Return a certificate for the newest twin that the victims' votes and an own one make final."""
        for found, votes in reversed(self._twin_votes.items()):
            block, needed = self._twin_blocks[found], self._configuration.certificate_quorum
            if len(votes) + 1 >= needed:
                counted = list(votes.values())[: needed - 1]
                base = counted[0]
                own = cast_vote(
                    self._key, self._network, epoch=0, incarnation=0, height=block.height, tip=found,
                    base_height=base.base_height, base=base.base_hash,
                )  # fmt: skip
                return Certificate(
                    block.header, (), tuple(sorted((*counted, own), key=lambda vote: vote.signer))
                )
        return None

    def _twin_proof(self) -> CommitProof | None:
        """Return a commit proof for the newest twin that the victims' acknowledgements and an own one prove."""
        for found, acks in reversed(self._twin_acks.items()):
            block = self._twin_blocks[found]
            counted = [ack for ack in acks.values() if ack.term == block.term]
            if len(counted) + 1 >= self._configuration.raft_quorum:
                own = self._acknowledge(block.term, block.height, found)
                return CommitProof(block.header, (), _sorted(counted, own))
        return None

    # --- forged tips ----------------------------------------------------------------------------------------------

    def _forge(self, request: RequestVote) -> RequestVote:
        """Show a tip that there is not, higher than anybody's."""
        self.told += 1
        self._real[request.term] = request
        tip = replace(
            request.tip,
            term=Term(request.term - 1),
            height=Height(request.tip.height + _FORGED_AHEAD),
            leader=self.me,
        )
        form = request_vote_form(
            self._network, epoch=request.epoch, incarnation=request.incarnation, term=request.term,
            candidate=request.candidate, tip=tip, tip_hash=header_hash(tip), ack_term=request.ack_term,
            base_height=request.base_height, base_hash=request.base_hash,
        )  # fmt: skip
        return replace(request, tip=tip, tip_hash=header_hash(tip), signature=self._key.sign(form))

    def _count(self, grant: ElectionGrant) -> tuple[Message, ...]:
        """Open the term upon the real tip, once enough members have granted it upon the forged one."""
        grants = self._grants.setdefault(grant.term, {})
        grants[grant.voter] = grant
        request = self._real[grant.term]
        own = grant_vote(
            self._key, self._network, epoch=request.epoch, incarnation=request.incarnation, term=grant.term,
            candidate=self.me, tip=grant.tip_hash,
        )  # fmt: skip
        found = sorted([own, *grants.values()], key=lambda one: one.voter)
        if len(found) != self._configuration.raft_quorum:
            return ()
        elected = ElectionCertificate(grant.term, self.me, grant.tip_hash, tuple(found))
        tip = request.tip
        block = cut(
            (), opening=codec.encode(elected), predecessor=tip, predecessor_hash=request.tip_hash, frontier=Frontier(),
            term=grant.term, key=self._key, now_ms=tip.time_ms + 1,
        )  # fmt: skip
        append = AppendEntries(
            request.epoch, grant.term, self.me, tip.height, request.tip_hash, (block.raw,), block.hash, elected, None, bytes(64)
        )  # fmt: skip
        return (self._signed(append),)

    # --- false commits, invalid blocks, withheld certificates -----------------------------------------------------

    def _commit_alone(self, append: AppendEntries) -> AppendEntries:
        """Claim that a block is committed by the own acknowledgement, said as often as a quorum needs it."""
        if not append.blocks:
            return append
        self.told += 1
        header = Block.decode(append.blocks[-1]).header
        own = self._acknowledge(append.term, header.height, header_hash(header))
        acks = (own,) * self._rng.randrange(1, 1 + self._configuration.raft_quorum)
        return replace(append, proof=CommitProof(header, (), acks))

    def _spoil(self, append: AppendEntries) -> AppendEntries:
        """Break P2 in the last block of a frame, which this leader has cut."""
        block = Block.decode(append.blocks[-1]) if append.blocks else None
        if block is None or block.header.leader != self.me or block.term != append.term or block.opening:
            return append
        self.told += 1
        transactions = block.transactions
        if transactions and self._rng.random() < 0.5:
            bad = self._cut_again(block, transactions=(*transactions, transactions[0]))
        else:
            bad = self._cut_again(block, tree_size=block.header.tree_size + 1)
        return self._signed(replace(append, blocks=(*append.blocks[:-1], bad.raw), tip_hash=bad.hash))

    def _withhold(self, append: AppendEntries) -> AppendEntries:
        self.told += append.proof is not None
        return replace(append, proof=None, certificate=None)

    # --- two votes ------------------------------------------------------------------------------------------------

    def _grant_another(self, candidate: NodeId, asked: RequestVote) -> VoteReply:
        """Vote for another member than the one that asks, who may get the vote of the core."""
        self.told += 1
        others = [node for node in self._configuration.voters if node not in (candidate, self.me)]
        grant = grant_vote(
            self._key, self._network, epoch=asked.epoch, incarnation=asked.incarnation, term=asked.term,
            candidate=self._rng.choice(others), tip=asked.tip_hash,
        )  # fmt: skip
        return VoteReply(asked.term, self.me, grant)

    # --- signing --------------------------------------------------------------------------------------------------

    def _signed(self, append: AppendEntries) -> AppendEntries:
        form = append_form(
            self._network, epoch=append.epoch, term=append.term, leader=self.me, prev_hash=append.prev_hash,
            tip_hash=append.tip_hash,
        )  # fmt: skip
        return replace(append, signature=self._key.sign(form))

    def _cut_again(
        self, block: Block, *, transactions: tuple[bytes, ...] | None = None, **lies: object
    ) -> Block:
        """Return a block of one's own with a lie in its header, or with other transactions, signed."""
        body = block.transactions if transactions is None else transactions
        header: Header = replace(block.header, **lies)  # type: ignore[arg-type]  # names of its fields
        if transactions is not None:
            header = replace(
                header, n_tx=len(body), tx_root=body_root(b"", tuple([leaf_hash(raw) for raw in body]))
            )
        return Block(header, self._key.sign(header_form(header)), block.special, body)

    def _acknowledge(self, term: Term, height: Height, tip: Digest) -> Acknowledgement:
        return acknowledge(
            self._key, self._network, epoch=0, incarnation=0, term=term, height=height, tip=tip
        )


def two_checkpoints(
    key: signing.SigningKey, network: NetworkId, size: int, rng: Random
) -> tuple[bytes, bytes]:
    """Return two notes, signed by one checkpoint key, over two trees of one size."""
    one, other = (Checkpoint(origin_of(network), size, Digest(rng.randbytes(32))) for _ in range(2))
    first, second = (SignedCheckpoint(each, (sign_checkpoint(key, each),)).encode() for each in (one, other))
    return first, second


def _sorted(acks: Sequence[Acknowledgement], own: Acknowledgement) -> tuple[Acknowledgement, ...]:
    return tuple(sorted((*acks, own), key=lambda ack: ack.voter))
