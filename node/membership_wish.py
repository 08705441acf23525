"""What a person wants proposed about one facility or about all, as the routes pass it on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wish:
    """`card` is the text of the facility's card file; without one `name` names a member. `leaves`: it is to be removed.

    With `min_b`, the least number of liars to tolerate, it is about nobody, and `name` is empty.
    """

    name: str
    card: str | None = None
    role: str | None = None
    leaves: bool = False
    min_b: int | None = None
