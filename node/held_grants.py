"""The grants that others gave this facility, opened: category keys and whom they are about, sealed in the keystore.

Written and deleted by `grant_watcher` alone; read by whoever lists patients or opens records.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from protocol import codec
from protocol.codec import Bytes32, Size, wire
from protocol.errors import Corruption, Malformed
from protocol.identifiers import Txid, Vid
from protocol.person import Person
from storage.keystore import Keystore

_PREFIX = "grant/"


@wire("held-grant")
@dataclass(frozen=True, slots=True, repr=False)
class HeldGrant:
    """One opened grant. `patient` is the local handle; `handle` the one inside the wrap, `epoch` the secret's."""

    gid: Bytes32
    vid: Bytes32
    category: Annotated[str, Size(1, 32)]
    epoch: int
    category_secret: Bytes32
    person: Person
    handle: Bytes32
    patient: Annotated[str, Size(1, 64)]
    exp: int
    rights: Annotated[str, Size(1, 3)]
    purposes: tuple[Annotated[str, Size(1, 16)], ...]
    granted_by: Annotated[bytes, Size(32)]  # the vault's custodian at the time, ZERO for the patient

    def __repr__(self) -> str:
        return f"HeldGrant({self.gid.hex()[:16]}, epoch {self.epoch})"


class HeldGrants:
    """All held grants, in memory and in the keystore. One task writes."""

    def __init__(self, keystore: Keystore) -> None:
        self._keystore = keystore
        self._grants: dict[Txid, HeldGrant] = {}
        self.problems: list[str] = []
        for name in keystore.names(_PREFIX):
            try:
                row = keystore.get(name)
                assert row is not None, "names come from the rows"
                grant = codec.decode(row, HeldGrant)
            except (Corruption, Malformed):
                self.problems.append(f"the key store row {name} is damaged: restore the key store from a backup")
                continue
            self._grants[Txid(grant.gid)] = grant

    def __iter__(self) -> Iterator[HeldGrant]:
        return iter(tuple(self._grants.values()))

    def get(self, gid: Txid) -> HeldGrant | None:
        """Return a held grant."""
        return self._grants.get(gid)

    def of_vault(self, vid: Vid) -> tuple[HeldGrant, ...]:
        """Return the held grants for a vault, the longest-lasting first."""
        return tuple(sorted((g for g in self if g.vid == vid), key=lambda grant: (-grant.exp, grant.gid)))

    def of_patient(self, handle: str) -> tuple[HeldGrant, ...]:
        """Return the held grants of a locally known patient."""
        return tuple(grant for grant in self if grant.patient == handle)

    def hold(self, grant: HeldGrant) -> None:
        """Keep a grant, durably on return, replacing its key of an older epoch."""
        self._keystore.put(_name(Txid(grant.gid)), codec.encode(grant))
        self._grants[Txid(grant.gid)] = grant

    def drop(self, gid: Txid) -> None:
        """Forget a grant and its keys for good; no error when it is not held."""
        self._grants.pop(gid, None)
        # Also after a crash between the two steps: the row may be there though memory has lost the grant.
        self._keystore.delete(_name(gid))


def _name(gid: Txid) -> str:
    return _PREFIX + gid.hex()
