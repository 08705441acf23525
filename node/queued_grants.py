"""Grants on their way to the ledger: sent again until they are final, and made anew when the vault's key moved on.

A Grant names the epoch that its wrap opens, and the ledger accepts it in that epoch only. One that waits for a quorum
can therefore be overtaken by a rotation of the same vault. Two things keep it from being lost:

    before a rotation   `let_through`: whoever changes a key lets grants for the present one through first, for a while
    after a rotation    `bring`: a stale grant is remade for the present epoch, same terms, same end, same bundle

Remaking never makes a second grant: an epoch only ever counts up (`ledger_state`: EpochRotate is the one transaction
that changes it, by plus one), so a Grant of an earlier epoch that has no accepted receipt can never get one.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

import trio

from node.attachments import Attachments
from node.authority import Authorities, Authority
from node.event_log import EventLog
from node.grant_bundles import Bundle, BundleItem, GrantBundles
from node.ports import Clock, Entropy
from node.receipts import Submitter
from protocol.errors import CarechainError, Forbidden, NotFinal, Refused, Unavailable
from protocol.identifiers import Txid, Vid
from protocol.transaction import sign, txid_of
from storage.ledger_store import LedgerStore

CHANCE_S = 5.0
"""How long a rotation waits for grants of its vault. Reads under a revoked grant are refused already meanwhile, and a
grant that cannot become final must not keep an old key in use."""
STALE = "refused: epoch stale"
"""The ledger's verdict on a Grant whose epoch has passed."""
_CHANCE_AGAIN_MS = 500
_ATTEMPTS = 3
"""How often one call remakes a grant before it leaves the next time to the next round."""


