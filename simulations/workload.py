"""Clients that open vaults, grant, revoke and rotate through whatever node is up, and remember what they were told."""

import dataclasses
from random import Random

import trio

from protocol.configuration import network_id
from protocol.errors import NotFinal
from protocol.identifiers import ZERO, Digest, NodeId, PublicKey, Txid, Vid
from protocol.ledger_rows import Receipt
from protocol.signing import SigningKey
from protocol.transaction import (
    EpochRotate,
    Grant,
    Revoke,
    SignedTransaction,
    Transaction,
    VaultOpen,
    sign,
    txid_of,
)
from simulations import determinism
from simulations.clock import START_MS
from simulations.world import Crashed, Incarnation, World

_VAULTS_MAX = 64
"""Vaults the clients go on using; older ones are left alone."""
_DAY_MS = 86_400_000


@dataclasses.dataclass(slots=True)
class _OpenVault:
    vid: Vid
    auth: SigningKey
    epoch: int = 0
    gid: Txid | None = None


class Workload:
    """The clients of one world. `mean_s` is what each waits between two transactions."""

    def __init__(self, world: World, *, clients: int, mean_s: float) -> None:
        self._world = world
        self._clients = clients
        self._rng = determinism.stream(world.seed, "workload")
        self._runs = 0
        self.mean_s = mean_s
        self._vaults: list[_OpenVault] = []
        self._ledger = network_id(world.configuration)

    async def run(self) -> None:
        """Submit until cancelled."""
        self._runs += 1
        async with trio.open_nursery() as nursery:
            for number in range(self._clients):
                rng = determinism.stream(self._world.seed, f"client/{number}/{self._runs}")
                nursery.start_soon(self._client, rng)

    async def probe(self, life: Incarnation, timeout_ms: int) -> bool:
        """Submit a vault through one node; return whether it became final in time."""
        signed, _ = self._open_vault(self._rng)
        return await self._submit(life, signed, timeout_ms) is not None

    async def _client(self, rng: Random) -> None:
        while True:
            await trio.sleep(rng.expovariate(1) * self.mean_s)
            signed, vault = self._next(rng)
            receipt = await self._insist(rng, signed)
            if receipt is not None and receipt.is_accepted:
                self._took_effect(signed.transaction, vault, receipt)

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

    def _next(self, rng: Random) -> tuple[SignedTransaction, _OpenVault]:
        if not self._vaults or rng.random() < 0.4:
            return self._open_vault(rng)
        vault = rng.choice(self._vaults)
        transaction: Transaction
        draw = rng.random()
        if draw < 0.5:
            transaction = self._grant(rng, vault)
        elif draw < 0.8:
            # Sometimes of a grant that does not exist, or has been revoked already: refused, and that is final too.
            gid = vault.gid or Txid(rng.randbytes(32))
            transaction = Revoke(vault.vid, gid, self._valid_until(rng))
        else:
            digest = Digest(rng.randbytes(32))
            transaction = EpochRotate(
                vault.vid, vault.epoch + 1, PublicKey(digest), digest, digest, self._valid_until(rng)
            )
        return sign(transaction, self._ledger, vault.auth), vault

    def _open_vault(self, rng: Random) -> tuple[SignedTransaction, _OpenVault]:
        auth = SigningKey(rng.randbytes(32))
        custodian = rng.choice(self._world.nodes).key
        vid, public = Vid(rng.randbytes(32)), auth.public
        opening = VaultOpen(
            vid, public, public, public, public, 0, NodeId(custodian.public), (), 3, self._valid_until(rng)
        )
        return sign(opening, self._ledger, auth, custodian), _OpenVault(vid, auth)

    def _grant(self, rng: Random, vault: _OpenVault) -> Grant:
        facility = rng.choice(self._world.nodes).id
        now = self._now_ms()
        return Grant(
            vault.vid,
            PublicKey(facility),
            facility,
            1,
            "R",
            ("TREAT",),
            now - _DAY_MS,
            now + _DAY_MS,
            0,
            now + _DAY_MS,
            0,
            vault.epoch,
            Digest(rng.randbytes(32)),
            Digest(ZERO),
            self._valid_until(rng),
        )

    def _took_effect(self, transaction: Transaction, vault: _OpenVault, receipt: Receipt) -> None:
        match transaction:
            case VaultOpen():
                self._vaults.append(vault)
                del self._vaults[:-_VAULTS_MAX]
            case Grant():
                vault.gid = receipt.txid
            case EpochRotate():
                vault.epoch = max(vault.epoch, transaction.epoch)
            case _:
                pass  # a revoked grant is revoked again now and then, on purpose

    def _valid_until(self, rng: Random) -> int:
        """Mostly an hour; sometimes so short that it may expire on its way."""
        return self._now_ms() + (1_500 if rng.random() < 0.05 else 3_600_000)

    @staticmethod
    def _now_ms() -> int:
        return START_MS + int(trio.current_time() * 1000)
