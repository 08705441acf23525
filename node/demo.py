"""`carechain demo`: a hospital, a clinic, a laboratory and an observer, as real daemons, play the whole story.

Every step checks what it shows; the first that does not hold ends the demonstration with exit code 1.
"""

import base64
import hashlib
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from node.card_file import read_genesis
from node.demo_network import DemoError, Facility, Network, until
from node.sample_records import SampleSet, synthesise
from protocol import receipt_file
from protocol.configuration import network_id
from protocol.errors import CarechainError, RemoteFault

Document = dict[str, Any]
HOSPITAL, CLINIC, LABORATORY, OBSERVER = "hospital", "clinic", "laboratory", "observer"
SEED = 7
_MDNS_SECONDS = 10.0
NOTICE = (
    "Reads are refused by each facility's own daemon; until threshold release exists, a modified daemon that holds a "
    "grant could read without a trace. Four facilities or more tolerate one that lies; three only find it out."
)


def run(*, facilities: int, keep: bool, show: Callable[[Document], None]) -> Document:
    """Play the story and return its summary: `ok`, `steps[]` (`name`, `ok`, `seconds`, `detail`), `notice`."""
    more = tuple((f"facility-{number}", "clinic", "voter") for number in range(4, facilities + 1))
    names = ((HOSPITAL, "hospital", "voter"), (CLINIC, "clinic", "voter"), (LABORATORY, "lab", "voter"))
    network = Network((*names, *more, (OBSERVER, "regulator", "observer")))
    story = _Story(network, synthesise(SEED))
    steps: list[Document] = []
    finished = False
    # Told to end, it still ends its daemons: the default would leave them running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for name, play in story.steps():
            started = time.monotonic()
            ok, detail = _outcome(play)
            step = {"name": name, "ok": ok, "seconds": round(time.monotonic() - started, 2), "detail": detail}
            steps.append(step)
            show(step)
            if not ok:
                break
        else:
            finished = True
    finally:
        kept = keep and finished
        addresses = (
            {name: facility.status()["addresses"] for name, facility in network.facilities.items()}
            if kept
            else {}
        )
        network.clear(keep=kept)
    document: Document = {"ok": finished, "steps": steps, "notice": NOTICE, "reads": story.reads}
    if kept:
        document |= {"folder": str(network.folder), "addresses": addresses}
    return document


