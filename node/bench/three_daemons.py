"""Three real daemons on loopback under `carechain bench storage`: what replication costs, and what it does to everybody else.

    add_r3           a file in at one, until two of three have receipted every chunk and the ledger has the record
    small_final      laboratory results in batches, until all of them are final
    read_p99_copying how long a reading takes while that happens, against how long it takes when nothing does; each is
                     written to the ledger first, so that this is the consensus of single transactions under a bulk copy

Readings are begun on a fixed timetable and timed from when they were due: a stall counts for everything it delays.
"""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path

from node.bench import sample_set
from node.bench.ingredients import Row, figure, percentile, row
from node.bench.one_node import written_bytes
from node.demo_network import DemoError, Facility, Network, until
from node.small_files import FILES_MAX, SmallFile, encode_files
from protocol import limits
from protocol.errors import NotFinal, Unavailable

REPLICATED_TARGET, AMPLIFICATION_TARGET, MEMORY_TARGET_MIB = 60.0, 2.2, 300.0
SLOWDOWN_TARGET = 2.0
_NAMES = (("hospital", "hospital", "voter"), ("clinic", "clinic", "voter"), ("laboratory", "lab", "voter"))
_READINGS_PER_S = 15.0
_IDLE_S_MAX = 10.0
_READINGS_MIN, _ROUNDS_MAX = 300, 6
"""Of a hundred readings the slowest hundredth is one, and says more about the moment than about the copy."""
_ROUNDS_FROM_BYTES = 64 * limits.MIB
_SAMPLE_S = 0.1
_FINAL_S = 600.0
_PIECE_BYTES = limits.MIB


@dataclass(slots=True)
class _Peaks:
    """The most anonymous memory that any of the daemons was seen with, in MiB."""

    mib: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)


def measure(size: int, small_count: int, show: Callable[[str], None]) -> tuple[list[Row], list[Row]]:
    """Return figures and ingredients; `size` bytes are copied, twice.

    Raises:
        Unavailable: the daemons did not come to a leader, or one of them ended.
    """
    network = Network(_NAMES)
    try:
        show("starting three daemons …")
        _start(network)
        patients = {name: _admit(network[name]) for name, *_ in _NAMES}
        hospital, patient = network["hospital"], patients["hospital"]
        figures, parts = _replicated(network, hospital, patient, size, show)
        show(f"adding {small_count} small documents …")
        small = _small_final(hospital, patient, small_count)
        figures.append(figure("small_final", small, "documents/s", None, least=True))
        more_figures, more_parts = _fairness(network, patients, size, show)
    except DemoError as error:
        raise Unavailable(str(error)) from None
    finally:
        network.clear(keep=False)
    return figures + more_figures, parts + more_parts


def _start(network: Network) -> None:
    network.found()
    network.start()
    if not network.connect(10.0):
        network.give_addresses()
        if not network.connect(20.0):
            raise Unavailable("the daemons of the benchmark do not find each other")
    network.leader()


def _admit(facility: Facility) -> str:
    """Register a patient, and open the vaults that are used later."""
    answer = facility.client.upload(
        "/v1/patients", [], identifiers=[("urn:bench", facility.name)], name="Bench", birth_date="1980-01-01"
    )
    patient = str(answer["patient"])
    _add(facility, patient, [b"first"])
    return patient


def _add(facility: Facility, patient: str, pieces: Iterator[bytes] | list[bytes]) -> str:
    """Add a file and return its record's id once it is final."""
    try:
        answer = facility.client.upload("/v1/records", pieces, patient=patient, category="imaging")
        record = str(answer["records"][0]["record"])
    except NotFinal as queued:
        record = queued.ids[0]
    _wait_until_final(facility, record)
    return record


def _wait_until_final(facility: Facility, record: str) -> None:
    def is_final() -> bool | None:
        (entry,) = facility.client.post("/v1/records/status", record=record)["records"]
        return entry["state"] == "final" or None

    until("a record to become final", is_final, _FINAL_S)


# --- replication ----------------------------------------------------------------------------------------------------


def _replicated(
    network: Network, hospital: Facility, patient: str, size: int, show: Callable[[str], None]
) -> tuple[list[Row], list[Row]]:
    show(f"copying {size / limits.MIB:.0f} MiB to three …")
    facilities = tuple(network.facilities.values())
    before = {facility.name: written_bytes(_process(facility)) for facility in facilities}
    spent = sum(_cpu_s(_process(facility)) for facility in facilities)
    with _watched(facilities) as peaks:
        began = time.perf_counter()
        record = _add(hospital, patient, _noise(size, 0))
        seconds = time.perf_counter() - began
        spent = sum(_cpu_s(_process(facility)) for facility in facilities) - spent
        # The third replica follows in the background; what is written for it belongs to the bytes stored.
        until("the third replica", lambda: _is_everywhere(hospital), _FINAL_S)
        read_s = _read(hospital, record)
    written = max(written_bytes(_process(facility)) - before[facility.name] for facility in facilities)
    mib = size / limits.MIB
    return [
        figure("add_r3", mib / seconds, "MiB/s", REPLICATED_TARGET, least=True),
        figure(
            "written_per_stored",
            written / size,
            "bytes, the busiest of three",
            AMPLIFICATION_TARGET,
            least=False,
        ),
        figure(
            "daemon_memory", peaks.mib, "MiB RssAnon, the largest of three", MEMORY_TARGET_MIB, least=False
        ),
    ], [
        row("replicated", mib, "MiB"),
        row("replicated_cpu", spent / mib * 1e3, "ms per MiB, all three daemons"),
        row("read_daemon", mib / read_s, "MiB/s through the socket"),
    ]


