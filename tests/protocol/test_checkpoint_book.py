"""Gathering signatures: the same in any order, the newest that enough have signed, and never more than is kept."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.checkpoint import (
    Checkpoint,
    KeyKind,
    NoteKey,
    Signature,
    cosign_checkpoint,
    log_key,
    origin_of,
    sign_checkpoint,
)
from protocol.checkpoint_book import CheckpointBook
from protocol.identifiers import Digest, PublicKey
from tests.protocol.chain import NETWORK, filled, key

SIGNERS = tuple(key(f"checkpoint {n}") for n in range(4))
KEYS = tuple(log_key(NETWORK, signer.public) for signer in SIGNERS)
WITNESS = key("witness")
COSIGNER = NoteKey("witness.example/w", KeyKind.COSIGNER, PublicKey(WITNESS.public))


def checkpoint(size: int) -> Checkpoint:
    return Checkpoint(origin_of(NETWORK), size, Digest(filled(f"root {size}")))


def signature(size: int, signer: int) -> tuple[NoteKey, Signature]:
    if signer < len(SIGNERS):
        return KEYS[signer], sign_checkpoint(SIGNERS[signer], checkpoint(size))
    return COSIGNER, cosign_checkpoint(WITNESS, COSIGNER.name, checkpoint(size), 1_700_000_000)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4))), st.randoms())
def test_the_order_in_which_signatures_come_makes_no_difference(words, draw) -> None:
    books = CheckpointBook(16), CheckpointBook(16)
    for size, signer in words:
        books[0].add(checkpoint(size), dict([signature(size, signer)]))
    for size, signer in draw.sample(words, len(words)):
        books[1].add(checkpoint(size), dict([signature(size, signer)]))
    for size in range(6):
        assert books[0].note(size) == books[1].note(size)
    for count in range(1, 5):
        newest = books[0].newest(KEYS, count)
        enough = [
            size
            for size in range(1, 6)
            if len({who for at, who in words if at == size and who < len(SIGNERS)}) >= count
        ]
        assert newest == max(enough, default=0)


def test_what_is_known_is_no_news_but_a_newer_cosignature_is() -> None:
    book = CheckpointBook(16)
    assert book.add(checkpoint(3), dict([signature(3, 0)]))
    assert not book.add(checkpoint(3), dict([signature(3, 0)]))
    assert book.holds(signature(3, 0)[1], checkpoint(3))
    assert not book.holds(signature(3, 0)[1], checkpoint(4))
    for time_s, is_news in ((100, True), (99, False), (100, False), (101, True)):
        line = cosign_checkpoint(WITNESS, COSIGNER.name, checkpoint(3), time_s)
        assert book.add(checkpoint(3), {COSIGNER: line}) == is_news
    note = book.note(3)
    assert note is not None
    assert note.signed_by([COSIGNER])[COSIGNER].time_s == 101


def test_only_the_newest_sizes_are_kept_and_what_is_asked_for() -> None:
    book = CheckpointBook(3)
    for size in range(1, 11):
        book.add(checkpoint(size), dict([signature(size, 0)]))
    assert set(book.trim([2], KEYS[1])) == {1, 3, 4, 5, 6, 7}
    assert book.sizes == (2, 8, 9, 10)
    assert book.note(1) is None
    assert book.checkpoint(2) == checkpoint(2)
    assert book.signed(7) == frozenset()


def test_who_signs_many_sizes_does_not_push_out_what_the_others_sign() -> None:
    book = CheckpointBook(3)
    for size in (1, 2):
        book.add(checkpoint(size), dict([signature(size, 0)]))
    for size in range(10, 30):
        book.add(checkpoint(size), dict([signature(size, 3)]))
    book.trim([], KEYS[0])
    assert book.sizes == (1, 2, 27, 28, 29)
