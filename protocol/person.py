"""Who a patient is, as it travels inside sealed things only: a wallet, a grant. Never on the ledger, in a log, in an error."""

from dataclasses import dataclass
from typing import Annotated

from protocol import codec
from protocol.codec import Size


@codec.wire("identifier")
@dataclass(frozen=True, slots=True, repr=False)
class Identifier:
    """A business identifier: FHIR `Identifier.system` (a URI, or "" when unknown) and `Identifier.value`."""

    system: Annotated[str, Size(0, 256)]
    value: Annotated[str, Size(1, 256)]

    def __repr__(self) -> str:
        return "Identifier(hidden)"


@codec.wire("person")
@dataclass(frozen=True, slots=True, repr=False)
class Person:
    """A patient: name as shown, birth date as FHIR `date` ("" when unknown), identifiers in the order they were learnt."""

    name: Annotated[str, Size(0, 256)]
    birth_date: Annotated[str, Size(0, 10)]
    identifiers: Annotated[tuple[Identifier, ...], Size(0, 64)]

    def __repr__(self) -> str:
        return "Person(hidden)"
