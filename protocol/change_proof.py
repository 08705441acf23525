"""Proof that a block is final, from the genesis configuration alone: what receipts and light clients stand on.

Blocks are not walked: a configuration block is certified by the signers it replaces and by those it brings, and its
header names the configuration it sets (ledger.md 7.2 and 8). So a few certificates lead from genesis to whoever signs
today, and one more to the block in question. Configurations are unsigned: each is recomputed from its hash in a
certified header, and the first one from the network id. After the loss of a majority no quorum of the old signers is left:
there the step is a recovery, which organisations have signed with their governance keys (7.4). Where it makes the
configuration block below it final as well, of which no certificate was ever seen, those of either configuration have.

What such a proof trusts: that at no time a quorum of the signers then in force lied, and that the keys of signers who
have left are not used against us. The second is why light clients keep what they have seen (`protocol.light_client`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from protocol import limits
from protocol.block import Header, header_hash
from protocol.codec import Size, wire
from protocol.configuration import Configuration, network_id
from protocol.errors import Invalid
from protocol.finality import Certificate, check_certificate, linked_heights
from protocol.identifiers import ZERO, Digest, Height, NetworkId, NodeId
from protocol.recovery import Recovery, RecoverySignature, SignedRecovery, check_consents, check_recovery


@wire("configuration-change")
@dataclass(frozen=True, slots=True)
class ConfigurationChange:
    """A configuration block's certificate, under old and new signers, and the configuration that its header names."""

    certificate: Certificate
    configuration: Configuration


@wire("crossing-recovery")
@dataclass(frozen=True, slots=True)
class CrossingRecovery:
    """A recovery together with the configuration block below it that became final by nothing else.

    `headers` lead from that block to the base. The consents to the base's hash are for it too: `earlier` of organisations of
    the configuration that it replaces, those in `signed` of the one that it sets, which is `configuration`.
    """

    headers: Annotated[tuple[Header, ...], Size(1, limits.UNCERTIFIED_BLOCKS_MAX)]
    configuration: Configuration
    earlier: Annotated[tuple[RecoverySignature, ...], Size(0, limits.MEMBERS_MAX)]
    signed: SignedRecovery


Step = SignedRecovery | CrossingRecovery
"""A recovery, by itself or with the change below it."""

Change = ConfigurationChange | Step
"""A step from one configuration to the next."""


@dataclass(frozen=True, slots=True)
class InForce:
    """A configuration that is known to be in force above `height`, where a final block set it, in one epoch.

    `retired` are nodes that signed once and do so no more; only a refusal's words depend on them.
    """

    network: NetworkId
    configuration: Configuration
    height: Height
    epoch: int
    retired: frozenset[NodeId] = frozenset()


def at_genesis(genesis: Configuration) -> InForce:
    """Return the configuration in force above block 0 of the network that `genesis` founds."""
    return InForce(network_id(genesis), genesis, Height(0), 0)


def recovery_of(step: Step) -> Recovery:
    """Return the recovery in a step."""
    return step.signed.recovery if isinstance(step, CrossingRecovery) else step.recovery


def recovery_in(change: Change) -> Recovery | None:
    """Return the recovery that a change is; None for a configuration block with a certificate."""
    return None if isinstance(change, ConfigurationChange) else recovery_of(change)


def height_of(change: Change) -> Height:
    """Return the height of the block that makes a change."""
    if isinstance(change, ConfigurationChange):
        return change.certificate.height
    return Height(recovery_of(change).base_height + 1)


def follow(start: InForce, changes: Iterable[Change]) -> InForce:
    """Return the configuration in force after `changes`, each checked under the one before.

    Raises:
        Invalid: which check failed.
    """
    for change in changes:
        match change:
            case ConfigurationChange():
                start = _changed(start, change)
            case SignedRecovery():
                start = _recovered(start, change)
            case CrossingRecovery():
                start = _recovered(_crossed(start, change), change.signed)
    return start


def _changed(before: InForce, change: ConfigurationChange) -> InForce:
    header, after = change.certificate.header, change.configuration
    if header.next_config_hash == ZERO:
        raise Invalid(f"block {header.height} stands among the configuration blocks and is none")
    if after.digest != header.next_config_hash:
        raise Invalid(f"the configuration set by block {header.height} is not the one that its header names")
    check_final(before, change.certificate, after)
    return InForce(before.network, after, header.height, before.epoch, _retired(before, after))


def _crossed(before: InForce, change: CrossingRecovery) -> InForce:
    """Check that a recovery makes the configuration block below it final; return what is in force above that block."""
    first, recovery = change.headers[0], change.signed.recovery
    _check_place(before, first)
    if first.config_hash != before.configuration.digest:
        raise Invalid(f"block {first.height} is of another configuration")
    if first.next_config_hash != change.configuration.digest:
        raise Invalid(f"the configuration set by block {first.height} is not the one that its header names")
    *_, (tip, height) = linked_heights(first, change.headers[1:]).items()
    if (height, tip) != (recovery.base_height, recovery.base_hash):
        raise Invalid(f"the recovery goes on from another block than {height}")
    check_consents(recovery, change.earlier, before.network, before.configuration)
    retired = _retired(before, change.configuration)
    return InForce(before.network, change.configuration, first.height, before.epoch, retired)


