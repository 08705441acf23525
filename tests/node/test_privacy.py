"""Where personal data must not be: after a story with words that occur nowhere else, every file of every home is searched.

Real daemons at the most talkative log level. The keys may hold what they seal; nothing else may hold any of it.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from node.card_file import read_genesis
from node.demo_network import Facility, Network, until
from node.rotation import EpochWraps
from protocol.codec import encode
from protocol.health.categories import Category
from protocol.identifiers import ZERO, Height, Vid
from protocol.transaction import Grant, Read, VaultOpen, VaultTransaction
from storage import databases
from storage.key_value import KeyValue
from storage.ledger_store import LedgerStore
from tests.node.daemons import VOTERS, Ran, carechain, caught_up

pytestmark = pytest.mark.slow

WORDS = (
    "Quixworth", "Zebulina", "ZQ-77812", "zebra-mrn", "1931-07-29", "Zygomaticus", "glioblastoma-zq", "Wolpertinger",
    "zqfile", "zqtext", "xyzzy-passphrase",
)  # fmt: skip
"""Name, identifier, birth date, title, diagnosis, reader, file name, text of a letter, passphrase of the wallet."""
FORMATS = {"hospital": "text", "clinic": "json", "lab": "text"}
PERSON = {
    "resourceType": "Patient", "id": "p", "identifier": [{"system": "urn:example:zebra-mrn", "value": "ZQ-77812"}],
    "birthDate": "1931-07-29", "name": [{"family": "Quixworth", "given": ["Zebulina"]}],
}  # fmt: skip


def document() -> bytes:
    labs = {
        "resourceType": "Observation", "status": "final", "subject": {"reference": "Patient/p"},
        "category": [{"coding": [{"code": "laboratory"}]}], "code": {"text": "Zygomaticus"},
    }  # fmt: skip
    illness = {
        "resourceType": "Condition", "subject": {"reference": "Patient/p"}, "code": {"text": "glioblastoma-zq, depression"},
    }  # fmt: skip
    entries = [{"resource": resource} for resource in (PERSON, labs, illness)]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}).encode()


@dataclass
class Story:
    """What was done, and what was said on the way."""

    network: Network
    folder: Path
    patient: str
    said: list[str] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    modes: dict[Path, int] = field(default_factory=dict)

    def run(self, facility: str, *arguments: str | Path) -> Ran:
        ran = carechain(*arguments, home=self.network[facility])
        self.said.append(ran.said)
        return ran


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Everything a facility does, ended: homes of stopped daemons."""
    temporary, files = tmp_path_factory.mktemp("daemons"), tmp_path_factory.mktemp("files")
    network = Network(VOTERS)
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(temporary)
    try:
        network.found()
        genesis = str(network.folder / "genesis.json")
        for name, log_format in FORMATS.items():
            network[name].start("--genesis", genesis, "--log-level", "debug", "--log-format", log_format)
        for facility in network.facilities.values():
            facility.ready()
        assert network.connect()
        network.leader()
        told = Story(network, temporary, "")
        tell(told, files)
        caught_up(network)
        for facility in network.facilities.values():
            facility.stop()
            # Noted now: a test that opens a database writes files of its own.
            home = facility.home.path
            told.modes |= {path: stat.S_IMODE(path.stat().st_mode) for path in (home, *home.rglob("*"))}
        yield told
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        network.clear(keep=False)


def tell(story: Story, files: Path) -> None:
    bundle, letter, secret = files / "zqfile.json", files / "zqfile.pdf", files / "secret"
    bundle.write_bytes(document())
    letter.write_bytes(b"%PDF-1.4 zqtext about Zebulina Quixworth")
    secret.write_text("xyzzy-passphrase")
    registered = story.run("hospital", "patient", "register", "--from", bundle).document or {}
    story.patient = registered["patient"]
    added = story.run("hospital", "record", "add", bundle, letter, "--patient", story.patient)
    assert added.code == 0, added.said
    records = (added.document or {})["records"]
    labs = next(record["record"] for record in records if record["category"] == "labs")
    granted = story.run(
        "hospital", "consent", "grant", "--patient", story.patient, "--to", "clinic", "--category", "labs"
    )
    assert granted.code == 0, granted.said
    until(
        "the clinic to read",
        lambda: (
            story.run("clinic", "record", "get", labs, "-o", files / "copy", "--user", "Dr Wolpertinger").code
            == 0
            or None
        ),
    )
    broken, other = files / "zqfile-broken.json", files / "zqfile-other.json"
    broken.write_bytes(document()[:-9])
    other.write_text(json.dumps(PERSON | {"birthDate": "1931-07-30"}))
    refusals = (
        ("hospital", "record", "add", broken),
        ("hospital", "record", "add", other),
        ("hospital", "record", "add", letter),
        ("hospital", "patient", "register", "--from", other),
        ("clinic", "record", "add", bundle),
        ("clinic", "record", "get", records[0]["record"], "-o", files / "no", "--user", "Dr Wolpertinger"),
        ("hospital", "consent", "grant", "--patient", "Quixworth", "--to", "clinic", "--category", "labs"),
        ("hospital", "record", "list", "--patient", "Zebulina"),
        ("hospital", "patient", "register", "--identifier", "urn:example:zebra-mrn|ZQ-77812", "--birth-date", "1931-07-31"),
    )  # fmt: skip
    for refusal in refusals:
        assert story.run(*refusal).code == 1, refusal
    story.run("hospital", "record", "export", "--patient", story.patient, "-o", files / "export")
    story.run("hospital", "audit", "log", "--patient", story.patient)
    assert story.run("hospital", "consent", "revoke", (granted.document or {})["grant"]).code == 0
    handed = story.run(
        "hospital", "patient", "handover", story.patient, "-o", files / "wallet", "--wallet-passphrase-file", secret
    )  # fmt: skip
    assert handed.code == 0, handed.said
    story.answers = [story.run(name, "status").document for name in FORMATS]
    assert not found_in((files / "wallet").read_bytes())


