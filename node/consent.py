"""Consent: grant, list, revoke. Whoever holds the patient's keys signs; the ledger decides what holds.

A grant is sealed and durable here before it leaves (`grant_bundles`): without a quorum the answer is "not final yet"
with ids, the daemon goes on by itself, and repeating the command reports the same ids.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from node.attachments import Attachments
from node.authority import Authorities, Authority
from node.grant_bundles import BUNDLE_BYTES, Bundle, BundleItem, GrantBundles, Terms
from node.patients import Patients
from node.ports import Clock, Entropy
from node.queued_grants import QueuedGrants
from node.receipts import Submitter
from node.revocation import Revocation
from node.sealed_wallet import SealedWallet
from node.vaults import Vaults
from protocol import limits
from protocol.configuration import Member
from protocol.errors import Forbidden, NotFinal, Refused, Unavailable
from protocol.health.categories import Category, category_named
from protocol.identifiers import ZERO, Digest, NodeId, Txid, Vid
from protocol.ledger_rows import GrantState
from protocol.transaction import KIND_TEAM, PURPOSES, Grant, sign, txid_of
from protocol.wallet import WalletVault
from storage.ledger_store import LedgerStore

ALL = "all"
_PERIOD_END_MS = 2**53 - 1
"""No end: the largest integer that every JSON reader keeps exactly."""
_ANSWER_S = 8.5
"""A command answers within this: with a quorum it takes a fraction, without one the answer is "not final yet"."""
_RETRY_MS = 2_000


@dataclass(frozen=True, slots=True)
class Wish:
    """What a grant command asks for, checked: known categories in their order, sorted purposes, rights "R" or "RW"."""

    facility: Member
    categories: tuple[str, ...]
    purposes: tuple[str, ...]
    rights: str
    expires_ms: int
    is_for_all: bool


class Consent:
    """Makes and lists grants. `run` finishes what a command could not."""

    def __init__(
        self,
        *,
        me: NodeId,
        authorities: Authorities,
        patients: Patients,
        vaults: Vaults,
        bundles: GrantBundles,
        attachments: Attachments,
        store: LedgerStore,
        submitter: Submitter,
        clock: Clock,
        entropy: Entropy,
        queued: QueuedGrants,
        revocation: Revocation,
    ) -> None:
        self._queued = queued
        self._revocation = revocation
        self._me = me
        self._authorities = authorities
        self._patients = patients
        self._vaults = vaults
        self._bundles = bundles
        self._attachments = attachments
        self._store = store
        self._submitter = submitter
        self._clock = clock
        self._entropy = entropy
        self._making = trio.Lock()

    async def run(self) -> None:
        """Bring what was not final when its command ended to the ledger, until cancelled.

        Grants first: a revocation changes the vault's key, and a grant that waits was made for the key before. One that is
        overtaken all the same is remade (`queued_grants`).
        """
        while True:
            await self._queued.finish()
            await self._revocation.finish()
            await self._clock.sleep_ms(_RETRY_MS)

    # --- grant --------------------------------------------------------------------------------------------------

    async def grant(
        self,
        patient: str,
        *,
        to: str,
        categories: Sequence[str],
        purposes: Sequence[str] = (),
        expires_ms: int = 365 * 86_400_000,
        write: bool = False,
        wallet: SealedWallet | None = None,
    ) -> dict[str, object]:
        """Return {"grant": bundle id, "grants": [{"grant", "category", "transaction", …}]} once all are final.

        Raises:
            Refused: unknown facility, category, purpose or patient; to oneself; too long; or refused by the ledger.
            Forbidden: the patient's keys are not here and no wallet was given.
            NotFinal: queued; ids and the same document are in the error.
        """
        wish = self.wish(to=to, categories=categories, purposes=purposes, expires_ms=expires_ms, write=write)
        if wish.facility.node == self._me:
            raise Refused("a facility needs no grant to itself; name another with --to")
        return await self.grant_as(await self._authorities.for_patient(patient, wallet), wish)

    async def grant_as(self, authority: Authority, wish: Wish) -> dict[str, object]:
        """Grant what was wished with keys at hand; as `grant`."""
        # One at a time: of two equal commands given at once, the second is a repetition.
        async with self._making:
            if authority.custodian != ZERO:
                # The command before this one may have made vaults.
                authority = self._authorities.custody(self._patients.resolve(authority.patient))
            bundle = self._repeated(authority, wish) or await self._make(authority, wish)
        self._queued.add(bundle)
        with trio.move_on_after(_ANSWER_S):
            try:
                return self._document(await self._queued.bring(bundle.id, authority))
            except Unavailable:
                raise self._not_final(bundle) from None
        raise self._not_final(bundle)

    def _not_final(self, bundle: Bundle) -> NotFinal:
        # Grants may have been remade meanwhile: the ids that are on their way now are the ones to report.
        latest = self._bundles.get(bundle.id) or bundle
        ids = (latest.id, *[item.gid.hex() for item in latest.items])
        sentence = self._submitter.waits_for("the grant", [item.signed for item in latest.items])
        return NotFinal(sentence, ids, self._document(latest))

    def wish(
        self, *, to: str, categories: Sequence[str], purposes: Sequence[str], expires_ms: int, write: bool
    ) -> Wish:
        """Return what a command asks for, checked.

        Raises:
            Refused: something in it is unknown or out of bounds.
        """
        facility = self._store.configuration.find(to)
        known = ", ".join(category.value for category in Category)
        for name in categories:
            if name != ALL and category_named(name) is None:
                raise Refused(f"there is no category '{name[:40]}'; choose of {known}, or {ALL}")
        if not categories:
            raise Refused(f"a grant names at least one category; choose of {known}, or {ALL}")
        wanted = tuple([c.value for c in Category if ALL in categories or c.value in categories])
        chosen = tuple(sorted({purpose.upper() for purpose in purposes} or {"TREAT"}))
        if any(purpose not in PURPOSES for purpose in chosen):
            raise Refused(f"a purpose is unknown; choose of {', '.join(PURPOSES)}")
        if not 0 < expires_ms <= limits.GRANT_MS_MAX:
            raise Refused("a grant lasts at least one second and at most five years; correct --expires")
        return Wish(facility, wanted, chosen, "RW" if write else "R", expires_ms, ALL in categories)

    def _repeated(self, authority: Authority, wish: Wish) -> Bundle | None:
        """Return the bundle of an earlier command with the same terms that still holds or can still become final."""
        vaults = [vault for category in wish.categories if (vault := authority.vault_of(category))]
        if not vaults:
            return None
        now_ms = self._vaults.now_ms()
        for bundle in self._bundles.with_terms(_terms(vaults, wish)):
            states = [self._store.grant(Txid(item.gid)) for item in bundle.items]
            if all(
                self._queued.is_open(item, now_ms)
                if state is None
                else not state.revoked_ms and now_ms < state.grant.exp
                for item, state in zip(bundle.items, states, strict=True)
            ):
                return bundle
        return None

    async def _make(self, authority: Authority, wish: Wish) -> Bundle:
        vaults = [
            vault for category in wish.categories if (vault := self._vault_for(authority, category, wish))
        ]
        if not vaults:
            raise Refused("the patient has no vault yet, so there is nothing that the wallet could grant")
        wraps: list[bytes] = []
        epochs: list[int] = []
        for vault in vaults:
            state = self._store.vault(Vid(vault.vid))
            if state is not None and not authority.holds(vault, state):
                raise Forbidden(
                    "these keys do not sign for the patient's vaults any more; use the newest wallet"
                )
            epochs.append(state.epoch if state is not None else 0)
            if state is not None and not authority.is_current(vault, state):
                raise Unavailable("the handover of this patient is not complete yet; repeat in a moment")
            seed = self._entropy.bytes(32)
            wraps.append(authority.wrap(vault, epochs[-1], wish.facility.team, wish.facility, seed32=seed))
        # Persist in this order: wraps, then the bundle that names them, then nothing is lost and nothing half.
        hashes = await self._attachments.keep(wraps)
        items = [
            self._item(authority, vault, wish, epoch, wrap_hash)
            for vault, epoch, wrap_hash in zip(vaults, epochs, hashes, strict=True)
        ]
        bundle = Bundle(self._entropy.bytes(BUNDLE_BYTES), _terms(vaults, wish), tuple(items))
        self._bundles.put(bundle)
        return bundle

    def _vault_for(self, authority: Authority, category: str, wish: Wish) -> WalletVault | None:
        found = authority.vault_of(category)
        if found is None and authority.custodian != ZERO:
            self._vaults.handle(self._patients.resolve(authority.patient), category)
            row = self._patients.row(authority.patient)
            return row.vault_of(category) if row else None
        if found is None and not wish.is_for_all:
            raise Refused(f"the patient has no vault for {category} yet, so there is nothing to grant in it")
        return found

    def _item(
        self, authority: Authority, vault: WalletVault, wish: Wish, epoch: int, wrap_hash: Digest
    ) -> BundleItem:
        now_ms = self._vaults.now_ms()
        exp = now_ms + wish.expires_ms
        # It begins a little in the past: the ledger's clock may be behind ours, and the grant holds at once.
        nbf = max(now_ms - limits.CLOCK_AHEAD_MS_MAX, exp - limits.GRANT_MS_MAX)
        grant = Grant(
            Vid(vault.vid), wish.facility.team, wish.facility.node, KIND_TEAM, wish.rights, wish.purposes, nbf, exp,
            0, _PERIOD_END_MS, 0, epoch, wrap_hash, Digest(ZERO), self._submitter.valid_until(limits.VALID_UNTIL_MS_MAX),
        )  # fmt: skip
        signed = sign(grant, self._submitter.ledger, authority.auth_key(vault))
        return BundleItem(txid_of(grant, self._submitter.ledger), vault.category, signed)

    async def revoke(self, grant: str, *, wallet: SealedWallet | None = None) -> dict[str, object]:
        """End a grant or a bundle of them; as `Revocation.revoke`."""
        return await self._revocation.revoke(grant, wallet=wallet)

    # --- list ---------------------------------------------------------------------------------------------------

    async def list(self, patient: str, *, wallet: SealedWallet | None = None) -> dict[str, object]:
        """Return {"grants": […]} of a patient, those that ended included, oldest first.

        Raises:
            Refused, Forbidden: as `grant`.
        """
        authority = await self._authorities.for_patient(patient, wallet)
        found: list[tuple[int, dict[str, object]]] = []
        for vault in authority.vaults:
            for gid in self._store.events_of(Vid(vault.vid)):
                state = self._store.grant(gid)
                if state is not None:
                    found.append((state.height, self._entry(gid, vault.category, state)))
        return {
            "grants": [entry for _, entry in sorted(found, key=lambda pair: (pair[0], str(pair[1]["grant"])))]
        }

    def _entry(self, gid: Txid, category: str, state: GrantState) -> dict[str, object]:
        bundle = self._bundles.of_grant(gid)
        facility = self._store.configurations.member_ever(state.grant.facility)
        ended = (
            "revoked"
            if state.revoked_ms
            else "expired"
            if state.grant.exp <= self._vaults.now_ms()
            else "live"
        )
        return {
            "grant": gid.hex(),
            "bundle": bundle.id if bundle else "",
            "category": category,
            "facility": facility.name if facility else state.grant.facility.hex()[:16],
            "purposes": list(state.grant.purposes),
            "rights": state.grant.rights,
            "expires": iso_time(state.grant.exp),
            "state": ended,
            "transaction": gid.hex(),
            "height": state.height,
        }

    # --- documents ----------------------------------------------------------------------------------------------

    def _state(self, item: BundleItem) -> str:
        if self._queued.is_final(item):
            return "final"
        return "ordered" if self._submitter.is_ordered(item.signed) else "received"

    def _document(self, bundle: Bundle) -> dict[str, object]:
        facility = self._store.configurations.known_member(NodeId(bundle.terms.facility))
        return {
            "grant": bundle.id,
            "facility": facility.name,
            "expires": iso_time(bundle.items[0].grant.exp),
            "grants": [
                {
                    "grant": item.gid.hex(),
                    "category": item.category,
                    "transaction": item.gid.hex(),
                    "state": self._state(item),
                }
                for item in bundle.items
            ],
        }


def _terms(vaults: Sequence[WalletVault], wish: Wish) -> Terms:
    # Any vault of the patient tells the patient; the first of the wish is always the same one.
    categories = tuple([vault.category for vault in vaults]) if not wish.is_for_all else (ALL,)
    return Terms(vaults[0].vid, wish.facility.node, categories, wish.purposes, wish.rights, wish.expires_ms)


def iso_time(time_ms: int) -> str:
    """Return Unix milliseconds as UTC, to the second."""
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
