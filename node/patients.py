"""The patients a facility knows: its own, registered here, and those who granted it access.

A patient's row (identity, the two roots while this facility is custodian, the vaults made so far) is sealed in the
keystore under a random local handle. Nothing of it is on the ledger, and vaults appear there only at first use.
Every change is durable before anything that depends on it leaves this process: a vault whose keys were lost in a
crash would be lost for ever.
"""

import datetime as dt
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from node.held_grants import HeldGrants
from node.ports import Entropy
from protocol import codec
from protocol.codec import Size, wire
from protocol.errors import Corruption, Malformed, Refused
from protocol.health import fhir, identity
from protocol.health.identity import Match, PatientIdentity
from protocol.identifiers import NodeId, Vid
from protocol.key_derivation import h256
from protocol.patient_keys import PatientKeys
from protocol.person import Identifier, Person
from protocol.wallet import WalletVault
from storage.keystore import Keystore

Custody = Literal["facility", "patient", "granted"]

HANDLE_BYTES = 8
_PREFIX = "patient/"
_IDENTIFIERS_MAX = 64
_TEXT_MAX = 256
_BIRTH_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_UNKNOWN = "no patient of this facility has that handle; see them with carechain patient list"


@wire("patient-row")
@dataclass(frozen=True, slots=True, repr=False)
class PatientRow:
    """What is kept of an own patient. `root` and `recovery_root` are empty once the patient holds the keys.

    `handover` is the id of the handover in progress or done, else empty.
    """

    person: Person
    root: Annotated[bytes, Size(0, 32)]
    recovery_root: Annotated[bytes, Size(0, 32)]
    vaults: Annotated[tuple[WalletVault, ...], Size(0, 1024)]
    handover: Annotated[str, Size(0, 64)]

    def __repr__(self) -> str:
        return f"PatientRow({len(self.vaults)} vaults)"

    @property
    def keys(self) -> PatientKeys | None:
        """The patient's keys while this facility is custodian."""
        return PatientKeys(self.root, self.recovery_root) if self.root else None

    def vault_of(self, category: str) -> WalletVault | None:
        """Return the vault made for a category, on the ledger or not."""
        return next((vault for vault in self.vaults if vault.category == category), None)


@dataclass(frozen=True, slots=True, repr=False)
class LocalPatient:
    """A patient as this facility knows them. `granted_by` are custodians who granted access, ZERO for the patient."""

    handle: str
    custody: Custody
    person: Person
    categories: tuple[str, ...]
    granted_by: tuple[NodeId, ...]

    @property
    def identity(self) -> PatientIdentity:
        """The identity as documents are compared with it."""
        return _identity_of(self.person)

    def __repr__(self) -> str:
        return f"LocalPatient({self.handle}, {self.custody})"


