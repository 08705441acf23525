"""Keys, a configuration, transactions and a short valid chain, the same bytes in every run, for tests and golden vectors."""

import hashlib

from protocol import block, certificate, codec, finality, transaction
from protocol.block import Block
from protocol.certificate import Acknowledgement, CommitProof, ElectionCertificate
from protocol.configuration import Card, Configuration, Member, network_id
from protocol.finality import Certificate, CommitVote
from protocol.governance import AddMember, Ballot, Propose, Withdraw
from protocol.identifiers import ZERO, Digest, Height, NodeId, PublicKey, Rid, Term, Txid, Vid
from protocol.merkle import Frontier
from protocol.rejoining import Rejoin
from protocol.signing import SigningKey
from protocol.transaction import (
    CustodyTransfer,
    EnvelopeReceipt,
    EpochRotate,
    Grant,
    Read,
    RecordCommit,
    RecordErase,
    Revoke,
    Transaction,
    VaultOpen,
)

NOW_MS = 1_700_000_000_000


def key(name: str) -> SigningKey:
    return SigningKey(hashlib.sha256(name.encode()).digest())


def filled(text: str) -> bytes:
    return hashlib.sha256(b"field " + text.encode()).digest()


VOTERS = tuple(sorted((key(f"voter {n}") for n in range(3)), key=lambda signer: signer.public))
NODES = tuple(NodeId(signer.public) for signer in VOTERS)
CONFIGURATION = Configuration(
    1,
    tuple(
        Member(
            f"facility {n}",
            "hospital",
            "voter",
            node,
            PublicKey(filled("kex")),
            PublicKey(filled("team")),
            PublicKey(filled("gov")),
            PublicKey(filled("checkpoint")),
            (),
        )
        for n, node in enumerate(NODES)
    ),
    0,
    (0,),
    bytes(32),
)
NETWORK = network_id(CONFIGURATION)
OWNER, FACILITY = key("owner"), VOTERS[0]
VID, RID = Vid(filled("vid")), Rid(filled("rid"))
PUBLIC = tuple(PublicKey(filled(f"public {n}")) for n in range(4))
UNTIL_MS = NOW_MS + 3_600_000

SignedBy = tuple[Transaction, tuple[SigningKey, ...]]
"""A transaction and the keys that sign it."""


def transactions() -> tuple[SignedBy, ...]:
    """Return one transaction of each kind with the keys that sign it."""
    return (*_of_records(), *_of_consent(), _of_reading())


def _of_records() -> tuple[SignedBy, ...]:
    receipt_form = transaction.receipt_form(NETWORK, VID, RID, Digest(filled("envelope")))
    receipts = tuple(EnvelopeReceipt(NodeId(voter.public), voter.sign(receipt_form)) for voter in VOTERS)
    return (
        (
            VaultOpen(
                VID,
                PublicKey(OWNER.public),
                PUBLIC[0],
                PUBLIC[1],
                PUBLIC[2],
                0,
                NODES[0],
                (NODES[0], NODES[1]),
                3,
                UNTIL_MS,
            ),
            (OWNER, FACILITY),
        ),
        (
            RecordCommit(VID, RID, 1, NODES[0], Digest(filled("envelope")), receipts, Rid(ZERO), UNTIL_MS),
            (FACILITY,),
        ),
    )


def _of_consent() -> tuple[SignedBy, ...]:
    other = key("new owner")
    return (
        (
            Grant(
                VID,
                PUBLIC[0],
                NODES[1],
                1,
                "R",
                ("HPAYMT", "TREAT"),
                NOW_MS,
                NOW_MS + 1000,
                0,
                2**63,
                0,
                1,
                Digest(filled("wrap")),
                Digest(ZERO),
                UNTIL_MS,
            ),
            (OWNER,),
        ),
        (Revoke(VID, Txid(filled("gid")), UNTIL_MS), (OWNER,)),
        (EpochRotate(VID, 2, PUBLIC[1], Digest(filled("link")), Digest(filled("wraps")), UNTIL_MS), (OWNER,)),
        (
            CustodyTransfer(VID, NodeId(ZERO), PublicKey(other.public), PUBLIC[2], PUBLIC[3], UNTIL_MS),
            (OWNER, other),
        ),
    )


def _of_reading() -> SignedBy:
    read = Read(
        VID,
        (RID,),
        Txid(ZERO),
        "TREAT",
        PublicKey(OWNER.public),
        Digest(ZERO),
        PUBLIC[3],
        filled("nonce"),
        Digest(filled("who")),
        UNTIL_MS,
    )
    return read, (OWNER, FACILITY)


