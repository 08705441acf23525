"""Revoke: end a grant for ever, then change the vault's key so that whoever held it cannot open what comes later.

A signed Revoke is durable in the keystore before it leaves: a patient's "no" is not lost in a crash or without a
quorum. The new epoch follows from the ledger (`grant_watcher`) should this process end in between.
"""

from dataclasses import dataclass

import trio

from node.authority import Authorities, Authority
from node.event_log import EventLog
from node.grant_bundles import GrantBundles
from node.ports import Clock
from node.receipts import Submitter
from node.rotation import Rotation
from node.sealed_wallet import SealedWallet
from node.vault_events import events_of
from protocol import codec, limits
from protocol.errors import CarechainError, Corruption, Forbidden, Malformed, NotFinal, Refused, Unavailable
from protocol.identifiers import Txid, Vid
from protocol.ledger_rows import GrantState
from protocol.transaction import Revoke, SignedTransaction, sign, txid_of
from protocol.wallet import WalletVault
from storage.keystore import Keystore
from storage.ledger_store import LedgerStore

NOTICE = (
    "Reads under this grant are now refused by each facility's own daemon; a modified daemon that holds the grant "
    "could still read, without a trace, what was sealed before the key changed."
)
_UNKNOWN = (
    "no grant of a patient in this facility's custody has that id; see them with carechain consent list"
)
_PREFIX = "revoking/"
_ANSWER_S = 8.5


@dataclass(frozen=True, slots=True)
class _Target:
    """One grant to end, and who signs for it."""

    gid: Txid
    authority: Authority
    vault: WalletVault