class Patients:
    """The registry. All rows are kept in memory; every change is written through."""

    def __init__(self, keystore: Keystore, held: HeldGrants, entropy: Entropy) -> None:
        self._keystore = keystore
        self._held = held
        self._entropy = entropy
        self._rows: dict[str, PatientRow] = {}
        self._by_identifier: dict[tuple[str, str], set[str]] = {}
        self._by_vault: dict[Vid, str] = {}
        self.problems: list[str] = []
        for name in keystore.names(_PREFIX):
            try:
                row = keystore.get(name)
                assert row is not None, "names come from the rows"
                self._index(name.removeprefix(_PREFIX), codec.decode(row, PatientRow))
            except (Corruption, Malformed):
                self.problems.append(
                    f"the key store row {name} is damaged: restore the key store from a backup"
                )

    # --- what people ask ----------------------------------------------------------------------------------------

    async def register(
        self,
        source: bytes | None,
        *,
        identifiers: Sequence[tuple[str, str]] = (),
        name: str | None = None,
        birth_date: str | None = None,
    ) -> dict[str, object]:
        """Return {"patient": handle, "known": whether an identifier was known already}.

        What is given beside `source` (a FHIR Patient or Bundle) adds to it. New identifiers of a known patient are
        learnt. Vaults are opened at first use, not here.

        Raises:
            Refused: nothing that tells the patient from others, a conflict with a known one, or unusable values.
        """
        given = _given(source, identifiers, name or "", birth_date or "")
        known = self._own_of(given)
        handle = known or self._new_handle()
        if known is None:
            roots = self._entropy.bytes(32), self._entropy.bytes(32)
            row = PatientRow(_learnt(Person("", "", ()), given), *roots, (), "")
        else:
            row = replace(self._rows[known], person=_learnt(self._rows[known].person, given))
        if row != self._rows.get(handle):
            self.put(handle, row)
        return {"patient": handle, "known": known is not None}

    async def list(self) -> dict[str, object]:
        """Return {"patients": […]}: own patients, then those who granted this facility access."""
        return {
            "patients": [
                {
                    "patient": patient.handle,
                    "name": patient.person.name,
                    "custody": patient.custody,
                    "granted_by": [node.hex() for node in patient.granted_by],
                    "categories": list(patient.categories),
                }
                for patient in self.all()
            ]
        }

    # --- what services ask --------------------------------------------------------------------------------------

    def all(self) -> tuple[LocalPatient, ...]:
        """Return every patient known here: own ones, then granted ones, each by handle."""
        granted = sorted(self._held.patients() - set(self._rows))
        return tuple([self._patient(handle) for handle in (*sorted(self._rows), *granted)])

    def resolve(self, text: str) -> LocalPatient:
        """Return the patient whose handle is, or alone begins with, `text`.

        Raises:
            Refused: none or several; the sentence is the same for an unknown patient and for somebody else's.
        """
        granted, wanted = self._held.patients(), text.strip().lower()
        if wanted in self._rows or wanted in granted:
            return self._patient(wanted)
        found = [handle for handle in granted.union(self._rows) if wanted and handle.startswith(wanted)]
        if not found:
            raise Refused(_UNKNOWN)
        if len(found) > 1:
            raise Refused(f"{len(found)} patients' handles begin like that; give more of the handle")
        return self._patient(found[0])

    def match(self, identifiers: Collection[tuple[str, str]], birth_date: str = "") -> LocalPatient | None:
        """Return the own patient who has one of these identifiers; None when nobody has.

        Raises:
            Refused: they are of two patients, the birth date differs, or only somebody else's patient has them.
        """
        wanted = PatientIdentity(frozenset(identifiers), "", birth_date)
        own = self._own_of(wanted)
        if own is not None:
            return self._patient(own)
        for grant in self._held:
            # Not taken by itself: whoever grants writing for somebody it does not know would get that person's documents.
            if _identity_of(grant.person).identifiers & wanted.identifiers:
                raise Refused(
                    "the document names a patient of another facility who granted access; add it with --patient if it belongs there"
                )
        return None

    def names_somebody_else(
        self, patient: LocalPatient, identifiers: Collection[tuple[str, str]], birth_date: str = ""
    ) -> bool:
        """Return whether a document with these identifiers cannot be taken for `patient`'s without an override."""
        own, wanted = patient.identity, frozenset(identifiers)
        dates_agree = own.birth_date.startswith(birth_date) or birth_date.startswith(own.birth_date)
        if own.identifiers & wanted:
            others = {handle for one in wanted for handle in self._by_identifier.get(one, ())} - {
                patient.handle
            }
            # A granted patient may be registered here too: then the identifiers are rightly those of both.
            return not dates_agree or (patient.custody != "granted" and bool(others))
        return (
            not dates_agree
            or bool(wanted and own.identifiers)
            or any(one in self._by_identifier for one in wanted)
        )

    # --- rows, for the services that own a patient's keys -------------------------------------------------------

    def row(self, handle: str) -> PatientRow | None:
        """Return an own patient's row, or None for a granted one."""
        return self._rows.get(handle)

    def owner_of(self, vid: Vid) -> str | None:
        """Return the handle of the own patient whose vault this is, on the ledger or not."""
        return self._by_vault.get(vid)

    def patient_of(self, vid: Vid) -> LocalPatient | None:
        """Return the patient whose vault this is, own or granted; None when nobody here knows."""
        owner = self.owner_of(vid)
        if owner is not None:
            return self._patient(owner)
        grants = self._held.of_vault(vid)
        return self._patient(grants[0].patient) if grants else None

    def put(self, handle: str, row: PatientRow) -> None:
        """Write a row, durably on return."""
        # Persist before anything is signed with keys derived from it.
        self._keystore.put(_PREFIX + handle, codec.encode(row))
        self._index(handle, row)

    def erase_former(self, handle: str) -> None:
        """Remove the replaced versions of a row from the files too: they hold the roots."""
        self._keystore.erase_former(_PREFIX + handle)

    def own(self) -> Iterable[tuple[str, PatientRow]]:
        """Return the own patients, by handle."""
        return sorted(self._rows.items())

    def handle_for(self, handle: bytes, vid: Vid) -> str:
        """Return the local handle under which a newly opened grant is listed; `handle` is the one inside its wrap.

        Vaults of one patient share the handle in the wraps; a vault known already keeps the local handle it has. The
        handle is hashed, so that nobody can aim at one that exists here.
        """
        own = self.owner_of(vid)
        if own is not None:
            return own
        for held in self._held:
            if held.vid == vid or held.handle == handle:
                return held.patient
        return h256("handle", handle)[:HANDLE_BYTES].hex()

    def _patient(self, handle: str) -> LocalPatient:
        row, grants = self._rows.get(handle), self._held.of_patient(handle)
        granted = {grant.category for grant in grants}
        granted_by = tuple(sorted({NodeId(grant.granted_by) for grant in grants}))
        if row is None:
            return LocalPatient(handle, "granted", grants[0].person, tuple(sorted(granted)), granted_by)
        custody: Custody = "facility" if row.root else "patient"
        made = {vault.category for vault in row.vaults}
        categories = made if row.root else granted
        return LocalPatient(handle, custody, row.person, tuple(sorted(categories)), granted_by)

    def _own_of(self, wanted: PatientIdentity) -> str | None:
        found = sorted({handle for one in wanted.identifiers for handle in self._by_identifier.get(one, ())})
        if len(found) > 1:
            raise Refused(
                "the identifiers are of two patients registered here; correct the document or name one with --patient"
            )
        if not found:
            return None
        _agreed(_identity_of(self._rows[found[0]].person), wanted)
        return found[0]

    def _index(self, handle: str, row: PatientRow) -> None:
        self._rows[handle] = row
        for identifier in row.person.identifiers:
            self._by_identifier.setdefault((identifier.system, identifier.value), set()).add(handle)
        for vault in row.vaults:
            self._by_vault[Vid(vault.vid)] = handle

    def _new_handle(self) -> str:
        while (handle := self._entropy.bytes(HANDLE_BYTES).hex()) in self._rows:
            pass  # once in 2^64 draws
        return handle


