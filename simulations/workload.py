"""Clients that open vaults, grant, revoke, rotate and read through whatever node is up, and remember what they were told.

What each vault's clients were told is checked against a vault that does one thing at a time (`linearizability`) whenever
the clients stop: a stale read, a lost grant or one that comes back is a violation.
"""

import contextlib
import dataclasses
import itertools
from random import Random

import trio

from protocol import limits
from protocol.configuration import network_id
from protocol.errors import NotFinal, Unavailable
from protocol.identifiers import ZERO, Digest, NodeId, PublicKey, Txid, Vid
from protocol.ledger_rows import Receipt
from protocol.signing import SigningKey
from protocol.transaction import (
    EpochRotate,
    Grant,
    Revoke,
    SignedTransaction,
    VaultOpen,
    sign,
    txid_of,
)
from simulations import determinism
from simulations.client_history import (
    ClientHistory,
    GrantAccess,
    OpenVault,
    ReadVault,
    RevokeGrant,
    RotateEpoch,
    VaultModel,
    VaultOperation,
    is_read,
    read_vault,
)
from simulations.clock import START_MS
from simulations.linearizability import check
from simulations.world import Crashed, Incarnation, World

_VAULTS_MAX = 4
"""Vaults in use at once: few, so that clients meet at them and reads follow changes."""
_OPERATIONS_MAX = 300
"""Operations on one vault before another takes its place."""
_OPEN_MAX = 8
"""Operations on one vault that are under way or of unknown outcome; a vault with as many is left alone."""
_READERS = 2
"""Clients that only read: whoever waits for a change at a node that stands still cannot see what others see."""
_STEPS_MAX = 200_000
"""Steps that the check of one vault may take."""


@dataclasses.dataclass(slots=True, eq=False)
class _UsedVault:
    vid: Vid
    auth: SigningKey
    history: ClientHistory
    epoch: int = 0
    gid: Txid | None = None

    @property
    def has_room(self) -> bool:
        """Whether it may be used further: its history must stay cheap to check."""
        return self.history.open_count < _OPEN_MAX and len(self.history) < _OPERATIONS_MAX


@dataclasses.dataclass(frozen=True, slots=True)
class _Change:
    """A signed transaction, and what it is in the history of its vault."""

    vault: _UsedVault
    asked: VaultOperation
    signed: SignedTransaction


