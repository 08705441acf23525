"""Another network's history, followed without its blocks: a light client (ledger.md 8).

    anchor   = what was agreed out of band, and the newest certified header seen since
    update   = [configuration changes since] + newest certificate + consistency proof + (optional) cosigned checkpoint
    advance(anchor, update, now) -> anchor

Verified sequentially over configuration changes, of which there are few; nothing is skipped, nothing is bisected.

**Long ranges.** Signers who have left may one day lose or sell their keys, and those keys can sign another past. So an
anchor must be kept fresh: from `limits.ANCHOR_WARN_MS` after its newest header on it warns, from
`limits.ANCHOR_FRESH_MS` on it takes no update, and has to be agreed upon again. It never goes back, and is shown by
consistency proofs that the transactions seen before are still there (not that they still stand in the same blocks). Outside witnesses, named by a policy, have to lie
as well before two clients can be told two histories.

What crosses the border are headers, votes and hashes; never a record.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from protocol import limits
from protocol.block import Header, genesis_block, header_hash
from protocol.change_proof import (
    Change,
    CrossingRecovery,
    InForce,
    check_final,
    follow,
    height_of,
    recovery_in,
)
from protocol.checkpoint import SignedCheckpoint, origin_of
from protocol.codec import Size, wire
from protocol.configuration import Configuration, network_id
from protocol.errors import Conflicting, Invalid, Refused
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, NetworkId, PublicKey
from protocol.merkle import verify_consistency
from protocol.recovery import Recovery, SignedRecovery, check_consents, check_recovery
from protocol.trust_policy import TrustPolicy


class Freshness(enum.Enum):
    """How much an anchor's age allows."""

    FRESH = "fresh"
    AGEING = "ageing"
    EXPIRED = "expired"


@wire("anchor")
@dataclass(frozen=True, slots=True)
class Anchor:
    """What a client knows of another network. Kept durably: an older one in its place would take back what it has seen.

    `configuration` is in force above `configured_at`; `header` is the newest certified one, of genesis at first, and
    `certificate` what made it final. `confirmed_ms` is its time, or our clock's when that was behind it.
    """

    network: Annotated[NetworkId, Size(32)]
    configuration: Configuration
    configured_at: Height
    header: Header
    certificate: Certificate | None
    confirmed_ms: int

    @property
    def height(self) -> Height:
        """Height of the newest certified header."""
        return self.header.height

    def freshness(self, now_ms: int) -> Freshness:
        """Return how much its age allows."""
        age = now_ms - self.confirmed_ms
        if age > limits.ANCHOR_FRESH_MS:
            return Freshness.EXPIRED
        return Freshness.AGEING if age > limits.ANCHOR_WARN_MS else Freshness.FRESH


@wire("update")
@dataclass(frozen=True, slots=True)
class Update:
    """What brings an anchor further. `checkpoint` is a signed note about the header's tree, empty without one."""

    changes: tuple[Change, ...]
    certificate: Certificate
    consistency: Annotated[tuple[Annotated[Digest, Size(32)], ...], Size(0, 64)]
    checkpoint: Annotated[bytes, Size(0, limits.NOTE_BYTES_MAX)]


def anchor_at(genesis: Configuration, now_ms: int) -> Anchor:
    """Return the anchor of a network whose genesis configuration was agreed upon out of band, now."""
    first = genesis_block(genesis).header
    return Anchor(network_id(genesis), genesis, Height(0), first, None, now_ms)