def _is_everywhere(hospital: Facility) -> bool | None:
    return hospital.client.get("/v1/storage")["under_replicated"] == 0 or None


def _read(facility: Facility, record: str) -> float:
    began = time.perf_counter()
    with facility.client.download("/v1/records/read", record=record, purpose="TREAT", user=None) as (
        info,
        body,
    ):
        done = sum(len(piece) for piece in body)
    if done != info["bytes"]:
        raise Unavailable("a record came back with other bytes than it went in")
    return time.perf_counter() - began


def _noise(size: int, number: int) -> Iterator[bytes]:
    """Yield a file that differs from those of other numbers: the same one again would be found to be there already."""
    noise = number.to_bytes(8, "big") + sample_set.incompressible(32 * limits.MIB)
    for block in sample_set.blocks(noise, size):
        for start in range(0, len(block), _PIECE_BYTES):
            yield block[start : start + _PIECE_BYTES]


def _small_final(facility: Facility, patient: str, count: int) -> float:
    results = [SmallFile(sample_set.laboratory_result(number), "", ".json") for number in range(count)]
    began = time.perf_counter()
    for start in range(0, count, FILES_MAX):
        body = encode_files(tuple(results[start : start + FILES_MAX]))
        try:
            answer = facility.client.upload("/v1/records/many", [body], patient=patient, force=True)
            if any("error" in outcome for outcome in answer["files"]):
                raise Unavailable("a small document of the benchmark was refused")
        except NotFinal as queued:
            for record in queued.ids:
                _wait_until_final(facility, record)
    return count / (time.perf_counter() - began)


# --- fairness -------------------------------------------------------------------------------------------------------


def _fairness(
    network: Network, patients: dict[str, str], size: int, show: Callable[[str], None]
) -> tuple[list[Row], list[Row]]:
    targets = [
        (network[name], _add(network[name], patient, [b"small"])) for name, patient in patients.items()
    ]
    show("timing readings, idle and beside a copy …")
    idle: list[float] = []
    beside: list[float] = []
    # In turn: what else the machine does, it does to both.
    for number in range(1, 1 + _ROUNDS_MAX if size >= _ROUNDS_FROM_BYTES else 2):
        idle += _readings_for(min(_IDLE_S_MAX, 2 + size / limits.MIB / 50), targets)
        copy = _noise(size, number)
        beside += _readings_beside(partial(_add, network["hospital"], patients["hospital"], copy), targets)
        if len(beside) >= _READINGS_MIN:
            break
    p99_idle, p99_beside = percentile(idle, 0.99) or 0.0, percentile(beside, 0.99) or 0.0
    return [
        figure("read_p99_copying", p99_beside / max(p99_idle, 1e-9), "x idle", SLOWDOWN_TARGET, least=False),
    ], [
        row("read_p50_idle", percentile(idle, 0.5), "ms"),
        row("read_p99_idle", p99_idle, "ms"),
        row("read_p50_copying", percentile(beside, 0.5), "ms"),
        row("read_p99_copying_ms", p99_beside, "ms"),
        row("readings", len(idle) + len(beside), f"at {_READINGS_PER_S:.0f} a second"),
    ]


def _readings_for(seconds: float, targets: list[tuple[Facility, str]]) -> list[float]:
    ended = threading.Event()
    threading.Timer(seconds, ended.set).start()
    return _readings(targets, ended)


def _readings_beside(work: Callable[[], object], targets: list[tuple[Facility, str]]) -> list[float]:
    ended = threading.Event()

    def until_done() -> None:
        try:
            work()
        finally:
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(until_done)
        beside = _readings(targets, ended)
        working.result()
    return beside


def _readings(targets: list[tuple[Facility, str]], ended: threading.Event) -> list[float]:
    """Read small records at all facilities in turn until told to end; return what each took, in ms."""
    latencies: list[float] = []

    def one(facility: Facility, record: str, due: float) -> None:
        _read_plainly(facility, record)
        latencies.append((time.perf_counter() - due) * 1e3)

    begin, number = time.perf_counter(), 0
    with ThreadPoolExecutor(16) as pool:
        begun = []
        while not ended.is_set():
            due = begin + number / _READINGS_PER_S
            ended.wait(max(0.0, due - time.perf_counter()))
            begun.append(pool.submit(one, *targets[number % len(targets)], due))
            number += 1
        for reading in begun:
            reading.result()
    return latencies


def _read_plainly(facility: Facility, record: str) -> None:
    """Read a small record with next to no work on this side: the product's client takes longer than the daemon."""
    path = facility.home.socket_path()
    if path is None:
        raise Unavailable(f"the daemon of {facility.name} ended before its time")
    connection = http.client.HTTPConnection("carechain")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(path))
        body = json.dumps({"record": record, "purpose": "TREAT", "user": None})
        connection.request("POST", "/v1/records/read", body)
        answer = connection.getresponse()
        if answer.status != HTTPStatus.OK or not answer.read():
            raise Unavailable(f"a reading of the benchmark was answered with {answer.status}")
    finally:
        connection.close()


# --- processes ------------------------------------------------------------------------------------------------------


@contextmanager
def _watched(facilities: tuple[Facility, ...]) -> Iterator[_Peaks]:
    peaks = _Peaks()

    def watch() -> None:
        while not peaks.ended.wait(_SAMPLE_S):
            peaks.mib = max(peaks.mib, *(anonymous_mib(_process(facility)) for facility in facilities))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        peaks.ended.set()
        thread.join()


def anonymous_mib(process: int) -> float:
    """Return the anonymous memory of a process; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0  # who needs it finds out by itself
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _process(facility: Facility) -> int:
    if facility.process is None:
        raise Unavailable(f"the daemon of {facility.name} ended before its time")
    return facility.process.pid
