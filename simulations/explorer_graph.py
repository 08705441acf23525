"""Copies and fingerprints of object graphs: what the explorer needs to go back to a state and to know it again.

Both walk over whatever an object holds, so that a field added to the core tomorrow is copied and compared without
anybody remembering to say so. What is frozen is shared by all copies and known by its value.
"""

import hashlib
import marshal
from collections import deque
from enum import Enum
from typing import Any, Final, TypeVar

from protocol.block import Block
from protocol.signing import SigningKey

# Any: a graph holds objects of every class.
T = TypeVar("T")
_PLAIN: Final = (int, bool, bytes, str, type(None))
_MARSHAL_VERSION: Final = 2  # later ones mark shared references, which differ between equal values
_OWN_PACKAGES: Final = ("protocol.", "simulations.")


class Graphs:
    """Copies and fingerprints, with the numbers given to frozen values; one for a whole search."""

    def __init__(self) -> None:
        self._shared: set[type] = {*_PLAIN, Block, SigningKey}
        self._slots: dict[type, tuple[str, ...]] = {}
        self._numbers: dict[Any, int] = {}

    def copy(self, value: T) -> T:
        """Return a copy that shares nothing mutable with `value`. Within it, what was one object is one object."""
        copied: T = self._copy(value, {})
        return copied

    def fingerprint(self, value: Any) -> bytes:
        """Return 16 bytes that are equal for graphs that cannot be told apart, and for no others (BLAKE2b of all they hold)."""
        shape = marshal.dumps(self._shape(value, {}), _MARSHAL_VERSION)
        return hashlib.blake2b(shape, digest_size=16).digest()

    def number(self, value: Any) -> int:
        """Return the number of a frozen value: the same for equal ones."""
        return self._numbers.setdefault(value, len(self._numbers))

    def _copy(self, value: Any, memo: dict[int, Any]) -> Any:
        kind = type(value)
        if (
            kind in self._shared or kind is tuple
        ):  # a tuple here holds frozen values only: `_shape` checks that
            return value
        found = memo.get(id(value))
        if found is not None:
            return found
        if kind is list or kind is deque:
            return self._sequence(kind, value, memo)
        if kind is dict:
            return self._mapping(value, memo)
        if kind is set:
            memo[id(value)] = items = set(value)
            return items
        if self._is_frozen(kind):
            return value
        return self._object(kind, value, memo)

    def _sequence(self, kind: Any, value: Any, memo: dict[int, Any]) -> Any:
        copied: Any = deque(maxlen=value.maxlen) if kind is deque else []
        memo[id(value)] = copied
        shared = self._shared
        for item in value:
            copied.append(item if type(item) in shared else self._copy(item, memo))
        return copied

    def _mapping(self, value: dict[Any, Any], memo: dict[int, Any]) -> dict[Any, Any]:
        copied: dict[Any, Any] = {}
        memo[id(value)] = copied
        shared = self._shared
        for key, item in value.items():
            copied[key] = item if type(item) in shared else self._copy(item, memo)
        return copied

    def _object(self, kind: type, value: Any, memo: dict[int, Any]) -> Any:
        copied: Any = object.__new__(kind)
        memo[id(value)] = copied
        shared = self._shared
        for name in self._fields(kind, value):
            item = getattr(value, name)
            setattr(copied, name, item if type(item) in shared else self._copy(item, memo))
        return copied

    def _shape(self, value: Any, seen: dict[int, int]) -> Any:
        """Return a graph as nested tuples of plain values: an object met again is the number of its first meeting."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is tuple:
            return tuple([self._frozen_shape(item) for item in value])
        if kind in self._shared or self._is_frozen(kind):
            return ("=", self._number_of(value))
        met = len(seen)
        at = seen.setdefault(id(value), met)
        if at != met:
            return ("&", at)
        if kind is list or kind is deque:
            return tuple([self._shape(item, seen) for item in value])
        if kind is dict:
            return tuple([(self._frozen_shape(key), self._shape(item, seen)) for key, item in value.items()])
        if kind is set:
            return tuple(sorted(value))
        names = self._fields(kind, value)
        return self.number(names), tuple([self._shape(getattr(value, name), seen) for name in names])

    def _frozen_shape(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is tuple:
            return tuple([self._frozen_shape(item) for item in value])
        if kind in self._shared or self._is_frozen(kind):
            return ("=", self._number_of(value))
        raise TypeError(f"a {kind.__name__} inside a tuple or as a key would be shared between states")

    def _number_of(self, value: Any) -> int:
        return self.number(value.public if type(value) is SigningKey else value)

    def _is_frozen(self, kind: type) -> bool:
        """Return whether instances never change, and note it."""
        if kind in self._shared:
            return True
        parameters: Any = getattr(kind, "__dataclass_params__", None)
        frozen = issubclass(kind, Enum) or (parameters is not None and parameters.frozen)
        if frozen:
            self._shared.add(kind)
        return frozen

    def _fields(self, kind: type, value: Any) -> tuple[str, ...]:
        """Return the names of all that an object holds, in the order of its class."""
        slots = self._slots.get(kind)
        if slots is None:
            if not kind.__module__.startswith(_OWN_PACKAGES):
                raise TypeError(f"no way is known to copy a {kind.__module__}.{kind.__name__}")
            declared = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
            slots = self._slots[kind] = tuple(declared)
        return slots or tuple(value.__dict__)
