"""Which records hold the same: an original and its views and copies, and the versions that supersede one another.

This facility's own notes tell it of records that were added here. Of another facility's records the manifests do, and
a manifest is opened like any record: a Read on the ledger first, so that the patient sees that it was looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from node.announcing import Announcer
from node.authority import Authority
from node.epochs import Epochs
from node.opening import Opening
from node.record_index import RecordIndex, RecordNote
from node.vaults import ReadKey
from protocol import limits
from protocol.errors import Corruption, Forbidden, Refused, Unavailable
from protocol.health.categories import Category
from protocol.identifiers import ZERO, Rid, Txid, Vid
from protocol.ledger_rows import Record, Vault
from protocol.manifest import Meta
from protocol.wallet import WalletVault
from storage.key_value import KeyValue
from storage.ledger_store import LedgerStore
from storage.tombstones import Tombstones

_PURPOSE = "PATRQT"
_OTHERS_MAX = 4_096
"""Manifests of another facility's records that are opened in search of a family: 64 transactions."""


@dataclass(frozen=True, slots=True)
class Relative:
    """One record of a family. `part_of` is its original; None for an original, and for a document that is alone."""

    rid: Rid
    vid: Vid
    category: str
    kind: str
    part_of: Rid | None

    @property
    def root(self) -> Rid:
        """The record that this one holds the same as."""
        return self.part_of or self.rid


class Families:
    """Finds the families of records, erased ones left out."""

    def __init__(
        self,
        *,
        ledger: LedgerStore,
        rows: KeyValue,
        index: RecordIndex,
        epochs: Epochs,
        opening: Opening,
        announcer: Announcer,
    ) -> None:
        self._ledger = ledger
        self._rows = rows
        self._index = index
        self._epochs = epochs
        self._opening = opening
        self._announcer = announcer

    async def of(self, rid: Rid, authority: Authority) -> tuple[Relative, ...]:
        """Return a record's family, the record itself first: what holds the same, in all its versions.

        Raises:
            Forbidden: a record of it lies in a vault that the authority has no key for.
            Unavailable: another facility's manifest could not be read now.
            Refused: too many records would have to be opened to find out.
        """
        found: dict[Rid, Relative] = {}
        versions, ledger = [rid], Tombstones(self._rows, self._ledger)
        while versions:
            version = versions.pop()
            if version in found:
                continue
            for relative in await self._same(version, authority):
                found[relative.rid] = relative
                versions += [other for other in ledger.versions_beside(relative.rid) if other not in found]
        return tuple(relative for relative in found.values() if self._ledger.erasure(relative.rid) is None)

    async def _same(self, rid: Rid, authority: Authority) -> tuple[Relative, ...]:
        """Return the records that hold the same as one, that one first."""
        note = self._index.note(rid)
        if note is not None:
            root = note.original or note.rid
            notes = [one for one in self._index.notes_of(note.patient) if root in (one.rid, one.original)]
            return _first([_of_note(one) for one in notes], rid)
        record = self._ledger.record(rid)
        if record is None or self._ledger.erasure(rid) is not None:
            return ()
        (relative,) = await self._opened((record,), authority)
        # A document of one category has at most a copy for emergencies: its other neighbours need not be opened.
        category = Category.EMERGENCY.value if relative.kind == "document" else None
        others = await self._opened(self._candidates(record, authority, category), authority)
        return _first([one for one in (relative, *others) if one.root == relative.root], rid)

    def _candidates(self, record: Record, authority: Authority, category: str | None) -> tuple[Record, ...]:
        """Return the same author's records that may be of the same file, of one category or all: nothing here is known of them."""
        found: list[Record] = []
        is_same = self._ledger.configurations.is_same
        for vault in authority.vaults:
            if category not in (None, vault.category):
                continue
            for rid in self._ledger.records_of(Vid(vault.vid)):
                other = self._ledger.record(rid)
                if other is None or rid == record.rid or not is_same(other.author, record.author):
                    continue
                if self._index.note(rid) is None and self._ledger.erasure(rid) is None:
                    found.append(other)
        if len(found) > _OTHERS_MAX:
            raise Refused(
                f"{len(found)} records of that facility would have to be opened to find the family; erase it where it was added"
            )
        return tuple(found)

    async def _opened(self, records: Sequence[Record], authority: Authority) -> tuple[Relative, ...]:
        """Open manifests, announced 64 at a time and vault by vault."""
        found: list[Relative] = []
        for vid in dict.fromkeys(record.vid for record in records):
            of_vault = [record for record in records if record.vid == vid]
            vault, state = authority.vault(vid), self._ledger.vault(vid)
            if vault is None or state is None or not authority.holds(vault, state):
                raise Forbidden("a record of that family lies in a vault that these keys do not sign for")
            for start in range(0, len(of_vault), limits.READ_RIDS_MAX):
                group = of_vault[start : start + limits.READ_RIDS_MAX]
                keys = [await self._key(record, vault, state, authority) for record in group]
                rids = tuple(record.rid for record in group)
                await self._announcer.announce(vid, rids, keys[0], _PURPOSE, None)
                for record, key in zip(group, keys, strict=True):
                    meta = await self._meta(record, key)
                    original = meta.original if meta is not None else None
                    kind = meta.kind if meta is not None else "document"
                    found.append(Relative(record.rid, vid, vault.category, kind, original))
        return tuple(found)

    async def _meta(self, record: Record, key: ReadKey) -> Meta | None:
        """Return what a manifest says, None for one that does not open: rubbish has no family, and is erased like the rest."""
        try:
            return (await self._opening.open(record, key.category_secret)).meta
        except Corruption:
            return None

    async def _key(self, record: Record, vault: WalletVault, state: Vault, authority: Authority) -> ReadKey:
        if not authority.is_current(vault, state):
            raise Unavailable("the handover of these vaults is not complete yet; try again in a moment")
        newest = authority.keys.category_secret(state.vid, state.epoch)
        secret = await self._epochs.older_secret(
            state.vid, record.epoch, known_epoch=state.epoch, known_secret=newest
        )
        return ReadKey(Txid(ZERO), authority.auth_key(vault), secret, state.audit_pk)


def _of_note(note: RecordNote) -> Relative:
    return Relative(note.rid, note.vid, note.category, note.kind, note.original)


def _first(relatives: Sequence[Relative], rid: Rid) -> tuple[Relative, ...]:
    """Return the relatives with one of them in front, the others as they came."""
    return tuple(sorted(relatives, key=lambda one: one.rid != rid))
