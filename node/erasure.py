"""`record erase`: a record with everything that holds the same, gone from every facility, each giving its word.

    which record ──► its family, listed ──► the patient's signature ──► ledger ──► every member deletes and attests

Listed first and erased as listed: a family that has changed in between is listed again. What a reader copied, what was
exported, and backups are outside of what a facility can delete; `NOTICE` says so whenever something is erased.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from node.authority import Authorities, Authority
from node.chunk_holder import ChunkHolder
from node.consent import iso_time
from node.destruction import Destruction
from node.erasure_rows import FAMILY_MAX, AskedErasure, ErasureRows
from node.erasure_watcher import ErasureWatcher
from node.receipts import Submitter
from node.record_family import Families, Relative
from node.record_ids import prefix_of, records_beginning
from node.record_index import RecordIndex
from node.record_report import RecordReport
from node.retrieval import Retrieval
from node.sealed_wallet import SealedWallet
from node.vaults import NOT_YOURS, Vaults
from protocol import codec, limits
from protocol.errors import Forbidden, NotFinal, Refused, Unavailable
from protocol.identifiers import ZERO, Cid, Rid, Txid, Vid, peer_id
from protocol.ledger_rows import Record
from protocol.transaction import RecordErase, SignedTransaction, sign, txid_of
from storage.key_value import KeyValue
from storage.ledger_store import LedgerStore

NOTICE = (
    "Erased is what the facilities of this network hold. What a reader copied or exported before, backups, copies outside, and "
    "what facilities that have left did not delete are not reached; the ledger keeps, without content, that the record existed and was erased."
)
_NEEDS_SIGNATURE = "erasing needs the patient's signature; give --wallet FILE with the wallet of that patient, or ask its custodian"
_COLLECT_MS = 8_000

Document = dict[str, Any]
"""The answer as JSON; Any because its values are texts, numbers and lists of such."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be erased: records on the ledger, and those the ledger refused, which are nowhere but here."""

    rid: Rid
    authority: Authority | None
    ordered: tuple[Relative, ...]
    refused: tuple[Relative, ...]

    @property
    def all(self) -> tuple[Relative, ...]:
        return (*self.ordered, *self.refused)


