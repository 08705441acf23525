"""Keys, a configuration, transactions and a short valid chain, the same bytes in every run, for tests and golden vectors."""

import hashlib

from protocol import block, certificate, codec, transaction
from protocol.block import Block
from protocol.certificate import Acknowledgement, CommitProof, ElectionCertificate
from protocol.configuration import Configuration, Member, network_id
from protocol.identifiers import ZERO, Digest, Height, NodeId, PublicKey, Rid, Term, Txid, Vid
from protocol.merkle import Frontier
from protocol.signing import SigningKey
from protocol.transaction import (
    CustodyTransfer,
    EnvelopeReceipt,
    EpochRotate,
    Grant,
    Read,
    RecordCommit,
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


def transactions() -> tuple[tuple[Transaction, tuple[SigningKey, ...]], ...]:
    """Return one transaction of each kind with the keys that sign it."""
    vid, rid, other = Vid(filled("vid")), Rid(filled("rid")), key("new owner")
    until = NOW_MS + 3_600_000
    receipt_form = transaction.receipt_form(NETWORK, vid, rid, Digest(filled("envelope")))
    receipts = tuple(EnvelopeReceipt(NodeId(voter.public), voter.sign(receipt_form)) for voter in VOTERS)
    public = [PublicKey(filled(f"public {n}")) for n in range(4)]
    return (
        (
            VaultOpen(
                vid,
                PublicKey(OWNER.public),
                public[0],
                public[1],
                public[2],
                0,
                NODES[0],
                (NODES[0], NODES[1]),
                3,
                until,
            ),
            (OWNER, FACILITY),
        ),
        (
            RecordCommit(vid, rid, 1, NODES[0], Digest(filled("envelope")), receipts, Rid(ZERO), until),
            (FACILITY,),
        ),
        (
            Grant(
                vid,
                public[0],
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
                until,
            ),
            (OWNER,),
        ),
        (Revoke(vid, Txid(filled("gid")), until), (OWNER,)),
        (EpochRotate(vid, 2, public[1], Digest(filled("link")), Digest(filled("wraps")), until), (OWNER,)),
        (
            CustodyTransfer(vid, NodeId(ZERO), PublicKey(other.public), public[2], public[3], until),
            (OWNER, other),
        ),
        (
            Read(
                vid,
                (rid,),
                Txid(ZERO),
                "TREAT",
                PublicKey(OWNER.public),
                Digest(ZERO),
                public[3],
                filled("nonce"),
                Digest(filled("who")),
                until,
            ),
            (OWNER, FACILITY),
        ),
    )


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
