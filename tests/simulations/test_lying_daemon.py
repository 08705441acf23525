"""A leader that lies, as a real daemon among real daemons (`simulations.lying_daemon`): it is named, and four homes keep one story."""

import contextlib
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import plyvel
import pytest

from node.demo_network import Facility, Network, until
from protocol.errors import CarechainError
from storage.keyspace import BLOCK
from tests.node.daemons import caught_up, consortium, verified

pytestmark = pytest.mark.slow
LIAR = "hospital"
FOUR = tuple((name, "clinic", "voter") for name in (LIAR, "clinic", "lab", "insurer"))
_RECORD_BYTES = 300


@contextlib.contextmanager
def led_by_a_liar(*names: tuple[str, str, str], seed: int) -> Iterator[Network]:
    """A consortium whose leader equivocates."""
    words = ("--lie", "equivocate", "--seed", str(seed))

    def prepare(network: Network) -> None:
        network[LIAR].program = (sys.executable, "-P", "-m", "simulations.lying_daemon", *words)

    with consortium(*names, prepare=prepare) as network:
        while (leader := network.leader()) != LIAR:
            # Without it the others are one too few, and it votes for nobody.
            network[leader].stop()
            until("the liar to lead", partial(leads, network))
            network[leader].start()
            network[leader].ready()
        yield network


def leads(network: Network) -> bool | None:
    return network.leader() == LIAR or None


def honest(network: Network) -> dict[str, Facility]:
    return {name: facility for name, facility in network.facilities.items() if name != LIAR}


class Patients:
    """A patient at each honest home, to whom records are added."""

    def __init__(self, network: Network) -> None:
        self._homes = honest(network)
        self._patients = {
            name: facility.client.upload(
                "/v1/patients", [], identifiers=[["urn:example", name]], name=None, birth_date=None
            )["patient"]
            for name, facility in self._homes.items()
        }

    def add(self, name: str) -> bool:
        """Add a record; return whether it was final at once. If not, it is queued, and becomes so."""
        options = {"category": "labs", "media_type": None, "force": False, "patient": self._patients[name]}
        client = self._homes[name].client
        try:
            client.upload("/v1/records", [os.urandom(_RECORD_BYTES)], file_suffix=".bin", **options)
        except CarechainError:
            return False
        return True

    def all_final(self) -> bool | None:
        """Return True when everything that was added anywhere is final."""
        for name, facility in self._homes.items():
            rows = facility.client.post("/v1/records/list", patient=self._patients[name])["records"]
            if not rows or any(row["state"] != "final" for row in rows):
                return None
        return True


def problem(facility: Facility, code: str) -> dict[str, Any] | None:
    return next((one for one in facility.status()["problems"] if one["code"] == code), None)


def evidence(facility: Facility) -> list[dict[str, Any]] | None:
    found: list[dict[str, Any]] = facility.client.get("/v1/members")["evidence"]
    return found or None


def convicts_the_liar_alone(facility: Facility) -> bool:
    return {one["member"] for one in evidence(facility) or ()} == {LIAR}


def final_blocks(facility: Facility) -> list[bytes]:
    """Stop a home and return the final blocks in its database, the lowest first."""
    height = facility.status()["certified_height"]
    facility.stop()
    with contextlib.closing(plyvel.DB(str(facility.home.path / "ledger"), bloom_filter_bits=10)) as rows:
        return [raw for _, raw in rows.iterator(prefix=BLOCK)][: height + 1]


def test_of_four_a_leader_that_tells_two_stories_is_named_and_one_of_them_is_final() -> None:
    with led_by_a_liar(*FOUR, seed=1) as network:
        homes, patients = honest(network), Patients(network)
        added = [patients.add(name) for name in homes]
        assert any(added), "q signers hear one story"

        for name, facility in homes.items():
            found = until(f"evidence on the ledger of {name}", partial(evidence, facility))
            assert {one["member"] for one in found} == {LIAR}
            named = problem(facility, "evidence")
            assert named is not None
            assert named["member"] == LIAR
            assert problem(facility, "fork") is None

        # Whom it tells the other story has others to tell, and hears from them what is final.
        until("every record to be final", patients.all_final)
        network[LIAR].stop()
        caught_up(network)
        for facility in homes.values():
            report = verified(facility)
            assert report["ok"], report
        stories = [final_blocks(facility) for facility in homes.values()]
        shortest = min(map(len, stories))
        assert shortest > len(homes), "an opening, and a record of each"
        assert len({tuple(story[:shortest]) for story in stories}) == 1


def test_of_three_a_fork_is_proven_as_soon_as_two_compare() -> None:
    with led_by_a_liar(*FOUR[:3], seed=1) as network:
        homes, patients = honest(network), Patients(network)
        for name in homes:
            patients.add(name)

        def fork() -> dict[str, Any] | None:
            return next((found for one in homes.values() if (found := problem(one, "fork"))), None)

        found = until("a fork to be met", fork)
        assert set(found["members"]) <= {LIAR}
        # Whoever stands upon the one story seems to lie to who knows the other only, until both are on the table (E3b).
        until(
            "the liar alone to be convicted",
            lambda: any(map(convicts_the_liar_alone, homes.values())) or None,
        )
        for facility in homes.values():
            assert verified(facility)["ok"], "each goes on with the story that it has applied"
        one, other = (final_blocks(facility) for facility in homes.values())
        assert one[0] == other[0]
        assert one[found["height"]] != other[found["height"]]
