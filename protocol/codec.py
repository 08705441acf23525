"""Canonical MessagePack: one spelling for every value, for hashing, signing, storing and sending.

`pack(*values)` is the injective `enc` of the design: a MessagePack array of unsigned integers, byte strings, text,
booleans, nil and nested arrays, each in its shortest form. `unpack` refuses every other spelling.

A class registered with `@wire(tag)` (a frozen dataclass) packs as `[tag, field, …]` in the order of its fields:
field order *is* the wire format. `decode(data, Type)` checks tag, arity, field types and sizes before any value
is built. Sizes are declared as `Annotated[bytes, Size(32)]`; a byte string or tuple without one is bounded by the
message that carries it (`limits.MESSAGE_BYTES_MAX`).
"""

import dataclasses
import operator
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgpack

from protocol import limits, spelling
from protocol.errors import Malformed

T = TypeVar("T")
# Any: MessagePack values are untyped until a reader has checked them; nothing leaves this module unchecked.
_Reader = Callable[[Any], Any]
_Writer = Callable[[Any], Any]

_UINT_MAX = 2**64 - 1
_tags: dict[str, type] = {}
_tag_of: dict[type, str] = {}
_readers: dict[Any, _Reader] = {}
_writers: dict[type, _Writer] = {}
_idle_packers: list[msgpack.Packer] = []


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """Bounds, in bytes, characters or elements: `Size(32)` is exactly 32, `Size(0, 64)` at most 64."""

    least: int
    most: int | None = None

    def check(self, value: Any) -> Any:
        """Return `value` when its length lies within the bounds."""
        if not self.least <= len(value) <= (self.least if self.most is None else self.most):
            raise Malformed(
                f"a field of {len(value)} elements is outside its bounds {self.least}..{self.most or self.least}"
            )
        return value


Bytes32 = Annotated[bytes, Size(32)]
Bytes64 = Annotated[bytes, Size(64)]


def pack(*values: Any) -> bytes:
    """Return the canonical encoding of an array of plain values (`enc` in the design).

    Raises:
        ValueError: a value has no canonical encoding (float, negative integer, mapping, …).
    """
    for value in values:
        kind = type(value)
        if kind is not bytes and kind is not str and not (kind is int and 0 <= value <= _UINT_MAX):
            _check_plain(value)
    return _packed(values)


def pack_loaded(*values: Any) -> bytes:
    """As `pack`, for values that came from `load` and passed a typed reader: nothing is checked again."""
    return _packed(values)


def _packed(values: Any) -> bytes:
    """Return what `msgpack.packb` returns. A packer that is used again keeps its buffer: a new one costs as much as packing.

    Taken from the list by one thread at a time, since `pop` and `append` are atomic.
    """
    try:
        packer = _idle_packers.pop()
    except IndexError:
        packer = msgpack.Packer(use_bin_type=True)
    packed = packer.pack(values)
    _idle_packers.append(packer)
    return typing.cast("bytes", packed)


def _check_plain(value: Any) -> None:
    if value is None or isinstance(value, bytes | str | bool):
        return
    if isinstance(value, int):
        if 0 <= value <= _UINT_MAX:
            return
    elif type(value) in (tuple, list):  # not isinstance: msgpack's ExtType is a tuple, and has no place here
        for item in value:
            _check_plain(item)
        return
    raise ValueError(f"no canonical encoding for a {type(value).__name__}")


def unpack(data: bytes) -> tuple[Any, ...]:
    """Return the plain values of a canonical array, as nested tuples.

    Raises:
        Malformed: not MessagePack, not an array, or not the one canonical spelling.
    """
    values = load(data)
    try:
        _check_plain(values)
    except (ValueError, RecursionError):
        raise Malformed("a value without canonical encoding") from None
    return values


