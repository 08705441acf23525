"""The clients of tier A: each has one transaction or read under way, asks again elsewhere when it hears nothing, and remembers what it was told."""

from collections.abc import Callable
from random import Random

from protocol import codec
from protocol.identifiers import NodeId, Txid, Vid
from protocol.ledger_rows import Receipt
from protocol.signing import SigningKey
from protocol.transaction import Revoke, Transaction, VaultOpen, sign, txid_of
from simulations.clock import START_MS
from simulations.core_cluster import Cluster
from simulations.core_life import Submission
from simulations.core_node import CoreNode
from simulations.story import Load

_READS = 0.3
_REFUSED = 0.1
"""Share of transactions that mean nothing to the ledger, and are final all the same."""
_TRIES = 3
_PATIENCE_S = (0.4, 2.0, 8.0)
_PROBE_PATIENCE_S = 4.0
_VALID_MS = 3_600_000
_ACCOUNT = SigningKey(bytes(range(32)))


class CoreClients:
    """All clients of one world."""

    def __init__(self, world: Cluster, rng: Random, load: Load) -> None:
        self._world = world
        self._rng = rng
        self._mean_s = load.mean_s
        self._is_active = True
        for _ in range(load.clients):
            self._later()

    def stop(self) -> None:
        """Let no client begin anything new."""
        self._is_active = False

    def go_on(self) -> None:
        """Let the clients begin again."""
        self._is_active = True

    def probe(self, node: CoreNode) -> "Attempt":
        """Submit one transaction through one node, again and again until it is final."""
        return Attempt(self._world, self._rng, self._transaction(), node)

    def _later(self) -> None:
        self._world.agenda.after(self._rng.expovariate(1) * self._mean_s, self._act)

    def _act(self) -> None:
        up = self._world.up()
        if not self._is_active or not up:
            self._later()
        elif self._rng.random() < _READS:
            self._read(self._rng.choice(up))
        else:
            Attempt(self._world, self._rng, self._transaction(), None, self._later)

    def _read(self, node: CoreNode) -> None:
        record = self._world.record
        self._later()

        def answered(height: int | None) -> None:
            record("read", node.index, -1 if height is None else height)

        node.read(answered)

    def _transaction(self) -> Submission:
        rng, world = self._rng, self._world
        valid_until = START_MS + int(world.agenda.now * 1000) + _VALID_MS
        vid = Vid(rng.randbytes(32))
        body: Transaction
        if rng.random() < _REFUSED:
            body = Revoke(vid, Txid(rng.randbytes(32)), valid_until)
            keys = [_ACCOUNT]
        else:
            auth = SigningKey(rng.randbytes(32))
            custodian = rng.choice(world.nodes).key
            public = auth.public
            body = VaultOpen(
                vid, public, public, public, public, 0, NodeId(custodian.public), (), 3, valid_until
            )
            keys = [auth, custodian]
        signed = sign(body, world.network_id, *keys)
        return Submission(txid_of(body, world.network_id), codec.encode(signed))


class Attempt:
    """One transaction, from its submission to its receipt or until the client gives up. A probe (`node`) never does."""

    def __init__(
        self,
        world: Cluster,
        rng: Random,
        submission: Submission,
        node: CoreNode | None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        self.is_final = False
        self._world = world
        self._rng = rng
        self._submission = submission
        self._probed = node
        self._ended = ended
        self._tries = 0
        self._asked: CoreNode | None = None
        self._try()

    def _try(self) -> None:
        world = self._world
        self._tries += 1
        up = world.up()
        node = self._probed or (self._rng.choice(up) if up else None)
        patience = _PROBE_PATIENCE_S if self._probed else self._rng.choice(_PATIENCE_S)
        txid = self._submission.txid
        if node is not None:
            world.record("submit", node.index, txid)
            world.promises.submitted(txid)
            if node.submit(self._submission, self._told):
                self._asked = node
        if not self.is_final:
            world.agenda.after(patience, self._too_late, self._tries)

    def _told(self, receipt: Receipt) -> None:
        if self.is_final:
            return
        self.is_final = True
        world = self._world
        kind = "ack" if receipt.is_accepted else "refused"
        world.record(kind, receipt.txid, receipt.height, receipt.index)
        world.promises.told(receipt)
        self._end()

    def _too_late(self, number: int) -> None:
        if self.is_final or number != self._tries:
            return
        self._world.record("unknown", self._submission.txid)
        if self._asked is not None:
            self._asked.give_up(self._submission.txid)
        if self._probed is None and self._tries >= _TRIES:
            self._end()
        else:
            self._world.agenda.after(self._rng.uniform(0, 2 if self._probed is None else 0.1), self._try)

    def _end(self) -> None:
        if self._ended is not None:
            self._ended()
