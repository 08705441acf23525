import json
import os

import pytest

from node.sample_records import synthesise
from protocol.errors import Refused
from tests.node.record_house import houses


async def test_a_file_comes_back_byte_for_byte_and_the_read_is_on_the_ledger(autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.register()
        data = os.urandom(3_000_000)

        added = await hospital.add(data, patient=patient, category="imaging")
        (record,) = added["records"]
        info, received = await hospital.get(record["record"])

        assert received == data
        assert record["state"] == "final"
        assert record["category"] == "imaging"
        assert record["height"] > 0
        assert info["bytes"] == len(data)


async def test_a_bundle_that_spans_categories_becomes_an_original_and_views(autojump_clock):
    async with houses(3) as (hospital, *_):
        sample = synthesise(7)
        await hospital.patients.register(sample.fhir_bundle)

        records = (await hospital.add(sample.fhir_bundle))["records"]

        assert (records[0]["kind"], records[0]["category"]) == ("original", "mixed")
        assert {"labs", "mental-health", "social", "medication", "emergency"} <= {r["category"] for r in records[1:]}
        assert all(r["part_of"] == records[0]["record"] for r in records[1:])
        assert (await hospital.get(records[0]["record"]))[1] == sample.fhir_bundle
        labs = next(r for r in records if r["category"] == "labs")
        view = (await hospital.get(labs["record"]))[1]
        assert b"72.50" in view or json.loads(view)["resourceType"] == "Bundle"
