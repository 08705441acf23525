"""Plans to go on after the loss of a majority, and an organisation's consent to one of them (ledger.md 7.4).

Consents to two plans of one epoch can begin two histories, and no consent can be taken back. So a custodian remembers, durably
and before the consent leaves, which plan of an epoch it has consented to, and signs another one only for whoever names the first.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from node.recovery_file import Consent, Plan, file_text
from protocol import codec, governance
from protocol.configuration import Configuration, recovery_fault
from protocol.errors import Refused
from protocol.identifiers import Digest, NodeId
from protocol.recovery import (
    Recovery,
    RecoverySignature,
    SignedRecovery,
    check_consents,
    check_recovery,
    consent,
    consents_needed,
    is_step_from,
)
from protocol.signing import SigningKey, sha256
from storage.keystore import Keystore

Document = dict[str, Any]
GovernanceKey = Callable[[Configuration], SigningKey]
"""Returns this facility's governance key that a configuration names, or raises Refused."""

_CONSENTED = "recovery/consented-epoch-"


class Custodian:
    """Consents to plans for one organisation; for that its key store is enough."""

    def __init__(self, keystore: Keystore, governance_key: GovernanceKey, me: NodeId) -> None:
        self._keystore = keystore
        self._governance_key = governance_key
        self._me = me

    def consent(self, plan: Plan, *, instead_of: str | None = None) -> Document:
        """Return the consent to a plan; to the same one again as often as it is asked for.

        Raises:
            Refused: the plan is none that could be applied, no configuration in it names the governance key here, or it has
                no say; or it has consented to another plan of that epoch, and `instead_of` is not the beginning of its digest.
        """
        recovery = plan.recovery
        fault = recovery_fault(plan.before, recovery.configuration)
        if fault is not None or not is_step_from(recovery, plan.before):
            raise Refused("the plan does not lead from the configuration that it shows; ask for another one")
        key, earlier_key = self._key_of(plan.before, recovery), None
        if plan.earlier is not None:
            earlier_key = self._key_of(plan.earlier, recovery)
        if key is None and earlier_key is None:
            raise Refused(
                "the consent of this facility would not count: it is declared lost, or neither voter nor witness"
            )
        self._remember(recovery, instead_of)
        signed = Consent(plan.network, self._signature(plan, key), self._signature(plan, earlier_key))
        return {"consent": file_text(signed), **plan_document(plan)}

    def _key_of(self, configuration: Configuration, recovery: Recovery) -> SigningKey | None:
        has_say = self._me in configuration.signers and self._me not in recovery.lost
        return self._governance_key(configuration) if has_say else None

    def _signature(self, plan: Plan, key: SigningKey | None) -> RecoverySignature | None:
        return consent(key, plan.network, plan.recovery, self._me) if key is not None else None

    def _remember(self, recovery: Recovery, instead_of: str | None) -> None:
        name, digest = f"{_CONSENTED}{recovery.epoch}", plan_digest(recovery)
        first = self._keystore.get(name)
        if first == digest:
            return
        if first is not None and (
            not instead_of or len(instead_of) < 16 or not first.hex().startswith(instead_of.lower())
        ):
            raise Refused(
                f"this facility has consented to another plan for epoch {recovery.epoch}, of digest {first.hex()}, and both "
                f"could be applied; apply that one, or make sure with everybody that nobody ever will, and repeat with "
                f"--instead-of {first.hex()}"
            )
        # Persist before signing: a consent that was forgotten in a crash could be given to two plans.
        self._keystore.put(name, digest)


def plan_digest(recovery: Recovery) -> Digest:
    """Return what a plan is called by: the hash of all that organisations consent to."""
    return sha256(codec.encode(recovery))


def checked(plan: Plan, consents: list[Consent]) -> tuple[SignedRecovery, tuple[RecoverySignature, ...]]:
    """Return a plan with the consents to it, each organisation's once, and those under the configuration before, if needed.

    Raises:
        Invalid: too few consent, or a signature does not hold.
    """
    given = [one.signature for one in consents if one.signature is not None]
    signed = SignedRecovery(plan.recovery, _sorted(given))
    check_recovery(signed, plan.network, plan.before)
    if plan.earlier is None:
        return signed, ()
    earlier = _sorted([one.earlier for one in consents if one.earlier is not None])
    check_consents(plan.recovery, earlier, plan.network, plan.earlier)
    return signed, earlier


def _sorted(signatures: list[RecoverySignature]) -> tuple[RecoverySignature, ...]:
    by_node = {one.node: one for one in signatures}
    return tuple(by_node[node] for node in sorted(by_node))


def plan_document(plan: Plan) -> Document:
    """Return what a plan says, as it is shown to whoever is to sign it."""
    recovery, before = plan.recovery, plan.before
    after = recovery.configuration
    left = {member.node for member in after.members}
    name = {member.node: member.name for member in before.members}
    return {
        "digest": plan_digest(recovery).hex(),
        "epoch": recovery.epoch,
        "base_height": recovery.base_height,
        "base": recovery.base_hash.hex(),
        "time_ms": recovery.time_ms,
        "lost": sorted(name[node] for node in recovery.lost),
        "leaving": sorted(name[node] for node in name if node not in left),
        "joining": sorted(one.name for one in after.members if one.node not in name),
        "discarded": [digest.hex() for digest in recovery.discarded],
        "reason": recovery.reason,
        **_say(recovery, before),
        "earlier": None if plan.earlier is None else _say(recovery, plan.earlier),
        "risk": governance.change_risk(before, after),
        "before": asdict(governance.Standing.of(before)),
        "after": asdict(governance.Standing.of(after)),
    }


def _say(recovery: Recovery, before: Configuration) -> Document:
    having = [node for node in before.signers if node not in recovery.lost]
    return {
        "consents_needed": consents_needed(recovery, before),
        "may_sign": sorted(before.by_node[node].name for node in having),
    }
