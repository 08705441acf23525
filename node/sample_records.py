"""Sample records made from a seed: what `carechain demo` shows, and nothing about anybody who lives.

One synthetic patient, the same three documents on every machine for a seed: a FHIR R4 transaction Bundle, an HL7 v2.5.1
ORU^R01 message and a one-page PDF. Names say that they are samples, identifiers are of `urn:oid:2.999`, the arc that
ITU-T X.660 keeps for examples.
"""

import datetime as dt
import json
import random
import re
import uuid
from dataclasses import dataclass
from typing import Any, Final

_SYSTEM: Final = "urn:oid:2.999.1.42"
_LOINC: Final = "http://loinc.org"
_SNOMED: Final = "http://snomed.info/sct"
_RXNORM: Final = "http://www.nlm.nih.gov/research/umls/rxnorm"
_UCUM: Final = "http://unitsofmeasure.org"
_TERMINOLOGY: Final = "http://terminology.hl7.org/CodeSystem"
_FIRST_NAMES: Final = ("Alba", "Bruno", "Chiara", "Dario", "Elin", "Farah", "Goran", "Hana")
_EPOCH: Final = dt.datetime(2024, 3, 4, 8, 30, tzinfo=dt.UTC)

_Resource = dict[str, Any]  # Any: JSON on its way out


@dataclass(frozen=True, slots=True)
class _Measure:
    """One laboratory or vital measure: LOINC, and the range its values are drawn from."""

    code: str
    display: str
    unit: str
    low: float
    high: float
    decimals: int
    """Written with exactly these, zeros included: 72.50 must come back as 72.50."""


_LABS: Final = (
    _Measure("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood", "%", 4.8, 7.9, 2),
    _Measure("2339-0", "Glucose [Mass/volume] in Blood", "mg/dL", 70, 140, 2),
    _Measure("2160-0", "Creatinine [Mass/volume] in Serum or Plasma", "mg/dL", 0.6, 1.3, 2),
    _Measure("2093-3", "Cholesterol [Mass/volume] in Serum or Plasma", "mg/dL", 150, 240, 2),
    _Measure("718-7", "Hemoglobin [Mass/volume] in Blood", "g/dL", 11.5, 16.5, 1),
    _Measure("6690-2", "Leukocytes [#/volume] in Blood by Automated count", "10*3/uL", 4.0, 10.5, 2),
    _Measure("2823-3", "Potassium [Moles/volume] in Serum or Plasma", "mmol/L", 3.5, 5.1, 2),
)
_VITALS: Final = (
    _Measure("29463-7", "Body weight", "kg", 58, 92, 2),
    _Measure("8302-2", "Body height", "cm", 155, 190, 1),
    _Measure("8867-4", "Heart rate", "/min", 58, 88, 0),
)


@dataclass(frozen=True, slots=True, repr=False)
class SampleSet:
    """The documents of one synthetic patient."""

    patient_identifier: tuple[str, str]
    """(system, value); the same in the Bundle and in the message (PID-3)."""
    patient_name: str
    birth_date: str
    """YYYY-MM-DD."""
    fhir_bundle: bytes
    """Labs, vitals, medication, an allergy, a mental-health condition, housing and food security; UTF-8 JSON."""
    hl7v2_message: bytes
    """ORU^R01, segments ended by CR (HL7 v2 2.3)."""
    pdf: bytes
    """One page of text."""

    def files(self) -> tuple[tuple[str, bytes], ...]:
        """Return (file name, content) of each document; names tell the kind, not the patient."""
        return (
            ("bundle.json", self.fhir_bundle),
            ("results.hl7", self.hl7v2_message),
            ("letter.pdf", self.pdf),
        )

    def __repr__(self) -> str:
        return f"SampleSet({', '.join(f'{name} {len(data)} bytes' for name, data in self.files())})"


def synthesise(seed: int) -> SampleSet:
    """Return the sample records of a seed; equal seeds give equal bytes, on every machine and Python."""
    return _Synthesis(random.Random(seed)).sample_set()  # noqa: S311 -- repeatable samples, no secrets


# A value on its way through `json`, which would write 72.50 as 72.5.
_DECIMAL: Final = "decimal:"
_decimal: Final = re.compile(rf'"{_DECIMAL}(-?\d+(?:\.\d+)?)"')


