"""`carechain bench storage`: storing on one node and on three, beside what the machine's parts do alone.

    add, read          one node seals and stores a set of files durably, and reads it back, verified (`one_node`)
    small, small_fhir  laboratory results of 2 KiB, durable, batched: HL7 v2 kept as it is, FHIR sorted into categories
    add_r3 …           three real daemons: replication, memory, bytes written, and what a copy does to single
                       transactions (`three_daemons`)
    fill_last_quarter  only with a size to fill: whether the store stays as fast as it was

With `compare` the set goes through restic and borg as well, where they are installed.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from node.bench import ingredients, one_node, other_programs, sample_set, three_daemons
from node.bench.ingredients import Row, figure, percentile, row
from node.bench.one_node import Round
from protocol import limits
from protocol.errors import StorageFull
from storage.disk_reserve import free_bytes

ADD_TARGET, READ_TARGET, SMALL_TARGET = 300.0, 500.0, 2_000.0
FILL_TARGET = 0.9
_ROUNDS = 3
_COMPARED_BYTES = 1024 * limits.MIB
"""Copied to three when figures are compared: long enough for a hundredth of the readings beside it to mean something."""
_ROOM, _ROOM_DAEMONS = 3, 8
"""Times the size that must be free: what is written, its compaction, and the log; three daemons hold two copies each."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is stored: the set on one node, what three daemons copy (0 leaves them out), and small documents of both."""

    set_bytes: int = 512 * limits.MIB
    replicated_bytes: int = 192 * limits.MIB
    small_documents: int = 4_096
    small_final_documents: int = 512


def measure(
    *,
    minutes: float | None = None,
    fill_bytes: int | None = None,
    compare: bool = False,
    sizes: Sizes | None = None,
    show: Callable[[str], None] = print,
) -> dict[str, list[Row]]:
    """Measure and return `figures`, `ingredients` and, with `compare`, `ratios`.

    The set is stored three times on one node, each time into a new store, or as often as `minutes` allow, and the median
    counts. With `fill_bytes` that much is stored into one store instead, and nothing else is measured.

    Raises:
        StorageFull: the temporary folder's disk has no room.
        Unavailable: the daemons do not work together.
    """
    sizes = sizes or (Sizes(replicated_bytes=_COMPARED_BYTES) if compare else Sizes())
    _check_room(
        _ROOM * fill_bytes
        if fill_bytes
        else max(_ROOM * sizes.set_bytes, _ROOM_DAEMONS * sizes.replicated_bytes)
    )
    with _folder() as folder:
        show("measuring what the machine can do …")
        parts = ingredients.of_storage(folder)
    if fill_bytes is not None:
        figures, more = _filled(fill_bytes, show)
        return {"figures": figures, "ingredients": parts + more, "ratios": []}
    figures, more = _one_node(minutes, sizes, show)
    parts += more
    ratios = _ratios(figures, parts) if compare else []
    if sizes.replicated_bytes:
        replicated, more = three_daemons.measure(sizes.replicated_bytes, sizes.small_final_documents, show)
        figures += replicated
        parts += more
    if compare:
        with _folder() as folder:
            parts += other_programs.measure(folder, sizes.set_bytes, show)
    return {"figures": figures, "ingredients": parts, "ratios": ratios}


def _one_node(
    minutes: float | None, sizes: Sizes, show: Callable[[str], None]
) -> tuple[list[Row], list[Row]]:
    rounds: list[Round] = []
    began = time.monotonic()
    while len(rounds) < _ROUNDS if minutes is None else not rounds or time.monotonic() - began < minutes * 60:
        show(f"storing and reading {_mib(sizes.set_bytes):.0f} MiB …")
        with _folder() as folder:
            rounds.append(trio.run(one_node.store_and_read, folder, sizes.set_bytes))
    add = percentile([_mib(one.plain_bytes) / one.add_s for one in rounds], 0.5)
    read = percentile([_mib(one.plain_bytes) / one.read_s for one in rounds], 0.5)
    show(f"storing {sizes.small_documents} small documents …")
    small, sorted_ = (
        _small([make(number) for number in range(sizes.small_documents)])
        for make in (sample_set.laboratory_message, sample_set.laboratory_result)
    )
    return [
        figure("add", add, "MiB/s", ADD_TARGET, least=True),
        figure("read", read, "MiB/s", READ_TARGET, least=True),
        figure("small", small, "documents/s", SMALL_TARGET, least=True),
        figure("small_fhir", sorted_, "documents/s", None, least=True),
    ], [
        row("rounds", len(rounds), ""),
        row("set", _mib(rounds[0].plain_bytes), "MiB"),
        row("stored", _mib(rounds[0].stored_bytes), "MiB of ciphertext"),
        row("chunks", rounds[0].chunks, ""),
    ]


def _small(documents: list[bytes]) -> float:
    with _folder() as folder:
        return trio.run(one_node.add_small, folder, documents)


def _filled(size: int, show: Callable[[str], None]) -> tuple[list[Row], list[Row]]:
    show(f"filling {_mib(size):.0f} MiB …")
    with _folder() as folder:
        filling = trio.run(one_node.fill, folder, size, show)
    rates = [_mib(size) / len(filling.quarters_s) / seconds for seconds in filling.quarters_s]
    return [
        figure("fill_last_quarter", rates[-1] / rates[0], "of the first", FILL_TARGET, least=True),
        figure(
            "written_per_stored",
            filling.written_bytes / filling.stored_bytes,
            "bytes",
            three_daemons.AMPLIFICATION_TARGET,
            least=False,
        ),
    ], [row(f"quarter_{number}", rate, "MiB/s") for number, rate in enumerate(rates, 1)]


def _ratios(figures: list[Row], parts: list[Row]) -> list[Row]:
    # Both ways every plain byte is hashed twice (itself and as ciphertext) and ciphered once.
    per_mib = 2 / ingredients.value_of(parts, "sha256") + 1 / ingredients.value_of(parts, "aes_256_gcm")
    most = ingredients.cores() / per_mib
    return [
        {
            "name": name,
            "of": "cores / (2 SHA-256 + AES-256-GCM)",
            "machine": ingredients.rounded(most),
            "share": ingredients.rounded(ingredients.value_of(figures, name) / most),
        }
        for name in ("add", "read")
    ]


def _check_room(size: int) -> None:
    room = free_bytes(Path(tempfile.gettempdir()))
    if room < size:
        raise StorageFull(
            f"the benchmark needs {_mib(size):.0f} MiB free in {tempfile.gettempdir()} and finds {_mib(room):.0f}"
        )


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="carechain-bench-") as folder:
        yield Path(folder)


def _mib(count: int) -> float:
    return count / limits.MIB
