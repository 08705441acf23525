"""What this machine's parts do alone: the figures beside which `carechain bench` puts its own.

Each is measured for a fraction of a second, with the calls the product makes. Rates are of one thread where not said.
"""

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol import codec, limits, signing
from protocol.signing import SigningKey
from storage.databases import open_ledger, open_payloads
from storage.key_value import Batch, KeyValue
from storage.leveldb import LevelDb

# Any: rows of a JSON document.
Row = dict[str, Any]

_SECONDS = 0.3
_SYNCED_WRITES = 300
_SYNCED_BYTES = 4 * limits.KIB
_PAYLOAD_BYTES = 64 * limits.MIB
_MESSAGE = bytes(limits.KIB)
_SEED = bytes(range(32))


def row(name: str, value: float | None, unit: str) -> Row:
    """Return one row of `ingredients`; numbers are shown with four digits at most where they have a fraction."""
    return {"name": name, "value": rounded(value), "unit": unit}


def figure(name: str, value: float | None, unit: str, target: float | None, *, least: bool) -> Row:
    """Return one row of `figures`; the target is the `least` that is wanted, or the most."""
    met = None
    if value is not None and target is not None:
        met = value >= target if least else value <= target
    return {"name": name, "value": rounded(value), "unit": unit, "target": target, "met": met}


def rounded(value: float | None) -> float | None:
    """Return a number with about four digits."""
    if value is None or not math.isfinite(value) or value == 0:
        return value if value is None or math.isfinite(value) else None
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return round(value, digits) if digits else float(round(value))


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value that `share` (0..1) of the values do not pass; None of none (nearest rank)."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def of_ledger(folder: Path) -> list[Row]:
    """Measure what ordering is made of: signatures, hashes, encoding, a synchronised write."""
    key = SigningKey(_SEED)
    signature = key.sign(_MESSAGE)

    def verify() -> None:
        assert signing.verify(key.public, _MESSAGE, signature)

    values = (b"tx", tuple(_SEED for _ in range(30)), 7, signature)
    packed = codec.pack(*values)
    synced = _synced_write_ms(folder)
    threads = cores()
    return [
        row("cores", cores(), ""),
        row("load_before", os.getloadavg()[0], "processes"),
        row("verify", _rate(verify), "/s"),
        row(f"verify_{threads}_threads", _rate_of_threads(verify, threads), "/s"),
        row("sign", _rate(lambda: key.sign(_MESSAGE)), "/s"),
        row("sha256_1_kib", _rate(lambda: hashlib.sha256(_MESSAGE).digest()), "/s"),
        row("pack_1_kib", _rate(lambda: codec.pack_loaded(*values)), "/s"),
        row("load_1_kib", _rate(lambda: codec.load(packed)), "/s"),
        row("fsync_4_kib_p50", percentile(synced, 0.5), "ms"),
        row("fsync_4_kib_p99", percentile(synced, 0.99), "ms"),
    ]


def of_storage(folder: Path) -> list[Row]:
    """Measure what storing is made of: hash, cipher, a synchronised write, LevelDB filling up by increasing keys."""
    chunk = hashlib.shake_256(b"chunk").digest(limits.CHUNK_BYTES_MAX)
    cipher = AESGCM(_SEED)
    synced = _synced_write_ms(folder)
    return [
        row("cores", cores(), ""),
        row("load_before", os.getloadavg()[0], "processes"),
        row("sha256", _rate(lambda: hashlib.sha256(chunk).digest()) * len(chunk) / limits.MIB, "MiB/s"),
        row(
            "aes_256_gcm",
            _rate(lambda: cipher.encrypt(bytes(12), chunk, None)) * len(chunk) / limits.MIB,
            "MiB/s",
        ),
        row("fsync_4_kib_p50", percentile(synced, 0.5), "ms"),
        row("fsync_4_kib_p99", percentile(synced, 0.99), "ms"),
        row("leveldb_write", _leveldb_mib_per_s(folder, chunk), "MiB/s"),
    ]


def value_of(rows: Sequence[Row], name: str) -> float:
    """Return the value of a row."""
    return float(next(found["value"] for found in rows if found["name"] == name))


def _rate(function: Callable[[], object]) -> float:
    """Return calls per second."""
    calls, step, passed, began = 0, 1, 0.0, time.perf_counter()
    while passed < _SECONDS:
        for _ in range(step):
            function()
        calls, passed = calls + step, time.perf_counter() - began
        # Look at the clock about a hundred times in all: cheap calls must not be measured with it.
        step = max(1, int(calls / passed * _SECONDS / 100))
    return calls / passed


def _rate_of_threads(function: Callable[[], object], threads: int) -> float:
    rates: list[float] = []
    started = [threading.Thread(target=lambda: rates.append(_rate(function))) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return sum(rates)


def _synced_write_ms(folder: Path) -> list[float]:
    """Return how long each of some synchronised 4 KiB writes into a database of its own took."""
    database = open_ledger(folder / "ingredients", create=True)
    try:
        return [_timed_write(database, number, bytes(_SYNCED_BYTES)) for number in range(_SYNCED_WRITES)]
    finally:
        database.close()


def _timed_write(database: KeyValue, number: int, value: bytes) -> float:
    batch = Batch()
    batch.put(number.to_bytes(8, "big"), value)
    began = time.perf_counter()
    database.write(batch, sync=True)
    return (time.perf_counter() - began) * 1000


def _leveldb_mib_per_s(folder: Path, chunk: bytes) -> float:
    """Return the rate of writes under increasing keys, every 8 MiB synchronised, and no more than that."""
    database: LevelDb = open_payloads(folder / "ingredients", create=True)
    per_write, writes = 8, _PAYLOAD_BYTES // (8 * len(chunk))
    try:
        began = time.perf_counter()
        for number in range(writes * per_write):
            batch = Batch()
            batch.put(number.to_bytes(8, "big"), chunk)
            database.write(batch, sync=(number + 1) % per_write == 0)
        return writes * per_write * len(chunk) / limits.MIB / (time.perf_counter() - began)
    finally:
        database.close()
