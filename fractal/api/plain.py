"""Frozen dataclasses to plain values that `canonical.encode` takes, and back, strictly.

Bytes become base64 text, enums their value, sets sorted lists, keys of mappings strings. A field equal to its default is
left out, so that a value written before a field existed reads the same as one written after (and hashes the same).
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fractal.api.canonical import pack, unpack
from fractal.api.errors import InvalidInput

T = TypeVar("T")
_SCALARS = frozenset({str, int, bool, type(None)})
"""Types whose values are plain as they are."""


def to_plain(value: object) -> Any:
    """The plain form of a value made of dataclasses, mappings, sequences, enums, bytes, str, int, bool and None."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, bytes):
        return pack(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | int):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {
            name: item if type(item) in _SCALARS else to_plain(item)
            for name, default in _defaults(type(value)).items()
            if (item := getattr(value, name)) != default
        }
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, frozenset | set):
        return sorted((to_plain(v) for v in value), key=repr)
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    raise InvalidInput(f"{type(value).__name__} has no plain form")


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


def _convert(kind: Any, value: object, where: str, drop: bool) -> Any:
    if (kind is str or kind is int or kind is bool) and type(value) is kind:
        return value
    origin = get_origin(kind)
    if origin is not None:
        return _generic(kind, origin, value, where, drop)
    if kind is Any or kind is object:
        return value
    if isinstance(kind, type):
        if is_dataclass(kind):
            return _dataclass(kind, value, where, drop)
        if issubclass(kind, Enum):
            try:
                return kind(value)
            except ValueError as error:
                raise InvalidInput(f"{where}: {value!r} is not one of {[e.value for e in kind]}") from error
        if kind is bytes:
            return unpack(value)
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
    raise InvalidInput(f"{where}: expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}")


def _generic(kind: Any, origin: Any, value: object, where: str, drop: bool) -> Any:
    arguments = get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _convert(inner, value, where, drop)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise InvalidInput(f"{where}: expected an object")
        return {str(k): _convert(arguments[1], v, f"{where}.{k}", drop) for k, v in value.items()}
    if not isinstance(value, list | tuple):
        raise InvalidInput(f"{where}: expected a list")
    if origin is frozenset:
        return frozenset(_convert(arguments[0], v, where, drop) for v in value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], v, f"{where}[{i}]", drop) for i, v in enumerate(value))
    if len(arguments) != len(value):
        raise InvalidInput(f"{where}: expected {len(arguments)} items")
    return tuple(
        _convert(a, v, f"{where}[{i}]", drop) for i, (a, v) in enumerate(zip(arguments, value, strict=True))
    )


def _dataclass(kind: type, value: object, where: str, drop: bool) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{where}: expected an object")
    hints, known = _hints(kind), _defaults(kind)
    unknown = sorted(value.keys() - known.keys())
    if unknown and not drop:
        raise InvalidInput(f"{where}: unknown field {unknown[0]!r}")
    missing = [n for n, default in known.items() if default is MISSING and n not in value]
    if missing:
        raise InvalidInput(f"{where}: missing field {missing[0]!r}")
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
