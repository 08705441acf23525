from node.receipts import Receipts
from protocol.identifiers import Height, Txid
from protocol.ledger_rows import Receipt
from protocol.signing import sha256


def receipt(number: int) -> Receipt:
    return Receipt(Txid(sha256(bytes([number]))), Height(1), number, 1, "accepted")


def test_waiting_ends_with_the_last_receipt() -> None:
    receipts = Receipts()
    with receipts.expect([receipt(number).txid for number in range(3)]) as waiter:
        receipts.resolve([receipt(2), receipt(0), receipt(9)])
        assert not waiter.done.is_set()
        assert list(waiter.missing) == [receipt(1).txid]
        receipts.resolve([receipt(1)])
        assert waiter.done.is_set()
        assert waiter.receipts[receipt(2).txid].index == 2


def test_two_that_wait_for_one_transaction_both_hear_of_it() -> None:
    receipts = Receipts()
    with receipts.expect([receipt(1).txid]) as first, receipts.expect([receipt(1).txid]) as second:
        receipts.resolve([receipt(1)])
        assert first.done.is_set()
        assert second.done.is_set()


def test_who_gives_up_leaves_the_others_waiting_and_nothing_behind() -> None:
    receipts = Receipts()
    with receipts.expect([receipt(1).txid]) as patient:
        with receipts.expect([receipt(1).txid, receipt(2).txid]):
            pass
        receipts.resolve([receipt(1)])
        assert patient.done.is_set()
    assert receipts._waiting == {}


def test_a_receipt_found_elsewhere_counts_and_leaves_nothing_behind() -> None:
    receipts = Receipts()
    with receipts.expect([receipt(1).txid]) as waiter:
        waiter.take(receipt(1))
        waiter.take(receipt(1))
        assert waiter.done.is_set()
    assert receipts._waiting == {}
