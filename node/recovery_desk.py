"""`recover`: going on after the loss of a majority (ledger.md 7.4), each step at an operator's word.

```
    collect    freeze this member, ask the others for their freeze statements, see from which block one may go on
    propose    a plan: that block, who is left, what is given up, and why
    sign       an organisation's consent, by its governance key
    apply      with enough consents: the blocks up to the base, the block that begins the epoch, in one batch
    cancel     take part again, as long as nobody can hold this member's freeze statement
```
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import trio

from node.card_file import parse_card
from node.core import Core
from node.recovery_base import Freezer, Reach
from node.recovery_file import Collected, Consent, Plan, file_text, parse_file
from node.recovery_plan import Custodian, Document, checked, plan_document
from node.recovery_watch import follow_certified
from protocol import codec, limits
from protocol.block import Header, config_hash_above
from protocol.configuration import Configuration, Member, recovery_fault
from protocol.errors import CarechainError, Invalid, Refused, RemoteFault, Unavailable
from protocol.identifiers import Height, NodeId, Term
from protocol.recovery import (
    Base,
    FreezeStatement,
    Recovery,
    RecoverySignature,
    SignedRecovery,
    find_base,
)
from protocol.recovery_block import configuration_set_by, signed_recovery_of

FREEZE_CHANNEL = "freeze"
_ASK_MS = 3_000


class RecoveryDesk:
    """What the routes call `recovery`."""

    def __init__(self, core: Core, custodian: Custodian, freezer: Freezer, reach: Reach) -> None:
        self._core = core
        self._store = core.store
        self._network = core.network
        self._me = core.ports.transport.me
        self._custodian = custodian
        self._freezer = freezer
        self._reach = reach

    def serve(self) -> None:
        """Answer other members: with this one's freeze statement once its own operator has frozen it."""
        self._core.ports.transport.serve(FREEZE_CHANNEL, self._answer)

    async def _answer(self, _peer: NodeId, _body: bytes) -> bytes:
        if not self._core.standstill.is_frozen:
            return b""
        return codec.encode(await self._freezer.statement())

    # --- collect ------------------------------------------------------------------------------------------------

    async def collect(self, files: Iterable[str], *, freeze: bool) -> Document:
        """Return a file with all freeze statements that were given or could be had, and whether they settle the base.

        Raises:
            Refused: a file or statement does not hold, or this member signs nothing that could be frozen.
        """
        configuration, standstill = self._store.configuration, self._core.standstill
        heard = self._known(files)
        if freeze:
            if self._me not in configuration.signers:
                raise Refused(
                    "this member is neither voter nor witness: there is nothing to freeze; run it without --freeze"
                )
            if self._store.is_rebuilt():
                raise Refused(
                    "this member has lost its store and cannot say what it has voted for; the others recover without its statement"
                )
            await standstill.freeze()
        others = [node for node in configuration.signers if node != self._me]
        silent: dict[NodeId, str] = {}
        spoiled: dict[NodeId, str] = {}
        async with trio.open_nursery() as nursery:
            for node in others:
                nursery.start_soon(self._ask, node, heard, silent, spoiled)
        if standstill.is_frozen:
            heard[self._me] = await self._freezer.statement()
        statements = tuple(heard[node] for node in sorted(heard))
        name = self._store.configurations.name_ever
        document: Document = {
            "statements": file_text(Collected(self._network, statements)),
            "epoch": self._store.epochs.current,
            "frozen": sorted(name(node) for node in heard),
            "missing": [
                {"name": name(node), "why": (silent | spoiled).get(node, "not frozen")}
                for node in configuration.signers
                if node not in heard
            ],
        }
        for node in sorted(spoiled):
            # Counted as silent it could be made to look as if a base were safe that this very member knows to be too low.
            why = f"{name(node)} stands still, and its statement does not hold here ({spoiled[node]}); collect at {name(node)}"
            return document | {"settled": False, "why": f"{why}, which may know more, and merge the files"}
        return document | self._settled(statements)

    def _settled(self, statements: tuple[FreezeStatement, ...]) -> Document:
        if not statements:
            return {"settled": False, "why": "no member stands still yet; begin here with --freeze"}
        try:
            base = self._base(statements)
        except Unavailable as reason:
            return {"settled": False, "why": str(reason)}
        return {
            "settled": True,
            "why": None,
            "base_height": base.header.height,
            "base": base.hash.hex(),
            "discarded": [digest.hex() for digest in base.discarded],
        }

    def _known(self, files: Iterable[str]) -> dict[NodeId, FreezeStatement]:
        heard: dict[NodeId, FreezeStatement] = {}
        for text in files:
            for statement in parse_file(text, Collected, self._network).statements:
                try:
                    self._freezer.check(statement)
                except RemoteFault as fault:
                    raise Refused(
                        f"a freeze statement of {self._name(statement.node)} does not hold: {fault}"
                    ) from None
                self._core.hearing.frozen(statement)
                known = heard.get(statement.node)
                # Who is frozen may still learn what is certified: an older file must not hide it.
                if known is None or _certified(known) <= _certified(statement):
                    heard[statement.node] = statement
        return heard

    async def _ask(
        self,
        node: NodeId,
        heard: dict[NodeId, FreezeStatement],
        silent: dict[NodeId, str],
        spoiled: dict[NodeId, str],
    ) -> None:
        try:
            answer = await self._core.ports.transport.call(node, FREEZE_CHANNEL, b"", timeout_ms=_ASK_MS)
            if not answer:
                silent.setdefault(
                    node, "not frozen: its own operator has to run carechain recover collect --freeze"
                )
                return
            statement = codec.decode(answer, FreezeStatement)
            self._freezer.check(statement)
            if statement.node != node:
                raise Invalid("a freeze statement of somebody else")
        except Unavailable:
            silent[node] = "not reachable"
        except RemoteFault as fault:
            spoiled[node] = str(fault)
        except CarechainError as fault:
            silent[node] = str(fault)
        else:
            self._core.hearing.frozen(statement)
            heard[node] = statement

    def _base(self, statements: Iterable[FreezeStatement]) -> Base:
        base = find_base(statements, self._freezer.floor(), self._store.configuration)
        final = self._store.applied().height
        if base.header.height < final:
            raise Unavailable(
                f"block {final} is final here, and no statement reaches it; collect with this member's own, by --freeze"
            )
        return base

    # --- propose and sign ---------------------------------------------------------------------------------------

    def propose(
        self,
        files: Iterable[str],
        *,
        lost: Iterable[str],
        gone: Iterable[str],
        cards: Iterable[str],
        reason: str,
    ) -> Document:
        """Return a plan: `lost` are organisations without a say, `gone` those whose node is, and who still have one.

        Raises:
            Refused: a file, name or card does not hold, nobody is let go, or no voter would be left.
            Unavailable: the statements do not settle the base.
        """
        heard = self._known(files)
        if not heard:
            raise Refused("no freeze statement is given; run carechain recover collect first")
        base = self._base(heard.values())
        before, earlier = self._configurations_at(base.header)
        lost_nodes = {before.find(text).node for text in lost}
        gone_nodes = {before.find(text).node for text in gone}
        after = self._after(before, lost_nodes | gone_nodes, cards)
        headers = [link for one in heard.values() for link in one.links]
        terms = [one.term for one in heard.values()] + [one.term for one in (base.header, *headers)]
        if not 0 < len(reason) <= 500:
            raise Refused("give a --reason of at most 500 characters: it stands in the ledger for ever")
        recovery = Recovery(
            base.header.epoch + 1,
            base.header.height,
            base.hash,
            Term(max(terms) + 1),
            max(self._core.ports.clock.now_ms(), base.header.time_ms + 1),
            before.digest,
            after,
            tuple(sorted(lost_nodes)),
            base.discarded,
            reason,
        )
        plan = Plan(self._network, before, recovery, earlier)
        return {"plan": file_text(plan), **plan_document(plan)}

    def _after(self, before: Configuration, leaving: set[NodeId], cards: Iterable[str]) -> Configuration:
        members = {member.node: member for member in before.members if member.node not in leaving}
        for text in cards:
            member = parse_card(text, source="the card").member
            # As by ballot: who comes with an empty log counts when it holds what the others hold.
            role = "learner" if member.role == "voter" else member.role
            if _is_twin(member, before.members):
                raise Refused(f"{member.name} has the name or a key of a member; it needs its own")
            members[member.node] = replace(member, role=role)
        ordered = tuple(members[node] for node in sorted(members))
        after = replace(before, members=ordered, number=before.number + 1)
        fault = recovery_fault(before, after)
        if fault is not None:
            raise Refused(f"{fault}; name with --lost and --gone who is no longer there")
        return after

    def _configurations_at(self, base: Header) -> tuple[Configuration, Configuration | None]:
        """Return the configuration in force above the base, and the one before where no certificate of the change is here."""
        wanted = config_hash_above(base)
        known = self._store.configurations.by_digest().get(wanted)
        if known is not None:
            return known, None
        for block in self._store.blocks(Height(self._store.applied().height + 1), self._store.tip_height()):
            if block.header.next_config_hash == wanted:
                return configuration_set_by(block), self._store.configuration
        raise Refused(
            "the base stands above a configuration that is not here; run this at the member that holds the highest block"
        )

    def sign(self, plan: str, *, instead_of: str | None = None) -> Document:
        """Return this organisation's consent to a plan; `instead_of` as in `Custodian.consent`.

        Raises:
            Refused: the plan does not hold, or as `Custodian.consent`.
        """
        parsed = parse_file(plan, Plan, self._network)
        self._check_time(parsed.recovery)
        return self._custodian.consent(parsed, instead_of=instead_of)

    def _check_time(self, recovery: Recovery) -> None:
        ahead_ms = recovery.time_ms - self._core.ports.clock.now_ms()
        if ahead_ms > limits.CLOCK_AHEAD_MS_MAX:
            # No later block may go back behind it: grants would have ended, and everybody would wait for that hour.
            raise Refused(
                f"the plan's time is {ahead_ms // 1000} seconds ahead of this facility's clock; set the clocks, then propose again"
            )

    # --- apply --------------------------------------------------------------------------------------------------

    async def apply(self, plan: str, consents: Iterable[str]) -> Document:
        """Begin the next epoch here; doing it again changes nothing.

        Raises:
            Refused: too few consent, a signature does not hold, or what is final here stands against it.
            Unavailable: blocks up to the base are on no member that answers.
        """
        parsed = parse_file(plan, Plan, self._network)
        signatures = [parse_file(text, Consent, self._network) for text in consents]
        try:
            signed, earlier = checked(parsed, signatures)
        except Invalid as fault:
            raise Refused(str(fault)) from None
        async with self._reach.lock:
            if not self._is_applied(signed):
                self._check_time(parsed.recovery)
                self._reach.check(signed.recovery)
                await self._begin(parsed, signed, earlier)
                self._core.ports.log.warning(
                    "a new epoch has begun after the loss of a majority",
                    epoch=signed.recovery.epoch,
                    height=signed.recovery.base_height + 1,
                )
        document = plan_document(parsed)
        return {**document, "height": self._store.applied().height}

    async def _begin(
        self, plan: Plan, signed: SignedRecovery, earlier: tuple[RecoverySignature, ...]
    ) -> None:
        standstill = self._core.standstill
        was_frozen = standstill.is_frozen
        await standstill.freeze()
        try:
            if not earlier and not self._is_final(plan.before):
                # Whoever made the plan has the certificate of the change that leads to it.
                await follow_certified(self._core, lambda: self._is_final(plan.before))
                if not self._is_final(plan.before):
                    raise Refused(
                        "nobody that answers has the certificate of the change of members below the base; connect one that has "
                        "it, or propose again at this member: those before the change consent as well then"
                    )
            if not self._is_applied(
                signed
            ):  # others may have been quicker, and what was followed leads beyond
                await self._reach.begin_epoch(signed, earlier)
        except CarechainError:
            if not was_frozen:
                await standstill.thaw()  # unless somebody has asked meanwhile: then it stays as it is
            raise
        standstill.begin_epoch()

    def _is_final(self, configuration: Configuration) -> bool:
        return configuration.digest in self._store.configurations.by_digest()

    def _is_applied(self, signed: SignedRecovery) -> bool:
        height = Height(signed.recovery.base_height + 1)
        if self._store.applied().height < height or not (block := self._store.block(height)).is_recovery:
            return False
        return signed_recovery_of(block).recovery == signed.recovery

    async def cancel(self) -> Document:
        """Take part again.

        Raises:
            Refused: somebody may hold this member's freeze statement, which a vote would belie.
        """
        if self._core.standstill.is_frozen and not await self._core.standstill.thaw():
            raise Refused(
                "this member's freeze statement has left it: whoever holds it relies on no further vote of this epoch; "
                "only a recovery ends this"
            )
        return {"frozen": False}

    def _name(self, node: NodeId) -> str:
        return self._store.configurations.name_ever(node)


def _certified(statement: FreezeStatement) -> Height:
    return statement.certificate.height if statement.certificate is not None else Height(0)


def _is_twin(new: Member, members: Iterable[Member]) -> bool:
    keys: Callable[[Member], set[bytes]] = lambda one: {one.node, one.governance, one.checkpoint, one.team}  # noqa: E731
    return any(new.name == one.name or keys(new) & keys(one) for one in members)