def of_erasing() -> SignedBy:
    """Not among `transactions`: the blocks with golden bytes are older than this kind."""
    return RecordErase(VID, RID, UNTIL_MS), (OWNER,)


def of_governing() -> tuple[SignedBy, ...]:
    """Not among `transactions`, for the same reason."""
    governor, newcomer = key("governor"), key("newcomer")
    public = PublicKey(newcomer.public)
    member = Member(
        "newcomer",
        "clinic",
        "observer",
        NodeId(public),
        public,
        public,
        public,
        public,
        ("/ip4/192.0.2.1/tcp/1",),
    )
    add = AddMember(Card.make(member, newcomer), "observer")
    return (
        (Propose(NODES[0], add, NOW_MS + 1000, CONFIGURATION.digest, False, UNTIL_MS), (governor,)),
        (Ballot(NODES[0], Txid(filled("proposal")), True, False, UNTIL_MS), (governor,)),
        (Withdraw(NODES[0], Txid(filled("proposal")), UNTIL_MS), (governor,)),
    )


def of_rejoining() -> SignedBy:
    """Not among `transactions`, for the same reason."""
    return Rejoin(NODES[0], 3, filled("nonce"), UNTIL_MS), (VOTERS[0],)


def signed() -> tuple[bytes, ...]:
    return tuple(codec.encode(transaction.sign(entry, NETWORK, *keys)) for entry, keys in transactions())


def election(*, term: int, leader: int, tip: Digest, by: tuple[int, ...] = (0, 1)) -> ElectionCertificate:
    grants = tuple(
        certificate.grant_vote(
            VOTERS[n], NETWORK, epoch=0, incarnation=0, term=Term(term), candidate=NODES[leader], tip=tip
        )
        for n in by
    )
    return ElectionCertificate(Term(term), NODES[leader], tip, grants)


def successor(
    predecessor: Block,
    frontier: Frontier,
    *,
    leader: int = 0,
    term: int | None = None,
    body: tuple[bytes, ...] = (),
    opening: bytes = b"",
) -> Block:
    return block.cut(
        body,
        opening=opening,
        predecessor=predecessor.header,
        predecessor_hash=predecessor.hash,
        frontier=frontier,
        term=predecessor.term if term is None else Term(term),
        key=VOTERS[leader],
        now_ms=NOW_MS,
    )


def build() -> tuple[Block, ...]:
    """Return genesis, the opening of term 3 by voter 0, a block of every kind of transaction, and an empty one."""
    genesis = block.genesis_block(CONFIGURATION)
    opening = successor(
        genesis, Frontier(), term=3, opening=codec.encode(election(term=3, leader=0, tip=genesis.hash))
    )
    full = successor(opening, Frontier(), body=signed())
    empty = successor(full, Frontier().append(full.leaves()))
    return genesis, opening, full, empty


def acknowledgement(n: int, entry: Block, *, term: int = 3) -> Acknowledgement:
    return certificate.acknowledge(
        VOTERS[n],
        NETWORK,
        epoch=0,
        incarnation=0,
        term=Term(term),
        height=Height(entry.height),
        tip=entry.hash,
    )


def proof(chain: tuple[Block, ...]) -> CommitProof:
    """Return a proof for block 2 by an acknowledgement of it and one of block 3."""
    return CommitProof(
        chain[2].header, (chain[3].header,), (acknowledgement(0, chain[2]), acknowledgement(1, chain[3]))
    )


def commit_vote(n: int, entry: Block, *, base: tuple[int, Digest] | None = None) -> CommitVote:
    """Return a vote of voter `n`, which stands upon genesis where no base is given."""
    base_height, base_hash = base or (0, block.genesis_block(CONFIGURATION).hash)
    return finality.cast_vote(
        VOTERS[n],
        NETWORK,
        epoch=0,
        incarnation=0,
        height=Height(entry.height),
        tip=entry.hash,
        base_height=Height(base_height),
        base=base_hash,
    )


def certificate_of(entry: Block, *signers: int) -> Certificate:
    """Return a certificate by votes of these voters, the first two where none is named, for the block itself."""
    return Certificate(entry.header, (), tuple(commit_vote(n, entry) for n in signers or (0, 1)))


def linked_certificate(chain: tuple[Block, ...]) -> Certificate:
    """Return a certificate for block 2 by a vote for it and one for block 3."""
    return Certificate(
        chain[2].header, (chain[3].header,), (commit_vote(0, chain[2]), commit_vote(1, chain[3]))
    )
