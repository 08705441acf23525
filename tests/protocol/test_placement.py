import hashlib

from hypothesis import given
from hypothesis import strategies as st

from protocol import placement
from protocol.codec import pack
from protocol.identifiers import Cid, NodeId

ids = st.binary(min_size=32, max_size=32)
members = st.lists(ids.map(NodeId), min_size=1, max_size=9, unique=True).map(tuple)


@given(cid=ids.map(Cid), storing=members, count=st.integers(1, 9), author=ids.map(NodeId))
def test_replicas_are_distinct_storing_members_as_many_as_asked_for_or_all(cid, storing, count, author):
    chosen = placement.replicas(cid, storing, count, author)

    assert len(set(chosen)) == len(chosen) == min(count, len(storing))
    assert set(chosen) <= set(storing)


@given(cid=ids.map(Cid), storing=members, count=st.integers(1, 9), data=st.data())
def test_a_storing_author_is_always_the_first_replica(cid, storing, count, data):
    author = data.draw(st.sampled_from(storing))

    assert placement.replicas(cid, storing, count, author)[0] == author


@given(cid=ids.map(Cid), storing=members, count=st.integers(1, 9), author=ids.map(NodeId), data=st.data())
def test_the_order_in_which_members_are_listed_does_not_matter(cid, storing, count, author, data):
    shuffled = tuple(data.draw(st.permutations(storing)))

    assert placement.replicas(cid, shuffled, count, author) == placement.replicas(cid, storing, count, author)


@given(
    cid=ids.map(Cid), storing=members, count=st.integers(1, 9), author=ids.map(NodeId), gone=st.integers(0, 8)
)
def test_a_member_that_leaves_moves_only_its_own_replicas(cid, storing, count, author, gone):
    leaver = storing[gone % len(storing)]
    before = placement.replicas(cid, storing, count, author)
    after = placement.replicas(cid, tuple(node for node in storing if node != leaver), count, author)

    assert set(before) - {leaver} <= set(after)
    assert len(set(after) - set(before)) <= (leaver in before)


def test_a_new_member_takes_over_about_its_share_of_the_chunks():
    storing = tuple(NodeId(bytes([number]) * 32) for number in range(9))
    cids = [Cid(number.to_bytes(32, "big")) for number in range(3_000)]
    author = NodeId(b"a" * 32)

    moved = sum(
        placement.replicas(cid, storing, 3, author) != placement.replicas(cid, storing[:8], 3, author)
        for cid in cids
    )

    assert 0.28 < moved / len(cids) < 0.39  # three replicas in nine places: a third of the chunks is touched


@given(
    cid=ids.map(Cid), storing=members, count=st.integers(1, 9), author=ids.map(NodeId), joiner=ids.map(NodeId)
)
def test_a_member_that_joins_takes_over_one_replica_at_most_and_nobody_else_does(
    cid, storing, count, author, joiner
):
    storing = tuple(node for node in storing if node != joiner) or (NodeId(bytes(32)),)
    before = placement.replicas(cid, storing, count, author)
    after = placement.replicas(cid, (*storing, joiner), count, author)

    assert set(after) - set(before) <= {joiner}
    assert len(set(before) - set(after)) <= (joiner in after)


def test_the_chunks_of_a_member_that_leaves_go_to_the_others_alike():
    storing = tuple(NodeId(bytes([number]) * 32) for number in range(9))
    author, gained = NodeId(b"a" * 32), dict.fromkeys(storing[1:], 0)
    cids = [Cid(hashlib.sha256(number.to_bytes(4, "big")).digest()) for number in range(4_000)]

    for cid in cids:
        before = placement.replicas(cid, storing, 3, author)
        for node in set(placement.replicas(cid, storing[1:], 3, author)) - set(before):
            gained[node] += 1

    moved = sum(gained.values())
    assert 0.28 < moved / len(cids) < 0.39  # its own third, of 3 times as many replicas: one in nine of all
    assert all(0.6 < share * len(gained) / moved < 1.4 for share in gained.values())


@given(cid=ids.map(Cid), storing=members, count=st.integers(1, 9), author=ids.map(NodeId), data=st.data())
def test_who_stands_in_is_trusted_and_stores_nothing_of_the_chunk_yet(cid, storing, count, author, data):
    distrusted = frozenset(data.draw(st.sets(st.sampled_from(storing))))
    chosen = placement.replicas(cid, storing, count, author)

    standing_in = placement.stand_ins(cid, storing, count, author, distrusted)

    assert not set(standing_in) & (distrusted | set(chosen))
    assert len(standing_in) == min(
        len(distrusted & set(chosen)), len(set(storing) - set(chosen) - distrusted)
    )


@given(cid=ids.map(Cid), node=ids.map(NodeId))
def test_the_weight_is_the_hash_of_the_canonical_form(cid, node):
    form = pack("carechain/v1/placement", cid, node)

    assert placement._weight(cid, node) == hashlib.sha256(form).digest()


def test_writing_needs_one_replica_less_than_there_are_but_two_where_there_are_two():
    storing = tuple(NodeId(bytes([number]) * 32) for number in range(5))

    needed = [placement.confirmations_needed(storing[:members], 3) for members in range(1, 6)]

    assert needed == [1, 2, 2, 2, 2]