def _check_place(before: InForce, header: Header) -> None:
    """Check that a header is of the network and epoch, and above what is known to be final."""
    if header.net != before.network:
        raise Invalid(f"block {header.height} is of another network")
    if header.height <= before.height:
        raise Invalid(
            f"the proof is out of order: block {header.height} stands after configuration block {before.height}"
        )
    if header.epoch != before.epoch:
        raise Invalid(f"block {header.height} is of epoch {header.epoch}, where {before.epoch} is in force")


def _recovered(before: InForce, signed: SignedRecovery) -> InForce:
    recovery, height = signed.recovery, height_of(signed)
    if recovery.base_height < before.height:
        raise Invalid(
            f"the proof is out of order: recovery block {height} stands after configuration block {before.height}"
        )
    if recovery.epoch <= before.epoch:
        raise Invalid(f"recovery block {height} begins no later epoch than {before.epoch}")
    if recovery.configuration.digest == before.configuration.digest:
        raise Invalid(f"recovery block {height} changes nothing")
    check_recovery(signed, before.network, before.configuration)
    after = recovery.configuration
    return InForce(before.network, after, height, recovery.epoch, _retired(before, after))


def _retired(before: InForce, after: Configuration) -> frozenset[NodeId]:
    return (before.retired | set(before.configuration.signers)) - set(after.signers)


def check_final(
    in_force: InForce, certificate: Certificate, following: Configuration | None = None
) -> Digest:
    """Check a certificate under the configuration in force; return the hash of the header that it makes final.

    Stricter than `check_certificate`, because nothing in a proof file may be unsigned: no header above the highest vote.

    Raises:
        Invalid: which check failed.
    """
    header = certificate.header
    _check_place(in_force, header)
    _check_signers(in_force, certificate, following)
    final = check_certificate(certificate, in_force.network, in_force.configuration, following)
    if max(vote.height for vote in certificate.votes) != header.height + len(certificate.links):
        raise Invalid(f"the certificate of block {header.height} holds a header that nothing signs")
    return final


def _check_signers(in_force: InForce, certificate: Certificate, following: Configuration | None) -> None:
    """Check whose the votes are before their number is: "removed since" says more than "too few"."""
    signers = set(in_force.configuration.signers) | (set(following.signers) if following else set())
    for vote in certificate.votes:
        if vote.signer in in_force.retired - signers:
            raise Invalid(
                f"the certificate of block {certificate.height} holds a vote under a key that was removed before"
            )
        if vote.signer not in signers:
            raise Invalid(
                f"the certificate of block {certificate.height} holds a vote of somebody who does not sign"
            )


@wire("finality-proof")
@dataclass(frozen=True, slots=True)
class FinalityProof:
    """Everything that makes one block final for whoever knows the network id.

    `ancestors` are the headers from the block in question up to the last one below the certified block: none when it
    is certified itself. They are bound by its `prev_hash`, and a certificate is for every ancestor too (P5).
    """

    genesis: Configuration
    changes: tuple[Change, ...]
    ancestors: Annotated[tuple[Header, ...], Size(0, limits.PROOF_HEADERS_MAX)]
    certificate: Certificate

    @property
    def header(self) -> Header:
        """The header of the block that it is about."""
        return self.ancestors[0] if self.ancestors else self.certificate.header

    def check(self) -> InForce:
        """Check that the block is final in the network founded by `genesis`; return whose signature said so.

        Raises:
            Invalid: which check failed.
        """
        in_force = follow(at_genesis(self.genesis), self.changes)
        check_final(in_force, self.certificate)
        for header, above in pairwise((*self.ancestors, self.certificate.header)):
            if header.net != in_force.network:
                raise Invalid(f"block {header.height} is of another network")
            if above.height != header.height + 1 or above.prev_hash != header_hash(header):
                raise Invalid(f"block {above.height} of the proof does not follow the header before it")
        return in_force


def check_not_given_up(header: Header, changes: Iterable[Change]) -> None:
    """Check that no recovery among `changes`, which are known to hold, gives up the block of a header.

    Members that a recovery has left behind may come back and go on as a quorum of their epoch: what they certify above the
    base proves itself as well as ever, and only who knows of the recovery can tell it from what the network stands by.

    Raises:
        Invalid: one does.
    """
    for change in changes:
        step = recovery_in(change)
        if step is not None and step.epoch > header.epoch:
            is_base = header.height == step.base_height and header_hash(header) != step.base_hash
            if header.height > step.base_height or is_base:
                raise Invalid(
                    f"block {header.height} of epoch {header.epoch} is on a branch that was given up: the recovery into epoch "
                    f"{step.epoch} goes on from block {step.base_height}; keep this receipt, it can denounce the recovery"
                )


def without_unsigned(certificate: Certificate) -> Certificate:
    """Return a certificate without the headers above its highest vote, as proof files hold it."""
    top = max(vote.height for vote in certificate.votes)
    return Certificate(certificate.header, certificate.links[: top - certificate.height], certificate.votes)
