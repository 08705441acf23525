"""Five facilities live through a year in two minutes, with real daemons: somebody comes, the leader goes, keys change, machines die.

Records are added all the while. What was told to be final stays, and every receipt, whenever and wherever it was taken,
still convinces two verifiers at the end, of which one shares no code with us.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from node.home import Home
from protocol.errors import CarechainError, NotFinal, Unavailable
from tests.interop import standalone_verifier
from tests.node.daemons import Daemon, carechain, consortium, made, verified

pytestmark = pytest.mark.slow
FIVE = (
    ("hospital", "hospital", "voter"),
    ("clinic", "clinic", "voter"),
    ("lab", "lab", "voter"),
    ("insurer", "insurer", "voter"),
    ("surgery", "clinic", "voter"),
)
_RECORD_BYTES = 3_000
_PAUSE_S = 0.15


class Writer(threading.Thread):
    """Adds records to a patient of one facility, one after another, and writes down what it was told."""

    def __init__(self, facility: Facility, folder: Path) -> None:
        super().__init__(name=f"writer of {facility.name}", daemon=True)
        self.facility = facility
        self.final: dict[str, str] = {}
        """Records that were told to be final, and the SHA-256 of what went in."""
        self.queued: dict[str, str] = {}
        self.refusals: list[str] = []
        self.final_at: list[float] = [time.monotonic()]
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        person = folder / f"patient-{facility.name}.json"
        identifier = {"system": "urn:example", "value": facility.name}
        person.write_text(json.dumps({"resourceType": "Patient", "identifier": [identifier]}))
        registered = carechain("patient", "register", "--from", person, home=facility)
        self.patient = str((registered.document or {})["patient"])

    def run(self) -> None:
        try:
            while not self._stopping.wait(_PAUSE_S):
                self.add()
        except Exception as error:  # noqa: BLE001  (a thread has nobody to raise to)
            self.failure = error

    def stop(self) -> None:
        self._stopping.set()
        self.join(120.0)
        assert self.failure is None
        assert not self.is_alive()

    def add(self) -> None:
        """Add one record."""
        data = os.urandom(_RECORD_BYTES)
        options = {"patient": self.patient, "category": "labs", "media_type": None, "force": False}
        kept = self.final
        try:
            records = self.facility.client.upload("/v1/records", [data], file_suffix=".bin", **options)[
                "records"
            ]
        except NotFinal as late:
            kept, told = self.queued, late.details.get("records", [])
            records = told if isinstance(told, list) else []
        except Unavailable:
            return  # the daemon is away: nothing was promised
        except CarechainError as refusal:
            self.refusals.append(str(refusal))
            return
        kept.update({one["record"]: hashlib.sha256(data).hexdigest() for one in records})
        if kept is self.final:
            self.final_at.append(time.monotonic())

    @property
    def longest_pause_s(self) -> float:
        """The longest time between two records that became final."""
        return max((b - a for a, b in zip(self.final_at, self.final_at[1:], strict=False)), default=0.0)

    def transaction(self) -> str:
        """Return the transaction of a record that was told to be final."""
        record = next(reversed(self.final))
        return str(
            self.facility.client.post("/v1/records/status", record=record)["records"][0]["transaction"]
        )

    def states(self) -> dict[str, str]:
        """Return what the facility says now of every record."""
        listed = self.facility.client.post("/v1/records/list", patient=self.patient)["records"]
        return {entry["record"]: entry["state"] for entry in listed}


@dataclass
class Receipts:
    """Receipts taken by and by, as a patient keeps them."""

    network: Network
    taken: dict[Path, str] = field(default_factory=dict)

    def take(self, transaction: str, when: str, *names: str) -> None:
        """Have several homes write a receipt each. A home that is not that far yet is waited for."""
        for name in names:
            file = self.network.folder / f"receipt-{when}-{name}"

            def write(file: Path = file, name: str = name) -> bool | None:
                ran = carechain("audit", "receipt", transaction, "-o", file, home=self.network[name])
                return True if ran.code == 0 else None

            until(f"{name} to write a receipt", write)
            self.taken[file] = transaction

    def verify(self) -> None:
        """Check all of them as two strangers would, who have the genesis file and nothing else."""
        genesis = self.network.folder / "genesis.json"
        for file, transaction in self.taken.items():
            ours = carechain("verify", file, "--trust", genesis)
            assert ours.code == 0, f"{file.name}: {ours.said}"
            assert ours.document is not None
            assert ours.document["transaction"] == transaction
            theirs = subprocess.run(
                [sys.executable, standalone_verifier.__file__, str(file), ours.document["network"]],
                capture_output=True, check=False, timeout=240,
            )  # fmt: skip
            assert theirs.returncode == 0, f"{file.name}: {theirs.stderr.decode()}"
            assert f"txid {transaction}" in theirs.stdout.decode()


@dataclass
class Story:
    """The network, who writes, and the receipts. `voters` are those in the configuration in force, in order of coming."""

    network: Network
    receipts: Receipts
    voters: list[str]
    writers: dict[str, Writer] = field(default_factory=dict)

    def others(self, *names: str) -> list[str]:
        """Return the voters but those named."""
        return [name for name in self.voters if name not in names]

    def decide(self, by: str, **wish: Any) -> None:
        """Propose, and have voters say yes one after another until it is decided."""
        fields: dict[str, Any] = {"card": None, "role": None, "leaves": False, "expires_ms": 3_600_000}
        proposed = self.network[by].client.post(
            "/v1/members/propose", **fields | {"accept_risk": True} | wish
        )
        self.vote(proposed, by, str(wish["name"]))

    def vote(self, proposed: dict[str, Any], *without: str) -> None:
        """Vote yes with everybody who has not voted and is not the matter, until it is decided."""
        for name in self.others(*without):
            if proposed["state"] != "open":
                break
            proposed = self.network[name].client.post(
                "/v1/members/vote", proposal=proposed["proposal"], yes=True, accept_risk=True
            )
        assert proposed["state"] in ("accepted", "in force"), proposed

    def wait_for_role(self, name: str, role: str | None) -> None:
        """Wait until every voter, and the facility itself, says that it has a role; None: it has left."""

        def has_it(seer: str) -> bool | None:
            rows = self.network[seer].client.get("/v1/members")["members"]
            return next((row["role"] for row in rows if row["name"] == name), None) == role or None

        for seer in {*self.voters, name}:
            until(f"{name} to be {role} at {seer}", partial(has_it, seer))

    def next_final(self, name: str) -> str:
        """Wait until a writer has another record that is final, and return its transaction."""
        writer = self.writers[name]
        count = len(writer.final)
        until(f"another final record at {name}", lambda: len(writer.final) > count or None)
        return writer.transaction()

    def writing(self) -> tuple[str, str]:
        """Return the two facilities that write."""
        first, second = self.writers
        return first, second


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with consortium(*FIVE) as network:
        story = Story(network, Receipts(network), [name for name, _, _ in FIVE])
        for name in story.others(network.leader())[:2]:
            story.writers[name] = Writer(network[name], network.folder)
        for writer in story.writers.values():
            writer.start()
        try:
            yield story
        finally:
            for writer in story.writers.values():
                writer.stop()


def test_a_sixth_facility_comes_by_ticket_and_ballot_while_records_are_written(story: Story) -> None:
    network, (first, second) = story.network, story.writing()
    story.receipts.take(story.next_final(first), "of-five", network.leader(), second)
    place, ticket = network.folder / "house", network.folder / "ticket.json"
    made(
        "init", "--home", str(place), "--name", "house", "--kind", "clinic", "--role", "observer",
        "--no-passphrase", "--listen", "/ip4/127.0.0.1/tcp/0",
    )  # fmt: skip
    house = Daemon("house", Home(place))
    done = carechain("member", "propose", house.home.card, home=network[second])
    assert done.document is not None, done.said
    assert carechain("member", "ticket", house.home.card, "-o", ticket, home=network[second]).code == 0
    house.start("--ticket", str(ticket))
    network.facilities["house"] = house
    story.vote(done.document, second)
    house.ready()
    story.wait_for_role("house", "observer")

    for role in ("learner", "voter"):
        story.decide(second, name="house", role=role)
        story.wait_for_role("house", role)
    story.voters.append("house")

    assert house.status()["quorum"] == 4
    story.receipts.take(story.next_final(second), "of-six", network.leader(), "house")
    # It was not there, and has one certificate for many blocks of that time: its receipts are as good.
    story.receipts.take(next(iter(story.receipts.taken.values())), "of-five", "house")


def test_the_leader_is_let_go_and_the_others_go_on(story: Story) -> None:
    network, (first, second) = story.network, story.writing()
    leader = network.leader()
    story.decide("house" if leader != "house" else first, name=leader, leaves=True)
    story.voters.remove(leader)
    story.wait_for_role(leader, None)
    assert network[leader].status()["role"] == "removed"

    writer = first if first != leader else second
    story.receipts.take(story.next_final(writer), "without-the-leader", *story.others(writer)[:2])
    assert network.leader() != leader


def test_new_keys_come_by_ballot_and_old_receipts_hold(story: Story) -> None:
    network, (first, second) = story.network, story.writing()
    house, writer = network["house"], first if first in story.voters else second
    rotated = carechain("member", "rotate", "--governance", "--checkpoint", home=house)
    assert rotated.document is not None, rotated.said
    story.vote(rotated.document, "house")

    def is_in_force() -> bool | None:
        proposals = house.client.get("/v1/members")["proposals"]
        mine = str(rotated.document["proposal"]) if rotated.document else ""
        return any(one["proposal"] == mine and one["state"] == "in force" for one in proposals) or None

    until("the new keys to be in force", is_in_force)
    house.stop()
    house.start()
    house.ready()
    story.receipts.take(story.next_final(writer), "new-keys", "house", writer)
    # A proposal and a ballot under the new key count: the annex may come, by the ticket of the house.
    annex = network.folder / "annex"
    made(
        "init", "--home", str(annex), "--name", "annex", "--kind", "lab", "--role", "observer", "--no-passphrase",
        "--listen", "/ip4/127.0.0.1/tcp/0",
    )  # fmt: skip
    proposed = carechain("member", "propose", Home(annex).card, home=house)
    assert proposed.document is not None, proposed.said
    story.vote(proposed.document, "house")


def test_a_new_node_key_takes_over_by_itself_and_its_facility_votes_again(story: Story) -> None:
    """The peer id changes, and with it whatever peers know the house by; what it has on the ledger stays its own."""
    network = story.network
    house, before = network["house"], network["house"].status()["peer_id"]
    sponsor = story.others("house")[0]
    refused = carechain("member", "rotate", "--node", home=house)
    assert (refused.code, "demote it first" in refused.said) == (1, True)
    story.decide(sponsor, name="house", role="learner")
    story.voters.remove("house")
    story.wait_for_role("house", "learner")
    rotated = carechain("member", "rotate", "--node", home=house)
    assert rotated.document is not None, rotated.said
    story.vote(rotated.document)

    def has_taken_over() -> bool | None:
        try:
            status = house.status()
        except Unavailable:
            return None  # it starts again with the new key
        connected = [peer["name"] for peer in status["peers"] if peer["connected"]]
        return (status["peer_id"] != before and set(story.voters) <= set(connected)) or None

    until("the house to run with the new key", has_taken_over)
    story.decide(sponsor, name="house", role="voter")
    story.wait_for_role("house", "voter")
    story.voters.append("house")
    writer = next(name for name in story.writers if name in story.voters)
    story.receipts.take(story.next_final(writer), "new-node-key", "house", writer)
    house.stop()
    house.start()
    house.ready()


def test_a_joiner_with_a_wrong_ticket_or_a_wrong_clock_is_told_what_to_do(story: Story) -> None:
    network = story.network
    house, annex, folder = network["house"], network.folder / "annex", network.folder
    good, short = folder / "annex.ticket", folder / "short.ticket"
    for file, life in ((good, "7d"), (short, "1s")):
        assert carechain("member", "ticket", "annex", "-o", file, "--expires", life, home=house).code == 0
    altered = folder / "altered.ticket"
    altered.write_text(good.read_text().replace('"for": "12', '"for": "13'))
    assert "was altered" in joining(annex, altered)
    assert "the ticket is for" in joining(annex, folder / "ticket.json")
    assert "has expired; ask the sponsor for another" in joining(annex, short)
    assert "clock is behind" in joining(annex, good, clock_off_s=-600)
    assert "clock is 10 minutes off the sponsor's; set it by NTP" in joining(annex, good, clock_off_s=605)
    assert not Home(annex).genesis.exists()


def joining(home: Path, ticket: Path, clock_off_s: int = 0) -> str:
    """Start a home that is to join on a machine whose clock is so far off; return what it is refused with."""
    machine = home.parent / f"machine{clock_off_s}"
    machine.mkdir(exist_ok=True)
    (machine / "sitecustomize.py").write_text(
        f"import time\nright, right_ns = time.time, time.time_ns\ntime.time = lambda: right() + {clock_off_s}\n"
        f"time.time_ns = lambda: right_ns() + {clock_off_s} * 10**9\n"
    )
    # Loaded anew, unlike our other commands: the clock is changed while Python starts.
    refused = subprocess.run(
        [sys.executable, "-P", "-m", "node", "run", "--ticket", str(ticket), "--home", str(home), "--json"],
        capture_output=True, check=False, text=True, timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(machine), *filter(None, [os.environ.get("PYTHONPATH")])))},
    )  # fmt: skip
    assert refused.returncode == 1
    return refused.stderr.strip().splitlines()[-1]


def test_one_death_is_survived_and_two_pause_what_becomes_final(story: Story) -> None:
    """Five signers, q = 4: ordering survives two crashes, finality one (ledger.md 1.3)."""
    network = story.network
    writer = next(name for name in story.writers if name in story.voters)
    assert network[writer].status()["quorum"] == 4
    dying = story.others(writer)[:2]
    network[dying[0]].kill()
    story.receipts.take(story.next_final(writer), "one-dead", story.others(writer, *dying)[0])

    network[dying[1]].kill()
    # Records wait for members that store them; a proposal needs nobody for that, and is ordered.
    wish = {"card": None, "role": None, "leaves": True, "expires_ms": 3_600_000, "accept_risk": True}
    with pytest.raises(NotFinal):
        network[writer].client.post("/v1/members/propose", **wish, name=dying[1])

    def is_paused() -> bool | None:
        status = network[writer].status()
        codes = {problem["code"] for problem in status["problems"]}
        return ("not-final" in codes and status["ordered_height"] > status["certified_height"]) or None

    until("the pause to be told", is_paused)
    height = network[writer].status()["certified_height"]
    network[dying[0]].start()
    network[dying[0]].ready()
    until(
        "the blocks that waited to be final",
        lambda: network[writer].status()["certified_height"] > height or None,
    )
    story.receipts.take(story.next_final(writer), "resumed", dying[0], writer)
    network[dying[1]].start()
    network[dying[1]].ready()


def test_everybody_dies_and_nothing_that_was_told_is_missing(story: Story) -> None:
    network = story.network
    for facility in network.facilities.values():
        facility.kill()
    for facility in network.facilities.values():
        facility.start()
    for facility in network.facilities.values():
        facility.ready()
    writer = next(name for name in story.writers if name in story.voters)
    story.receipts.take(story.next_final(writer), "after-all", *story.others(writer)[:1])
    for one in story.writers.values():
        one.stop()

    for name, one in story.writers.items():
        print(
            f"{name}: {len(one.final)} records final, {len(one.queued)} queued first, {one.longest_pause_s:.1f} s at most between two"
        )
        if name in story.voters:
            until("what was queued to be final", partial(nothing_waits, one))
        states = one.states()
        assert {record: states.get(record) for record in one.final} == dict.fromkeys(one.final, "final")
    for facility in network.facilities.values():
        report = verified(facility)
        assert report["ok"], f"{facility.name}: {report}"
        assert not facility.client.get("/v1/members")["evidence"]
    story.receipts.verify()


def nothing_waits(writer: Writer) -> bool | None:
    return set(writer.states().values()) == {"final"} or None
