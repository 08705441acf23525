"""New governance and checkpoint keys for this facility: kept beside the old ones until a ballot has brought them in.

    prepare    new seeds into the keystore as identity/next-…; the card with them, endorsed by the node key, is proposed
    in force   the configuration names the new public keys: they sign from then on
    settled    at the next start the new seeds take the place of the old ones, for good

A node key is another matter: it is the facility's id. Its facility leaves or becomes a learner, and comes back under a new
card (`governance.RotateKeys` carries that too).
"""

import dataclasses
from collections.abc import Callable, Iterable

from node.identity import Identity
from protocol.configuration import Card, Configuration
from protocol.errors import Refused
from protocol.governance import RotateKeys, endorsement_form
from protocol.identifiers import NetworkId, PublicKey
from protocol.signing import SigningKey
from storage.keystore import Keystore

ROTATED = ("governance", "checkpoint")
"""The keys that change in place; each is a field of `Identity` and of `Member`."""


def _next(name: str) -> str:
    return "identity/next-" + name


class KeyRotation:
    """What is kept of a rotation, and which governance key signs at the moment."""

    def __init__(self, keystore: Keystore, identity: Identity, entropy: Callable[[int], bytes]) -> None:
        self._keystore = keystore
        self._identity = identity
        self._entropy = entropy

    def prepare(self, names: Iterable[str], configuration: Configuration, network: NetworkId) -> RotateKeys:
        """Return what to propose. A rotation that waits already keeps its keys: repeating the command changes nothing.

        Raises:
            Refused: no key of that name, or this facility is no member.
        """
        member = configuration.by_node.get(self._identity.node_id)
        chosen = sorted(set(names))
        if member is None or not chosen or not set(chosen) <= set(ROTATED):
            raise Refused("a member rotates its governance key, its checkpoint key, or both; name which")
        seeds = {name: self._keystore.get(_next(name)) or self._entropy(32) for name in chosen}
        # Kept before anybody hears of the public keys: a ballot must not bring in keys that nobody has.
        self._keystore.put_many({_next(name): seed for name, seed in seeds.items()})
        public = {name: PublicKey(SigningKey(seed).public) for name, seed in seeds.items()}
        renewed = dataclasses.replace(
            member,
            governance=public.get("governance", member.governance),
            checkpoint=public.get("checkpoint", member.checkpoint),
        )
        node_key = SigningKey(self._identity.node)
        # The card keeps a role of its own, which a rotation does not change: a suspended member's is none that cards have.
        role = member.role if member.role != "suspended" else "observer"
        card = Card.make(dataclasses.replace(renewed, role=role), node_key)
        return RotateKeys(member.node, card, node_key.sign(endorsement_form(network, member.node, card)))

    def governance_key(self, configuration: Configuration) -> SigningKey:
        """Return the governance key that the configuration names.

        Raises:
            Refused: it is none of ours.
        """
        member = configuration.by_node.get(self._identity.node_id)
        waiting = self._keystore.get(_next("governance"))
        for seed in (self._identity.governance, *((waiting,) if waiting is not None else ())):
            if member is not None and SigningKey(seed).public == member.governance:
                return SigningKey(seed)
        raise Refused("this facility is no member, or its governance key is not the one in force")


def settled(identity: Identity, keystore: Keystore, configuration: Configuration) -> Identity:
    """Return the identity with the keys that the configuration names, and keep them as such. Done at every start."""
    member = configuration.by_node.get(identity.node_id)
    if member is None:
        return identity
    come = {
        name: seed
        for name in ROTATED
        if (seed := keystore.get(_next(name))) is not None
        and SigningKey(seed).public == getattr(member, name)
    }
    if come:
        # One write: a crash leaves either the old pair or the new one. The names of the waiting keys go afterwards.
        keystore.put_many({"identity/" + name: seed for name, seed in come.items()})
        for name in come:
            keystore.delete(_next(name))
        identity = dataclasses.replace(
            identity,
            governance=come.get("governance", identity.governance),
            checkpoint=come.get("checkpoint", identity.checkpoint),
        )
    return identity
