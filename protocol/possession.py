"""Asking a member to prove that it has a chunk, and what becomes of one that cannot: a replica may lie about having stored.

    Prove(nonce, ids) ───►  `Proofs`: SHA-256(enc("carechain/v1/possession", nonce, node, id, chunk)) for each, empty where it is not here

Nobody can answer without the bytes of the chunk: the nonce is new, and the holder's id in the form keeps it from
having another holder answer in its place. It is over the whole chunk and not a part of it, because the holder's store checks
the whole chunk when reading any of it, so that a part would cost the same and prove less. Whoever fetches the chunk
from another holder for the moment can answer; that is dearer than keeping it, and shows there as load.

A member's *standing* is what one challenger has seen of it:

    trusted ── a wrong proof, or STRIKES_MAX times in a row none ──► distrusted ── TRUST_AGAIN good proofs in a row ──► trusted

Lacking a chunk, and not answering though connected, are strikes only, and a wrong proof is the end: a disk may fail and
a machine be slow, a wrong proof is made.
"""

import hashlib
from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated

from protocol import placement
from protocol.chunk_exchange import CidField, PlacedChunks
from protocol.codec import Bytes32, Size, pack, wire
from protocol.identifiers import Cid, NodeId

POSSESSION_CHANNEL = "possession"
PROOFS_PER_MESSAGE_MAX = 8
"""8 MiB to be read for one message."""
STRIKES_MAX = 3
TRUST_AGAIN = 8


@wire("prove")
@dataclass(frozen=True, slots=True)
class Prove:
    """Prove that you have these chunks."""

    nonce: Bytes32
    cids: Annotated[tuple[CidField, ...], Size(1, PROOFS_PER_MESSAGE_MAX)]


@wire("proofs")
@dataclass(frozen=True, slots=True)
class Proofs:
    """A proof for each chunk asked about, in order; empty where it is not here."""

    digests: Annotated[tuple[Annotated[bytes, Size(0, 32)], ...], Size(1, PROOFS_PER_MESSAGE_MAX)]


class Outcome(Enum):
    """What became of one challenge."""

    PROVED = "proved"
    LACKING = "lacking"
    SILENT = "silent"
    WRONG = "wrong"


@wire("standing")
@dataclass(frozen=True, slots=True)
class Standing:
    """How a member has answered us: counts since the beginning, and what decides whether it is trusted.

    `strikes` counts in a row, `proofs_due` is how many good proofs in a row it owes; more than 0: it is distrusted.
    `failed_ms` is when it last failed (Unix ms), 0 for never.
    """

    asked: int = 0
    lacking: int = 0
    silent: int = 0
    wrong: int = 0
    strikes: int = 0
    proofs_due: int = 0
    failed_ms: int = 0

    @property
    def is_trusted(self) -> bool:
        """Whether its replicas count."""
        return not self.proofs_due

    def after(self, outcome: Outcome, now_ms: int) -> "Standing":
        """Return the standing after one more challenge."""
        asked = replace(self, asked=self.asked + 1)
        if outcome is Outcome.PROVED:
            return replace(asked, strikes=0, proofs_due=max(self.proofs_due - 1, 0))
        is_wrong = outcome is Outcome.WRONG
        strikes = STRIKES_MAX if is_wrong else min(self.strikes + 1, STRIKES_MAX)
        is_out = strikes == STRIKES_MAX or not self.is_trusted
        return replace(
            asked,
            lacking=self.lacking + (outcome is Outcome.LACKING),
            silent=self.silent + (outcome is Outcome.SILENT),
            wrong=self.wrong + is_wrong,
            strikes=strikes,
            proofs_due=TRUST_AGAIN if is_out else 0,
            failed_ms=now_ms,
        )


def proof(nonce: bytes, node: NodeId, cid: Cid, chunk: bytes) -> bytes:
    """Return the proof of `node` that it has a chunk."""
    return hashlib.sha256(pack("carechain/v1/possession", nonce, node, cid, chunk)).digest()


def outcome_of(expected: bytes, given: bytes) -> Outcome:
    """Return what a proof is worth."""
    if not given:
        return Outcome.LACKING
    return Outcome.PROVED if given == expected else Outcome.WRONG


def wanted_shares(
    placed: PlacedChunks, storing: tuple[NodeId, ...], distrusted: frozenset[NodeId]
) -> dict[NodeId, tuple[Cid, ...]]:
    """Return what each member is to store of a record: its share, and the share of a distrusted one whose place it takes.

    A distrusted member keeps its share, and is not counted: another one stores it as well, where there is another.
    """
    shares = placed.holders(storing)
    if not distrusted.intersection(shares):
        return shares
    more: dict[NodeId, list[Cid]] = {}
    for cid in placed.cids:
        for node in placement.stand_ins(cid, storing, placed.replicas, placed.author, distrusted):
            more.setdefault(node, []).append(cid)
    for node, cids in more.items():
        wanted = {*shares.get(node, ()), *cids}
        shares[node] = tuple(cid for cid in placed.cids if cid in wanted)
    return {node: shares[node] for node in sorted(shares)}