class QueuedGrants:
    """Brings bundles of grants to the ledger. The only one that replaces a grant in a bundle."""

    def __init__(
        self,
        *,
        authorities: Authorities,
        bundles: GrantBundles,
        attachments: Attachments,
        open_vault: Callable[[Vid], Awaitable[None]],
        store: LedgerStore,
        submitter: Submitter,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self._authorities = authorities
        self._bundles = bundles
        self._attachments = attachments
        self._open_vault = open_vault
        self._store = store
        self._submitter = submitter
        self._clock = clock
        self._entropy = entropy
        self._log = log
        # Two that find one grant stale at once would make two of it, and both could become final.
        self._renewing = trio.Lock()
        late = store.applied().time_ms
        self._unfinished = {b.id for b in bundles if any(self.is_open(item, late) for item in b.items)}

    def add(self, bundle: Bundle) -> None:
        """Queue a bundle: from here on it is brought to the ledger until it is decided."""
        self._unfinished.add(bundle.id)

    async def finish(self) -> None:
        """Bring what is queued to the ledger, as far as it goes now."""
        for bundle_id in sorted(self._unfinished):
            try:
                await self.bring(bundle_id)
            except NotFinal:
                return  # still no quorum, for the others neither: the next round tries again
            except Unavailable as error:
                # What one bundle lacks (a wrap, the end of a handover) the next one may not need.
                self._log.debug("a queued grant has to wait", reason=type(error).__name__)
            except CarechainError as error:
                self._log.warning("a queued grant was given up", reason=type(error).__name__)
                self._unfinished.discard(bundle_id)

    async def bring(self, bundle_id: str, authority: Authority | None = None) -> Bundle:
        """Bring a bundle to the ledger and return it as it became final: wraps to the members, vaults opened, grants.

        `authority` signs for grants that must be remade; without it the keys in this facility's custody do.

        Raises:
            Unavailable: not now; doing it again continues.
            Refused: the ledger refuses a grant, or its time is over.
            Forbidden: a grant has to be remade, and nobody here signs for its vault.
        """
        for _ in range(_ATTEMPTS):
            bundle, failures = await self._renewed(bundle_id, authority)
            # Those that can still become final do so whatever became of the others.
            await self._send([item for item in bundle.items if not self._is_settled(item)])
            if failures:
                raise failures[0]
            if not any(self._is_stale(item) for item in bundle.items):
                self._unfinished.discard(bundle_id)
                self._check_accepted(bundle)
                return bundle
        raise Unavailable("the vault's key changed again while it was granted; it is tried again")

    async def let_through(self, vid: Vid) -> None:
        """Give grants that wait for the present key of a vault a chance before it changes; at most `CHANCE_S` seconds."""
        with trio.move_on_after(CHANCE_S):
            while waiting := tuple(self._waiting(vid)):
                try:
                    await self._send(waiting)
                except Unavailable:
                    await self._clock.sleep_ms(_CHANCE_AGAIN_MS)
                except CarechainError as error:
                    self._log.debug("a grant cannot go before a key change", reason=type(error).__name__)
                    return

    # --- what became of a grant ---------------------------------------------------------------------------------

    def is_open(self, item: BundleItem, now_ms: int) -> bool:
        """Return whether a grant is not decided yet: without a receipt, or only overtaken by a rotation, and in time."""
        in_time = now_ms <= item.grant.valid_until_ms and now_ms < item.grant.exp
        return in_time and (self._verdict(item) is None or self._is_stale(item))

    def is_final(self, item: BundleItem) -> bool:
        """Return whether the ledger has accepted a grant."""
        return self._store.grant(Txid(item.gid)) is not None

    def _now_ms(self) -> int:
        return max(self._clock.now_ms(), self._store.applied().time_ms)

    def _verdict(self, item: BundleItem) -> str | None:
        receipt = self._store.receipt(Txid(item.gid))
        return receipt.verdict if receipt is not None else None

    def _is_stale(self, item: BundleItem) -> bool:
        """Return whether a grant was refused, or can only be refused, because its epoch has passed."""
        # The vault before the receipt: in the other order, a block that accepts the grant and then changes the key could
        # be applied between the two, and a grant that stands would look as if it had been overtaken.
        vault = self._store.vault(item.vid)
        verdict = self._verdict(item)
        if verdict is not None:
            return verdict == STALE
        return vault is not None and vault.epoch > item.grant.epoch

    def _is_settled(self, item: BundleItem) -> bool:
        return self._verdict(item) is not None or self._is_stale(item)

    def _check_accepted(self, bundle: Bundle) -> None:
        for item in bundle.items:
            verdict = self._verdict(item)
            if not self.is_final(item):
                raise Refused(
                    f"the ledger refused the grant for {item.category} ({verdict}); repeat the command"
                )

    def _waiting(self, vid: Vid) -> Iterator[BundleItem]:
        """Yield the queued grants of a vault that can become final under its present keys."""
        vault, now_ms = self._store.vault(vid), self._now_ms()
        for bundle_id in sorted(self._unfinished):
            bundle = self._bundles.get(bundle_id)
            for item in bundle.items if bundle is not None and vault is not None else ():
                if item.vid == vid and self.is_open(item, now_ms) and not self._is_stale(item):
                    assert vault is not None, "checked above"
                    if item.signed.signatures[0].key == vault.auth_pk:
                        yield item

    # --- sending ------------------------------------------------------------------------------------------------

    async def _send(self, items: Sequence[BundleItem]) -> None:
        if not items:
            return
        for item in items:
            vault = self._store.vault(item.vid)
            if vault is not None and item.signed.signatures[0].key != vault.auth_pk:
                # Such a refusal leaves no receipt, so that waiting for one would never end.
                raise Refused("the keys that signed the grant do not sign for its vault any more")
        # Before the Grants: a final grant whose wrap nobody has could not be used.
        await self._attachments.spread([item.grant.wrap_hash for item in items])
        late: list[CarechainError] = []

        async def open_vault(vid: Vid) -> None:
            try:
                await self._open_vault(vid)
            except CarechainError as error:
                late.append(error)

        async with trio.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(open_vault, item.vid)
        if late:
            raise late[0]
        await self._submitter.submit_all([item.signed for item in items])

    # --- remaking -----------------------------------------------------------------------------------------------

    async def _renewed(
        self, bundle_id: str, authority: Authority | None
    ) -> tuple[Bundle, list[CarechainError]]:
        """Return a bundle with its stale grants remade, durably, and why some could not be."""
        async with self._renewing:
            bundle = self._bundles.get(bundle_id)
            if bundle is None:
                raise Refused("that grant is not known here any more; repeat the command")
            renewed: dict[Txid, BundleItem] = {}
            failures: list[CarechainError] = []
            for item in bundle.items:
                if self._is_stale(item):
                    try:
                        renewed[Txid(item.gid)] = await self._renew(item, authority)
                    except (Refused, Forbidden, Unavailable) as error:
                        failures.append(error)
            if renewed:
                # Persist before sending: a crash after this line sends the new grants, one before it makes others, and
                # nobody ever saw these.
                bundle = self._bundles.renew(bundle, renewed)
                self._log.info("grants were remade for a new key", count=len(renewed))
            return bundle, failures

    async def _renew(self, item: BundleItem, authority: Authority | None) -> BundleItem:
        """Return a stale grant on its own terms for the vault's present epoch."""
        vid, state = item.vid, self._store.vault(item.vid)
        assert state is not None, "only a vault on the ledger has a later epoch"
        facility = self._store.configuration.by_node.get(
            self._store.configurations.present(item.grant.facility)
        )
        signer = authority or self._authorities.of_vault(vid)
        vault = signer.vault(vid) if signer is not None else None
        if signer is None or vault is None or not signer.holds(vault, state):
            raise Forbidden("the vault's key has changed and this needs the patient's signature; repeat it")
        if facility is None or not self.is_open(item, self._now_ms()):
            raise Refused("the grant's time was over before it could become final; repeat the command")
        if not signer.is_current(vault, state):
            raise Unavailable("the handover of this patient is not complete yet; repeat in a moment")
        seed = self._entropy.bytes(32)
        wrap = signer.wrap(vault, state.epoch, item.grant.grantee_pk, facility, seed32=seed)
        (wrap_hash,) = await self._attachments.keep((wrap,))
        grant = replace(item.grant, epoch=state.epoch, wrap_hash=wrap_hash)
        signed = sign(grant, self._submitter.ledger, signer.auth_key(vault))
        return BundleItem(txid_of(grant, self._submitter.ledger), item.category, signed)