def _given(
    source: bytes | None, identifiers: Sequence[tuple[str, str]], name: str, birth_date: str
) -> PatientIdentity:
    found = PatientIdentity(frozenset(), "", "")
    if source is not None:
        found = identity.identity_of(fhir.parse_document(source))
    extra = frozenset((system.strip(), value.strip()) for system, value in identifiers)
    given = PatientIdentity(
        found.identifiers | extra, name.strip() or found.name, birth_date.strip() or found.birth_date
    )
    if not given.identifiers and not (given.name and given.birth_date):
        raise Refused(
            "a patient needs an identifier with system and value, or a name with a birth date; give them"
        )
    if any(not system or not value for system, value in extra):
        raise Refused("an identifier is SYSTEM|VALUE, neither of them empty; correct it")
    if birth_date and found.birth_date and not _dates_agree(birth_date.strip(), found.birth_date):
        raise Refused("the birth date given is not the one in the document; correct one of them")
    if given.birth_date and not _is_date(given.birth_date):
        raise Refused("the birth date is not YYYY, YYYY-MM or YYYY-MM-DD; correct it")
    texts = [given.name, *(part for one in given.identifiers for part in one)]
    if len(given.identifiers) > _IDENTIFIERS_MAX or any(len(text) > _TEXT_MAX for text in texts):
        raise Refused(
            f"a patient has at most {_IDENTIFIERS_MAX} identifiers, and names and identifiers have at most "
            f"{_TEXT_MAX} characters; shorten them"
        )
    return given


def _learnt(person: Person, given: PatientIdentity) -> Person:
    """Return the person with new identifiers, a missing name, and the more precise birth date."""
    known = {(one.system, one.value) for one in person.identifiers}
    new = tuple([Identifier(*one) for one in sorted(given.identifiers - known)])
    if len(known) + len(new) > _IDENTIFIERS_MAX:
        raise Refused(
            f"a patient has at most {_IDENTIFIERS_MAX} identifiers; leave out those that changed hands"
        )
    longer = max(person.birth_date, given.birth_date, key=len)
    return Person(person.name or given.name, longer, person.identifiers + new)


def _agreed(one: PatientIdentity, other: PatientIdentity) -> None:
    if identity.matches(one, other) is Match.CONFLICT:
        raise Refused(
            "an identifier is known here with another birth date: find out whose it is before adding anything"
        )


def _identity_of(person: Person) -> PatientIdentity:
    identifiers = frozenset((one.system, one.value) for one in person.identifiers)
    return PatientIdentity(identifiers, person.name, person.birth_date)


def _dates_agree(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _is_date(text: str) -> bool:
    if not _BIRTH_DATE.fullmatch(text):
        return False
    try:
        dt.date.fromisoformat(text + "0001-01-01"[len(text) :])
    except ValueError:
        return False
    return True
