"""A member's freeze statement, the check of others', and the way to the block from which a network goes on (ledger.md 7.4)."""

from collections.abc import Iterable

import trio

from node.applier import Applier
from node.catchup import check_bodies
from node.ports import PeerTransport
from node.standstill import TAIL_CHANNEL, Standstill
from node.verification import Verification
from protocol import codec, limits, recovery
from protocol.block import Block, Header, header_hash
from protocol.catchup import BlocksFrom, Position, Run
from protocol.change_proof import CrossingRecovery, Step
from protocol.errors import Corruption, Invalid, Refused, RemoteFault, Unavailable
from protocol.finality import Certificate, CommitVote, cast_vote, check_certificate
from protocol.identifiers import ZERO, Height, NodeId
from protocol.raft.state import HardState
from protocol.recovery import FreezeStatement, Recovery, RecoverySignature, SignedRecovery, check_freeze
from protocol.recovery_block import (
    configuration_set_by,
    earlier_consents_of,
    recovery_block,
    signed_recovery_of,
)
from protocol.signing import SigningKey
from storage.ledger_store import LedgerStore

_BLOCKS_MAX = 1_024
"""So far a member may be from the base: beyond, it catches up first, by certified blocks."""


class Freezer:
    """Makes this member's freeze statement, and checks those of others."""

    def __init__(self, store: LedgerStore, standstill: Standstill, key: SigningKey) -> None:
        self._store = store
        self._standstill = standstill
        self._key = key

    async def statement(self) -> FreezeStatement:
        """Return the statement of a frozen member. That it is shown is durable first."""
        await self._standstill.show()
        store, epoch = self._store, self._store.epochs.current
        hard_state = store.hard_state() or HardState.initial(epoch=epoch)
        tip = store.tip_height()
        certificate = store.certificate(tip)
        final = store.applied().height
        if certificate is None or certificate.height < final:
            # Behind an installed state the certificate may lie above the tip; what it covers is stated with it.
            certificate = store.certificate_at_or_above(final) or certificate
        above = range(certificate.height + 1 if certificate is not None else 1, tip + 1)
        links = tuple(store.header(Height(height)) for height in above)
        return recovery.freeze(
            self._key,
            store.network,
            epoch=epoch,
            incarnation=hard_state.incarnation,
            term=hard_state.term,
            certificate=certificate,
            links=links[: limits.UNCERTIFIED_BLOCKS_MAX],
            vote=self._vote(hard_state, epoch),
        )

    def _vote(self, hard_state: HardState, epoch: int) -> CommitVote | None:
        """Return the last commit vote, signed again upon what is certified by now.

        None when what it was for is certified, or was left for a certificate: it can help to certify nothing else.
        """
        applied, height = self._store.applied(), hard_state.last_vote_height
        if not applied.height < height <= self._store.tip_height():
            return None
        if self._store.hash(height) != hard_state.last_vote_hash:
            return None
        return cast_vote(
            self._key,
            self._store.network,
            epoch=epoch,
            incarnation=hard_state.incarnation,
            height=height,
            tip=self._store.hash(height),
            base_height=applied.height,
            base=applied.hash,
        )

    def check(self, statement: FreezeStatement) -> None:
        """Check a freeze statement of the present epoch, with its certificate.

        Raises:
            Invalid: which check failed.
        """
        if statement.node not in self._store.configuration.signers:
            raise Invalid("it is of somebody who does not sign")
        if statement.epoch != self._store.epochs.current:
            raise Invalid(f"it is of epoch {statement.epoch}, and this is {self._store.epochs.current}")
        check_freeze(statement, self._store.network)
        if statement.certificate is not None:
            self._check_certificate(statement.certificate)

    def _check_certificate(self, certificate: Certificate) -> None:
        store, height = self._store, certificate.height
        if certificate.header.config_hash != store.configuration_at(height).digest:
            raise Invalid(
                f"its certificate of block {height} is under a configuration that is not known here"
            )
        following = None
        if certificate.header.next_config_hash != ZERO:
            if height > store.applied().height:
                raise Invalid(
                    f"its certificate is of configuration block {height}, which is not final here yet"
                )
            following = configuration_set_by(store.block(height))
        check_certificate(certificate, store.network, store.configuration_at(height), following)

    def floor(self) -> Header:
        """Return the header of the block that began this epoch, or of genesis: final without a certificate."""
        began = recovery_above(self._store, self._store.epochs.current - 1)
        return began.header if began is not None else self._store.header(Height(0))


def recovery_above(store: LedgerStore, epoch: int) -> Block | None:
    """Return the block that ended an epoch by beginning the next one; None while it has not ended here."""
    if epoch >= store.epochs.current:
        return None
    heights = [height for height, _ in store.configurations.set_below(Height(store.applied().height + 1))]
    blocks = (block for block in map(store.block, heights) if block.is_recovery)
    return next((block for block in blocks if block.header.epoch > epoch), None)