class Erasures:
    """Lists and erases records for the people of this facility."""

    def __init__(
        self,
        *,
        ledger: LedgerStore,
        rows: KeyValue,
        asked: ErasureRows,
        watcher: ErasureWatcher,
        destruction: Destruction,
        authorities: Authorities,
        vaults: Vaults,
        families: Families,
        index: RecordIndex,
        report: RecordReport,
        holder: ChunkHolder,
        retrieval: Retrieval,
        submitter: Submitter,
    ) -> None:
        self._ledger = ledger
        self._rows = rows
        self._asked = asked
        self._watcher = watcher
        self._destruction = destruction
        self._authorities = authorities
        self._vaults = vaults
        self._families = families
        self._index = index
        self._report = report
        self._holder = holder
        self._retrieval = retrieval
        self._submitter = submitter

    async def erase(
        self,
        record: str,
        *,
        only: bool = False,
        listed: Sequence[str] = (),
        wallet: SealedWallet | None = None,
    ) -> dict[str, object]:
        """Return what would be erased, or, given just those ids as `listed`, erase it.

        Returns {"record", "records": […], "erased": bool, "notice"}, and once erased {"attestations": […], "pending": […]}.
        Asked again, it returns the same records, with the words that have come since.

        Raises:
            Forbidden: no such record for this facility, or the patient's keys are not here and no wallet was given.
            Refused: not final yet, a sibling holds the same (`only`), or the family is not the one that was listed.
            NotFinal: queued; ids and the same document are in the error.
        """
        authority = await self._authorities.of_wallet(wallet) if wallet is not None else None
        rid = await self._target(record, authority)
        row = self._asked.get(rid)
        if row is not None:
            return await self._see_through(rid, [Rid(one) for one in row.family])
        plan = await self._plan(rid, authority, only=only)
        wanted = {relative.rid.hex() for relative in plan.all}
        if not listed:
            return self._listing(plan)
        if set(listed) != wanted:
            raise Refused("the family of the record is no longer what was listed; list it again")
        gone = [{**self._entry(relative), "state": "erased"} for relative in plan.refused]
        for relative in plan.refused:
            await self._destruction.forget(relative.rid)
        await self._watcher.add([await self._row(relative, plan) for relative in plan.ordered])
        document = await self._see_through(rid, [relative.rid for relative in plan.ordered])
        return {**document, "records": [*document["records"], *gone]}

    # --- which records ------------------------------------------------------------------------------------------

    async def _target(self, text: str, authority: Authority | None) -> Rid:
        """Return the one record that a text names among those whose end this facility may know of or bring about."""
        prefix = prefix_of(text)
        own = {rid for rid in (*self._asked.rids(), *self._index.rids()) if rid.hex().startswith(prefix)}
        records = [
            self._ledger.record(rid)
            for rid in records_beginning(self._rows, self._ledger.state_prefix, prefix)
        ]
        ours = {
            record.rid
            for record in records
            if record is not None and self._signer(record.vid, authority) is not None
        }
        found = sorted(own | ours)
        if len(found) > 1:
            raise Refused(f"{len(found)} records begin like that; give more of the id")
        if found:
            return found[0]
        for record in records:
            if record is not None and await self._may_open(record):
                raise Forbidden(_NEEDS_SIGNATURE)
        raise Forbidden(NOT_YOURS)

    async def _may_open(self, record: Record) -> bool:
        try:
            await self._vaults.key_for(record)
        except (Forbidden, Unavailable):
            return False
        return True

    def _signer(self, vid: Vid, authority: Authority | None) -> Authority | None:
        """Return who signs for a vault: the wallet's owner, or this facility as custodian; None for neither."""
        signer = authority or self._authorities.of_vault(vid)
        vault, state = (signer.vault(vid) if signer is not None else None), self._ledger.vault(vid)
        holds = signer is not None and vault is not None and state is not None and signer.holds(vault, state)
        return signer if holds else None

    async def _plan(self, rid: Rid, authority: Authority | None, *, only: bool) -> _Plan:
        record, note = self._ledger.record(rid), self._index.note(rid)
        if record is None:
            assert note is not None, "a record that was found is on the ledger or was added here"
            if not note.refusal:
                raise Refused(
                    "the record is not final yet: it is in the queue, and can be erased once it is final"
                )
            lone = Relative(rid, note.vid, note.category, note.kind, note.original)
            return _Plan(rid, None, (), (lone,))
        signer = self._signer(record.vid, authority)
        if signer is None:
            raise Forbidden(_NEEDS_SIGNATURE)
        if self._ledger.erasure(rid) is not None:
            vault = signer.vault(record.vid)
            assert vault is not None, "it signs for that vault"
            return _Plan(rid, signer, (Relative(rid, record.vid, vault.category, "", None),), ())
        family = await self._families.of(rid, signer)
        chosen = _alone(family) if only else family
        if len(chosen) > FAMILY_MAX:
            raise Refused(f"{len(chosen)} records are too many for one erasure; erase versions with --only")
        return self._checked(_Plan(rid, signer, chosen, ()))

    def _checked(self, plan: _Plan) -> _Plan:
        """Return the plan with what the ledger refused set apart.

        Raises:
            Refused: some of it is on its way to the ledger.
            Forbidden: some of it is not the signer's.
        """
        waiting = [
            relative
            for relative in plan.ordered
            if self._report.state(relative.rid) in ("received", "ordered", "unknown")
        ]
        if waiting:
            raise Refused(
                f"{len(waiting)} records of the same family are not final yet, or not known to be here yet; erase all when they are"
            )
        ordered = tuple(one for one in plan.ordered if self._ledger.record(one.rid) is not None)
        if any(self._signer(one.vid, plan.authority) is None for one in ordered):
            raise Forbidden(_NEEDS_SIGNATURE)
        refused = tuple(one for one in plan.ordered if one not in ordered)
        return _Plan(plan.rid, plan.authority, ordered, refused)

    # --- erasing ------------------------------------------------------------------------------------------------

    async def _row(self, relative: Relative, plan: _Plan) -> AskedErasure:
        """Return the row of one record, with its RecordErase signed unless it is erased already."""
        authority = plan.authority
        vault = authority.vault(relative.vid) if authority is not None else None
        assert authority is not None, "nobody plans to erase from the ledger without the keys"
        assert vault is not None, "checked when it was planned"
        erasure = self._ledger.erasure(relative.rid)
        signed, txid = b"", erasure.txid if erasure is not None else Txid(ZERO)
        if erasure is None:
            valid_until = self._submitter.valid_until(limits.VALID_UNTIL_MS_MAX)
            erase = RecordErase(relative.vid, relative.rid, valid_until)
            txid = txid_of(erase, self._submitter.ledger)
            signed = codec.encode(sign(erase, self._submitter.ledger, authority.auth_key(vault)))
        return AskedErasure(
            relative.rid,
            relative.vid,
            txid,
            authority.patient,
            relative.category,
            relative.kind,
            relative.part_of or Rid(ZERO),
            tuple(one.rid for one in plan.ordered),
            signed,
            await self._cids(relative.rid) if erasure is None else (),
            (),
        )

    async def _cids(self, rid: Rid) -> tuple[Cid, ...]:
        """Return the chunks of a record, from its envelope's list, here or at another member; none when nobody answers.

        They go to the members, for one that was pushed chunks but never got the list.
        """
        record = self._ledger.record(rid)
        assert record is not None, "it is about to be erased from the ledger"
        placed = self._holder.placed(rid)
        if placed is None:
            try:
                await self._retrieval.envelope(record)
            except Unavailable:
                return ()  # those who have the list delete by it
            placed = self._holder.placed(rid)
        return placed.cids if placed is not None else ()

    async def _see_through(self, rid: Rid, family: Sequence[Rid]) -> Document:
        """Order what is not ordered, collect what members say, and tell it."""
        try:
            await self._watcher.order(family)
        except NotFinal:
            ids = tuple(one.hex() for one in family)
            rows = [row for one in family if (row := self._asked.get(one)) is not None and row.signed]
            waiting = [codec.decode(row.signed, SignedTransaction) for row in rows]
            sentence = self._submitter.waits_for("the erasure", waiting)
            raise NotFinal(sentence, ids, self._document(rid, family)) from None
        await self._watcher.await_present(family, _COLLECT_MS)
        return self._document(rid, family)

    # --- documents ----------------------------------------------------------------------------------------------

    def _listing(self, plan: _Plan) -> dict[str, object]:
        return {
            "record": plan.rid.hex(),
            "records": [self._entry(one) for one in plan.all],
            "erased": False,
            "notice": NOTICE,
        }

    def _entry(self, relative: Relative) -> dict[str, object]:
        record, note = self._ledger.record(relative.rid), self._index.note(relative.rid)
        if note is not None:
            return self._report.of_note(note)
        assert record is not None, "a record without a note was found on the ledger"
        entry = self._report.of_record(record, "", relative.category)
        part_of = relative.part_of.hex() if relative.part_of is not None else None
        return {**entry, "kind": relative.kind or None, "part_of": part_of}

    def _document(self, rid: Rid, family: Sequence[Rid]) -> Document:
        rows = [row for one in family if (row := self._asked.get(one)) is not None]
        erased = [row for row in rows if not row.signed]
        return {
            "record": rid.hex(),
            "records": [self._erased_entry(row) for row in rows],
            "erased": len(erased) == len(rows),
            "attestations": [entry for row in erased for entry in self._attestations(row)],
            "pending": [entry for row in erased for entry in self._pending(row)],
            "notice": NOTICE,
        }

    def _erased_entry(self, row: AskedErasure) -> dict[str, object]:
        erasure = self._ledger.erasure(Rid(row.rid))
        return {
            "record": row.rid.hex(),
            "patient": row.patient or None,
            "category": row.category,
            "kind": row.kind or None,
            "part_of": row.part_of.hex() if row.part_of != ZERO else None,
            "state": "erased" if erasure is not None else "received",
            "erased": iso_time(erasure.time_ms) if erasure is not None else None,
            "transaction": row.txid.hex(),
            "height": erasure.height if erasure is not None else None,
        }

    def _attestations(self, row: AskedErasure) -> list[dict[str, object]]:
        name = self._ledger.configurations.name_ever
        return [
            {
                "record": row.rid.hex(),
                "facility": name(word.node),
                "peer_id": peer_id(word.node),
                "chunks": word.chunks,
                "shared": word.shared,
                "time": iso_time(word.time_ms),
                "transaction": word.txid.hex(),
                "attestation": codec.encode(word).hex(),
            }
            for word in row.attestations
        ]

    def _pending(self, row: AskedErasure) -> list[dict[str, object]]:
        name = self._ledger.configurations.name_ever
        return [
            {
                "record": row.rid.hex(),
                "facility": name(node),
                "peer_id": peer_id(node),
                "reason": reason,
            }
            for node, reason in self._watcher.pending(Rid(row.rid))
        ]


def _alone(family: tuple[Relative, ...]) -> tuple[Relative, ...]:
    """Return the first of a family, if none of the others holds the same.

    Another version is another document: a version with an error can go without the one that corrects it.
    """
    first, *others = family
    alike = [other for other in others if other.root == first.root]
    if alike:
        raise Refused(
            f"{len(alike)} other records hold the same as this one (its original, views or copies); erase them together, without --only"
        )
    return (first,)
