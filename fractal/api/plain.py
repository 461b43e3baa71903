"""Frozen dataclasses to plain values that `canonical.encode` takes, and back, strictly.

Bytes become base64 text, enums their value, sets sorted lists, keys of mappings strings. A field equal to its default is
left out, so that a value written before a field existed reads the same as one written after (and hashes the same).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache, partial
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fractal.api.canonical import pack, unpack
from fractal.api.errors import InvalidInput

T = TypeVar("T")
_SCALARS = frozenset({str, int, bool, type(None)})
"""Types whose values are plain as they are."""


def to_plain(value: object) -> Any:
    """The plain form of a value made of dataclasses, mappings, sequences, enums, bytes, str, int, bool and None."""
    kind: Any = type(value)
    return value if kind in _SCALARS else _writer(kind)(value)


@cache
def _writer(kind: type) -> Callable[[Any], Any]:
    """What makes a value of that very type plain: found out once, as values are many and types few."""
    if issubclass(kind, bytes):
        return pack
    if issubclass(kind, Enum):
        return _value
    if issubclass(kind, str | int):
        return _itself
    if is_dataclass(kind):
        return partial(_plain_fields, tuple(_defaults(kind).items()))
    if issubclass(kind, Mapping):
        return _plain_mapping
    if issubclass(kind, frozenset | set):
        return _plain_set
    if issubclass(kind, tuple | list):
        return _plain_list
    raise InvalidInput(f"{kind.__name__} has no plain form")


def _value(value: Enum) -> Any:
    return value.value


def _itself(value: object) -> object:
    return value


def _plain_fields(known: tuple[tuple[str, object], ...], value: object) -> dict[str, Any]:
    plain = {}
    for name, default in known:
        item = getattr(value, name)
        if item != default:
            plain[name] = item if type(item) in _SCALARS else to_plain(item)
    return plain


def _plain_mapping(value: Mapping[object, object]) -> dict[str, Any]:
    return {str(k): v if type(v) in _SCALARS else to_plain(v) for k, v in value.items()}


def _plain_set(value: frozenset[object]) -> list[Any]:
    return sorted((to_plain(v) for v in value), key=repr)


def _plain_list(value: Sequence[object]) -> list[Any]:
    return [to_plain(v) for v in value]


def from_plain(kind: type[T], value: object, *, drop_unknown: bool = False) -> T:
    """A value of dataclass `kind`. Raises InvalidInput for unknown fields, missing ones and wrong types.

    With `drop_unknown`, fields that this version does not know are left out, at any depth: what a newer agent wrote.
    """
    result: T = _convert(kind, value, kind.__name__, drop_unknown)
    return result


def _default(field: Field[Any]) -> object:
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    return MISSING


@cache
def _defaults(kind: type) -> Mapping[str, object]:
    """Field -> default, MISSING where there is none. Compared with, never given out."""
    return {f.name: _default(f) for f in fields(kind)}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _required(kind: type) -> tuple[str, ...]:
    return tuple(name for name, default in _defaults(kind).items() if default is MISSING)


Reader = Callable[[Any, str, bool], Any]
"""Takes a plain value, where it stands, and whether unknown fields are dropped."""


def _convert(kind: Any, value: object, where: str, drop: bool) -> Any:
    if (kind is str or kind is int or kind is bool) and type(value) is kind:
        return value
    return _reader(kind)(value, where, drop)


@cache
def _reader(kind: Any) -> Reader:
    """What reads a value of that type: found out once, as values are many and types few."""
    origin = get_origin(kind)
    if origin is not None:
        return _generic(origin, get_args(kind))
    if kind is Any or kind is object:
        return lambda value, _, __: value
    if isinstance(kind, type):
        if is_dataclass(kind):
            return partial(_dataclass, kind)
        if issubclass(kind, Enum):
            return partial(_enum, kind)
        if kind is bytes:
            return lambda value, _, __: unpack(value)
    return partial(_scalar, kind)


def _enum(kind: type[Enum], value: object, where: str, _: bool) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise InvalidInput(f"{where}: {value!r} is not one of {[e.value for e in kind]}") from error


def _scalar(kind: Any, value: object, where: str, _: bool) -> Any:
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise InvalidInput(f"{where}: expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}")


def _generic(origin: Any, arguments: tuple[Any, ...]) -> Reader:
    if origin in (Union, types.UnionType):
        (inner,) = (a for a in arguments if a is not type(None))
        return partial(_union, inner, type(None) in arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return partial(_mapping, arguments[1])
    if origin is frozenset:
        return partial(_set, arguments[0])
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return partial(_many, arguments[0])
    return partial(_some, arguments)


def _union(inner: Any, optional: bool, value: object, where: str, drop: bool) -> Any:
    return None if value is None and optional else _convert(inner, value, where, drop)


def _mapping(inner: Any, value: object, where: str, drop: bool) -> Any:
    if type(value) is not dict and not isinstance(value, Mapping):
        raise InvalidInput(f"{where}: expected an object")
    return {str(k): _convert(inner, v, f"{where}.{k}", drop) for k, v in value.items()}


def _items(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InvalidInput(f"{where}: expected a list")
    return value


def _set(inner: Any, value: object, where: str, drop: bool) -> Any:
    return frozenset(_convert(inner, v, where, drop) for v in _items(value, where))


def _many(inner: Any, value: object, where: str, drop: bool) -> Any:
    return tuple(_convert(inner, v, f"{where}[{i}]", drop) for i, v in enumerate(_items(value, where)))


def _some(inner: tuple[Any, ...], value: object, where: str, drop: bool) -> Any:
    items = _items(value, where)
    if len(inner) != len(items):
        raise InvalidInput(f"{where}: expected {len(inner)} items")
    return tuple(
        _convert(a, v, f"{where}[{i}]", drop) for i, (a, v) in enumerate(zip(inner, items, strict=True))
    )


def _dataclass(kind: type, value: object, where: str, drop: bool) -> Any:
    if type(value) is not dict and not isinstance(value, Mapping):
        raise InvalidInput(f"{where}: expected an object")
    hints, known = _hints(kind), _defaults(kind)
    if not drop and not value.keys() <= known.keys():
        raise InvalidInput(f"{where}: unknown field {min(value.keys() - known.keys())!r}")
    for name in _required(kind):
        if name not in value:
            raise InvalidInput(f"{where}: missing field {name!r}")
    return kind(
        **{
            # Most fields are of a plain type, and say so: no call for those.
            n: v
            if type(v) is (hint := hints[n]) and hint in _SCALARS
            else _convert(hint, v, f"{where}.{n}", drop)
            for n, v in value.items()
            if n in known
        }
    )