class _Synthesis:
    """Draws from one generator in a fixed order; every document tells of the same patient and the same results."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._number = f"SAMPLE-{draw.randrange(10**6):06d}"
        self._given = draw.choice(_FIRST_NAMES)
        self._birth = dt.date(1950, 1, 1) + dt.timedelta(days=draw.randrange(18_000))
        self._gender = draw.choice(("female", "male"))
        self._labs = tuple((measure, self._value(measure)) for measure in _LABS)
        self._urls: dict[str, str] = {}

    def sample_set(self) -> SampleSet:
        bundle = _decimal.sub(r"\1", json.dumps(self._bundle(), indent=2, ensure_ascii=False)).encode()
        return SampleSet(
            patient_identifier=(_SYSTEM, self._number),
            patient_name=f"{self._given} Sample",
            birth_date=self._birth.isoformat(),
            fhir_bundle=bundle,
            hl7v2_message=self._message(),
            pdf=_pdf(self._letter()),
        )

    def _value(self, measure: _Measure) -> str:
        steps = 10**measure.decimals
        whole = self._draw.randrange(round(measure.low * steps), round(measure.high * steps) + 1)
        # A last digit of zero in some of the values: what a careless reader would lose.
        whole -= whole % 10 if measure.decimals == 2 and measure.code in {"2339-0", "29463-7"} else 0
        return f"{whole / steps:.{measure.decimals}f}"

    def _url(self, name: str) -> str:
        if name not in self._urls:
            self._urls[name] = f"urn:uuid:{uuid.UUID(int=self._draw.getrandbits(128), version=4)}"
        return self._urls[name]

    def _reference(self, name: str) -> dict[str, str]:
        return {"reference": self._url(name)}

    # --- FHIR -------------------------------------------------------------------------------------------------
    def _bundle(self) -> _Resource:
        resources = {
            "patient": self._patient(),
            "organization": {"resourceType": "Organization", "name": "Sample General Hospital"},
            "practitioner": {
                "resourceType": "Practitioner",
                "name": [{"family": "Sample", "given": ["Doctor"]}],
            },
            **self._observations(),
            **self._history(),
            **self._social(),
        }
        return {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [
                {
                    "fullUrl": self._url(name),
                    "resource": resource,
                    "request": {"method": "POST", "url": resource["resourceType"]},
                }
                for name, resource in resources.items()
            ],
        }

    def _patient(self) -> _Resource:
        return {
            "resourceType": "Patient",
            "identifier": [{"system": _SYSTEM, "value": self._number}],
            "name": [{"use": "official", "family": "Sample", "given": [self._given]}],
            "gender": self._gender,
            "birthDate": self._birth.isoformat(),
        }

    def _observations(self) -> dict[str, _Resource]:
        found = {
            f"lab {measure.code}": self._observation("laboratory", measure, value)
            for measure, value in self._labs
        }
        vitals = {
            f"vital {measure.code}": self._observation("vital-signs", measure, self._value(measure))
            for measure in _VITALS
        }
        report: _Resource = {
            "resourceType": "DiagnosticReport",
            "status": "final",
            "category": [_concept(f"{_TERMINOLOGY}/v2-0074", "LAB", "Laboratory")],
            "code": _concept(_LOINC, "11502-2", "Laboratory report"),
            "subject": self._reference("patient"),
            "effectiveDateTime": _time(0),
            "performer": [self._reference("organization")],
            "result": [self._reference(name) for name in found],
        }
        return {**found, "report": report, **vitals}

    def _observation(self, category: str, measure: _Measure, value: str) -> _Resource:
        return {
            "resourceType": "Observation",
            "status": "final",
            "category": [_concept(f"{_TERMINOLOGY}/observation-category", category, category)],
            "code": _concept(_LOINC, measure.code, measure.display),
            "subject": self._reference("patient"),
            "effectiveDateTime": _time(0),
            "performer": [self._reference("practitioner"), self._reference("organization")],
            "valueQuantity": {
                "value": f"{_DECIMAL}{value}",
                "unit": measure.unit,
                "system": _UCUM,
                "code": measure.unit,
            },
        }

    def _history(self) -> dict[str, _Resource]:
        return {
            "metformin": {
                "resourceType": "MedicationRequest",
                "status": "active",
                "intent": "order",
                "medicationCodeableConcept": _concept(
                    _RXNORM, "860975", "metformin hydrochloride 500 MG Oral Tablet"
                ),
                "subject": self._reference("patient"),
                "authoredOn": _time(1),
                "requester": self._reference("practitioner"),
            },
            "diabetes": self._condition("44054006", "Diabetes mellitus type 2", 1),
            "allergy": {
                "resourceType": "AllergyIntolerance",
                "clinicalStatus": _concept(f"{_TERMINOLOGY}/allergyintolerance-clinical", "active", "Active"),
                "code": _concept(_SNOMED, "91936005", "Allergy to penicillin"),
                "criticality": "high",
                "patient": self._reference("patient"),
                "recorder": self._reference("practitioner"),
            },
            "depression": self._condition("35489007", "Depressive disorder", 2),
            "depression visit": {
                "resourceType": "Encounter",
                "status": "finished",
                "class": {"system": f"{_TERMINOLOGY}/v3-ActCode", "code": "AMB", "display": "ambulatory"},
                "type": [_concept(_SNOMED, "185347001", "Encounter for problem")],
                "subject": self._reference("patient"),
                "participant": [{"individual": self._reference("practitioner")}],
                "period": {"start": _time(2), "end": _time(3)},
                "diagnosis": [{"condition": self._reference("depression")}],
                "serviceProvider": self._reference("organization"),
            },
        }

    def _condition(self, code: str, display: str, hours: int) -> _Resource:
        return {
            "resourceType": "Condition",
            "clinicalStatus": _concept(f"{_TERMINOLOGY}/condition-clinical", "active", "Active"),
            "verificationStatus": _concept(f"{_TERMINOLOGY}/condition-ver-status", "confirmed", "Confirmed"),
            "code": _concept(_SNOMED, code, display),
            "subject": self._reference("patient"),
            "recordedDate": _time(hours),
        }

    def _social(self) -> dict[str, _Resource]:
        answers = (
            ("housing", "71802-3", "Housing status", "LA30190-5", "I do not have housing"),
            (
                "housing worry",
                "93033-9",
                "Are you worried about losing your housing [PRAPARE]",
                "LA33-6",
                "Yes",
            ),
            ("food security", "88124-3", "Food insecurity risk [HVS]", "LA19952-3", "At risk"),
        )
        return {
            name: {
                "resourceType": "Observation",
                "status": "final",
                "category": [
                    _concept(f"{_TERMINOLOGY}/observation-category", "social-history", "Social History")
                ],
                "code": _concept(_LOINC, code, display),
                "subject": self._reference("patient"),
                "effectiveDateTime": _time(4),
                "valueCodeableConcept": _concept(_LOINC, answer, meaning),
            }
            for name, code, display, answer, meaning in answers
        }

    # --- HL7 v2 and PDF ---------------------------------------------------------------------------------------
    def _message(self) -> bytes:
        """Return ORU^R01 (HL7 v2.5.1 chapter 7.3.1) with the laboratory values of the Bundle."""
        stamp = _EPOCH.strftime("%Y%m%d%H%M%S+0000")
        birth = self._birth.strftime("%Y%m%d")
        sex = self._gender[0].upper()
        segments = [
            (
                "MSH|^~\\&|SAMPLELAB|SAMPLE LABORATORY|SAMPLEHIS|SAMPLE HOSPITAL|"
                f"{stamp}||ORU^R01^ORU_R01|{self._number}-1|P|2.5.1|||AL|NE||UNICODE UTF-8"
            ),
            f"PID|1||{self._number}^^^SAMPLE&2.999.1.42&ISO^MR||Sample^{self._given}||{birth}|{sex}",
            f"OBR|1|{self._number}-P|{self._number}-F|11502-2^Laboratory report^LN|||{stamp}|||||||||||||||{stamp}|||F",
        ]
        segments += [
            f"OBX|{number}|NM|{measure.code}^{measure.display}^LN||{value}|{measure.unit}^^UCUM|||||F|||{stamp}"
            for number, (measure, value) in enumerate(self._labs, 1)
        ]
        return "".join(f"{segment}\r" for segment in segments).encode()

    def _letter(self) -> tuple[str, ...]:
        return (
            "Sample General Hospital",
            "Letter of referral (synthetic sample, not a real person)",
            f"Patient: {self._given} Sample, born {self._birth.isoformat()}, number {self._number}",
            "Please see for a check of blood glucose in six weeks.",
        )


def _concept(system: str, code: str, display: str) -> _Resource:
    return {"coding": [{"system": system, "code": code, "display": display}], "text": display}


def _time(hours: int) -> str:
    return (_EPOCH + dt.timedelta(hours=hours)).isoformat()


def _pdf(lines: tuple[str, ...]) -> bytes:
    """Return a PDF 1.4 of one page (ISO 32000-1 7.5): header, five objects, cross-reference table, trailer."""
    escaped = (line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in lines)
    drawn = "".join(f"({line}) Tj T*\n" for line in escaped)
    content = f"BT\n/F1 12 Tf\n16 TL\n72 770 Td\n{drawn}ET\n".encode("latin-1")
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%bendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    )
    document = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(document))
        document += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = len(document)
    document += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    document += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    document += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(document)
