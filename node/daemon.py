"""The daemon: opens the databases of a home, joins the network, serves until told to stop. Wiring, no behaviour.

Order of start: lock (held by the caller), databases, local HTTP port, listeners, ledger, services, socket. Order of stop:
the reverse; the disk's writer last, so that whatever was accepted is written.
"""

import atexit
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import structlog
import trio

from node import telemetry
from node.address_book import AddressBook
from node.assembly import Assembly
from node.backup import HomeFiles
from node.card_file import card_text, genesis_text
from node.checkpointing import CheckpointSettings
from node.chunk_writer import ChunkWriter
from node.config import Config
from node.core import Core, Ports
from node.disk import GroupCommitDisk
from node.event_log import EventLog
from node.home import ADDRESS_BOOK, Home, write_atomically
from node.identity import Identity
from node.key_rotation import first_node_id, node_key_in_force, settled
from node.libp2p_transport import Libp2pTransport
from node.membership_admission import AdmissionKeeper, admission_of
from node.ports import PeerTransport
from node.rebuild import (
    ASIDES_PER_DAY,
    Databases,
    check_room_to_mend,
    heal_ledger,
    is_of_ledger,
    naming_cure,
)
from node.rebuild import opened as databases_of
from node.signature_processes import SignatureProcesses
from node.snapshots import SnapshotSpace
from node.status import Machine
from node.store_audit import Database
from node.stores import Stores
from node.system import SystemClock, SystemEntropy, ThreadWorkers, tune_interpreter
from node.ticket import Invitation
from node.ticket_joining import find_named_block, redeem
from node.web.server import bind_http, serve_api, serve_witness
from protocol.configuration import Configuration, network_id
from protocol.errors import Corruption, Superseded
from protocol.identifiers import NodeId, node_of_peer_id, peer_id
from protocol.signing import SigningKey
from storage import databases, disk_reserve
from storage.directories import directory_bytes, remove_asides
from storage.file_check import damaged_files
from storage.key_value import Batch, KeyValue
from storage.keystore import Keystore
from storage.ledger_store import LedgerStore

WORKER_THREADS = 2
_DAY_S = 24 * 3_600.0
_STOP_SECONDS = 4.0
"""SIGTERM ends the daemon within five seconds; what has not ended by then is abandoned, and recovered at the next start."""

Wire = Callable[[PeerTransport], PeerTransport]


_FAREWELL_SECONDS = 0.05
"""The last word leaves by a transport that ends with all the rest."""


async def serve(
    home: Home,
    settings: Config,
    genesis: Configuration,
    *,
    invitation: Invitation | None = None,
    keystore: Keystore,
    rebuild: str | None,
    log_level: str,
    log_format: telemetry.LogFormat,
    wire: Wire = lambda transport: transport,
) -> None:
    """Run until SIGTERM or SIGINT. `invitation` is that of a home which joins, or has joined, by a ticket. When damage in the ledger database ends it, that is made anew, and it serves again.

    `wire` returns what everything here speaks with other members through, given what really does: whoever wants to see, lose
    or change what travels stands there.

    Raises:
        Corruption: people have to look at a database first; the sentence names the command that makes it anew.
        CarechainError: it cannot start, or cannot go on; one sentence.
    """
    telemetry.configure(level=log_level, log_format=log_format)
    log: EventLog = structlog.get_logger()
    mended_at: list[float] = []
    members = set(genesis.by_node)  # until the ledger tells who they are now
    while True:
        try:
            with _naming_cure():
                has_new_key = await _serve(
                    home, settings, genesis, invitation,
                    keystore=keystore, members=members, rebuild=rebuild, log=log, wire=wire,
                )  # fmt: skip
        except Corruption as fault:
            now = trio.current_time()
            mended_at = [*(then for then in mended_at if then > now - _DAY_S), now]
            if len(mended_at) > ASIDES_PER_DAY or not is_of_ledger(fault):
                raise
            log.warning("stopped serving: damaged bytes in a database", problem=str(fault))
            has_others = bool(members - _own_ids(keystore))
            now_ms = SystemClock().now_ms()
            if not heal_ledger(home.path, genesis, fault, log, has_others=has_others, now_ms=now_ms):
                raise
        else:
            if not has_new_key:
                return
        rebuild = None


def _own_ids(keystore: Keystore) -> frozenset[NodeId]:
    """Return under which ids this facility may stand in a configuration: its present one, and that in genesis."""
    identity = Identity.load(keystore)
    return frozenset((identity.node_id, first_node_id(identity, keystore)))