def found_in(data: bytes) -> list[str]:
    """Return which of the words stand in some bytes, as text or as hexadecimal or UTF-16."""
    lowered = data.lower()
    return [
        word
        for word in WORDS
        if any(
            form in lowered
            for form in (
                word.lower().encode(),
                word.lower().encode("utf-16-le"),
                word.encode().hex().encode(),
            )
        )
    ]


def files_of(facility: Facility) -> list[Path]:
    keys = facility.home.keys
    return [path for path in facility.home.path.rglob("*") if path.is_file() and keys not in path.parents]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_no_file_of_a_home_holds_a_word_of_the_story(story: Story, name: str) -> None:
    found = {str(path): found_in(path.read_bytes()) for path in files_of(story.network[name])}

    assert len(found) > 5
    assert not {path: words for path, words in found.items() if words}
    assert not [path for path in found if found_in(path.encode())]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_no_stored_value_holds_a_word_or_a_category(story: Story, name: str) -> None:
    """The engine compresses its files: values are searched as they are read, too."""
    home = story.network[name].home.path
    wanted = [category.value.encode() for category in Category if len(category.value) > 4]
    for opened in (databases.open_ledger(home, create=False), databases.open_payloads(home, create=False)):
        try:
            rows = list(rows_of(opened))
        finally:
            opened.close()
        assert rows
        assert not [key for key, value in rows if found_in(key + value)]
        assert not [key for key, value in rows if any(category in value for category in wanted)]


def rows_of(database: KeyValue) -> Iterator[tuple[bytes, bytes]]:
    yield from database.scan(b"", b"\xff" * 9)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_no_log_line_holds_a_category_of_a_record(story: Story, name: str) -> None:
    log = (story.network[name].home.path / "log").read_text()

    assert len(log.splitlines()) > 3
    assert not [
        category.value for category in Category if f"{category.value}" in log and "-" in category.value
    ]
    assert "Traceback" not in log
    assert "internal error" not in log


def test_no_sentence_told_to_a_user_holds_a_word(story: Story) -> None:
    assert len(story.said) > 15
    assert not [said for said in story.said if found_in(said.encode()) and "/" not in said]
    assert not found_in(json.dumps(story.answers).encode())


def test_nothing_is_left_in_the_temporary_folder(story: Story) -> None:
    assert list(story.folder.iterdir()) == []


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_only_the_owner_reads_a_home(story: Story, name: str) -> None:
    home = story.network[name].home.path
    # The test itself redirects the log, as a shell would.
    modes = {
        path: mode for path, mode in story.modes.items() if path.is_relative_to(home) and path.name != "log"
    }

    assert modes[home] == 0o700
    assert not {str(path): oct(mode) for path, mode in modes.items() if mode & 0o077}


# --- what the ledger tells --------------------------------------------------------------------------------------


def by_vault(story: Story) -> tuple[dict[Vid, list[Any]], LedgerStore, Any]:
    home = story.network["lab"].home
    genesis = read_genesis(home.genesis)
    opened = databases.open_ledger(home.path, create=False)
    store = LedgerStore(opened, genesis)
    found: dict[Vid, list[Any]] = {}
    for block in store.blocks(Height(1), store.tip_height()):
        for signed, txid in block.entries():
            if not isinstance(signed.transaction, VaultTransaction):
                continue
            found.setdefault(signed.transaction.vid, []).append((signed.transaction, txid))
    opened.close()
    return found, store, genesis


def ids_in(transactions: list[Any]) -> set[bytes]:
    """Return every id, key and hash in the transactions of one vault: 32 bytes, wherever they stand."""

    def walk(value: Any) -> Iterator[bytes]:
        if isinstance(value, bytes):
            yield value
        elif isinstance(value, tuple):
            for part in value:
                yield from walk(part)
        elif dataclasses.is_dataclass(value):
            for one in dataclasses.fields(value):
                yield from walk(getattr(value, one.name))

    return {value for pair in transactions for value in walk(pair) if len(value) == 32}


def test_no_id_joins_two_vaults_of_a_patient(story: Story) -> None:
    vaults, _, genesis = by_vault(story)
    public = {
        key for member in genesis.members for key in (member.node, member.kex, member.team, member.governance)
    }

    # A new epoch without grantees: the same list in every vault of everybody, so that it joins nothing.
    public.add(hashlib.sha256(encode(EpochWraps(()))).digest())

    def shared(one: Vid, other: Vid) -> set[bytes]:
        return (ids_in(vaults[one]) & ids_in(vaults[other])) - public - {ZERO}

    joined = {value for one, other in itertools.combinations(vaults, 2) for value in shared(one, other)}

    assert len(vaults) >= 3
    assert not {value.hex() for value in joined}


def test_the_ledger_names_no_category_no_person_and_no_reader(story: Story) -> None:
    vaults, _, _ = by_vault(story)
    transactions = [pair[0] for pairs in vaults.values() for pair in pairs]
    texts = b"".join(encode(one) for one in transactions)

    assert {VaultOpen, Grant, Read} <= {type(one) for one in transactions}
    assert not found_in(texts)
    assert not [category.value for category in Category if category.value.encode() in texts]
