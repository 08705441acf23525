"""The address book survives restarts and takes nothing it reads for granted."""

import json
from pathlib import Path

import pytest

from node.address_book import AddressBook
from protocol import limits
from protocol.identifiers import peer_id
from tests.node.transports import NODES, RecordingLog


def address(port: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}"


def test_addresses_survive_a_restart_the_last_confirmed_first(tmp_path: Path) -> None:
    path = tmp_path / "addresses.json"
    book = AddressBook(path, RecordingLog())
    for port in (1, 2, 1):
        book.remember(NODES[0], address(port))
    assert AddressBook(path, RecordingLog()).addresses(NODES[0]) == (address(1), address(2))
    assert [found.name for found in tmp_path.iterdir()] == ["addresses.json"]


def test_an_address_is_forgotten_and_their_number_is_bounded(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "addresses.json", RecordingLog())
    for port in range(2 * limits.PEER_ADDRESSES_MAX):
        book.remember(NODES[0], address(port))
    assert len(book.addresses(NODES[0])) == limits.PEER_ADDRESSES_MAX
    newest = book.addresses(NODES[0])[0]
    book.forget(NODES[0], newest)
    assert newest not in book.addresses(NODES[0])


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"x": ["y"]}', '{"x": 1}', json.dumps({peer_id(NODES[0]): 7}), "é"]
)
def test_a_damaged_book_is_ignored_with_a_warning(tmp_path: Path, content: str) -> None:
    path, log = tmp_path / "addresses.json", RecordingLog()
    path.write_text(content, encoding="latin-1")
    book = AddressBook(path, log)
    assert book.addresses(NODES[0]) == ()
    book.remember(NODES[0], address(1))
    assert AddressBook(path, log).addresses(NODES[0]) == (address(1),)
    assert log.count("address book ignored") == 1


def test_a_book_that_cannot_be_saved_is_said_and_kept_in_memory(tmp_path: Path) -> None:
    log = RecordingLog()
    book = AddressBook(tmp_path / "missing" / "addresses.json", log)
    book.remember(NODES[0], address(1))
    assert book.addresses(NODES[0]) == (address(1),)
    assert log.count("address book not saved") == 1
