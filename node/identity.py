"""The keys of a facility: made once by `init`, sealed in the keystore of its home, never written anywhere else."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from node.config import Config
from node.home import Home
from protocol import signing
from protocol.configuration import Card, Member
from protocol.errors import Corruption, Refused
from protocol.hpke import x25519_public
from protocol.identifiers import NodeId, PublicKey
from storage.keystore import Keystore
from storage.leveldb import LevelDb

Entropy = Callable[[int], bytes]

SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A facility's secrets, 32 bytes each; `repr` shows the public node key only.

    `node`, `team`, `governance` and `checkpoint` are Ed25519 seeds (peer id and blocks; records and grants; ballots;
    checkpoints); `kex` is the X25519 secret that grants are wrapped to; `actor_root` is what the handles of people are derived from;
    `fingerprint` keys the digests by which a file that comes twice is recognised.
    """

    node: bytes
    kex: bytes
    team: bytes
    governance: bytes
    checkpoint: bytes
    actor_root: bytes
    fingerprint: bytes

    @staticmethod
    def generate(entropy: Entropy) -> "Identity":
        """Return new secrets."""
        return Identity(*(entropy(SECRET_BYTES) for _ in dataclasses.fields(Identity)))

    @staticmethod
    def load(keystore: Keystore) -> "Identity":
        """Return the secrets in a keystore.

        Raises:
            Corruption: one of them is missing or damaged.
        """
        secrets: list[bytes] = []
        for name in _names():
            secret = keystore.get(name)
            if secret is None or len(secret) != SECRET_BYTES:
                raise Corruption(
                    f"the key {name} is missing from the key store; restore the home from a copy"
                )
            secrets.append(secret)
        return Identity(*secrets)

    def store(self, keystore: Keystore) -> None:
        """Put all secrets into a keystore, together or not at all."""
        keystore.put_many(
            {
                name: getattr(self, field.name)
                for name, field in zip(_names(), dataclasses.fields(self), strict=True)
            }
        )

    @property
    def node_id(self) -> NodeId:
        """The facility's id in the network."""
        return NodeId(signing.SigningKey(self.node).public)

    def member(self, config: Config) -> Member:
        """Return this facility as others see it."""
        return Member(
            name=config.name,
            kind=config.kind,
            role=config.role,
            node=self.node_id,
            kex=x25519_public(self.kex),
            team=PublicKey(signing.SigningKey(self.team).public),
            governance=PublicKey(signing.SigningKey(self.governance).public),
            checkpoint=PublicKey(signing.SigningKey(self.checkpoint).public),
            addresses=config.card_addresses(),
        )

    def card(self, config: Config) -> Card:
        """Return the signed introduction of this facility."""
        return Card.make(self.member(config), signing.SigningKey(self.node))

    def __repr__(self) -> str:
        return f"Identity(node={self.node_id.hex()[:16]})"


def _names() -> list[str]:
    return ["identity/" + field.name.replace("_", "-") for field in dataclasses.fields(Identity)]


def create_keystore(
    home: Home, passphrase: str | None, entropy: Entropy, *, recovery: PublicKey | None = None
) -> Identity:
    """Make the keystore of a new home and the facility's keys in it; without a passphrase a key file opens it.

    `recovery` is the public recovery key that opens it too.

    Raises:
        Refused: there are keys already.
    """
    database = LevelDb(home.keys, create=True, rebuild="")
    try:
        keystore = Keystore.create(database, passphrase, entropy, key_file=home.key_file)
        identity = Identity.generate(entropy)
        identity.store(keystore)
        if recovery is not None:
            keystore.set_recovery_key(recovery)
    finally:
        database.close()
    return identity


def needs_passphrase(home: Home) -> bool:
    """Return whether the home's keys are sealed under a passphrase (else the key file opens them)."""
    return not home.key_file.exists()


@contextlib.contextmanager
def opened_keystore(home: Home, passphrase: str | None, entropy: Entropy) -> Iterator[Keystore]:
    """Open the keystore of a home for as long as the block lasts.

    Raises:
        Refused: wrong or missing passphrase or key file, or no keys.
        Corruption: the keystore's files are damaged.
    """
    if not home.keys.is_dir():
        raise Refused(
            f"{home.path} has no keys; restore its folder keys from a copy, or make a new home with carechain init"
        )
    try:
        database = LevelDb(home.keys, create=False, rebuild="")
    except Corruption:
        raise Corruption(
            f"the key store in {home.keys} is damaged and does not open; restore it from a copy"
        ) from None
    try:
        yield Keystore.unlock(database, passphrase, entropy, key_file=home.key_file)
    finally:
        database.close()
