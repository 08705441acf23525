"""One voter of `carechain bench consensus`, a process of its own: the real node core on real ports, and a load of clients.

The parent writes one JSON object a line to standard input and reads one answer for each from standard output.

    start ──► peer… ──► leader… ──► prepare ──► load, count…, halt ──► singles ──► usage ──► (end of input: stop)

Clients live in the voters' own processes, as they do in a facility: they submit to their own daemon and wait for the
receipt that this daemon applied. Transactions are signed in `prepare`, before any clock starts. This file wires
concrete classes together, as `daemon` does.
"""

import contextlib
import gc
import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from node.address_book import AddressBook
from node.core import Core, Ports
from node.disk import GroupCommitDisk
from node.libp2p_transport import Libp2pTransport
from node.signature_processes import SignatureProcesses
from node.system import SystemClock, SystemEntropy, ThreadWorkers, tune_interpreter
from protocol import codec, transaction
from protocol.configuration import Configuration, network_id
from protocol.errors import NotFinal
from protocol.identifiers import NodeId, Vid
from protocol.signing import SigningKey
from protocol.transaction import SignedTransaction, VaultOpen
from storage.databases import open_ledger
from storage.key_value import Batch
from storage.ledger_store import LedgerStore

# Any: commands and answers are JSON objects between two parts of one program.
Command = dict[str, Any]
Answer = dict[str, Any]

WRITERS = 18
"""Brings a VaultOpen with its two signatures to 1,060 bytes."""
_WORKER_THREADS = 2
_SIGNED_PER_STEP = 50
_TIMEOUT_MS = 10_000
_LINE_BYTES_MAX = 1024 * 1024
_ECHO = "bench-echo"
_AUTOGROUP = Path("/proc/self/autogroup")


class _StandardErrorLog:
    """Warnings and errors as lines on standard error; the rest would only cost what is being measured."""

    def debug(self, event: str, **values: Any) -> None:
        """Drop it."""

    def info(self, event: str, **values: Any) -> None:
        """Drop it."""

    def warning(self, event: str, **values: Any) -> None:
        """Write it."""
        sys.stderr.write(f"{event} {values}\n")

    error = warning


@dataclass(frozen=True, slots=True)
class _SlowDisk:
    """A disk whose synchronised writes take longer."""

    disk: GroupCommitDisk
    delay_s: float

    def read(self, key: bytes) -> bytes | None:
        return self.disk.read(key)

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        await self.disk.commit(batch, sync=sync)
        if sync:
            await trio.sleep(self.delay_s)


@dataclass(slots=True)
class _Load:
    """What the batched clients of this voter have seen."""

    accepted: int = 0
    refused: int = 0
    not_final: int = 0
    exhausted: bool = False
    halting: bool = False
    done: trio.Event = field(default_factory=trio.Event)

    def answer(self) -> Answer:
        return {
            "accepted": self.accepted,
            "refused": self.refused,
            "not_final": self.not_final,
            "exhausted": self.exhausted,
        }


