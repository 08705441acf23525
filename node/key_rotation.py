"""New keys for this facility: kept beside the old ones until a ballot has brought them in.

    prepare    new seeds into the keystore as identity/next-…; the card with them, endorsed by the old node key, is proposed
    in force   the configuration names the new public keys. The governance and checkpoint keys sign from then on; of a node
               key the old one is that of a former member now, and the daemon starts again with the new one
    settled    at the next start the new seeds take the place of the old ones, for good

The node key is the facility's id towards its peers. On the ledger the facility stays who it was (`ballots`): its vaults, its
grants and its name are those of the id it had first. Only who signs no blocks changes it: a voter is demoted before.
"""

import dataclasses
from collections.abc import Callable, Iterable

from node.identity import Identity
from node.ports import Entropy
from node.queued_record import QueuedRecord
from node.sealed_rows import SealedRows
from protocol import codec
from protocol.configuration import SUSPENDED, Card, Configuration
from protocol.errors import Refused
from protocol.governance import RotateKeys, endorsement_form
from protocol.identifiers import NetworkId, NodeId, PublicKey
from protocol.signing import SigningKey
from storage.key_value import Batch, KeyValue
from storage.keyspace import RECORD_QUEUE
from storage.keystore import Keystore

ROTATED = ("governance", "checkpoint", "node")
"""The keys that can be rotated; each is a field of `Identity` and of `Member`."""
_FIRST_NODE = "identity/first-node-id"


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
            raise Refused("a member rotates its governance, its checkpoint or its node key; name which")
        seeds = {name: self._keystore.get(_next(name)) or self._entropy(32) for name in chosen}
        # Kept before anybody hears of the public keys: a ballot must not bring in keys that nobody has.
        self._keystore.put_many({_next(name): seed for name, seed in seeds.items()})
        public = {name: PublicKey(SigningKey(seed).public) for name, seed in seeds.items()}
        renewed = dataclasses.replace(
            member,
            node=NodeId(public.get("node", member.node)),
            governance=public.get("governance", member.governance),
            checkpoint=public.get("checkpoint", member.checkpoint),
        )
        old_key = SigningKey(self._identity.node)
        # The card keeps a role of its own, which a rotation does not change: a suspended member's is none that cards have.
        role = member.role if member.role != SUSPENDED else "observer"
        new_key = SigningKey(seeds.get("node", self._identity.node))
        card = Card.make(dataclasses.replace(renewed, role=role), new_key)
        return RotateKeys(member.node, card, old_key.sign(endorsement_form(network, member.node, card)))

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


def node_key_in_force(identity: Identity, keystore: Keystore, configuration: Configuration) -> bytes | None:
    """Return the seed of the node key that has replaced the one of `identity`; None while that one is in force."""
    if identity.node_id in configuration.by_node:
        return None
    seed = keystore.get(_next("node"))
    return seed if seed is not None and NodeId(SigningKey(seed).public) in configuration.by_node else None


def settled(
    identity: Identity, keystore: Keystore, configuration: Configuration, rows: KeyValue, entropy: Entropy
) -> Identity:
    """Return the identity with the keys that the configuration names, and keep them as such. Done at every start.

    `rows` is the ledger database.
    """
    node = node_key_in_force(identity, keystore, configuration)
    if node is not None:
        # Before the key: after a crash between the two the old key would seal them once more, and no harm is done.
        _unseal_queued(rows, SealedRows(rows, identity.fingerprint, entropy))
        first = keystore.get(_FIRST_NODE) or identity.node_id
        keystore.put_many({"identity/node": node, _FIRST_NODE: first})
        keystore.delete(_next("node"))
        identity = dataclasses.replace(identity, node=node)
    member = configuration.by_node.get(identity.node_id)
    if member is None:
        return identity
    come = {
        name: seed
        for name in ("governance", "checkpoint")
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


def first_node_id(identity: Identity, keystore: Keystore) -> NodeId:
    """Return the node id with which this facility founded or joined its network."""
    return NodeId(keystore.get(_FIRST_NODE) or identity.node_id)


def _unseal_queued(rows: KeyValue, sealed: SealedRows) -> None:
    """Take the envelopes off queued records: they name the author by its former id, and nobody would take them any more."""
    batch = Batch()
    for rid, row in sealed.scan(RECORD_QUEUE):
        record = codec.decode(row, QueuedRecord)
        sealed.put(batch, RECORD_QUEUE + rid, codec.encode(dataclasses.replace(record, envelope=b"")))
    rows.write(batch, sync=True)