def _outcome(play: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, play()
    except (DemoError, CarechainError) as error:
        return False, str(error)


def _demand(rule: bool, otherwise: str) -> None:
    if not rule:
        raise DemoError(otherwise)


@dataclass
class _Story:
    """What the steps have seen so far."""

    network: Network
    samples: SampleSet
    patient: str = ""
    records: list[Document] = field(default_factory=list)
    grant: str = ""
    killed: str = ""
    reads: list[str] = field(default_factory=list)

    def steps(self) -> tuple[tuple[str, Callable[[], str]], ...]:
        return (
            ("make the facilities", self.make),
            ("start the daemons", self.start),
            ("elect a leader", self.elect),
            ("register a patient", self.register),
            ("add records", self.add),
            ("grant labs to the clinic", self.grant_labs),
            ("the clinic reads labs", self.read_labs),
            ("everything else is refused", self.refuse_others),
            ("revoke", self.revoke),
            ("the clinic is refused", self.refuse_after_revoke),
            ("kill the leader", self.kill_leader),
            ("the killed one returns", self.return_killed),
            ("damage a stored chunk", self.damage),
            ("the observer verifies the chain", self.observe),
            ("who read what", self.audit),
            ("a receipt proves it offline", self.prove),
        )

    @property
    def hospital(self) -> Facility:
        return self.network[HOSPITAL]

    @property
    def clinic(self) -> Facility:
        return self.network[CLINIC]

    def make(self) -> str:
        identity = self.network.found()
        return f"{len(self.network.facilities)} homes; network {identity[:16]}"

    def start(self) -> str:
        self.network.start()
        if self.network.connect(_MDNS_SECONDS):
            reports = [facility.status() for facility in self.network.facilities.values()]
            found = {peer["found_by"] for report in reports for peer in report["peers"]} - {"inbound"}
            return f"real processes; they found each other by {', '.join(sorted(found))}"
        self.network.give_addresses()
        _demand(self.network.connect(_MDNS_SECONDS), "the daemons do not find each other")
        return "real processes; multicast is missing here, so they found each other by address"

    def elect(self) -> str:
        return f"{self.network.leader()} leads"

    def register(self) -> str:
        answer = self.hospital.client.upload("/v1/patients", iter([self.samples.fhir_bundle]))
        self.patient = answer["patient"]
        again = self.hospital.client.upload("/v1/patients", iter([self.samples.fhir_bundle]))
        _demand(
            again["patient"] == self.patient and again["known"], "a known identifier made a second patient"
        )
        return f"patient {self.patient}, in the hospital's custody"

    def add(self) -> str:
        for name, data in self.samples.files():
            self.records += self._added(self.hospital, self.patient, name, data)["records"]
        _demand(all(record["state"] == "final" for record in self.records), "a record is not final")
        categories = sorted({record["category"] for record in self.records})
        again = self._added(self.hospital, self.patient, *self.samples.files()[0])["records"]
        _demand(all(record["duplicate"] for record in again), "the same file twice was not recognised")
        return f"3 files became {len(self.records)} sealed records: {', '.join(categories)}"

    def grant_labs(self) -> str:
        answer = self.hospital.client.post(
            "/v1/consent/grant", patient=self.patient, to=CLINIC, categories=["labs"], purposes=["TREAT"],
            expires_ms=365 * 86_400_000, write=False,
        )  # fmt: skip
        self.grant = answer["grant"]
        return f"grant {self.grant[:16]}, for treatment, 365 days"

    def read_labs(self) -> str:
        labs = self._of("labs")

        def listed() -> bool | None:
            patients = self.clinic.client.get("/v1/patients")["patients"]
            return True if any("labs" in patient["categories"] for patient in patients) else None

        until("the clinic to hear of the grant", listed)
        data = self._read(self.clinic, labs)
        _demand(b"72.50" in data or b'"Observation"' in data, "the labs view does not hold the results")
        return f"{len(data)} bytes, hash verified; numbers exactly as they were written"

    def refuse_others(self) -> str:
        others = [record for record in self.records if record["category"] != "labs"]
        for record in others:
            self._refused(self.clinic, record["record"])
        nowhere = hashlib.sha256(b"no such record").hexdigest()
        _demand(
            self._refused(self.clinic, nowhere) == self._refused(self.clinic, others[0]["record"]),
            "a refusal tells whether the record exists",
        )
        return f"{len(others)} records, the original and mental-health among them, and one that does not exist: the same words"

    def revoke(self) -> str:
        self.hospital.client.post("/v1/consent/revoke", grant=self.grant)
        return "final on the ledger; the vault's key was changed"

    def refuse_after_revoke(self) -> str:
        labs = self._of("labs")
        until("the clinic to refuse", lambda: self._refused_or_none(self.clinic, labs))
        return self._refused(self.clinic, labs)

    def kill_leader(self) -> str:
        self.killed = self.network.leader()
        self.network[self.killed].kill()
        started = time.monotonic()
        leader = until("another leader", lambda: self._other_leader(self.killed))
        elected = time.monotonic() - started
        worker = self.network[next(name for name in (CLINIC, LABORATORY, HOSPITAL) if name != self.killed)]
        another = synthesise(SEED + 1)
        patient = worker.client.upload("/v1/patients", iter([another.fhir_bundle]))["patient"]
        added = until("the work to go on", lambda: self._added_or_none(worker, patient, another))
        return (
            f"{self.killed} was killed with SIGKILL; {leader} led {elected:.1f} s later; "
            f"{worker.name} added {len(added['records'])} records meanwhile"
        )

    def return_killed(self) -> str:
        back = self.network[self.killed]
        back.start()
        back.ready()
        goal = max(facility.status()["height"] for facility in self.network.facilities.values())
        height = until(
            "the killed one to catch up", lambda: h if (h := back.status()["height"]) >= goal else None
        )
        return f"{self.killed} is back at block {height}"

    def damage(self) -> str:
        facility = self.hospital
        facility.stop()
        place = _flip_a_byte(facility)
        facility.start()
        facility.ready()
        self.network.connect(_MDNS_SECONDS)
        found = self._verify(facility)
        _demand(not found["ok"] and bool(found["problems"]), "the damage was not named")
        for record in self.records:
            self._read(facility, record["record"])
        return f"one byte changed in {place}; named: {found['problems'][0]}; all records still read, from other replicas"

    def observe(self) -> str:
        observer = self.network[OBSERVER]
        goal = self.hospital.status()["height"]
        until("the observer to catch up", lambda: True if observer.status()["height"] >= goal else None)
        result = self._verify(observer)
        _demand(result["ok"], f"the observer found: {result['problems']}")
        return f"blocks 0 to {result['height']}, every signature, root and proof; tree root {result['tree_root'][:16]}"

    def audit(self) -> str:
        entries = self.hospital.client.post("/v1/audit/log", patient=self.patient)["entries"]
        reads = [entry for entry in entries if entry["action"] == "read"]
        self.reads = [
            f"{e['facility']} read {e['category']} for {e['purpose']} at block {e['height']}" for e in reads
        ]
        _demand(any(entry["facility"] == CLINIC for entry in reads), "the clinic's read is not in the log")
        return f"{len(entries)} entries, {len(reads)} reads: " + "; ".join(sorted(set(self.reads))[:3])

    def prove(self) -> str:
        entries = self.hospital.client.post("/v1/audit/log", patient=self.patient)["entries"]
        read = next(entry for entry in entries if entry["action"] == "read" and entry["facility"] == CLINIC)
        answer = self.network[OBSERVER].client.post(
            "/v1/audit/receipt", transaction=read["transaction"], leaf_only=False
        )
        data = base64.b64decode(answer["receipt"])
        network = network_id(read_genesis(self.network.folder / "genesis.json"))
        finding = receipt_file.check(receipt_file.decode(data), network)
        _demand(finding.height == read["height"], "the receipt is for another block")
        changed = data.replace(b"A", b"B", 1)
        try:
            receipt_file.check(receipt_file.decode(changed), network)
        except RemoteFault as fault:
            votes = len(receipt_file.decode(data).proof.certificate.votes)
            return f"{len(data)} bytes from the observer prove the clinic's read, by {votes} votes; one letter changed: {fault}"
        raise DemoError("a receipt with one letter changed was accepted")

    # --- what the steps share ---------------------------------------------------------------------------------

    def _of(self, category: str) -> str:
        return next(str(record["record"]) for record in self.records if record["category"] == category)

    def _added(self, facility: Facility, patient: str, name: str, data: bytes) -> Document:
        return facility.client.upload(
            "/v1/records", iter([data]), file_suffix="." + name.rsplit(".", 1)[1], patient=patient, category=None,
            media_type=None, force=False,
        )  # fmt: skip

    def _added_or_none(self, facility: Facility, patient: str, samples: SampleSet) -> Document | None:
        try:
            return self._added(facility, patient, *samples.files()[0])
        except CarechainError:
            return None

    def _other_leader(self, killed: str) -> str | None:
        name = self.network.leader()
        return name if name != killed else None

    def _read(self, facility: Facility, record: str) -> bytes:
        with facility.client.download("/v1/records/read", record=record, purpose="TREAT", user=None) as (
            info,
            body,
        ):
            data = b"".join(body)
        _demand(hashlib.sha256(data).hexdigest() == info["sha256"], "what came back is not what went in")
        return data

    def _refused(self, facility: Facility, record: str) -> str:
        try:
            self._read(facility, record)
        except CarechainError as error:
            return str(error)
        raise DemoError(f"{facility.name} read a record that was not granted")

    def _refused_or_none(self, facility: Facility, record: str) -> str | None:
        try:
            return self._refused(facility, record)
        except DemoError:
            return None

    def _verify(self, facility: Facility) -> Document:
        result: Document = {}
        for document in facility.client.lines("/v1/audit/verify", full=True):
            result = document.get("result", result)
        return result


def _flip_a_byte(facility: Facility) -> str:
    """Change one byte of stored ciphertext in the files of a stopped daemon; return the file's name."""
    tables = [
        *(facility.home.path / "payloads").glob("*.ldb"),
        *(facility.home.path / "payloads").glob("*.log"),
    ]
    largest = max(tables, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 3] ^= 0x01
    largest.write_bytes(data)
    return f"payloads/{largest.name}"