@contextlib.contextmanager
def _naming_cure() -> Iterator[None]:
    """Turn a failed nursery in which damaged bytes were met, or this process's rival, into that one fault."""
    try:
        yield
    except Corruption as fault:
        raise naming_cure(fault) from None
    except BaseExceptionGroup as group:
        pending: list[BaseException] = [group]
        while pending:
            error = pending.pop(0)
            if isinstance(error, Corruption):
                raise naming_cure(error) from None
            if isinstance(error, Superseded):
                raise error from None
            if isinstance(error, BaseExceptionGroup):
                pending.extend(error.exceptions)
        raise


async def _serve(
    home: Home,
    settings: Config,
    genesis: Configuration,
    invitation: Invitation | None,
    *,
    keystore: Keystore,
    members: set[NodeId],
    rebuild: str | None,
    log: EventLog,
    wire: Wire,
) -> bool:
    """Serve until told to stop; return True when it is to serve again, under a new node key."""
    tune_interpreter()
    identity = Identity.load(keystore)
    renewed = trio.Event()
    http = bind_http(settings.http) if settings.http is not None else None
    witness = bind_http(settings.log_witness.listen) if settings.log_witness is not None else None
    with contextlib.ExitStack() as stack:
        for listener in (http, witness):
            if listener is not None:
                stack.enter_context(listener)
        opened = stack.enter_context(databases_of(home, identity, SystemEntropy(), rebuild, log))
        disk = GroupCommitDisk(opened.ledger, log)
        ledger = LedgerStore(opened.ledger, genesis)
        ledger.configurations.introduce(identity.member(settings))
        members.clear()
        members.update(ledger.configuration.by_node)
        identity = _settled(home, settings, identity, keystore=keystore, ledger=ledger, rows=opened.ledger)
        transport = _transport(home, settings, identity, ledger, invitation=invitation, log=log)
        kept = stack.enter_context(contextlib.closing(databases.open_snapshots(home.path)))
        snapshot_disk = GroupCommitDisk(kept, log)
        snapshots = SnapshotSpace(kept, snapshot_disk, settings.snapshot_blocks)
        workers = ThreadWorkers(WORKER_THREADS)
        ports = Ports(
            wire(transport),
            disk,
            workers,
            SystemClock(),
            SystemEntropy(),
            log,
            snapshots,
            SignatureProcesses(),
        )
        core = Core(
            ports,
            ledger,
            SigningKey(identity.node),
            samples_history=settings.history == "sampled",
        )
        audited = tuple(
            Database(name, rows, databases.REBUILD[name] or "", partial(damaged_files, home.path / name))
            for name, rows in ((databases.PAYLOADS, opened.payloads), (databases.LEDGER, opened.ledger))
        )
        writer = ChunkWriter(opened.chunks, ThreadWorkers(1))
        asides = partial(remove_asides, home.path / databases.PAYLOADS, home.path / databases.LEDGER)
        stores = Stores(opened.ledger, opened.chunks, writer, keystore, audited, HomeFiles.of(home), asides)
        machine = _machine(home, settings, opened, disk, transport)
        check_room = partial(disk_reserve.check_reserve, home.path)
        assembly = Assembly(
            core, stores, identity, check_room, machine, checkpoint_settings=_checkpoint_settings(settings)
        )
        async with trio.open_nursery() as outer:
            outer.start_soon(disk.run)
            outer.start_soon(snapshot_disk.run)
            try:
                async with trio.open_nursery() as inner:
                    inner.start_soon(_stop_on_signal, inner.cancel_scope, core.say_farewell, log)
                    await inner.start(transport.run)
                    if invitation is not None and not home.genesis.exists():
                        await redeem(invitation, transport=transport, clock=ports.clock, log=log)
                        write_atomically(home.genesis, genesis_text(genesis).encode())
                    inner.start_soon(_admission_keeper(core, transport, invitation).run)
                    inner.start_soon(_watch_node_key, core, identity, keystore, renewed, inner.cancel_scope)
                    if invitation is not None:
                        ticket, history = invitation.ticket, core.applier.history
                        inner.start_soon(find_named_block, ticket, ledger, history, log)
                    await assembly.block_repair.refill_first()
                    inner.start_soon(core.run)
                    inner.start_soon(assembly.run)
                    metrics = telemetry.Metrics()
                    listening = await inner.start(
                        partial(serve_api, assembly.services, home, http, metrics=metrics)
                    )
                    if assembly.checkpointing.log_witness is not None and witness is not None:
                        await inner.start(serve_witness, assembly.checkpointing.log_witness, witness, metrics)
                        log.info(
                            "a witness of logs", verifier_key=assembly.checkpointing.log_witness.key.text
                        )
                    assembly.status.http = listening.http
                    log.info("serving", facility=settings.name, network=network_id(genesis).hex()[:16])
            finally:
                outer.cancel_scope.cancel()
    log.info("stopped")
    return renewed.is_set()


