"""A specification as plain values for the log, which knows no floats: they are written in thousandths (milliseconds)."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from fractal.api.app import AppSpec
from fractal.api.errors import InvalidInput
from fractal.api.plain import from_plain, to_plain
from fractal.manifest import rules


def to_plain_spec(spec: AppSpec) -> dict[str, Any]:
    """Objects, lists, strings, booleans and integers; fields equal to their default are left out."""
    value = _plain(spec)
    assert isinstance(value, dict)
    return value


def from_plain_spec(value: Mapping[str, Any]) -> AppSpec:
    """The specification again. Raises InvalidInput for anything that `to_plain_spec` of a valid one does not give:
    what comes by the log was written by somebody else's device."""
    spec = from_plain(AppSpec, _with_floats(AppSpec, value))
    if found := list(rules.problems(spec)):
        raise InvalidInput("; ".join(f"{key}: {message}" for key, message in found[:20]))
    return spec


def _plain(value: object) -> Any:
    if isinstance(value, float):
        return round(value * 1000)
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(item)
            for f in fields(value)
            if (item := getattr(value, f.name))
            != (f.default_factory() if f.default_factory is not MISSING else f.default)
        }
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return to_plain(value)


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Types of the fields: worked out once, as that takes longer than all the rest of reading a specification."""
    return get_type_hints(kind)


def _with_floats(kind: Any, value: Any) -> Any:
    """`value` with thousandths turned into floats where `kind` wants one; everything else untouched and unchecked."""
    if kind is float:
        return value / 1000 if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, Mapping):
            return value
        hints = _hints(kind)
        return {k: _with_floats(hints[k], v) if k in hints else v for k, v in value.items()}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType) and value is not None:
        (inner,) = (a for a in arguments if a is not type(None))
        return _with_floats(inner, value)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis and isinstance(value, list):
        return [_with_floats(arguments[0], v) for v in value]
    return value
