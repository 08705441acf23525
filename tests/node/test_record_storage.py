"""The record path on real databases, real threads and the real writer."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from node.disk import GroupCommitDisk
from node.idle_memory import release_free_memory
from node.system import ThreadWorkers
from storage.databases import open_payloads
from tests.node.ledger_double import LedgerDouble, running
from tests.node.record_house import Facility, entries, pieces

MIB = 1 << 20


def anonymous_mib() -> int:
    """RssAnon of this process: what LevelDB maps does not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) // 1024
    pytest.skip("this system does not tell RssAnon")


@asynccontextmanager
async def home(path: Path) -> AsyncIterator[Facility]:
    payloads = open_payloads(path, create=True)
    async with running(LedgerDouble(1)) as ledger, trio.open_nursery() as nursery:
        disk = GroupCommitDisk(ledger.members[0].rows, ledger.members[0].log)
        facility = Facility(ledger.members[0], ledger, payloads=payloads, workers=ThreadWorkers(2), disk=disk)
        nursery.start_soon(disk.run)
        nursery.start_soon(facility.queue.run)
        yield facility
        nursery.cancel_scope.cancel()
    payloads.close()


async def test_a_record_is_read_back_from_real_databases(tmp_path):
    async with home(tmp_path) as facility:
        data = os.urandom(20 * MIB)

        (record,) = entries(await facility.ingest.add(pieces(data, 100_000), patient=await facility.admit()))
        facility.chunks.flush()

        assert (await facility.get(record["record"]))[1] == data


async def test_a_bundle_of_many_blocks_is_sorted_on_threads_as_in_line(tmp_path):
    async with home(tmp_path) as facility:
        line = b'{"resourceType":"Observation","status":"final","code":{"text":"note %d"},"valueQuantity":{"value":72.50}}\n'
        data = b"".join([line % number for number in range(20_000)])
        handle = await facility.admit()

        records = entries(
            await facility.ingest.add(
                pieces(data, 64 * 1024), patient=handle, media_type="application/fhir+ndjson"
            )
        )

        assert [record["kind"] for record in records] == ["document"]
        assert (await facility.get(records[0]["record"]))[1] == data


@pytest.mark.slow
async def test_two_gibibytes_of_zeros_and_half_of_noise_pass_through_little_memory(tmp_path):
    async with home(tmp_path) as facility:
        handle, start, most = await facility.admit(), anonymous_mib(), 0

        async def stream(block: bytes, count: int) -> AsyncIterator[bytes]:
            nonlocal most
            for _ in range(count):
                most = max(most, anonymous_mib())
                yield block or os.urandom(MIB)

        zeros = entries(await facility.ingest.add(stream(bytes(MIB), 2048), patient=handle))[0]
        noise = entries(await facility.ingest.add(stream(b"", 256), patient=handle))[0]
        for record in (zeros, noise):
            total = 0
            _, opened = await facility.query.read(record["record"])
            async for piece in opened:
                total += len(piece)
                most = max(most, anonymous_mib())
            assert total == record["bytes"]

        facility.chunks.flush()
        release_free_memory()
        assert most - start < 280
        assert anonymous_mib() - start < 60
