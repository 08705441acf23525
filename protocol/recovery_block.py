"""The block that begins an epoch after the loss of a majority, and the consents that stand in it (ledger.md 7.4).

It needs no certificate: it counts as a base at its height (P4), by the word of the organisations in it, and makes what it
stands on final. Who consents is hashed into nothing: members to whose operators other consents came first must not begin
two histories.

    base's configuration certified      consents of its organisations
    set by a block that may not be      and consents of the organisations before that block, in `CrossingConsents`
"""

from dataclasses import dataclass
from typing import Annotated

from protocol import codec, limits, merkle
from protocol.block import Block, Header, config_hash_above, header_hash
from protocol.codec import Size, wire
from protocol.configuration import Configuration, recovery_fault
from protocol.errors import Invalid
from protocol.identifiers import ZERO, Height, NetworkId, NodeId
from protocol.merkle import Frontier
from protocol.recovery import (
    Recovery,
    RecoverySignature,
    SignedRecovery,
    check_consents,
    check_recovery,
)

_APP_VERSION = 1

SignaturesField = Annotated[tuple[RecoverySignature, ...], Size(0, limits.MEMBERS_MAX)]


@wire("recovery-consents")
@dataclass(frozen=True, slots=True)
class RecoveryConsents:
    """Who consents, beside a recovery in its block."""

    signatures: SignaturesField


@wire("crossing-consents")
@dataclass(frozen=True, slots=True)
class CrossingConsents:
    """Who consents where the base stands above a configuration block that nobody has a certificate of.

    `signatures` are of organisations of the configuration that this block set, `earlier` of those of the one before it.
    """

    signatures: SignaturesField
    earlier: SignaturesField


def recovery_block(
    signed: SignedRecovery, base: Header, frontier: Frontier, earlier: tuple[RecoverySignature, ...] = ()
) -> Block:
    """Return the block that begins the next epoch above `base`; of no leader, and the same block for everybody.

    `frontier` is the tree after the base; `earlier` are consents as in `CrossingConsents`, none where there are none.
    """
    recovery = signed.recovery
    special = codec.encode(recovery)
    header = Header(
        base.net,
        recovery.epoch,
        Height(base.height + 1),
        header_hash(base),
        recovery.term,
        NodeId(ZERO),
        recovery.time_ms,
        0,
        merkle.leaf_hash(special),
        frontier.size,
        frontier.root(),
        config_hash_above(base),
        recovery.configuration.digest,
        _APP_VERSION,
    )
    consents = (
        CrossingConsents(signed.signatures, earlier) if earlier else RecoveryConsents(signed.signatures)
    )
    return Block(header, codec.encode(consents), special, ())


def signed_recovery_of(block: Block) -> SignedRecovery:
    """Return what a block that claims to begin an epoch holds, unchecked.

    Raises:
        Malformed: it holds none.
    """
    return SignedRecovery(codec.decode(block.special, Recovery), _consents(block).signatures)


def earlier_consents_of(block: Block) -> tuple[RecoverySignature, ...]:
    """Return the consents under the configuration before the one that its base stands under, unchecked; none if it has none.

    Raises:
        Malformed: it holds no consents.
    """
    match _consents(block):
        case CrossingConsents(_, earlier):
            return earlier
        case RecoveryConsents():
            return ()


def _consents(block: Block) -> RecoveryConsents | CrossingConsents:
    found: RecoveryConsents | CrossingConsents = codec.decode_union(
        block.signature, RecoveryConsents | CrossingConsents
    )
    return found


def check_recovery_block(
    block: Block,
    base: Header,
    frontier: Frontier,
    before: Configuration,
    uncertified: Configuration | None = None,
) -> SignedRecovery:
    """Check a block that claims to begin a new epoch above `base`; return what it holds.

    `uncertified` is the configuration before `before` where the block that changed it is not known to be certified.

    Raises:
        Invalid: it is not what the recovery in it makes, or too few consent to that.
        Malformed: it holds none.
    """
    signed = signed_recovery_of(block)
    recovery = signed.recovery
    if (recovery.base_height, recovery.base_hash) != (base.height, header_hash(base)):
        raise Invalid(f"block {block.height} recovers from another base")
    if recovery.epoch <= base.epoch or recovery.term < base.term or recovery.time_ms <= base.time_ms:
        raise Invalid(f"block {block.height} begins no later epoch, term and time")
    if before.digest != config_hash_above(base) or recovery.configuration.digest == before.digest:
        raise Invalid(f"block {block.height} recovers from, or to, another configuration")
    fault = recovery_fault(before, recovery.configuration)
    if fault is not None:
        raise Invalid(f"block {block.height} sets no configuration that may follow: {fault}")
    if block != recovery_block(signed, base, frontier, earlier_consents_of(block)):
        raise Invalid(f"block {block.height} is not what its recovery makes")
    check_block_consents(block, before, uncertified)
    return signed


def check_block_consents(
    block: Block, before: Configuration, uncertified: Configuration | None = None
) -> None:
    """Check the consents alone in a block that begins an epoch: what its hash doesn't cover.

    Raises:
        Invalid: too few consent, or they do not hold.
        Malformed: it holds none.
    """
    signed, network = signed_recovery_of(block), NetworkId(block.header.net)
    check_recovery(signed, network, before)
    if uncertified is not None:
        check_consents(signed.recovery, earlier_consents_of(block), network, uncertified)


def configuration_set_by(block: Block) -> Configuration:
    """Return the configuration in force above a block that sets one, by ballot or by a recovery.

    Raises:
        Invalid: the body is not what the header names.
        Malformed: it is no configuration, and no recovery.
    """
    if not block.is_recovery:
        return block.next_configuration()
    configuration = codec.decode(block.special, Recovery).configuration
    if configuration.digest != block.header.next_config_hash:
        raise Invalid(f"block {block.height} carries another configuration than it names")
    return configuration
