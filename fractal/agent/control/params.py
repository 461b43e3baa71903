"""The parameters of one request, checked against the command's `Spec` before its handler runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from fractal.agent.control.contract import Kind, Spec, fits
from fractal.api.errors import InvalidInput

MAX_TEXT = 256 * 1024
"""Characters of one text parameter: a manifest fits, a mistake does not."""
MAX_ITEMS = 1000


class Params:
    """Typed getters over checked values; a getter of the wrong type is a bug in the handler and raises TypeError."""

    def __init__(self, spec: Spec, values: Mapping[str, object]) -> None:
        self._spec = spec
        self._values = values

    @property
    def dry_run(self) -> bool:
        """Whether only the plan is wanted."""
        return "dry_run" in self._spec.params and self.flag("dry_run")

    def given(self) -> dict[str, object]:
        """What was given, by name, nulls left out."""
        return {name: value for name, value in self._values.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return self._get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """A text; `default` if it was not given."""
        value = self._get(name)
        return default if value is None else str(_typed(str, name, value))

    def integer(self, name: str, default: int = 0) -> int:
        """An integer."""
        value = self._get(name)
        return default if value is None else int(_typed(int, name, value))

    def number(self, name: str, default: float = 0.0) -> float:
        """A finite number."""
        value = self._get(name)
        return default if value is None else float(_typed((int, float), name, value))

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._get(name)
        return default if value is None else bool(_typed(bool, name, value))

    def items(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty if it was not given."""
        value = self._get(name)
        return () if value is None else tuple(_typed((list, tuple), name, value))

    def table(self, name: str) -> dict[str, str]:
        """A table of texts; empty if it was not given."""
        value = self._get(name)
        return {} if value is None else dict(_typed(Mapping, name, value))

    def _get(self, name: str) -> object:
        if name not in self._spec.params:
            raise KeyError(f"{self._spec.name} has no parameter {name!r}")
        return self._values.get(name)


def parse_params(spec: Spec, body: bytes) -> Params:
    """The parameters in a request's body (empty: none). Raises InvalidInput for whatever does not fit `spec`."""
    values = _decode(body) if body.strip() else {}
    for name, value in values.items():
        param = spec.params.get(name)
        if param is None:
            known = ", ".join(spec.params) or "none"
            raise InvalidInput(f"{spec.name}: unknown parameter {name[:80]!r} (it takes: {known})")
        if value is None and not param.required:
            continue
        if not fits(param.kind, value):
            raise InvalidInput(f"{spec.name}: {name} must be {param.kind.value}, not {type(value).__name__}")
        _check_size(spec, name, value)
    for name, param in spec.params.items():
        if param.required and values.get(name) in (None, "", [], {}):
            raise InvalidInput(f"{spec.name}: {name} is missing")
    return Params(spec, values)


def _decode(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInput("the request's body is not JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise InvalidInput("the request's body is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidInput("the request's body names one parameter twice")
    return value


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _check_size(spec: Spec, name: str, value: object) -> None:
    kind = spec.params[name].kind
    if kind is Kind.NUMBER and not math.isfinite(_typed((int, float), name, value)):
        raise InvalidInput(f"{spec.name}: {name} must be a finite number")
    if kind is Kind.INTEGER and abs(_typed(int, name, value)) >= 2**53:
        raise InvalidInput(f"{spec.name}: {name} is too large")
    if isinstance(value, list | dict) and len(value) > MAX_ITEMS:
        raise InvalidInput(f"{spec.name}: {name} has more than {MAX_ITEMS} items")
    for item in _texts(value):
        if len(item) > MAX_TEXT:
            raise InvalidInput(f"{spec.name}: {name} is longer than {MAX_TEXT} characters")
        if "\x00" in item or any("\ud800" <= c <= "\udfff" for c in item):
            raise InvalidInput(f"{spec.name}: {name} holds a character that is not text")


def _typed(kind: type | tuple[type, ...], name: str, value: object) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"parameter {name!r} is read as {kind} but declared otherwise")
    return value


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [str(v) for v in value]
    if isinstance(value, dict):
        return [str(v) for pair in value.items() for v in pair]
    return []
