"""What an epoch begins with, and the promise to sign no more in one."""

from dataclasses import replace

from protocol.block import Header, genesis_block, header_hash
from protocol.identifiers import Height, Term
from protocol.raft.state import HardState
from storage.epochs import Epochs
from storage.key_value import Batch
from storage.marks import AppliedMark
from storage.memory import MemoryStore
from tests.protocol.chain import CONFIGURATION, filled

GENESIS = genesis_block(CONFIGURATION).header
BEGUN = replace(GENESIS, epoch=1, height=Height(7), term=Term(9))
OLD = replace(
    HardState.initial(incarnation=2),
    term=Term(8),
    vote=filled("vote"),
    last_vote_height=Height(6),
    last_vote_hash=filled("6"),
)


class Applied:
    """The header of the last applied block, as it changes."""

    def __init__(self) -> None:
        self.header: Header = GENESIS
        self.rows = MemoryStore()
        self.read: list[Height] = []
        self.epochs = Epochs(self.rows, self.mark, self.header_at)

    def mark(self) -> AppliedMark:
        return AppliedMark(self.header.height, header_hash(self.header), 0, 0, ())

    def header_at(self, height: Height) -> Header:
        assert height == self.header.height
        self.read.append(height)
        return self.header

    def write(self, fill: Batch) -> None:
        self.rows.write(fill, sync=True)


def test_in_the_first_epoch_the_stored_hard_state_counts_as_it_is() -> None:
    epochs = Applied().epochs
    assert epochs.hard_state(None) is None
    assert epochs.hard_state(OLD) == OLD


def test_a_new_epoch_forgets_term_vote_and_last_vote_and_keeps_the_incarnation() -> None:
    applied = Applied()
    applied.header = BEGUN
    begun = applied.epochs.hard_state(OLD)
    assert begun is not None
    assert (begun.epoch, begun.incarnation, begun.term, begun.vote) == (1, 2, 9, bytes(32))
    assert (begun.last_vote_height, begun.ack_height, begun.left_height) == (0, 0, 0)
    assert (begun.certificate_height, begun.certificate_hash) == (7, header_hash(BEGUN))
    assert applied.epochs.hard_state(None) == replace(begun, incarnation=0)
    later = replace(begun, term=Term(12))
    assert applied.epochs.hard_state(later) == later


def test_a_promise_holds_in_its_epoch_only_and_remembers_whether_it_was_shown() -> None:
    applied = Applied()
    epochs = applied.epochs
    assert (epochs.is_frozen(), epochs.may_have_left()) == (False, False)
    for has_left in (False, True):
        batch = Batch()
        epochs.put_frozen(batch, has_left=has_left)
        applied.write(batch)
        assert (epochs.is_frozen(), epochs.may_have_left()) == (True, has_left)
    applied.header = BEGUN
    assert (epochs.is_frozen(), epochs.may_have_left()) == (False, False)
    applied.header = GENESIS
    batch = Batch()
    epochs.put_thawed(batch)
    applied.write(batch)
    assert not epochs.is_frozen()


def test_the_last_applied_block_is_read_once_and_again_when_another_takes_its_place() -> None:
    applied = Applied()
    assert [applied.epochs.current, applied.epochs.current] == [0, 0]
    applied.header = replace(BEGUN, height=GENESIS.height)
    assert [applied.epochs.current, applied.epochs.current] == [1, 1]
    assert applied.read == [0, 0]