def load(data: bytes) -> tuple[Any, ...]:
    """As `unpack`, but floats and negative integers are left for the typed readers to refuse."""
    if len(data) > limits.MESSAGE_BYTES_MAX:
        raise Malformed(f"a message of {len(data)} bytes is over the limit of {limits.MESSAGE_BYTES_MAX}")
    try:
        values = msgpack.unpackb(
            data, raw=False, use_list=False, strict_map_key=True, max_map_len=0, max_ext_len=0
        )
        is_canonical = (
            spelling.is_spelled(values, data, _packed)
            if len(data) >= spelling.LARGE_BYTES and isinstance(values, tuple)
            else _packed(values) == data
        )
    except Exception as error:  # noqa: BLE001
        # msgpack raises its own classes, ValueError, UnicodeDecodeError and RecursionError for hostile bytes.
        raise Malformed(f"not MessagePack: {type(error).__name__}") from None
    if not isinstance(values, tuple):
        raise Malformed("not an array")
    if not is_canonical:
        raise Malformed("not the canonical spelling of its value")
    return values


def unpack_byte_strings(data: bytes, most: int) -> tuple[bytes, ...]:
    """Return the byte strings of a canonical array of at most `most` of them.

    Raises:
        Malformed: anything else.
    """
    values = unpack(data)
    if len(values) > most or any(type(value) is not bytes for value in values):
        raise Malformed(f"expected at most {most} byte strings")
    return values


