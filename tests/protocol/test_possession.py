"""Proofs that a chunk is there, and who is believed."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from protocol import possession
from protocol.chunk_exchange import PlacedChunks
from protocol.identifiers import Cid, NodeId
from protocol.possession import STRIKES_MAX, TRUST_AGAIN, Outcome, Standing

STORING = tuple(NodeId(bytes([number]) * 32) for number in range(6))
CIDS = tuple(Cid(hashlib.sha256(bytes([number])).digest()) for number in range(60))
chunks = st.binary(min_size=1, max_size=64)


@given(chunk=chunks, other=chunks, nonces=st.tuples(*[st.binary(min_size=32, max_size=32)] * 2))
def test_only_the_bytes_the_nonce_and_the_holder_make_the_proof(
    chunk: bytes, other: bytes, nonces: tuple[bytes, bytes]
) -> None:
    cid = Cid(hashlib.sha256(chunk).digest())
    good = possession.proof(nonces[0], STORING[0], cid, chunk)

    assert possession.outcome_of(good, good) is Outcome.PROVED
    assert (possession.proof(nonces[0], STORING[0], cid, other) == good) == (chunk == other)
    assert (possession.proof(nonces[1], STORING[0], cid, chunk) == good) == (nonces[0] == nonces[1])
    assert possession.proof(nonces[0], STORING[1], cid, chunk) != good
    assert possession.outcome_of(good, b"") is Outcome.LACKING
    assert possession.outcome_of(good, bytes(32)) is Outcome.WRONG


def test_one_wrong_proof_ends_trust_and_many_good_ones_in_a_row_bring_it_back() -> None:
    standing = Standing().after(Outcome.WRONG, 7)
    assert (standing.is_trusted, standing.wrong, standing.failed_ms) == (False, 1, 7)

    for _ in range(TRUST_AGAIN - 1):
        standing = standing.after(Outcome.PROVED, 8)
    assert not standing.is_trusted
    assert not standing.after(Outcome.LACKING, 9).after(Outcome.PROVED, 9).is_trusted
    assert standing.after(Outcome.PROVED, 8).is_trusted


def test_what_is_lacking_now_and_then_is_no_lie() -> None:
    standing = Standing()
    for _ in range(5):
        for outcome in (*[Outcome.LACKING] * (STRIKES_MAX - 1), Outcome.PROVED):
            standing = standing.after(outcome, 1)

    assert standing.is_trusted
    assert standing.lacking == 5 * (STRIKES_MAX - 1)
    for _ in range(STRIKES_MAX):
        standing = standing.after(Outcome.LACKING, 1)
    assert not standing.is_trusted


@given(
    replicas=st.integers(1, 6),
    author=st.sampled_from(STORING),
    distrusted=st.sets(st.sampled_from(STORING), max_size=4),
)
def test_every_chunk_has_its_replicas_with_trusted_members_where_there_are_so_many(
    replicas: int, author: NodeId, distrusted: set[NodeId]
) -> None:
    placed = PlacedChunks(CIDS, author, replicas)

    wanted = possession.wanted_shares(placed, STORING, frozenset(distrusted))

    for cid in CIDS:
        holders = {node for node, share in wanted.items() if cid in share}
        assert holders >= {node for node, share in placed.holders(STORING).items() if cid in share}
        assert len(holders - distrusted) == min(replicas, len(STORING) - len(distrusted))


def test_nobody_distrusted_changes_nothing() -> None:
    placed = PlacedChunks(CIDS, STORING[0], 3)

    assert possession.wanted_shares(placed, STORING, frozenset()) == placed.holders(STORING)