def step_of(store: LedgerStore, block: Block) -> Step:
    """Return what a stored block that begins an epoch proves, with the change below its base if there are consents to that."""
    signed, earlier = signed_recovery_of(block), earlier_consents_of(block)
    if not earlier:
        return signed
    height, configuration = store.configurations.set_below(block.height)[-1]
    headers = tuple(store.header(Height(at)) for at in range(height, block.height))
    return CrossingRecovery(headers, configuration, earlier, signed)


class Reach:
    """Brings this member to the base of a recovery, and beyond."""

    def __init__(
        self, store: LedgerStore, applier: Applier, transport: PeerTransport, verification: Verification
    ) -> None:
        self._store = store
        self._applier = applier
        self._transport = transport
        self._verification = verification
        self.lock = trio.Lock()
        """Held by whoever begins an epoch: an operator's command, or the watch."""

    def check(self, step: Recovery) -> None:
        """Check what can be known of a consented recovery before this member stands still.

        Raises:
            Refused: what is final here stands against it.
        """
        mark = self._applier.mark
        if step.epoch <= self._store.epochs.current:
            raise Refused(f"epoch {self._store.epochs.current} has begun here already, by another recovery")
        newest = self._newest_certificate()
        final = max(mark.height, newest.height if newest is not None else Height(0))
        if final > step.base_height:
            raise Refused(
                f"block {final} is final here, above block {step.base_height} from which the plan goes on: it would "
                "give up what is final. Collect again, with the freeze statement of this member"
            )
        if mark.height == step.base_height and mark.hash != step.base_hash:
            raise Refused("what is final here is another block than the base of the plan")

    def _newest_certificate(self) -> Certificate | None:
        """Return the newest certificate here: after a crash, what it makes final may not be applied yet."""
        tip = self._store.tip_height()
        return self._store.certificate_at_or_above(tip) or self._store.certificate(tip)

    async def begin_epoch(self, signed: SignedRecovery, earlier: tuple[RecoverySignature, ...] = ()) -> None:
        """Apply the blocks up to the base and the one that begins the epoch; `earlier` as in `recovery_block`.

        Raises:
            Refused: the plan does not fit the blocks up to the base.
            Unavailable: these are on no member that answers.
        """
        run = await self._reached(signed.recovery.base_height, signed.recovery.base_hash)
        block = recovery_block(signed, run.tip.header, run.tip.frontier, earlier)
        try:
            run.extend((block,))
        except RemoteFault as fault:
            raise Refused(f"the plan does not fit its base: {fault}") from None
        blocks = run.recovered()
        newest, mark = self._newest_certificate(), self._applier.mark
        if newest is not None and newest.height > mark.height:
            certified = header_hash(newest.header)
            if all(below.hash != certified for below in blocks):
                raise Refused(
                    f"block {newest.height} is certified here, and the plan goes on from another one"
                )
        await check_bodies(blocks, self._verification)
        await self._applier.recover(blocks)

    async def _reached(self, height: Height, digest: bytes) -> Run:
        """Return the checked blocks from above the applied one up to the base, out of this store or another's."""
        mark = self._applier.mark
        if height - mark.height > _BLOCKS_MAX:
            raise Unavailable(
                f"block {height} is far above {mark.height}, which is final here; let this member catch up first"
            )
        if (own := self._run(self._stored(height), digest)) is not None:
            return own
        for peer in self._transport.peers():
            if not peer.connected:
                continue
            try:
                run = self._run(await self._fetched(peer.node, height), digest)
            except (Unavailable, RemoteFault):
                continue  # the next may have them
            if run is not None:
                return run
        raise Unavailable(
            f"the blocks up to {height} are on no member that answers: one that holds them has to be frozen and connected"
        )

    def _run(self, blocks: Iterable[Block], digest: bytes) -> Run | None:
        mark = self._applier.mark
        run = Run(
            Position(self._store.header(mark.height), mark.hash, mark.frontier), self._store.configuration
        )
        try:
            run.extend(blocks)
        except RemoteFault:
            return None
        return run if run.tip.hash == digest else None

    def _stored(self, height: Height) -> list[Block]:
        first, last = Height(self._applier.mark.height + 1), min(height, self._store.tip_height())
        try:
            return list(self._store.blocks(first, Height(last)))
        except Corruption:
            return []

    async def _fetched(self, peer: NodeId, height: Height) -> list[Block]:
        first = Height(self._applier.mark.height + 1)
        blocks: list[Block] = []
        async with self._transport.fetch(peer, TAIL_CHANNEL, codec.encode(BlocksFrom(first))) as frames:
            async for frame in frames:
                blocks.append(Block.decode(frame))
                if blocks[-1].height >= height:
                    break
        return blocks