class Revocation:
    """Ends grants. `run` finishes what a command could not."""

    def __init__(
        self,
        *,
        authorities: Authorities,
        bundles: GrantBundles,
        rotation: Rotation,
        keystore: Keystore,
        store: LedgerStore,
        submitter: Submitter,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._authorities = authorities
        self._bundles = bundles
        self._rotation = rotation
        self._keystore = keystore
        self._store = store
        self._submitter = submitter
        self._clock = clock
        self._log = log

    async def finish(self) -> None:
        """Bring revocations that were not final when their command ended to the ledger, as far as it goes now."""
        try:
            for name in tuple(self._keystore.names(_PREFIX)):
                await self._submit(Txid(bytes.fromhex(name.removeprefix(_PREFIX))), None)
        except Unavailable:
            return  # still no quorum: the next round tries again
        except CarechainError as error:
            self._log.error("a queued revocation cannot be used", reason=str(error))

    async def revoke(self, grant: str, *, wallet: SealedWallet | None = None) -> dict[str, object]:
        """End a grant, or every grant of a bundle. The same answer when it has ended already.

        Returns {"grant": its full id, "grants": [{"grant", "category", "transaction"}], "rotated", "notice"}.

        Raises:
            Refused: no such grant here, or an ambiguous prefix.
            Forbidden: the patient's keys are not here and no wallet was given.
            NotFinal: queued; ids and the same document are in the error.
        """
        authority = await self._authorities.of_wallet(wallet) if wallet is not None else None
        found, gids = self._resolve(grant.strip().lower(), authority)
        targets = [self._target(gid, authority) for gid in gids]
        for target in targets:
            self._prepare(target)
        with trio.move_on_after(_ANSWER_S) as budget:
            try:
                await self._submit_all(targets)
            except Unavailable:
                raise self._not_final(found, targets) from None
            return self._document(found, targets, rotated=await self._rotate(targets))
        assert budget.cancelled_caught, "the block returns or raises unless the time is up"
        if all(self._revoked_ms(target.gid) for target in targets):
            return self._document(found, targets, rotated=False)
        raise self._not_final(found, targets)

    def _not_final(self, found: str, targets: list[_Target]) -> NotFinal:
        rows = [self._keystore.get(_PREFIX + target.gid.hex()) for target in targets]
        waiting = [codec.decode(row, SignedTransaction) for row in rows if row is not None]
        sentence = self._submitter.waits_for("the revocation", waiting)
        return NotFinal(sentence, (found,), self._document(found, targets, rotated=False))

    # --- which grants -------------------------------------------------------------------------------------------

    def _resolve(self, text: str, authority: Authority | None) -> tuple[str, tuple[Txid, ...]]:
        """Return the full id that `text` abbreviates, and the grants it stands for."""
        known: dict[str, tuple[Txid, ...]] = {}
        for bundle in self._bundles:
            known[bundle.id] = tuple([Txid(item.gid) for item in bundle.items])
            known |= {item.gid.hex(): (Txid(item.gid),) for item in bundle.items}
        # An id that a command reported while the grant was queued still ends it, whatever it is called today.
        known |= {former.hex(): (latest,) for former, latest in self._bundles.former()}
        for vault in authority.vaults if authority is not None else ():
            for gid in self._store.events_of(Vid(vault.vid)):
                if self._store.grant(gid) is not None:
                    known[gid.hex()] = (gid,)
        if len(text) == 64 and text not in known:
            known |= self._by_ledger(text)
        matching = [text] if text in known else [one for one in known if text and one.startswith(text)]
        if not matching:
            raise Refused(_UNKNOWN)
        if len(matching) > 1:
            raise Refused(f"{len(matching)} grants' ids begin like that; give more of the id")
        return matching[0], known[matching[0]]

    def _by_ledger(self, text: str) -> dict[str, tuple[Txid, ...]]:
        """Find a grant by its full id, made by a keystore older than its bundle."""
        try:
            gid = Txid(bytes.fromhex(text))
        except ValueError:
            return {}
        state = self._store.grant(gid)
        mine = state is not None and self._authorities.of_vault(state.grant.vid) is not None
        return {text: (gid,)} if mine else {}

    def _target(self, gid: Txid, authority: Authority | None) -> _Target:
        state = self._store.grant(gid)
        if state is None:
            raise Unavailable("that grant is not final yet; revoke it when it is")
        vid = state.grant.vid
        signer = authority or self._authorities.of_vault(vid)
        vault = signer.vault(vid) if signer is not None else None
        if signer is None or vault is None:
            raise Forbidden(
                "this needs the patient's signature; give --wallet FILE with the wallet of that patient"
            )
        return _Target(gid, signer, vault)

    # --- ending them --------------------------------------------------------------------------------------------

    def _prepare(self, target: _Target) -> None:
        """Sign the Revoke and make it durable, unless the grant has ended or one waits already."""
        name = _PREFIX + target.gid.hex()
        if self._revoked_ms(target.gid) or self._keystore.get(name) is not None:
            return
        valid_until = self._submitter.valid_until(limits.VALID_UNTIL_MS_MAX)
        revoke = Revoke(Vid(target.vault.vid), target.gid, valid_until)
        signed = sign(revoke, self._submitter.ledger, target.authority.auth_key(target.vault))
        # Persist before sending.
        self._keystore.put(name, codec.encode(signed))

    async def _submit_all(self, targets: list[_Target]) -> None:
        """Submit the Revokes of all targets at once; raise what the first of them that failed raised."""
        failures: list[CarechainError] = []

        async def submit(target: _Target) -> None:
            try:
                await self._submit(target.gid, target)
            except CarechainError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(submit, target)
        if failures:
            # A refusal says more than "not yet".
            raise next((error for error in failures if not isinstance(error, Unavailable)), failures[0])

    async def _submit(self, gid: Txid, target: _Target | None) -> None:
        """Bring a prepared Revoke to the ledger and forget its row.

        Raises:
            Unavailable: not now.
            Refused: the ledger refuses it.
        """
        name = _PREFIX + gid.hex()
        row = self._keystore.get(name)
        if row is None:
            return
        if not self._revoked_ms(gid):
            try:
                signed = codec.decode(row, SignedTransaction)
            except Malformed:
                raise Corruption(f"the key store row {name} is damaged; revoke the grant again") from None
            receipt = await self._submitter.submit(signed)
            if not receipt.is_accepted and not self._revoked_ms(gid):
                self._keystore.delete(name)
                raise Refused(f"the ledger refused the revocation ({receipt.verdict}); repeat the command")
        self._keystore.delete(name)
        if target is None:
            self._log.info("a queued revocation is final", grant=gid.hex()[:16])

    async def _rotate(self, targets: list[_Target]) -> bool:
        """Change the keys of the vaults; return whether all are changed. What fails, the watcher of custody repeats."""
        latest = {target.vault.vid: target for target in targets}
        failed: list[str] = []

        async def rotate(target: _Target) -> None:
            gids = [other.gid for other in targets if other.vault.vid == target.vault.vid]
            after_ms = max(self._revoked_ms(gid) for gid in gids)
            try:
                await self._rotation.rotate(target.authority, target.vault, after_ms=after_ms)
            except (Unavailable, Forbidden) as error:
                failed.append(type(error).__name__)

        async with trio.open_nursery() as nursery:
            for target in latest.values():
                nursery.start_soon(rotate, target)
        if failed:
            self._log.info("an epoch could not be changed yet", reason=failed[0], count=len(failed))
        return not failed

    def _revoked_ms(self, gid: Txid) -> int:
        state: GrantState | None = self._store.grant(gid)
        return state.revoked_ms if state is not None else 0

    # --- documents ----------------------------------------------------------------------------------------------

    def _document(self, found: str, targets: list[_Target], *, rotated: bool) -> dict[str, object]:
        return {
            "grant": found,
            "grants": [
                {
                    "grant": target.gid.hex(),
                    "category": target.vault.category,
                    "transaction": self._transaction(target),
                    "state": "final" if self._revoked_ms(target.gid) else "received",
                }
                for target in targets
            ],
            "rotated": rotated,
            "notice": NOTICE,
        }

    def _transaction(self, target: _Target) -> str:
        """Return the id of the Revoke that ended, or is to end, a grant."""
        row = self._keystore.get(_PREFIX + target.gid.hex())
        if row is not None:
            return txid_of(codec.decode(row, SignedTransaction).transaction, self._submitter.ledger).hex()
        for event in events_of(self._store, Vid(target.vault.vid), newest_first=True):
            if isinstance(event.transaction, Revoke) and event.transaction.gid == target.gid:
                return event.receipt.txid.hex()
        return ""
