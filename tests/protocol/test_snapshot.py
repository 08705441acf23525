import dataclasses
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec, limits
from protocol.block import Block
from protocol.errors import Invalid, Malformed, RemoteFault
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height
from protocol.merkle import Frontier
from protocol.signing import sha256
from protocol.snapshot import (
    Claim,
    Row,
    SnapshotManifest,
    StateStatement,
    believed,
    check_manifest,
    chunk_rows,
    compressed,
    inflated,
    is_snapshot_height,
    is_statement_valid,
    links_above,
    newest_snapshot_height,
    significance,
    state,
    state_digest,
    take_chunk,
)
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NETWORK, VOTERS, certificate_of, filled, key

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "snapshot.json").read_text())
CHAIN = chain.build()
TIP = CHAIN[3]
FRONTIER = Frontier().append(CHAIN[2].leaves())
DIGEST, OTHER = Digest(filled("state")), Digest(filled("another state"))

rows_of_state = st.dictionaries(st.binary(max_size=40), st.binary(max_size=200), max_size=60).map(
    lambda rows: sorted(rows.items())
)


def statement(n: int, digest: Digest = DIGEST, block: Block = TIP) -> StateStatement:
    return state(VOTERS[n], block, digest)


def chunks_of(rows: list[Row], chunk_bytes: int) -> list[bytes]:
    left, chunks = iter(rows), []
    while (taken := take_chunk(left, chunk_bytes)) is not None:
        chunks.append(taken[0])
    return chunks


def manifest(chunks: tuple[bytes, ...] = (b"one", b"two")) -> SnapshotManifest:
    certificate = certificate_of(TIP)
    hashes = tuple(sha256(chunk) for chunk in chunks)
    return SnapshotManifest(TIP.raw, TIP.height, (), certificate, FRONTIER.size, FRONTIER.peaks, 7, hashes)


def claim_of(one: SnapshotManifest) -> Claim:
    return Claim(TIP.height, TIP.hash, one.state_digest)


def test_snapshot_heights_are_those_of_the_design() -> None:
    heights = [height for height in range(33) if is_snapshot_height(height, 1)]
    assert heights == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32]
    assert [height for height in range(3_001) if is_snapshot_height(height, 1_000)] == [1_000, 2_000, 3_000]


@given(st.integers(1, 2**40), st.integers(1, 1_000))
def test_snapshots_cost_a_constant_multiple_of_the_newest(height: int, unit: int) -> None:
    newest = newest_snapshot_height(1, height, unit)
    if newest is None:
        assert height < unit
        return
    made = 0
    at: int | None = newest
    while at is not None and at > 0:
        made += at
        at = newest_snapshot_height(1, at - 1, unit)
    assert made <= 8 * newest
    assert is_snapshot_height(newest, unit)
    assert height - newest <= max(unit, newest / 4)


@given(st.integers(1, 500), st.integers(0, 200), st.integers(1, 20))
def test_the_newest_snapshot_height_of_a_range_is_the_highest_in_it(
    first: int, length: int, unit: int
) -> None:
    last = first + length
    there = [height for height in range(first, last + 1) if is_snapshot_height(height, unit)]
    assert newest_snapshot_height(first, last, unit) == max(there, default=None)


def test_significance_is_least_where_members_meet() -> None:
    assert [significance(height) for height in (8, 12, 10, 14, 16)] == [1, 2, 3, 3, 1]


def test_equal_statements_of_a_quorum_are_believed_and_one_word_never_is() -> None:
    claim = statement(0).claim
    assert believed([statement(0), statement(1)], NETWORK, CONFIGURATION) == claim
    assert believed([statement(0)], NETWORK, CONFIGURATION) is None
    assert believed([statement(0), statement(0)], NETWORK, CONFIGURATION) is None
    assert believed([statement(0), statement(1, OTHER)], NETWORK, CONFIGURATION) is None
    assert believed([statement(0, OTHER), statement(1), statement(2)], NETWORK, CONFIGURATION) == claim


def test_statements_of_others_of_other_networks_and_forged_ones_do_not_count() -> None:
    stranger = state(key("stranger"), TIP, DIGEST)
    forged = dataclasses.replace(statement(1), signature=statement(0).signature)
    moved = dataclasses.replace(statement(1), height=Height(9))
    elsewhere = dataclasses.replace(statement(1), config_hash=OTHER)
    for other in (stranger, forged, moved, elsewhere):
        assert believed([statement(0), other], NETWORK, CONFIGURATION) is None
    assert not is_statement_valid(forged, NETWORK)


def test_a_voter_that_states_two_things_of_one_height_counts_for_neither() -> None:
    said = [statement(0), statement(1), statement(1, OTHER)]
    assert believed(said, NETWORK, CONFIGURATION) is None
    assert believed([*said, statement(2)], NETWORK, CONFIGURATION) == statement(0).claim


def test_the_highest_believed_claim_is_taken() -> None:
    older = [statement(n, OTHER, CHAIN[2]) for n in range(3)]
    newest = believed([*older, statement(0), statement(2)], NETWORK, CONFIGURATION)
    assert newest is not None
    assert newest.height == 3
    behind = believed([*older, statement(0)], NETWORK, CONFIGURATION)
    assert behind is not None
    assert behind.height == 2


@given(rows_of_state, st.integers(1, 2_000))
def test_chunks_hold_all_rows_in_order_and_are_cut_alike_by_everybody(
    rows: list[Row], chunk_bytes: int
) -> None:
    chunks = chunks_of(rows, chunk_bytes)
    assert [row for chunk in chunks for row in chunk_rows(chunk)] == rows
    assert chunks == chunks_of(list(rows), chunk_bytes)
    for chunk in chunks:
        assert inflated(compressed(chunk), sha256(chunk)) == chunk


