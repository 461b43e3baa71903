"""Plain values (of TOML, or strings out of the log) to an author's own config dataclass: strict, all problems at once.

Field types that a configuration can set: str, int, float, bool, Path, enums, tuples and frozensets of these, mappings from
str to these, dataclasses, and any of them `| None`. `metadata` may carry `help`, `choices` and `minimum`. A field of
another type can be set from Python only, and needs a default.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from fractal.api.errors import FractalError
from fractal.config.problems import Key, Problem, unknown

_SCALARS: Mapping[object, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path in quotes",
}


class Unset:
    """Stands for a type that a configuration cannot set."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The value, or what is wrong."""

    value: Any
    problems: tuple[Problem, ...]


def convert(
    kind: type,
    values: Mapping[str, object],
    *,
    where: Key = (),
    base: Path | None = None,
    texts: bool = False,
) -> Converted:
    """An instance of dataclass `kind`; `value` is None if there are problems, which are named below `where`.

    Relative paths start at `base` if given. With `texts`, values may be strings that are read as the field's type: that
    is how stores are configured in the log.
    """
    conversion = _Conversion(base, texts)
    value = conversion.fields_of(kind, values, where)
    return Converted(None if conversion.problems else value, tuple(conversion.problems))


def field_types(kind: type) -> dict[str, tuple[Field[Any], Any]]:
    """Every field of a config dataclass with its type; `Unset` for one that a configuration cannot set."""
    return {f.name: (f, _type_of(kind, f)) for f in fields(kind)}


def required(field: Field[Any]) -> bool:
    """Whether the field has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def default_of(field: Field[Any]) -> Any:
    """The field's default, made anew; None if it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def optional_inner(kind: Any) -> Any:
    """X of `X | None`, else None."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    inner = [a for a in get_args(kind) if a is not type(None)]
    return inner[0] if len(inner) == 1 else Unset


class _Conversion:
    def __init__(self, base: Path | None, texts: bool) -> None:
        self.problems: list[Problem] = []
        self._base = base
        self._texts = texts

    def fields_of(self, kind: type, values: Mapping[str, object], where: Key) -> Any:
        known = {n: v for n, v in field_types(kind).items() if v[1] is not Unset and v[0].init}
        before = len(self.problems)
        arguments = {}
        for name, value in values.items():
            if name not in known:
                self.problems.append(unknown((*where, name), list(known)))
                continue
            field, type_ = known[name]
            arguments[name] = self._limited(field, self._value(type_, value, (*where, name)), (*where, name))
        for name, (field, _) in known.items():
            if name not in values and required(field):
                self._problem((*where, name), f"missing: {field.metadata.get('help', 'it has no default')}")
        if len(self.problems) > before:
            return None
        try:
            return kind(**arguments)
        except (FractalError, ValueError, TypeError) as error:
            # The author's own check in __post_init__; Misconfigured says which key.
            own = (str(error.key),) if hasattr(error, "key") else ()
            self._problem((*where, *own), str(error).removeprefix(f"{own[0]}: ") if own else str(error))
            return None

    def _limited(self, field: Field[Any], value: Any, where: Key) -> Any:
        choices, minimum = field.metadata.get("choices"), field.metadata.get("minimum")
        if value is not None and choices is not None and value not in choices:
            self._problem(where, f"{value!r} is not one of {', '.join(map(str, choices))}")
        if value is not None and minimum is not None and value < minimum:
            self._problem(where, f"{value} is less than {minimum}")
        return value

    def _value(self, kind: Any, value: object, where: Key) -> Any:
        inner = optional_inner(kind)
        if inner is not None:
            return self._value(inner, value, where)
        origin = get_origin(kind)
        if origin in (tuple, frozenset):
            return origin(self._items(get_args(kind)[0], value, where))
        if isinstance(origin, type) and issubclass(origin, Mapping):
            if not isinstance(value, Mapping):
                return self._problem(where, f"must be a table, not {_shown(value)}")
            return {str(k): self._value(get_args(kind)[1], v, (*where, str(k))) for k, v in value.items()}
        if isinstance(kind, type) and issubclass(kind, Enum):
            return self._enum(kind, value, where)
        if is_dataclass(kind) and isinstance(kind, type):
            if isinstance(value, Mapping):
                return self.fields_of(kind, value, where)
            return self._problem(where, f"must be a table, not {_shown(value)}")
        return self._scalar(kind, value, where)

    def _items(self, kind: Any, value: object, where: Key) -> list[Any]:
        if self._texts and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, Sequence) or isinstance(value, str):
            self._problem(where, f"must be a list, not {_shown(value)}")
            return []
        items = [self._value(kind, item, (*where, number)) for number, item in enumerate(value)]
        return [item for item in items if item is not None]

    def _enum(self, kind: type[Enum], value: object, where: Key) -> Any:
        for member in kind:
            if member.value == value and type(member.value) is type(value):
                return member
        return self._problem(where, f"{_shown(value)} is not one of {', '.join(str(m.value) for m in kind)}")

    def _scalar(self, kind: Any, value: object, where: Key) -> Any:
        if self._texts and isinstance(value, str):
            value = _read(kind, value)
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if kind is float and isinstance(value, float) and not math.isfinite(value):
            return self._problem(where, "must be finite")
        if kind is int and type(value) is int and abs(value) >= 2**63:
            return self._problem(where, "too large")
        if kind in (str, Path) and isinstance(value, str):
            if "\0" in value:
                return self._problem(where, "must not contain a NUL")
            return value if kind is str else self._path(value, where)
        if type(value) is kind:
            return value
        return self._problem(where, f"must be {_SCALARS.get(kind, str(kind))}, not {_shown(value)}")

    def _path(self, value: str, where: Key) -> Any:
        if not value:
            return self._problem(where, "must not be empty")
        try:
            path = Path(value).expanduser()
        except RuntimeError:
            return self._problem(where, f"{_shown(value)}: no such home folder")
        return self._base / path if self._base is not None else path

    def _problem(self, where: Key, message: str) -> None:
        self.problems.append(Problem(where, message))


def _read(kind: Any, text: str) -> object:
    """The value that `text` stands for, or `text` itself if it stands for none of this kind."""
    if kind is bool and text in ("true", "false"):
        return text == "true"
    if kind not in (int, float) or len(text) > 30:
        return text
    try:
        return kind(text)
    except ValueError:
        return text


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a huge number"
    text = repr(value) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _type_of(kind: type, field: Field[Any]) -> Any:
    if not isinstance(field.type, str):
        return field.type if _settable(field.type) else Unset
    owner = next(c for c in kind.__mro__ if field.name in vars(c).get("__annotations__", {}))
    lone = type("_", (), {"__annotations__": {field.name: field.type}, "__module__": owner.__module__})
    try:
        found = get_type_hints(lone, globalns=vars(sys.modules[owner.__module__]))[field.name]
    except NameError:  # named for type checkers only
        return Unset
    return found if _settable(found) else Unset


def _settable(kind: Any) -> bool:
    inner = optional_inner(kind)
    if inner is not None:
        return _settable(inner)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return len(arguments) == 2 and arguments[1] is Ellipsis and _settable(arguments[0])
    if origin is frozenset:
        return _settable(arguments[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return arguments[0] is str and _settable(arguments[1])
    return kind in _SCALARS or (isinstance(kind, type) and (issubclass(kind, Enum) or is_dataclass(kind)))
