"""The benchmarks run, and what they report is well formed. No figure is ever asserted: machines differ, and so do hours."""

import hashlib
import json
import math
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from node.bench import cast, catchup, consensus, ingredients, one_node, sample_set, storage
from node.chunk_writer import ChunkWriter
from node.staging import Staging
from node.system import ThreadWorkers
from protocol import limits
from protocol.errors import StorageFull, Unavailable
from storage.chunk_store import ChunkStore
from storage.databases import open_ledger, open_payloads
from storage.keyspace import RECORD_QUEUE, prefix_range
from storage.memory import MemoryStore


def names(rows: list[ingredients.Row]) -> list[str]:
    return [row["name"] for row in rows]


def check_document(document: dict[str, list[ingredients.Row]]) -> None:
    assert set(document) == {"figures", "ingredients", "ratios"}
    for row in document["figures"]:
        assert set(row) == {"name", "value", "unit", "target", "met"}
        assert row["value"] > 0
        assert (row["met"] is None) == (row["target"] is None)
    for row in document["ingredients"]:
        assert set(row) == {"name", "value", "unit"}
        assert row["value"] is not None
    for row in document["ratios"]:
        assert row["share"] > 0


def test_a_percentile_is_the_value_that_the_share_does_not_pass() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert ingredients.percentile(values, 0.5) == 50
    assert ingredients.percentile(values, 0.99) == 99
    assert ingredients.percentile(values, 1.0) == 100
    assert ingredients.percentile([7.0], 0.01) == 7
    assert ingredients.percentile([], 0.5) is None


def test_numbers_are_shown_with_four_digits() -> None:
    assert [ingredients.rounded(value) for value in (123456.7, 1234.5, 12.3456, 0.0123456, 0.0)] == [
        123457.0,
        1234.0,
        12.35,
        0.01235,
        0.0,
    ]
    assert ingredients.rounded(None) is None
    assert ingredients.rounded(math.inf) is None


def test_a_figure_is_met_at_its_target_and_beyond() -> None:
    assert ingredients.figure("rate", 2000.0, "/s", 2000.0, least=True)["met"] is True
    assert ingredients.figure("rate", 1999.0, "/s", 2000.0, least=True)["met"] is False
    assert ingredients.figure("time", 31.0, "ms", 30.0, least=False)["met"] is False
    assert ingredients.figure("time", 30.0, "ms", None, least=False)["met"] is None


def test_the_set_is_three_quarters_incompressible_and_the_same_every_time() -> None:
    size = 6 * limits.MIB
    files = [b"".join(blocks) for blocks in sample_set.files(size)]
    again = [b"".join(blocks) for blocks in sample_set.files(size)]
    assert sum(map(len, files)) == size
    assert [hashlib.sha256(file).digest() for file in files] == [
        hashlib.sha256(file).digest() for file in again
    ]
    assert len(files[-1]) == size // 4
    assert files[-1].startswith(b'{"resourceType":"Observation"')


def staging_into(chunks: ChunkStore) -> Staging:
    return Staging(ChunkWriter(chunks, ThreadWorkers(1)), lambda: None)


async def test_what_is_added_is_read_back_whole() -> None:
    chunks, workers = ChunkStore(MemoryStore(), MemoryStore()), ThreadWorkers(2)
    content = [bytes([number]) * 700_000 for number in range(5)]
    file = await one_node.add_file(iter(content), staging_into(chunks), workers)
    assert file.plain_bytes == 3_500_000
    assert await one_node.read_file(file, chunks, workers) == 3_500_000


async def test_a_missing_chunk_is_not_read_over() -> None:
    chunks, workers = ChunkStore(MemoryStore(), MemoryStore()), ThreadWorkers(2)
    content = sample_set.incompressible(3 * limits.MIB)
    file = await one_node.add_file(iter([content]), staging_into(chunks), workers)
    chunks.delete(file.cids[1:2])
    with pytest.raises(Unavailable):
        await one_node.read_file(file, chunks, workers)


def test_small_documents_are_results_of_two_kibibytes_and_no_two_alike() -> None:
    results = [sample_set.laboratory_result(number) for number in range(50)]
    assert {len(result) for result in results} == {2 * limits.KIB}
    assert len(set(results)) == 50
    assert all(json.loads(result)["resourceType"] == "Observation" for result in results)
    messages = [sample_set.laboratory_message(number) for number in range(50)]
    assert {len(message) for message in messages} == {2 * limits.KIB}
    assert len(set(messages)) == 50
    assert all(message.startswith(b"MSH|^~\\&|") for message in messages)


