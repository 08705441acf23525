"""EpochRotate: a new category key for everybody who may still read, so that whoever lost the right cannot open what comes.

The new key goes to each remaining grantee as a wrap, an attachment of its own; `wraps_hash` names the list of them,
because 256 wraps would not fit one attachment. The link attachment leads from the new key back to the old one.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import trio

from node.attachments import Attachments
from node.authority import Authority
from node.ports import Clock, Entropy
from node.queued_grants import QueuedGrants
from node.receipts import Submitter
from protocol import codec
from protocol.codec import Bytes32, Size, wire
from protocol.errors import Forbidden, Unavailable
from protocol.hpke import x25519_public
from protocol.identifiers import Txid, Vid
from protocol.ledger_rows import GRANTS_PER_VAULT_MAX, GrantState, Receipt, Vault
from protocol.patient_keys import seal_epoch_link
from protocol.transaction import EpochRotate, sign
from protocol.wallet import WalletVault
from storage.ledger_store import LedgerStore

_ATTEMPTS = 3


@wire("epoch-wrap")
@dataclass(frozen=True, slots=True)
class EpochWrap:
    """Where a grantee finds its wrap of the new epoch."""

    gid: Bytes32
    wrap_hash: Bytes32


@wire("epoch-wraps")
@dataclass(frozen=True, slots=True)
class EpochWraps:
    """The attachment that `EpochRotate.wraps_hash` names: one entry for each remaining grant, by gid."""

    wraps: Annotated[tuple[EpochWrap, ...], Size(0, GRANTS_PER_VAULT_MAX)]


class Rotation:
    """Rotates vaults' epochs, one rotation of a vault at a time."""

    def __init__(
        self,
        *,
        store: LedgerStore,
        submitter: Submitter,
        attachments: Attachments,
        queued: QueuedGrants,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._store = store
        self._submitter = submitter
        self._attachments = attachments
        self._queued = queued
        self._clock = clock
        self._entropy = entropy
        # A revoke command and the watcher may want the same rotation at once: the second finds it done.
        self._turns: dict[Vid, trio.Lock] = {}

    async def rotate(
        self,
        authority: Authority,
        vault: WalletVault,
        *,
        after_ms: int,
        older: bytes | None = None,
        timeout_ms: int = 8_000,
    ) -> Receipt | None:
        """Begin a new epoch unless one has begun after `after_ms` (ledger time); return the receipt, None when it had.

        `older` is the secret of the present epoch where it is not derived from the authority's root (handover).

        Raises:
            Forbidden: the authority does not hold the vault's keys on the ledger.
            Unavailable: attachments could not be stored by a majority, or it is not final in time; do it again later.
        """
        vid = Vid(vault.vid)
        async with self.turn(vid):
            if self._state(authority, vault).epoch_since_ms > after_ms:
                return None
            # A queued grant is for the key that is about to end: refused for good if it came after this.
            await self._queued.let_through(vid)
            for _ in range(_ATTEMPTS):
                state = self._state(authority, vault)
                if state.epoch_since_ms > after_ms:
                    return None
                receipt = await self._attempt(authority, vault, state, older, timeout_ms)
                if receipt.is_accepted:
                    return receipt
        raise Unavailable("the vault's keys could not be changed; it is tried again")

    @asynccontextmanager
    async def turn(self, vid: Vid) -> AsyncIterator[None]:
        """Keep everybody else from changing a vault's keys for as long as the block lasts."""
        turn = self._turns.setdefault(vid, trio.Lock())
        try:
            async with turn:
                yield
        finally:
            if not turn.locked() and not turn.statistics().tasks_waiting:
                self._turns.pop(vid, None)

    def remaining(self, state: Vault) -> tuple[tuple[Txid, GrantState], ...]:
        """Return the grants of a vault that are live now, by id."""
        now_ms = max(self._clock.now_ms(), self._store.applied().time_ms)
        grants = [(gid, self._store.grant(gid)) for gid in sorted(state.grants)]
        # Not yet begun counts as remaining: its wrap is of an epoch that is about to end.
        return tuple(
            [
                (gid, grant)
                for gid, grant in grants
                if grant and not grant.revoked_ms and now_ms < grant.grant.exp
            ]
        )

    def _state(self, authority: Authority, vault: WalletVault) -> Vault:
        state = self._store.vault(Vid(vault.vid))
        if state is None or not authority.holds(vault, state):
            raise Forbidden("these keys do not sign for that vault any more")
        return state

    async def _attempt(
        self, authority: Authority, vault: WalletVault, state: Vault, older: bytes | None, timeout_ms: int
    ) -> Receipt:
        vid, epoch = state.vid, state.epoch + 1
        newer = authority.keys.category_secret(vid, epoch)
        former = older if older is not None else authority.keys.category_secret(vid, state.epoch)
        if x25519_public(former) != state.cat_pk:
            # Custody has changed hands and its first epoch has not begun yet: a link made now would lead nowhere.
            raise Unavailable("the handover of these vaults is not complete yet; try again in a moment")
        link = seal_epoch_link(vid, state.epoch, older=former, newer=newer)
        gids: list[Txid] = []
        wraps: list[bytes] = []
        for gid, grant in self.remaining(state):
            facility = self._store.configuration.by_node.get(
                self._store.configurations.present(grant.grant.facility)
            )
            if facility is not None:
                seed = self._entropy.bytes(32)
                gids.append(gid)
                wraps.append(authority.wrap(vault, epoch, grant.grant.grantee_pk, facility, seed32=seed))
        link_hash, *wrap_hashes = await self._attachments.keep((link, *wraps))
        entries = zip(gids, wrap_hashes, strict=True)
        listing = codec.encode(EpochWraps(tuple([EpochWrap(gid, digest) for gid, digest in entries])))
        (wraps_hash,) = await self._attachments.keep((listing,))
        await self._attachments.spread((link_hash, *wrap_hashes, wraps_hash))
        rotate = EpochRotate(
            vid, epoch, x25519_public(newer), link_hash, wraps_hash, self._submitter.valid_until()
        )
        signed = sign(rotate, self._submitter.ledger, authority.auth_key(vault))
        return await self._submitter.submit(signed, timeout_ms=timeout_ms)