class Voter:
    """The node under test and its clients."""

    def __init__(self, tasks: trio.Nursery) -> None:
        self._tasks = tasks
        self._core: Core | None = None
        self._key: SigningKey | None = None
        self._transport: Libp2pTransport | None = None
        self._processes = SignatureProcesses()
        self._prepared: deque[SignedTransaction] = deque()
        self._load = _Load()

    @property
    def core(self) -> Core:
        """The running node."""
        assert self._core is not None, "start comes first"
        return self._core

    async def obey(self, command: Command) -> Answer:
        """Carry out one command and return its answer."""
        commands: dict[str, Callable[[Command], Awaitable[Answer]]] = {
            "start": self._start,
            "yield": self._yield,
            "state": self._state,
            "echo": self._echo,
            "prepare": self._prepare,
            "load": self._run_load,
            "halt": self._halt,
            "singles": self._singles,
            "usage": self._usage,
        }
        return await commands[command["do"]](command)

    async def _start(self, command: Command) -> Answer:
        seed, folder = bytes.fromhex(command["seed"]), Path(command["folder"])
        configuration = codec.decode(bytes.fromhex(command["configuration"]), Configuration)
        clock, entropy, log = SystemClock(), SystemEntropy(), _StandardErrorLog()
        transport = Libp2pTransport(
            seed=seed,
            network=network_id(configuration),
            members={member.node: () for member in configuration.members},
            listen=("/ip4/127.0.0.1/tcp/0",),
            extra_peers=tuple(command["peers"]),
            address_book=AddressBook(folder / "addresses", log),
            mdns=False,
            clock=clock,
            entropy=entropy,
            log=log,
        )
        database = open_ledger(folder, create=True)
        disk = GroupCommitDisk(database, log)
        self._key, self._transport = SigningKey(seed), transport
        delay_ms = command["disk_delay_ms"]
        slow_or_not = _SlowDisk(disk, delay_ms / 1000) if delay_ms else disk
        self._core = Core(
            Ports(
                transport,
                slow_or_not,
                ThreadWorkers(_WORKER_THREADS),
                clock,
                entropy,
                log,
                processes=self._processes,
            ),
            LedgerStore(database, configuration),
            self._key,
            samples_history=command["samples_history"],
        )
        transport.serve(_ECHO, _return_body)
        self._tasks.start_soon(disk.run)
        await self._tasks.start(transport.run)
        self._tasks.start_soon(self._core.run)
        return {"addresses": list(transport.addresses())}

    async def _state(self, _command: Command) -> Answer:
        """Answer how far this voter has applied, now, by a clock that the processes of one machine share."""
        core, mark = self.core, self.core.applier.mark
        leader = core.leader()
        return {
            "at_s": time.monotonic(),
            "connected": sum(peer.connected for peer in core.ports.transport.peers()),
            "leader": leader.hex() if leader else None,
            "height": mark.height,
            "hash": mark.hash.hex(),
            "tree_size": mark.tree_size,
            **self._load.answer(),
        }

    async def _yield(self, command: Command) -> Answer:
        """Take no more processor time than nobody else wants; a process that starts so hardly comes to its start."""
        lower_priority(command["niceness"])
        return {}

    async def _echo(self, command: Command) -> Answer:
        """Time calls to a peer that answers with what it got, one after the other."""
        assert self._transport is not None, "start comes first"
        peer = next(peer.node for peer in self._transport.peers() if peer.connected)
        body, times = bytes(command["bytes"]), []
        for _ in range(command["calls"]):
            began = time.perf_counter()
            await self._transport.call(peer, _ECHO, body, timeout_ms=5_000)
            times.append((time.perf_counter() - began) * 1000)
        return {"ms": times}

    async def _prepare(self, command: Command) -> Answer:
        """Make and sign transactions; nothing of it is measured."""
        began = time.perf_counter()
        signer = _Signer(self.core, self._key_here())
        while len(self._prepared) < command["count"]:
            # In a thread, a few at a time: the node must go on answering meanwhile.
            self._prepared.extend(await trio.to_thread.run_sync(signer.some))
        # What lives until it is submitted need not be looked through by every collection.
        gc.collect()
        gc.freeze()
        size = len(codec.encode(self._prepared[0])) if self._prepared else 0
        return {"transaction_bytes": size, "seconds": time.perf_counter() - began}

    def _key_here(self) -> SigningKey:
        assert self._key is not None, "start comes first"
        return self._key

    async def _run_load(self, command: Command) -> Answer:
        """Keep `clients` batches of `batch` transactions outstanding until halted or nothing prepared is left."""
        load = self._load = _Load()

        async def client() -> None:
            while not load.halting:
                if len(self._prepared) < command["batch"]:
                    load.exhausted = True
                    return
                batch = [self._prepared.popleft() for _ in range(command["batch"])]
                await self._submit(batch, load)

        async def clients() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(command["clients"]):
                    nursery.start_soon(client)
            load.done.set()

        self._tasks.start_soon(clients)
        return {}

    async def _submit(self, batch: list[SignedTransaction], load: _Load) -> None:
        try:
            receipts = await self.core.submitter.submit_all(batch, timeout_ms=_TIMEOUT_MS)
        except NotFinal as error:
            load.not_final += len(error.ids)
            load.accepted += len(batch) - len(error.ids)
        else:
            accepted = sum(receipt.is_accepted for receipt in receipts)
            load.accepted += accepted
            load.refused += len(receipts) - accepted

    async def _halt(self, _command: Command) -> Answer:
        """Begin no more batches; answer when those outstanding are final."""
        self._load.halting = True
        await self._load.done.wait()
        return self._load.answer()

    async def _singles(self, command: Command) -> Answer:
        """Submit one transaction every `every_ms`, whatever became of those before; return each one's way to final.

        A latency runs from the moment the transaction was due, so that a stall counts for all that it held up.
        """
        latencies: list[float] = []
        failed = 0

        async def one(signed: SignedTransaction, due: float) -> None:
            nonlocal failed
            try:
                receipt = await self.core.submitter.submit(signed, timeout_ms=_TIMEOUT_MS)
            except NotFinal:
                failed += 1
                return
            failed += not receipt.is_accepted
            latencies.append((trio.current_time() - due) * 1000)

        begin = trio.current_time() + command["offset_ms"] / 1000
        async with trio.open_nursery() as nursery:
            for number in range(command["count"]):
                due = begin + number * command["every_ms"] / 1000
                await trio.sleep_until(due)
                nursery.start_soon(one, self._prepared.popleft(), due)
        return {"ms": latencies, "failed": failed}

    async def _usage(self, _command: Command) -> Answer:
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return {
            "at_s": time.monotonic(),
            "cpu_s": sum(each.ru_utime + each.ru_stime for each in spent)
            + sum(map(_cpu_s_of, self._processes.pids)),
            "rss_anon_mib": _rss_anon_kib() / 1024,
        }


