"""A member whose daemon is somebody else's: its keys, on a transport of our own, among real daemons of the others."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from node.address_book import AddressBook
from node.demo_network import Facility, Network, until
from node.identity import Identity
from node.libp2p_transport import Libp2pTransport
from protocol.block import Header
from protocol.configuration import Configuration, network_id
from protocol.errors import CarechainError
from protocol.identifiers import Height, NetworkId, NodeId
from storage import databases
from storage.ledger_store import LedgerStore
from tests.node.daemons import Ran, carechain, verified
from tests.node.transports import RecordingLog, SystemEntropy, WallClock, eventually, is_connected

T = TypeVar("T")


@dataclass
class House:
    """What the honest ones have: a patient, a record, a grant to the laboratory that has been revoked."""

    network: Network
    patient: str
    record: str
    genesis: Configuration
    identity: Identity
    ledger: list[tuple[Any, bytes]]
    founding: Header

    @property
    def honest(self) -> tuple[Facility, Facility]:
        return self.network["hospital"], self.network["clinic"]

    @property
    def net(self) -> NetworkId:
        return network_id(self.genesis)

    def node(self, name: str) -> NodeId:
        return next(member.node for member in self.genesis.members if member.name == name)

    def first(self, kind: type[T]) -> T:
        return next(transaction for transaction, _ in self.ledger if isinstance(transaction, kind))


def documents(ran: Ran, *, code: int = 0) -> Any:
    assert ran.code == code, ran.said
    assert ran.document is not None, ran.said
    return ran.document


def ledger_of(facility: Facility, genesis: Configuration) -> tuple[list[tuple[Any, bytes]], Header]:
    """Return every transaction in the ledger of a daemon that does not run, and its bytes; and the first header."""
    opened = databases.open_ledger(facility.home.path, create=False)
    try:
        store = LedgerStore(opened, genesis)
        found = [
            (signed.transaction, raw)
            for block in store.blocks(Height(1), store.tip_height())
            for (signed, _), raw in zip(block.entries(), block.transactions, strict=True)
        ]
        return found, store.header(Height(0))
    finally:
        opened.close()


@asynccontextmanager
async def modified(house: House, folder: Path) -> AsyncIterator[Libp2pTransport]:
    """The laboratory's keys on a transport of our own, connected to both honest members."""
    addresses = [address for facility in house.honest for address in facility.status()["addresses"]]
    log = RecordingLog()
    transport = Libp2pTransport(
        seed=house.identity.node,
        network=house.net,
        members={member.node: () for member in house.genesis.members},
        listen=("/ip4/127.0.0.1/tcp/0",),
        extra_peers=tuple(addresses),
        address_book=AddressBook(folder / "addresses.json", log),
        mdns=False,
        clock=WallClock(),
        entropy=SystemEntropy(),
        log=log,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(start, transport)
        await eventually(
            lambda: all(is_connected(transport, house.node(name)) for name in ("hospital", "clinic")),
            seconds=20,
        )
        yield transport
        nursery.cancel_scope.cancel()


async def start(transport: Libp2pTransport, *, task_status: Any) -> None:
    await transport.run(task_status=task_status)


async def command(*arguments: Any, home: Facility) -> Ran:
    return await trio.to_thread.run_sync(partial(carechain, *arguments, home=home))


async def asked(
    transport: Libp2pTransport, peer: NodeId, channel: str, body: bytes
) -> bytes | CarechainError:
    """Return what an honest member answers, a refusal included."""
    try:
        return await transport.call(peer, channel, body, timeout_ms=5_000)
    except CarechainError as refusal:
        return refusal


async def still_honest(house: House, tmp_path: Path) -> None:
    """A record of the honest ones becomes final, both agree on the ledger, and neither has had an unexpected error."""
    hospital, clinic = house.honest
    file = tmp_path / "after.bin"
    file.write_bytes(os.urandom(2_000))
    added = await command("record", "add", file, "--patient", house.patient, home=hospital)
    assert added.code == 0, added.said
    assert (added.document or {})["records"][0]["state"] == "final"
    for facility in (hospital, clinic):
        found = await trio.to_thread.run_sync(verified, facility)
        assert found["problems"] == []
        log = (facility.home.path / "log").read_text()
        assert "handler failed" not in log
        assert "Traceback" not in log
    roots = {one.status()["tree_root"] for one in (hospital, clinic)}
    assert len(roots) == 1 or await trio.to_thread.run_sync(lambda: same_root(house))


def same_root(house: House) -> bool:
    def same() -> bool | None:
        return len({facility.status()["tree_root"] for facility in house.honest}) == 1 or None

    return bool(until("the same tree", same))