def wire(tag: str) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass under a tag that is unique for ever."""

    def register(cls: type[T]) -> type[T]:
        if tag in _tags:
            raise ValueError(f"tag {tag} is taken by {_tags[tag].__name__}")
        _tags[tag] = cls
        _tag_of[cls] = tag
        return cls

    return register


def encode(value: Any) -> bytes:
    """Return the canonical encoding of a registered value."""
    return _packed(to_plain(value))


def encode_large(value: Any) -> bytes:
    """As `encode`, for values that may hold large byte strings: each is copied once, and not twice."""
    plain = to_plain(value)
    return spelling.spell(plain, _packed) if spelling.has_large(plain) else _packed(plain)


def to_plain(value: Any) -> tuple[Any, ...]:
    """Return a registered value as the nested tuples that `encode` packs."""
    plain = _writer(type(value))(value)
    assert isinstance(plain, tuple)
    return plain


def decode(data: bytes, kind: type[T]) -> T:
    """Return the value of type `kind` (a registered class, or a union of them) that `data` encodes.

    Raises:
        Malformed: any other bytes.
    """
    return from_plain(load(data), kind)


def decode_union(data: bytes, kinds: Any) -> Any:
    """Return the value of one of several registered classes (`A | B | C`), told apart by their tags.

    Any: a union of types is not a type that a signature can name; `match` on the result exhausts it.

    Raises:
        Malformed: any other bytes.
    """
    return _reader(kinds)(load(data))


def from_plain(plain: tuple[Any, ...], kind: type[T]) -> T:
    """Return the value of type `kind` spelled by `plain` (as `unpack` gave it).

    Raises:
        Malformed: wrong tag, arity, field type or size.
    """
    return typing.cast("T", _reader(kind)(plain))


def fields_plain(value: Any) -> tuple[Any, ...]:
    """Return the fields of a registered value without its tag, as plain values: the signed part."""
    return to_plain(value)[1:]


def tag_of(kind: type) -> str:
    """Return the registered tag of a class."""
    return _tag_of[kind]


def _writer(cls: type) -> _Writer:
    found = _writers.get(cls)
    if found is None:
        found = _writers[cls] = _class_writer(cls)
    return found


def _class_writer(cls: type) -> _Writer:
    """Return the writer of a registered class. Fields that are plain already, most of them, are taken as they are."""
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    nested = [index for index, name in enumerate(names, 1) if not _is_plain(hints[name])]
    head = (_tag_of[cls],)
    if len(names) < 2:  # attrgetter gives a tuple only for two names or more
        return lambda value: head + tuple([_plain_of(getattr(value, name)) for name in names])
    fields = operator.attrgetter(*names)
    if not nested:
        return lambda value: head + fields(value)

    def write(value: Any) -> tuple[Any, ...]:
        plain = [*head, *fields(value)]
        for index in nested:
            plain[index] = _plain_of(plain[index])
        return tuple(plain)

    return write


def _is_plain(kind: Any) -> bool:
    """Return whether values of a field type are plain, at every depth: then nothing in them needs a writer."""
    if hasattr(kind, "__supertype__"):
        return _is_plain(kind.__supertype__)
    if get_origin(kind) in (Annotated, tuple):
        return _is_plain(get_args(kind)[0])
    return kind in (bytes, str, int, bool)


def _plain_of(value: Any) -> Any:
    kind = type(value)
    if kind is bytes or kind is int or kind is str or kind is bool or value is None:
        return value
    if kind is tuple:
        return tuple([_plain_of(item) for item in value])
    return _writer(kind)(value)


def _reader(kind: Any) -> _Reader:
    found = _readers.get(kind)
    if found is None:
        found = _readers[kind] = _make_reader(kind)
    return found


def _make_reader(kind: Any) -> _Reader:
    if kind in _tag_of:
        return _class_reader(kind)
    if hasattr(kind, "__supertype__"):
        return _reader(kind.__supertype__)
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *notes = get_args(kind)
        sizes = [note for note in notes if isinstance(note, Size)]
        if len(sizes) == 1 and _primitive(inner) is not None:
            return _sized_reader(_primitive(inner), sizes[0])
        read = _reader(inner)

        def sized(value: Any) -> Any:
            result = read(value)
            for size in sizes:
                size.check(result)
            return result

        return sized
    if origin is tuple:
        item = _reader(get_args(kind)[0])
        assert get_args(kind)[1:] == (...,), "only homogeneous tuples travel"

        def sequence(value: Any) -> Any:
            if type(value) is not tuple:
                raise Malformed("expected an array")
            return tuple([item(part) for part in value])

        return sequence
    if origin in (Union, types.UnionType):
        return _union_reader(get_args(kind))
    if kind is int:

        def unsigned(value: Any) -> Any:
            if type(value) is not int or value < 0:
                raise Malformed(f"expected an unsigned integer, found {type(value).__name__}")
            return value

        return unsigned
    if kind in (bytes, str, bool):

        def primitive(value: Any) -> Any:
            if type(value) is not kind:
                raise Malformed(f"expected {kind.__name__}, found {type(value).__name__}")
            return value

        return primitive
    raise TypeError(f"no wire form for {kind}")


def _primitive(kind: Any) -> Any:
    """Return `bytes` or `str` where a type is a name for one of them."""
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    return kind if kind in (bytes, str) else None


def _sized_reader(kind: Any, size: Size) -> _Reader:
    """Return the reader of nearly every field there is (an id, a key, a signature): one call for type and length."""
    least, most = size.least, size.least if size.most is None else size.most

    def read(value: Any) -> Any:
        if type(value) is kind and least <= len(value) <= most:
            return value
        if type(value) is not kind:
            raise Malformed(f"expected {kind.__name__}, found {type(value).__name__}")
        return size.check(value)

    return read


def _class_reader(cls: type) -> _Reader:
    tag = _tag_of[cls]
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    readers = [(index, _reader(hints[name])) for index, name in enumerate(names, 1)]
    arity = len(names) + 1

    def read(value: Any) -> Any:
        if type(value) is not tuple or len(value) != arity or value[0] != tag:
            raise Malformed(f"expected {tag} with {arity - 1} fields")
        return cls(*[reader(value[index]) for index, reader in readers])

    return read


def _union_reader(members: tuple[Any, ...]) -> _Reader:
    optional = type(None) in members
    classes = {_tag_of[member]: member for member in members if member in _tag_of}
    others = [member for member in members if member not in _tag_of and member is not type(None)]
    assert len(others) + bool(classes) <= 1, "a union on the wire is of registered classes, or X | None"

    def read(value: Any) -> Any:
        if value is None and optional:
            return None
        if others:
            return _reader(others[0])(value)
        member = classes.get(value[0]) if type(value) is tuple and value and type(value[0]) is str else None
        if member is None:
            raise Malformed("none of the expected kinds of message")
        return _reader(member)(value)

    return read
