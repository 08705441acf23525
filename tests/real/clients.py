"""Clients that ask different daemons at once, each a thread, and write down what they were told.

    Custodian   at the daemon that holds a patient's keys: grants, and revokes again
    Reader      at the daemon of the other facility: opens the patient's record, again and again
    Recorder    at a daemon: adds records to a patient of its own

A change without an answer is repeated, as a person would, until there is one: with the same terms, so that it is one
operation, however often it was asked for. A read without an answer has changed nothing that counts.
"""

import hashlib
import json
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocol.errors import CarechainError, Forbidden, NotFinal, Unavailable
from tests.real.daemons import Daemon
from tests.real.journal import AddRecord, EndGrant, Entry, GiveGrant, Journal, OpenRecord

# Any: answers are JSON documents.
Document = dict[str, Any]

CATEGORY = "general"
_DAY_MS = 86_400_000
_RETRY_S = 0.3
_GRANT_LIVES_S = (1.5, 5.0)
_PATIENCE_S = 90.0
"""How long after the end of all faults a change may go on without an answer."""


class Client(ABC, threading.Thread):
    """A client that works until it is told to stop, and then until its last operation is answered."""

    def __init__(
        self, name: str, journal: Journal, draw: random.Random, pause_s: tuple[float, float]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.journal = journal
        self.done = 0
        """Operations that succeeded."""
        self.failure: BaseException | None = None
        self._draw = draw
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._give_up_at = float("inf")

    @property
    def pause_s(self) -> tuple[float, float]:
        """The least and the most seconds until the next operation."""
        return self._pause_s

    def stop(self) -> None:
        """Begin nothing more."""
        self._give_up_at = time.monotonic() + _PATIENCE_S
        self._stopping.set()

    def run(self) -> None:
        """Work until stopped; what goes wrong with the client itself is kept for who joins it."""
        try:
            while not self._stopping.is_set():
                self.turn()
                self._stopping.wait(self._draw.uniform(*self.pause_s))
        except Exception as error:  # noqa: BLE001  (a thread has nobody to raise to)
            self.failure = error

    @abstractmethod
    def turn(self) -> None:
        """Do the next thing."""

    def insist(self, entry: Entry, ask: Callable[[], tuple[str, ...]]) -> bool:
        """Ask until there is an answer; return whether it was done. `ask` returns its transactions, all final."""
        while True:
            try:
                transactions = ask()
            except (NotFinal, Unavailable) as reason:
                self.journal.count(entry, type(reason).__name__)
            except CarechainError as refusal:
                self.journal.count(entry, type(refusal).__name__)
                self.journal.surprise(entry, f"{type(refusal).__name__}: {refusal}")
                return False
            else:
                self.journal.returned(entry, transactions)
                self.done += 1
                return True
            if time.monotonic() > self._give_up_at:
                self.journal.surprise(entry, f"no answer {_PATIENCE_S:.0f} s after the last fault")
                return False
            # Also after `stop`: an operation that was begun is brought to its end.
            threading.Event().wait(_RETRY_S)


@dataclass(frozen=True, slots=True)
class Chart:
    """A record of a patient in the custody of one facility, and the other facility that may be let in."""

    place: str
    custodian: Daemon
    reader: Daemon
    patient: str
    record: str
    sha256: str


class Custodian(Client):
    """Grants and revokes at the facility that holds the patient's keys."""

    def __init__(self, chart: Chart, journal: Journal, draw: random.Random) -> None:
        super().__init__(f"custodian of {chart.place}", journal, draw, (0.1, 0.6))
        self._chart = chart
        self._granted = 0
        self._living: tuple[int, str] | None = None

    @property
    def pause_s(self) -> tuple[float, float]:
        """A grant lives for some seconds: the other facility hears of it late, and is to be reading when it ends."""
        return super().pause_s if self._living is None else _GRANT_LIVES_S

    def turn(self) -> None:
        """Grant, or revoke what was granted before."""
        if self._living is None:
            self._grant()
        else:
            self._revoke(*self._living)

    def _grant(self) -> None:
        self._granted += 1
        number = self._granted
        entry = self.journal.call(self.name, GiveGrant(self._chart.place, number))
        answer: Document = {}

        def ask() -> tuple[str, ...]:
            answer.update(self._granted_as(number))
            return tuple(str(grant["transaction"]) for grant in answer["grants"])

        if self.insist(entry, ask):
            self._living = number, str(answer["grant"])

    def _granted_as(self, number: int) -> Document:
        """Ask for a grant on terms of its own: the same terms again are the same grant."""
        return self._chart.custodian.client.post(
            "/v1/consent/grant",
            patient=self._chart.patient,
            to=self._chart.reader.name,
            categories=[CATEGORY],
            purposes=["TREAT"],
            expires_ms=365 * _DAY_MS + number * 1_000,
            write=False,
        )

    def _revoke(self, number: int, grant: str) -> None:
        entry = self.journal.call(self.name, EndGrant(self._chart.place, number))

        def ask() -> tuple[str, ...]:
            answer = self._chart.custodian.client.post("/v1/consent/revoke", grant=grant)
            return tuple(str(ended["transaction"]) for ended in answer["grants"])

        if self.insist(entry, ask):
            self._living = None


class Reader(Client):
    """Opens the record at the other facility."""

    def __init__(self, chart: Chart, journal: Journal, draw: random.Random) -> None:
        super().__init__(f"reader of {chart.place}", journal, draw, (0.05, 0.3))
        self._chart = chart

    def turn(self) -> None:
        """Try to open it. Without a grant, or without knowing of one yet, it is refused."""
        entry = self.journal.call(self.name, OpenRecord(self._chart.place))
        try:
            info, data = read(self._chart.reader, self._chart.record)
        except CarechainError as reason:
            if not isinstance(reason, Forbidden | Unavailable):
                self.journal.surprise(entry, f"{type(reason).__name__}: {reason}")
            self.journal.withdraw(entry, type(reason).__name__)
            return
        if hashlib.sha256(data).hexdigest() != self._chart.sha256:
            self.journal.surprise(entry, "what came out is not what went in")
        self.journal.returned(entry, (str(info["transaction"]),))
        self.done += 1


class Recorder(Client):
    """Adds small records of random bytes, each once."""

    def __init__(self, daemon: Daemon, patient: str, journal: Journal, draw: random.Random) -> None:
        super().__init__(f"recorder at {daemon.name}", journal, draw, (0.1, 0.5))
        self._daemon = daemon
        self._patient = patient
        self._added = 0

    def turn(self) -> None:
        """Add the next one."""
        self._added += 1
        data = self._draw.randbytes(self._draw.randrange(500, 20_000))
        entry = self.journal.call(self.name, AddRecord(self._daemon.name, self._added))
        self.insist(entry, lambda: added(self._daemon, self._patient, data)[1])


# --- calls ------------------------------------------------------------------------------------------------------------


def registered(daemon: Daemon, number: int) -> str:
    """Return a new patient of a facility."""
    identifier = {"system": "urn:oid:2.999.1.43", "value": f"{daemon.name}-{number}"}
    person = json.dumps({"resourceType": "Patient", "identifier": [identifier]}).encode()
    return str(daemon.client.upload("/v1/patients", iter([person]))["patient"])


def added(daemon: Daemon, patient: str, data: bytes) -> tuple[str, tuple[str, ...]]:
    """Add a record; return its id and its transaction, which is final.

    Raises:
        NotFinal, Unavailable: not yet; the same call again is the same record.
    """
    answer = daemon.client.upload(
        "/v1/records", iter([data]), file_suffix=".bin", patient=patient, category=CATEGORY, media_type=None,
        force=False,
    )  # fmt: skip
    (record,) = answer["records"]
    if record["state"] != "final":
        raise NotFinal("the record is queued", (str(record["record"]),))
    return str(record["record"]), (str(record["transaction"]),)


def read(daemon: Daemon, record: str) -> tuple[Document, bytes]:
    """Open a record; return what is told about it, and its bytes.

    Raises:
        Forbidden, Unavailable: it was not opened.
    """
    with daemon.client.download("/v1/records/read", record=record, purpose="TREAT", user=None) as (
        info,
        body,
    ):
        return info, b"".join(body)