def _machine(
    home: Home, settings: Config, opened: Databases, disk: GroupCommitDisk, transport: Libp2pTransport
) -> Machine:
    """Return what the status says of this machine, its disk and its network."""
    return Machine(
        is_disk_full=lambda: disk.is_full,
        free_share=partial(disk_reserve.free_share, home.path),
        network_problems=transport.problems,
        check_room_to_mend=partial(check_room_to_mend, home.path),
        damaged_ledger_files=partial(damaged_files, home.path / databases.LEDGER),
        check_quota=lambda: disk_reserve.check_quota(
            opened.chunks.statistics().bytes, settings.storage_quota_bytes
        ),
        free_bytes=partial(disk_reserve.free_bytes, home.path),
        payload_file_bytes=partial(directory_bytes, home.path / databases.PAYLOADS),
        levels=lambda: {
            databases.PAYLOADS: opened.payloads.levels(),
            databases.LEDGER: opened.ledger.levels(),
        },
    )


def _settled(
    home: Home,
    settings: Config,
    identity: Identity,
    *,
    keystore: Keystore,
    ledger: LedgerStore,
    rows: KeyValue,
) -> Identity:
    """Take the keys that a rotation has brought into force; the card in the home shows them as well."""
    state = ledger.hard_state()
    if state is not None and node_key_in_force(identity, keystore, ledger.configuration) is not None:
        # Under the new key nothing was signed yet, nor forgotten: its incarnations are counted from the beginning.
        batch = Batch()
        ledger.put_hard_state(batch, replace(state, incarnation=0))
        rows.write(batch, sync=True)
    renewed = settled(identity, keystore, ledger.configuration, rows, SystemEntropy())
    if renewed != identity:
        write_atomically(home.card, card_text(renewed.card(settings)).encode(), mode=0o644)
    return renewed


async def _watch_node_key(
    core: Core, identity: Identity, keystore: Keystore, renewed: trio.Event, scope: trio.CancelScope
) -> None:
    """End this run when a ballot has replaced the node key: everything here is made with the old one."""
    height = core.applier.height
    while node_key_in_force(identity, keystore, core.store.configuration) is None:
        await height.wait_above(height.value)
    core.ports.log.info("the new node key is in force: starting again with it")
    renewed.set()
    scope.cancel()


def _checkpoint_settings(settings: Config) -> CheckpointSettings:
    witness = settings.log_witness
    logs = witness.logs if witness is not None else ()
    return CheckpointSettings(settings.witness, witness is not None, logs)


def _contacts(invitation: Invitation | None) -> dict[NodeId, tuple[str, ...]]:
    return invitation.ticket.contacts if invitation is not None else {}


def _admission_keeper(
    core: Core, transport: Libp2pTransport, invitation: Invitation | None
) -> AdmissionKeeper:
    return AdmissionKeeper(
        core.store,
        core.applier.height,
        transport.admit,
        core.ports.log,
        me=transport.me,
        clock=core.ports.clock,
        contacts=_contacts(invitation),
    )


def _transport(
    home: Home,
    settings: Config,
    identity: Identity,
    ledger: LedgerStore,
    *,
    invitation: Invitation | None,
    log: EventLog,
) -> Libp2pTransport:
    invited = invitation.ticket.addresses if invitation is not None else ()
    return Libp2pTransport(
        seed=identity.node,
        network=ledger.network,
        members={**_contacts(invitation), **admission_of(ledger).members},
        listen=settings.listen,
        announce=settings.announce,
        extra_peers=tuple([_renamed(address, ledger) for address in (*settings.peers, *invited)]),
        address_book=AddressBook(home.path / ADDRESS_BOOK, log),
        clock=SystemClock(),
        entropy=SystemEntropy(),
        log=log,
    )


def _renamed(address: str, ledger: LedgerStore) -> str:
    """Return a peer's address under the node key that the peer has now."""
    place, _, named = address.rpartition("/p2p/")
    try:
        return f"{place}/p2p/{peer_id(ledger.configurations.present(node_of_peer_id(named)))}"
    except ValueError:
        return address  # anybody's, or no address: whoever dials says so


async def _stop_on_signal(scope: trio.CancelScope, say_farewell: Callable[[], None], log: EventLog) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            log.info("stopping")
            say_farewell()
            await trio.sleep(_FAREWELL_SECONDS)
            scope.cancel()
            end_in_time()
            return


def end_in_time(seconds: float = _STOP_SECONDS) -> None:
    """Let a stuck stage not keep the process alive for longer: a crash is what the stores are made for."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    # When the interpreter ends it restores what SIGALRM does by default: report a clean end as a crash.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.0)
    signal.setitimer(signal.ITIMER_REAL, seconds)
