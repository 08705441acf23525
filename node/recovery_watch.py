"""Hearing that others have begun a new epoch: members that were away, or were believed lost, come back to it (ledger.md 7.4).

Every connected member is asked once it connects, and now and then. What it shows is believed for the governance keys of the
configuration that is known here, never for who shows it. Who holds final blocks that the new epoch gives up does not follow:
what is final stays, its operator is told, and the two histories are for people to judge.
"""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from node.core import Core
from node.recovery_base import Reach, recovery_above, step_of
from protocol import codec
from protocol.change_proof import CrossingRecovery, InForce, Step, follow, recovery_of
from protocol.codec import wire
from protocol.errors import CarechainError, Invalid, Refused, Unavailable
from protocol.identifiers import Height, NodeId
from protocol.recovery import RecoverySignature, SignedRecovery
from protocol.recovery_block import signed_recovery_of

CHANNEL = "recovery"
_LOOK_MS = 500
_ASK_AGAIN_LOOKS = 60
_ASK_MS = 3_000
_FOLLOW_S = 20.0
"""So long certified blocks are awaited at a time: the quorum of a new epoch may need this very member, by its operator's word."""


@wire("recovery-above")
@dataclass(frozen=True, slots=True)
class RecoveryAbove:
    """Ask for the recovery that ended an epoch."""

    epoch: int


class RecoveryWatch:
    """Asks others for the recovery that began their epoch, and takes the step too."""

    def __init__(self, core: Core, reach: Reach) -> None:
        self._core = core
        self._store = core.store
        self._reach = reach
        self._asked: dict[NodeId, int] = {}

    def serve(self) -> None:
        """Answer others: with what ended the epoch that they name, nothing while it goes on here."""
        self._core.ports.transport.serve(CHANNEL, self._answer)

    async def _answer(self, _peer: NodeId, body: bytes) -> bytes:
        following = recovery_above(self._store, codec.decode(body, RecoveryAbove).epoch)
        return codec.encode(step_of(self._store, following)) if following is not None else b""

    async def run(self) -> None:
        """Ask until cancelled."""
        transport, looks = self._core.ports.transport, 0
        while True:
            connected = {peer.node for peer in transport.peers() if peer.connected}
            self._asked = {node: at for node, at in self._asked.items() if node in connected}
            for node in sorted(connected):
                if looks - self._asked.get(node, -_ASK_AGAIN_LOOKS) >= _ASK_AGAIN_LOOKS:
                    self._asked[node] = looks
                    await self._ask(node)
            await self._core.ports.clock.sleep_ms(_LOOK_MS)
            looks += 1

    async def _ask(self, node: NodeId) -> None:
        try:
            epoch = self._store.epochs.current
            if (ended := await self._asked_of(node, epoch)) is not None:
                await self.hear(ended)
            elif epoch and (began := await self._asked_of(node, epoch - 1)) is not None:
                self._compare(began)
        except CarechainError as reason:
            self._core.ports.log.debug("no word of a new epoch", peer=node.hex()[:16], reason=str(reason))

    async def _asked_of(self, node: NodeId, epoch: int) -> Step | None:
        request = codec.encode(RecoveryAbove(epoch))
        answer = await self._core.ports.transport.call(node, CHANNEL, request, timeout_ms=_ASK_MS)
        return codec.decode_union(answer, SignedRecovery | CrossingRecovery) if answer else None

    def _compare(self, theirs: Step) -> None:
        """Tell the operator when others have begun the present epoch in another way: organisations have signed two plans.

        Raises:
            Invalid: not enough of them have, as far as can be known here.
        """
        epoch, step = self._store.epochs.current, recovery_of(theirs)
        began = recovery_above(self._store, epoch - 1)
        if began is None or step.epoch != epoch or step == signed_recovery_of(began).recovery:
            return
        self._check(theirs, epoch=began.header.epoch - 1, below=began.height)
        self._tell(epoch, f"it has begun the epoch by another plan, at block {began.height}")

    async def hear(self, consented: Step) -> None:
        """Take the step into a later epoch, if enough organisations consent to it, or tell the operator why not.

        Raises:
            Invalid: they do not, as far as can be known here.
        """
        step = recovery_of(consented)
        if step.epoch <= self._store.epochs.current:
            return
        self._check(consented)
        async with self._reach.lock:
            try:
                self._reach.check(step)
            except Refused as conflict:
                self._tell(step.epoch, str(conflict))
                return
            await self._core.standstill.freeze()
            try:
                await self._reach.begin_epoch(*_consents(consented))
            except (Refused, Unavailable):
                # Too far away, or above configurations that are not here: certified blocks lead there.
                await follow_certified(self._core, lambda: not self._core.standstill.is_frozen)
            if self._core.standstill.is_frozen:
                await self._doubt(consented)
                return  # asked again in a while; until then the operator may apply it
            self._core.standstill.begin_epoch()
        self._core.ports.log.warning(
            "others have begun a new epoch; this member follows",
            epoch=step.epoch,
            height=step.base_height + 1,
        )

    def _check(self, consented: Step, *, epoch: int | None = None, below: Height | None = None) -> None:
        """Check that enough organisations consent to a step out of an epoch, from what is final below a height: the applied one.

        Raises:
            Invalid: they do not, as far as can be known here.
        """
        store, step = self._store, recovery_of(consented)
        known = min(step.base_height + 1, below or store.applied().height + 1)
        final = ((Height(0), store.genesis), *store.configurations.set_below(Height(known)))
        height, configuration = final[-1]
        if isinstance(consented, CrossingRecovery) and step.before == configuration.digest:
            consented = consented.signed  # the change is final here
        epoch = store.epochs.current if epoch is None else epoch
        follow(InForce(store.network, configuration, height, epoch), (consented,))

    async def _doubt(self, consented: Step) -> None:
        """Take part again when what was learnt meanwhile speaks against a recovery: it would not have been believed.

        Its base may lie below what is final by now, or above a configuration whose organisations have not consented.
        """
        step = recovery_of(consented)
        try:
            self._check(consented)
            self._reach.check(step)
        except (Invalid, Refused) as conflict:
            if await self._core.standstill.thaw():
                self._tell(step.epoch, str(conflict))

    def _tell(self, epoch: int, why: str) -> None:
        standstill = self._core.standstill
        if standstill.trouble is None:
            self._core.ports.log.error(
                "others have begun an epoch that gives up what is final here", epoch=epoch
            )
        standstill.trouble = (
            f"others have begun epoch {epoch} after the loss of a majority, and this member does not follow: {why}; "
            "keep this home as it is, and let people judge"
        )


def _consents(step: Step) -> tuple[SignedRecovery, tuple[RecoverySignature, ...]]:
    return (step.signed, step.earlier) if isinstance(step, CrossingRecovery) else (step, ())


async def follow_certified(core: Core, is_there: Callable[[], bool]) -> None:
    """Apply certified blocks of others while this member stands still, until it is there, or for a while."""
    with trio.move_on_after(_FOLLOW_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.follower.run)
            while not is_there():
                await core.applier.height.wait_above(core.applier.height.value)
            nursery.cancel_scope.cancel()