class _Signer:
    """Makes transactions of 1 KiB with two signatures."""

    def __init__(self, core: Core, node: SigningKey) -> None:
        self._network = core.network
        self._entropy = core.ports.entropy
        self._valid_until_ms = core.submitter.valid_until()
        self._node = node
        self._auth = SigningKey(self._entropy.bytes(32))
        self._writers = tuple(NodeId(self._entropy.bytes(32)) for _ in range(WRITERS))

    def some(self) -> list[SignedTransaction]:
        """Return a few new ones."""
        key, node = self._auth.public, NodeId(self._node.public)
        return [
            transaction.sign(
                VaultOpen(
                    Vid(self._entropy.bytes(32)),
                    key,
                    key,
                    key,
                    key,
                    0,
                    node,
                    self._writers,
                    3,
                    self._valid_until_ms,
                ),
                self._network,
                self._auth,
                self._node,
            )
            for _ in range(_SIGNED_PER_STEP)
        ]


def lower_priority(niceness: int) -> None:
    """Let other processes go first, also those of other sessions, of which each has a value of its own (sched(7), autogroup).

    For a process with a session of its own: all its threads and children are meant. Where Linux groups processes so, their
    own values rank them within their session alone.
    """
    os.setpriority(os.PRIO_PGRP, 0, niceness)
    with contextlib.suppress(FileNotFoundError):  # this kernel does not group
        _AUTOGROUP.write_text(str(niceness))


async def _return_body(_peer: object, body: bytes) -> bytes:
    return body


def _cpu_s_of(pid: int) -> float:
    """Return the processor time of a process of one thread, which `RUSAGE_CHILDREN` counts only once it has ended."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _rss_anon_kib() -> int:
    """Return the anonymous memory of this process (what its mapped files hold does not count; storage.md 1)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


async def _serve() -> None:
    """Obey the parent until it closes our standard input; then end as SIGTERM ends a daemon."""
    commands = trio.lowlevel.FdStream(os.dup(0))
    answers = trio.lowlevel.FdStream(os.dup(1))
    async with trio.open_nursery() as tasks:
        voter = Voter(tasks)
        buffer = b""
        async for received in commands:
            *lines, buffer = (buffer + received).split(b"\n")
            assert len(buffer) <= _LINE_BYTES_MAX, "the parent sends short lines"
            for line in lines:
                answer = await voter.obey(json.loads(line))
                await answers.send_all(json.dumps(answer).encode() + b"\n")
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    tune_interpreter()
    trio.run(_serve)
