"""The grants that others gave this facility, opened: category keys and whom they are about, sealed in the keystore.

Written and deleted by `grant_watcher` alone; read by whoever lists patients or opens records.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, TypeVar

from protocol import codec
from protocol.codec import Bytes32, Size, wire
from protocol.errors import Corruption, Malformed
from protocol.identifiers import Txid, Vid
from protocol.person import Person
from storage.keystore import Keystore

K = TypeVar("K")

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
        self._by_vault: dict[Vid, set[Txid]] = {}
        self._by_patient: dict[str, set[Txid]] = {}
        self.problems: list[str] = []
        for name in keystore.names(_PREFIX):
            try:
                row = keystore.get(name)
                assert row is not None, "names come from the rows"
                grant = codec.decode(row, HeldGrant)
            except (Corruption, Malformed):
                self.problems.append(
                    f"the key store row {name} is damaged: restore the key store from a backup"
                )
                continue
            self._index(grant)

    def __iter__(self) -> Iterator[HeldGrant]:
        return iter(tuple(self._grants.values()))

    def get(self, gid: Txid) -> HeldGrant | None:
        """Return a held grant."""
        return self._grants.get(gid)

    def of_vault(self, vid: Vid) -> tuple[HeldGrant, ...]:
        """Return the held grants for a vault, the longest-lasting first."""
        grants = [self._grants[gid] for gid in self._by_vault.get(vid, ())]
        return tuple(sorted(grants, key=lambda grant: (-grant.exp, grant.gid)))

    def of_patient(self, handle: str) -> tuple[HeldGrant, ...]:
        """Return the held grants of a locally known patient, by id."""
        return tuple([self._grants[gid] for gid in sorted(self._by_patient.get(handle, ()))])

    def patients(self) -> frozenset[str]:
        """Return the local handles of the patients that grants are held for."""
        return frozenset(self._by_patient)

    def hold(self, grant: HeldGrant) -> None:
        """Keep a grant, durably on return, replacing its key of an older epoch."""
        self._keystore.put(_name(Txid(grant.gid)), codec.encode(grant))
        self._index(grant)

    def drop(self, gid: Txid) -> None:
        """Forget a grant and its keys for good; no error when it is not held."""
        grant = self._grants.pop(gid, None)
        if grant is not None:
            _discard(self._by_vault, Vid(grant.vid), gid)
            _discard(self._by_patient, grant.patient, gid)
        # Also after a crash between the two steps: the row may be there though memory has lost the grant.
        self._keystore.delete(_name(gid))

    def _index(self, grant: HeldGrant) -> None:
        gid = Txid(grant.gid)
        self._grants[gid] = grant
        self._by_vault.setdefault(Vid(grant.vid), set()).add(gid)
        self._by_patient.setdefault(grant.patient, set()).add(gid)


def _discard(index: dict[K, set[Txid]], key: K, gid: Txid) -> None:
    index[key].discard(gid)
    if not index[key]:
        del index[key]


def _name(gid: Txid) -> str:
    return _PREFIX + gid.hex()