async def test_small_documents_are_stored_with_all_their_rows(tmp_path: Path) -> None:
    assert (
        await one_node.add_small(tmp_path, [sample_set.laboratory_message(number) for number in range(40)])
        > 0
    )

    with (
        closing(open_payloads(tmp_path, create=False)) as payloads,
        closing(open_ledger(tmp_path, create=False)) as rows,
    ):
        assert ChunkStore(payloads, rows).statistics().chunks == 80  # each has a manifest
        assert sum(1 for _ in rows.scan(*prefix_range(RECORD_QUEUE))) == 40


async def test_filling_tells_what_each_quarter_took_and_what_was_written(tmp_path: Path) -> None:
    said: list[str] = []

    filling = await one_node.fill(tmp_path, 8 * limits.MIB, said.append)

    assert len(filling.quarters_s) == len(said) == 4
    assert filling.stored_bytes >= 8 * limits.MIB


@pytest.mark.slow
def test_the_storage_benchmark_reports_its_figures() -> None:
    said: list[str] = []
    sizes = storage.Sizes(4 * limits.MIB, 4 * limits.MIB, 64, 32)
    document = storage.measure(sizes=sizes, compare=True, show=said.append)
    check_document(document)
    assert names(document["figures"]) == [
        "add", "read", "small", "small_fhir", "add_r3", "written_per_stored", "daemon_memory", "small_final", "read_p99_copying",
    ]  # fmt: skip
    assert names(document["ratios"]) == ["add", "read"]
    assert said


def test_a_benchmark_that_does_not_fit_on_the_disk_is_refused_before_it_begins() -> None:
    with pytest.raises(StorageFull, match="free in"):
        storage.measure(fill_bytes=2**60, show=lambda _line: None)


@pytest.mark.slow
def test_three_voters_order_what_is_submitted_and_end_with_one_chain() -> None:
    """That they do is asserted in the benchmark itself, between its phases; here that it comes through all of them."""
    document = consensus.measure(minutes=0.03, compare=True, show=lambda _line: None)
    check_document(document)
    assert names(document["figures"]) == [
        "sustained", "latency_p50", "latency_p99", "latency_p50_1000", "latency_p99_1000",
    ]  # fmt: skip
    assert names(document["ratios"]) == ["sustained"]
    value = partial(ingredients.value_of, document["ingredients"])
    assert value("transaction_bytes") >= 1024
    assert value("failed") == 0
    assert value("singles_failed") == 0


@pytest.mark.slow
def test_observers_that_were_away_catch_up_with_voters_that_idle_and_with_voters_that_work() -> None:
    document = catchup.measure(fill_bytes=3 * limits.MIB, compare=True, show=lambda _line: None)
    named = {row["name"]: row for row in document["figures"]}
    assert set(named) == {"catchup", "catchup_sampled", "slowdown", "catchup_loaded"}
    assert named["catchup"]["value"] > 0
    assert named["catchup_loaded"]["value"] > 0
    value = partial(ingredients.value_of, document["ingredients"])
    assert value("transactions_behind") >= 2_000
    assert value("serving_cpu_per_transaction") > 0
    assert names(document["ratios"]) == ["catchup"]


_SHOW_PRIORITY = """
import os, pathlib
from node.bench.voter import lower_priority
lower_priority(19)
print(os.getpriority(os.PRIO_PROCESS, 0))
group = pathlib.Path("/proc/self/autogroup")
print(group.read_text().split()[-1] if group.exists() else 19)
"""


def test_who_yields_the_processor_yields_it_to_other_sessions_too() -> None:
    command = (sys.executable, "-P", "-c", _SHOW_PRIORITY)
    shown = subprocess.run(command, stdout=subprocess.PIPE, start_new_session=True, check=True, timeout=60)
    assert shown.stdout.split() == [b"19", b"19"]


def test_a_voter_that_ends_is_told_from_one_that_answers() -> None:
    voter = cast.VoterProcess("00")
    voter.process.kill()
    with pytest.raises(Unavailable, match="before its time"):
        voter.ask(do="state")
    voter.stop()
    assert voter.process.returncode is not None