def advance(anchor: Anchor, update: Update, policy: TrustPolicy, now_ms: int) -> Anchor:
    """Return the anchor after an update; the old one stands where this raises.

    Raises:
        Refused: the anchor is too old to be brought further by anything but a new agreement.
        Conflicting: a second certified history; update and anchor together prove it.
        Invalid: which check failed.
    """
    if anchor.freshness(now_ms) is Freshness.EXPIRED:
        days = (now_ms - anchor.confirmed_ms) // limits.DAY_MS
        raise Refused(
            f"network {anchor.network.hex()[:16]} was last confirmed {days} days ago: keys given up since could tell another "
            "past; compare its newest height and hash with its members, and anchor it anew"
        )
    header = update.certificate.header
    _check_forward(anchor, update.changes, header)
    known = InForce(anchor.network, anchor.configuration, anchor.configured_at, anchor.header.epoch)
    in_force = follow(known, update.changes)
    final = check_final(in_force, update.certificate)
    if header.height == anchor.height and final != header_hash(anchor.header):
        raise Conflicting(f"two certified blocks of height {header.height}")
    _check_growth(anchor, update)
    _check_policy(in_force, update, policy)
    confirmed = max(anchor.confirmed_ms, min(header.time_ms, now_ms))
    return Anchor(
        anchor.network, in_force.configuration, in_force.height, header, update.certificate, confirmed
    )


def _check_forward(anchor: Anchor, changes: Iterable[Change], header: Header) -> None:
    """Check that nothing goes back behind what was seen: before any signature, for old ones are genuine too."""
    seen = anchor.header
    if header.height < seen.height or header.epoch < seen.epoch:
        raise Invalid(f"block {header.height} goes back behind block {seen.height}, which was seen before")
    if header.height > seen.height and header.time_ms <= seen.time_ms:
        raise Invalid(f"block {header.height} is above block {seen.height} and not later")
    for change in changes:
        step = recovery_in(change)
        if step is not None and _gives_up(step, anchor):
            if isinstance(change, CrossingRecovery):
                check_consents(step, change.earlier, anchor.network, anchor.configuration)
            elif isinstance(change, SignedRecovery):
                check_recovery(change, anchor.network, anchor.configuration)
            raise Conflicting(
                f"the recovery into epoch {step.epoch} gives up block {anchor.height}, which is certified"
            )
        if height_of(change) <= anchor.height:
            raise Invalid(
                f"a change at block {height_of(change)} behind block {anchor.height}, which was seen before"
            )


def _gives_up(recovery: Recovery, anchor: Anchor) -> bool:
    """Return whether a recovery of a later epoch begins below the newest header seen, or beside it."""
    if recovery.epoch <= anchor.header.epoch or recovery.base_height > anchor.height:
        return False
    return recovery.base_height < anchor.height or recovery.base_hash != header_hash(anchor.header)


def _check_growth(anchor: Anchor, update: Update) -> None:
    """Check that the tree holds all that it held.

    Raises:
        Conflicting: certified headers with two roots of one size; this is told from a proof that is merely bad.
    """
    seen, header = anchor.header, update.certificate.header
    if header.tree_size == seen.tree_size and header.tree_root != seen.tree_root:
        raise Conflicting(f"two certified roots of a tree of {seen.tree_size}")
    if header.tree_size < seen.tree_size:
        raise Conflicting(f"a certified tree of {header.tree_size} above one of {seen.tree_size}")
    verify_consistency(seen.tree_size, header.tree_size, seen.tree_root, header.tree_root, update.consistency)


def _check_policy(in_force: InForce, update: Update, policy: TrustPolicy) -> None:
    """Check that enough of those count who gave their word for the header: by a vote, or on the checkpoint of its tree.

    Heard are keys that have signed. That a member calls a key its own in the configuration is no word of that key.
    """
    heard = {PublicKey(vote.signer) for vote in update.certificate.votes}
    if update.checkpoint:
        note, header = SignedCheckpoint.parse(update.checkpoint), update.certificate.header
        told = note.checkpoint
        if (told.origin, told.size, told.root) != (
            origin_of(in_force.network),
            header.tree_size,
            header.tree_root,
        ):
            raise Invalid("a checkpoint of another tree than the certified header's")
        heard |= {key.public for key in note.signed_by(policy.keys)}
    if not policy.is_met(heard):
        raise Invalid("too few of those whose word counts, by the policy, have given it")