def test_no_chunk_of_honest_rows_passes_its_bound() -> None:
    rows = [(bytes([0, n]), bytes(10_000)) for n in range(60)] + [(bytes([1, n, n]), b"") for n in range(256)]
    assert all(
        len(chunk) <= limits.SNAPSHOT_CHUNK_BYTES_MAX
        for chunk in chunks_of(rows, limits.SNAPSHOT_CHUNK_BYTES)
    )


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"no zlib",
        compressed(b"another chunk"),
        compressed(b"chunk") + b"more",
        compressed(b"chunk")[:-1],
        zlib.compress(bytes(4 * limits.SNAPSHOT_CHUNK_BYTES_MAX), 9),
    ],
)
def test_what_is_not_the_chunk_of_its_hash_is_refused_and_never_inflates_beyond_its_bound(bad: bytes) -> None:
    with pytest.raises(Invalid):
        inflated(bad, sha256(b"chunk"))


@pytest.mark.parametrize("bad", [b"", b"\xc0", b"\x91\xc4\x01a", b"\x92\xc4\x01a\x01"])
def test_bytes_that_are_no_rows_are_refused(bad: bytes) -> None:
    with pytest.raises(Malformed):
        chunk_rows(bad)


def test_the_digest_binds_tree_rows_and_chunks() -> None:
    one, two = sha256(b"one"), sha256(b"two")
    digests = {
        state_digest(Frontier(), 2, (one, two)),
        state_digest(Frontier(), 2, (two, one)),
        state_digest(Frontier(), 3, (one, two)),
        state_digest(Frontier(), 2, (one,)),
        state_digest(Frontier(1, (one,)), 2, (one, two)),
        state_digest(Frontier(1, (two,)), 2, (one, two)),
    }
    assert len(digests) == 6


def test_a_manifest_of_its_claim_is_taken() -> None:
    one = manifest()
    assert check_manifest(one, claim_of(one), NETWORK, CONFIGURATION) == TIP
    assert (one.height, one.frontier) == (TIP.height, FRONTIER)


def test_a_manifest_that_differs_anywhere_is_refused() -> None:
    one = manifest()
    claim = claim_of(one)
    alone = Certificate(TIP.header, (), (chain.commit_vote(0, TIP),))
    forged = Block(TIP.header, bytes(64), TIP.special, TIP.transactions)
    other = Block(TIP.header, TIP.signature, TIP.special, chain.signed()[:1])
    for bad in (
        dataclasses.replace(one, block=CHAIN[2].raw),
        dataclasses.replace(one, block=forged.raw),
        dataclasses.replace(one, block=other.raw),
        dataclasses.replace(one, block=b"\xc1"),
        dataclasses.replace(one, certificate=alone),
        dataclasses.replace(one, certificate=chain.linked_certificate(CHAIN)),
        dataclasses.replace(one, tree_size=one.tree_size + 1),
        dataclasses.replace(one, peaks=one.peaks[:-1]),
        dataclasses.replace(one, rows=8),
        dataclasses.replace(one, chunks=one.chunks[:1]),
    ):
        with pytest.raises(RemoteFault):
            check_manifest(bad, claim, NETWORK, CONFIGURATION)


def test_the_certificate_of_a_later_block_makes_a_manifest_believed_through_the_headers_between() -> None:
    certificate = certificate_of(TIP)
    below = CHAIN[2]
    links = links_above(CHAIN[1:], Height(2))
    assert links == (TIP.header,)
    frontier = Frontier().append(CHAIN[1].leaves()).append(below.leaves())
    one = dataclasses.replace(
        manifest(),
        block=below.raw,
        height=Height(2),
        links=links,
        certificate=certificate,
        tree_size=frontier.size,
        peaks=frontier.peaks,
    )
    claim = Claim(Height(2), below.hash, one.state_digest)
    assert check_manifest(one, claim, NETWORK, CONFIGURATION).hash == below.hash
    for bad in (
        dataclasses.replace(one, links=()),
        dataclasses.replace(one, links=(TIP.header, TIP.header)),
        dataclasses.replace(one, certificate=certificate_of(CHAIN[1])),
        dataclasses.replace(one, height=Height(3)),
    ):
        with pytest.raises(Invalid):
            check_manifest(bad, claim, NETWORK, CONFIGURATION)


def test_no_snapshot_is_made_where_too_many_headers_would_lead_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "UNCERTIFIED_BLOCKS_MAX", 1)
    assert links_above(CHAIN[1:], Height(3)) == ()
    assert links_above(CHAIN[1:], Height(2)) == (TIP.header,)
    assert links_above(CHAIN[1:], Height(1)) is None


ROWS = [(b"r" + bytes([n]) * 32, bytes(range(n))) for n in range(1, 9)]
CUT = tuple(chunks_of(ROWS, 200))


def test_statement_manifest_and_chunks_are_the_bytes_that_they_were() -> None:
    made = dataclasses.replace(manifest(CUT), rows=len(ROWS))
    assert [chunk.hex() for chunk in CUT] == VECTORS["chunks"]
    assert made.state_digest.hex() == VECTORS["digest"]
    assert codec.encode(made).hex() == VECTORS["manifest"]
    assert codec.encode(state(VOTERS[0], TIP, made.state_digest)).hex() == VECTORS["statement"]
    assert codec.decode(bytes.fromhex(VECTORS["manifest"]), SnapshotManifest) == made
    assert is_statement_valid(codec.decode(bytes.fromhex(VECTORS["statement"]), StateStatement), NETWORK)
