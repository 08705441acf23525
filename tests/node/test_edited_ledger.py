"""What somebody, or a bad disk, does to one member's files: an older copy, a second copy, edited blocks, certificates and tree nodes."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import plyvel
import pytest

from node import config
from node.card_file import read_genesis
from node.demo_network import Facility, Network, until
from node.home import Home
from protocol.raft.state import HardState
from storage import databases
from storage.keyspace import BLOCK, CERTIFICATE, TREE
from storage.ledger_store import LedgerStore
from tests.node.daemons import carechain, consortium, verified
from tests.node.test_damage_mended import flip_within
from tests.node.test_five_homes import Writer

pytestmark = pytest.mark.slow
_RECORDS = 25


@dataclass(frozen=True)
class Story:
    """A network with records, and who adds more when told to."""

    network: Network
    writer: Writer


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with consortium() as network:
        made = Story(network, Writer(network["clinic"], network.folder))
        for _ in range(_RECORDS):
            made.writer.add()
        yield made


def test_a_voter_with_an_older_copy_of_its_ledger_follows_silently_and_signs_nothing_twice(
    story: Story,
) -> None:
    network, writer = story.network, story.writer
    restored = network["lab"]
    ledger, copy = restored.home.path / "ledger", network.folder / "copy"
    restored.stop()
    shutil.copytree(ledger, copy)
    restored.start()
    restored.ready()
    until("it to sign", partial(signs, restored))
    for _ in range(6):
        writer.add()
    before = restored.status()["certified_height"]
    restored.kill()

    shutil.rmtree(ledger)
    copy.rename(ledger)
    restored.start()
    restored.ready()
    until("it to notice", partial(has_said, restored, "lacks what this voter had acknowledged"))
    until("it to sign again", partial(has_said, restored, "caught up; voting again"))
    assert has_said(restored, "begun anew")
    assert restored.status()["certified_height"] >= before
    for _ in range(6):
        writer.add()
    # Everybody compares every signature with those heard before: a second one for other bytes would be evidence by now.
    for facility in network.facilities.values():
        assert not facility.client.get("/v1/members")["evidence"]
    report = verified(restored)
    assert report["ok"], report


def has_said(facility: Facility, words: str) -> bool | None:
    return words in (facility.home.path / "log").read_text(errors="replace") or None


def signs(facility: Facility) -> bool | None:
    """Return True when a voter takes part, and has nothing to catch up with."""
    status = facility.status()
    codes = {problem["code"] for problem in status["problems"]}
    return (status["raft_role"] is not None and not codes & {"rejoining", "no-quorum"}) or None


def rewrite(ledger: Path, prefix: bytes, draw: random.Random) -> None:
    """Change one bit of a row of the ledger as whoever edits it with LevelDB itself would: every checksum is right."""
    rows = plyvel.DB(str(ledger), bloom_filter_bits=10)
    try:
        key, value = draw.choice([(key, value) for key, value in rows.iterator(prefix=prefix) if value])
        at = draw.randrange(len(value))
        changed = value[:at] + bytes([value[at] ^ 1 << draw.randrange(8)]) + value[at + 1 :]
        rows.put(key, changed, sync=True)
    finally:
        rows.close()


# A flipped byte costs a whole table block; in a ledger as small as this one the few nodes share theirs with rows that
# nobody else has, and then everything is fetched anew.
@pytest.mark.parametrize("edit", ["row", "table"])
@pytest.mark.parametrize("prefix", [BLOCK, CERTIFICATE, TREE])
def test_an_edited_block_certificate_or_tree_node_is_named_and_repaired_from_peers(
    story: Story, edit: str, prefix: bytes
) -> None:
    facility = story.network["lab"]
    facility.stop()
    for aside in facility.home.path.glob("ledger.damaged-*"):
        shutil.rmtree(
            aside
        )  # as an operator does who has checked the disk: three in a day say that it is no good
    draw = random.Random(f"{edit} {prefix!r}")
    if edit == "row":
        rewrite(facility.home.path / "ledger", prefix, draw)
    else:
        flip_within(facility.home.path, prefix, draw)
    log = facility.home.path / "log"
    said = len(log.read_text(errors="replace"))
    facility.start()
    facility.ready()

    def audit() -> list[str] | None:
        report = carechain("audit", "verify", "--full", home=facility).document
        return report["problems"] if report is not None else None

    named = until("an audit", audit)
    until("a clean audit", lambda: audit() == [] or None)
    until("it to sign", partial(signs, facility))
    # The daemon reads its ledger from the start on, and may be done before anybody asks.
    words = ("damaged", "do not hold", "do not fit the chain")
    assert named or any(word in log.read_text(errors="replace")[said:] for word in words)


def copy_of(facility: Facility, folder: Path) -> Facility:
    """Copy the home of a facility that does not run."""
    copy = Home(folder / f"copy of {facility.name}")
    shutil.copytree(facility.home.path, copy.path, ignore=shutil.ignore_patterns("*.sock", "log"))
    anywhere = replace(config.load(copy.config), listen=("/ip4/127.0.0.1/tcp/0",))
    copy.config.write_text(config.render(anywhere))
    return type(facility)(facility.name, copy)


def ended(facility: Facility) -> int | None:
    assert facility.process is not None
    return facility.process.poll()


def last_words(facility: Facility) -> str:
    return (facility.home.path / "log").read_text(errors="replace").strip().splitlines()[-1]


def promised(facility: Facility) -> HardState | None:
    """Return what the signer of a stopped home has promised: nothing that it signs for consensus leaves before it stands there."""
    with contextlib.closing(databases.open_ledger(facility.home.path, create=False)) as rows:
        return LedgerStore(rows, read_genesis(facility.home.genesis)).hard_state()


def test_a_copy_beside_its_living_original_ends_before_it_has_signed(story: Story) -> None:
    network, writer = story.network, story.writer
    lab = network["lab"]
    lab.stop()
    copy = copy_of(lab, network.folder)
    before = promised(copy)
    lab.start()
    lab.ready()
    until("it to sign", partial(signs, lab))
    for _ in range(2):
        writer.add()
    try:
        copy.start()
        until("the copy to end", lambda: ended(copy) is not None or None)
        assert (ended(copy), ended(lab)) == (1, None)
        assert "a home must never run twice" in last_words(copy)
        assert promised(copy) == before, "it has signed nothing"
        until("the original to sign", partial(signs, lab))
        writer.add()
        for facility in network.facilities.values():
            assert not facility.client.get("/v1/members")["evidence"]
    finally:
        copy.kill()