class Workload:
    """The clients of one world. `mean_s` is what each waits between two operations."""

    def __init__(self, world: World, *, clients: int, mean_s: float) -> None:
        self._world = world
        self._clients = clients
        self._rng = determinism.stream(world.seed, "workload")
        self._runs = 0
        self.mean_s = mean_s
        self._vaults: list[_UsedVault] = []
        self._unchecked: list[_UsedVault] = []
        self._ledger = network_id(world.configuration)
        # The number of an event, not its time: nothing in here happens at once, though virtual time may stand still.
        self._events = itertools.count()

    async def run(self) -> None:
        """Use the ledger until cancelled; then check what the clients were told."""
        self._runs += 1
        try:
            async with trio.open_nursery() as nursery:
                for number in range(self._clients):
                    rng = determinism.stream(self._world.seed, f"client/{number}/{self._runs}")
                    nursery.start_soon(self._client, number, rng)
                for number in range(_READERS):
                    rng = determinism.stream(self._world.seed, f"reader/{number}/{self._runs}")
                    nursery.start_soon(self._reader, number, rng)
        finally:
            self.check()

    async def probe(self, life: Incarnation, timeout_ms: int) -> bool:
        """Submit a vault through one node; return whether it became final in time."""
        opening = self._open_vault(self._rng)
        return await self._submit(life, opening.signed, timeout_ms) is not None

    def check(self) -> None:
        """Check every vault's history since it was opened; report violations, count what could not be decided."""
        world = self._world
        for vault in self._unchecked:
            verdict = check(vault.history.operations(), VaultModel(), is_read=is_read, steps_max=_STEPS_MAX)
            for part in verdict.parts:
                world.history.record(
                    f"linearizable-{part.outcome}", vault.vid, part.operations, part.overlap, part.steps
                )
                if part.outcome == "violation":
                    world.report(f"linearizability: vault {vault.vid.hex()[:8]}: {part.explanation}")
        self._unchecked = [vault for vault in self._unchecked if vault in self._vaults]

    # --- one client -----------------------------------------------------------------------------------------------

    async def _client(self, number: int, rng: Random) -> None:
        client = f"{number}/{self._runs}"
        while True:
            await trio.sleep(rng.expovariate(1) * self.mean_s)
            vault = self._choose(rng)
            if vault is None:
                await self._change(client, rng, self._use_another(rng))
            elif rng.random() < 0.4:
                await self._read(client, rng, vault)
            else:
                await self._change(client, rng, self._next(rng, vault))
                if rng.random() < 0.5:
                    await self._read(client, rng, vault)

    async def _reader(self, number: int, rng: Random) -> None:
        while True:
            await trio.sleep(rng.expovariate(1) * self.mean_s)
            if self._vaults:
                await self._read(f"reader {number}/{self._runs}", rng, rng.choice(self._vaults))

    def _choose(self, rng: Random) -> _UsedVault | None:
        """Return a vault to go on with, or None to open another."""
        self._vaults = [vault for vault in self._vaults if vault.has_room]
        return rng.choice(self._vaults) if self._vaults and rng.random() < 0.95 else None

    def _use_another(self, rng: Random) -> _Change:
        """Open a vault. The clients use it at once: whether it is there yet is one of the things they ask."""
        opening = self._open_vault(rng)
        self._vaults.append(opening.vault)
        self._unchecked.append(opening.vault)
        del self._vaults[:-_VAULTS_MAX]
        return opening

    async def _change(self, client: str, rng: Random, change: _Change) -> None:
        asked = change.vault.history.call(client, change.asked)
        receipt = await self._insist(rng, change.signed)
        if receipt is not None:
            asked.returned(receipt.verdict)
            if receipt.is_accepted:
                self._took_effect(change, receipt)

    async def _read(self, client: str, rng: Random, vault: _UsedVault) -> None:
        voters = [life for life in self._world.up() if life.core.consensus is not None]
        if not voters or not vault.has_room:
            return
        life, timeout_ms = rng.choice(voters), rng.choice((400, 2_000, 8_000))
        asked = vault.history.call(client, ReadVault(vault.vid))
        try:
            # A read that gets no answer is never stale.
            with contextlib.suppress(Unavailable):
                state = await life.ask(lambda core: read_vault(core, vault.vid, timeout_ms=timeout_ms))
                asked.returned(state)
                self._world.history.record(
                    "read", life.transport.me, vault.vid, state.epoch, len(state.grants)
                )
        finally:
            if asked.output is None:
                asked.withdraw()

    async def _insist(self, rng: Random, signed: SignedTransaction) -> Receipt | None:
        """Submit, and when the outcome is unknown submit the same again through any node, up to three times."""
        for _ in range(3):
            up = self._world.up()
            if not up:
                return None
            receipt = await self._submit(rng.choice(up), signed, rng.choice((400, 2_000, 8_000)))
            if receipt is not None:
                return receipt
            await trio.sleep(rng.uniform(0, 2))
        return None

    async def _submit(self, life: Incarnation, signed: SignedTransaction, timeout_ms: int) -> Receipt | None:
        history, promises = self._world.history, self._world.promises
        txid = txid_of(signed.transaction, self._ledger)
        history.record("submit", life.transport.me, txid)
        promises.submitted(txid)
        try:
            receipt = await life.ask(lambda core: core.submitter.submit(signed, timeout_ms=timeout_ms))
        except (NotFinal, Crashed):
            history.record("unknown", txid)
            return None
        history.record("ack" if receipt.is_accepted else "refused", txid, receipt.height, receipt.index)
        promises.told(receipt)
        return receipt

    # --- what is submitted ----------------------------------------------------------------------------------------

    def _next(self, rng: Random, vault: _UsedVault) -> _Change:
        draw = rng.random()
        if draw < 0.5:
            return self._grant(rng, vault)
        valid_until_ms = self._valid_until(rng)
        transaction: Revoke | EpochRotate
        asked: VaultOperation
        if draw < 0.8:
            # Sometimes of a grant that does not exist, or has been revoked already: refused, and that is final too.
            transaction = Revoke(vault.vid, vault.gid or Txid(rng.randbytes(32)), valid_until_ms)
            asked = RevokeGrant(vault.vid, transaction.gid)
        else:
            key, digest = PublicKey(rng.randbytes(32)), Digest(rng.randbytes(32))
            transaction = EpochRotate(vault.vid, vault.epoch + 1, key, digest, digest, valid_until_ms)
            asked = RotateEpoch(vault.vid, transaction.epoch, key)
        return _Change(vault, asked, sign(transaction, self._ledger, vault.auth))

    def _open_vault(self, rng: Random) -> _Change:
        auth = SigningKey(rng.randbytes(32))
        custodian = rng.choice(self._world.nodes).key
        vid, public = Vid(rng.randbytes(32)), auth.public
        opening = VaultOpen(
            vid, public, public, public, public, 0, NodeId(custodian.public), (), 3, self._valid_until(rng)
        )
        vault = _UsedVault(vid, auth, ClientHistory(lambda: next(self._events)))
        return _Change(vault, OpenVault(vid, public), sign(opening, self._ledger, auth, custodian))

    def _grant(self, rng: Random, vault: _UsedVault) -> _Change:
        facility = rng.choice(self._world.nodes).id
        now = self._now_ms()
        grant = Grant(
            vault.vid,
            PublicKey(facility),
            facility,
            1,
            "R",
            ("TREAT",),
            now,
            # As long as may be: reads then show exactly those that were not revoked.
            now + limits.GRANT_MS_MAX,
            0,
            now,
            0,
            vault.epoch,
            Digest(rng.randbytes(32)),
            Digest(ZERO),
            self._valid_until(rng),
        )
        asked = GrantAccess(vault.vid, txid_of(grant, self._ledger), grant.epoch)
        return _Change(vault, asked, sign(grant, self._ledger, vault.auth))

    @staticmethod
    def _took_effect(change: _Change, receipt: Receipt) -> None:
        vault = change.vault
        match change.asked:
            case GrantAccess():
                vault.gid = receipt.txid
            case RotateEpoch(epoch=epoch):
                vault.epoch = max(vault.epoch, epoch)
            case _:
                pass  # a revoked grant is revoked again now and then, on purpose

    def _valid_until(self, rng: Random) -> int:
        """Mostly about an hour, sometimes so short that it may expire on its way; hardly ever the same twice.

        Two clients that revoke one grant until the same millisecond would have made one transaction: accepted, to both.
        """
        return self._now_ms() + (1_500 if rng.random() < 0.05 else rng.randrange(3_000_000, 3_600_000))

    @staticmethod
    def _now_ms() -> int:
        return START_MS + int(trio.current_time() * 1000)
