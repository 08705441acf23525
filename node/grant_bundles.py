"""Grants made here, by the command that made them: one Grant per category under one local bundle id.

A bundle is durable before any of its transactions leaves, so that a repeated command, or this daemon after a crash,
sends the same transactions again and never makes a second grant. It holds signed transactions and ids, no names.

A grant that can never become final any more may be replaced by one that can (`queued_grants`). People may have noted
the id of the former, so that it goes on meaning the grant.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from protocol import codec
from protocol.codec import Bytes32, Size, wire
from protocol.errors import Corruption, Malformed
from protocol.identifiers import Txid, Vid
from protocol.transaction import Grant, SignedTransaction
from storage.keystore import Keystore

BUNDLE_BYTES = 16
_PREFIX = "bundle/"
_RENEWED = "renewed/"
_ID_BYTES = 32


@wire("bundle-item")
@dataclass(frozen=True, slots=True)
class BundleItem:
    """One signed Grant of a bundle; `gid` is its transaction id."""

    gid: Bytes32
    category: Annotated[str, Size(1, 32)]
    signed: SignedTransaction

    @property
    def grant(self) -> Grant:
        """The grant."""
        assert isinstance(self.signed.transaction, Grant), "bundles hold grants only"
        return self.signed.transaction

    @property
    def vid(self) -> Vid:
        """The vault it is for."""
        return self.grant.vid


@wire("bundle-terms")
@dataclass(frozen=True, slots=True)
class Terms:
    """What a command asked for; two commands with equal terms are the same wish. `patient` is the first vault's id."""

    patient: Annotated[bytes, Size(32)]
    facility: Annotated[bytes, Size(32)]
    categories: Annotated[tuple[Annotated[str, Size(1, 32)], ...], Size(1, 16)]
    purposes: Annotated[tuple[Annotated[str, Size(1, 16)], ...], Size(1, 8)]
    rights: Annotated[str, Size(1, 3)]
    expires_ms: int


@wire("bundle")
@dataclass(frozen=True, slots=True)
class Bundle:
    """One command's grants."""

    bundle: Annotated[bytes, Size(BUNDLE_BYTES)]
    terms: Terms
    items: Annotated[tuple[BundleItem, ...], Size(1, 16)]

    @property
    def id(self) -> str:
        """The id people see."""
        return self.bundle.hex()


class GrantBundles:
    """All bundles, in memory and in the keystore."""

    def __init__(self, keystore: Keystore) -> None:
        self._keystore = keystore
        self._bundles: dict[str, Bundle] = {}
        self.problems: list[str] = []
        for name in keystore.names(_PREFIX):
            try:
                row = keystore.get(name)
                assert row is not None, "names come from the rows"
                bundle = codec.decode(row, Bundle)
            except (Corruption, Malformed):
                self.problems.append(
                    f"the key store row {name} is damaged: restore the key store from a backup"
                )
                continue
            self._bundles[bundle.id] = bundle
        self._renewed: dict[Txid, Txid] = {}
        for name in keystore.names(_RENEWED):
            try:
                later = keystore.get(name)
            except Corruption:
                later = None
            if later is None or len(later) != _ID_BYTES:
                self.problems.append(
                    f"the key store row {name} is damaged: restore the key store from a backup"
                )
                continue
            self._renewed[Txid(bytes.fromhex(name.removeprefix(_RENEWED)))] = Txid(later)

    def __iter__(self) -> Iterator[Bundle]:
        return iter(tuple(self._bundles.values()))

    def get(self, bundle_id: str) -> Bundle | None:
        """Return a bundle."""
        return self._bundles.get(bundle_id)

    def put(self, bundle: Bundle) -> None:
        """Keep a bundle, durably on return."""
        self._keystore.put(_PREFIX + bundle.id, codec.encode(bundle))
        self._bundles[bundle.id] = bundle

    def renew(self, bundle: Bundle, renewed: Mapping[Txid, BundleItem]) -> Bundle:
        """Replace grants of a bundle by others, durably on return; return the bundle as it is now.

        The caller vouches that the former ones can never become final.
        """
        # The ids first: after a crash in between they lead to grants that nobody ever saw, and are written again.
        for former, item in renewed.items():
            self._keystore.put(_RENEWED + former.hex(), item.gid)
            self._renewed[former] = Txid(item.gid)
        items = tuple([renewed.get(Txid(item.gid), item) for item in bundle.items])
        latest = replace(bundle, items=items)
        self.put(latest)
        return latest

    def former(self) -> Iterator[tuple[Txid, Txid]]:
        """Yield the id of every grant that was replaced, with that of the grant which stands for it today."""
        current = {Txid(item.gid) for bundle in self for item in bundle.items}
        for former in tuple(self._renewed):
            latest = former
            while latest in self._renewed:
                latest = self._renewed[latest]
            if latest in current and former not in current:
                yield former, latest

    def with_terms(self, terms: Terms) -> tuple[Bundle, ...]:
        """Return the bundles that were made on the same terms."""
        return tuple([bundle for bundle in self if bundle.terms == terms])

    def of_grant(self, gid: Txid) -> Bundle | None:
        """Return the bundle that a grant belongs to."""
        return next((bundle for bundle in self if any(item.gid == gid for item in bundle.items)), None)
