"""What a command of the control API takes and gives, declared once.

The server refuses a request that does not fit its `Spec` before any handler sees it, the tests hold every handler's
answer against it, and docs/reference/json-output.md is made from it. Fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Union


class Kind(Enum):
    """Type of a parameter or field, as JSON knows it."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    FLAG = "flag"
    LIST = "list of text"
    TABLE = "table of text"
    """An object whose values are texts."""
    ANY = "any value"


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of a command."""

    kind: Kind
    help: str
    required: bool = False


Shape = Mapping[str, Union["Leaf", "Items", "Nested"]]
"""Fields of an object by name."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A plain field. `null` says whether it may be null, and the help says when."""

    kind: Kind
    help: str
    null: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """A list of objects that all have one shape."""

    help: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Nested:
    """An object."""

    help: str
    shape: Shape
    null: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One command: `POST /v1/NOUN/VERB`."""

    name: str
    """`noun.verb`."""
    summary: str
    params: Mapping[str, Param] = field(default_factory=dict)
    result: Shape = field(default_factory=dict)
    output: Shape | None = None
    """Shape of each `{"output": ...}` line, for commands that stream."""
    changes: bool = False
    """Its handler returns a `Plan` and so obeys `dry_run`."""


GROUP = Param(Kind.TEXT, "Group, by name or id. May be left out when the device is in exactly one.")
DRY_RUN = Param(Kind.FLAG, "Only return the plan.")


def reads(
    name: str,
    summary: str,
    params: Mapping[str, Param] | None = None,
    result: Shape | None = None,
    *,
    group: bool = True,
    output: Shape | None = None,
) -> Spec:
    """A command that changes nothing."""
    common = {"group": GROUP} if group else {}
    return Spec(
        name=name, summary=summary, params={**common, **(params or {})}, result=result or {}, output=output
    )


def changes(
    name: str,
    summary: str,
    params: Mapping[str, Param] | None = None,
    result: Shape | None = None,
    *,
    group: bool = True,
) -> Spec:
    """A command that changes something, and so takes `dry_run` and answers with its plan."""
    common = {"group": GROUP} if group else {}
    return Spec(
        name=name,
        summary=summary,
        params={**common, **(params or {}), "dry_run": DRY_RUN},
        result={**PLAN, **(result or {})},
        changes=True,
    )


def text(help: str, *, null: bool = False) -> Leaf:  # noqa: A002 - reads as a table of fields
    """A text field."""
    return Leaf(Kind.TEXT, help, null)


def integer(help: str, *, null: bool = False) -> Leaf:  # noqa: A002
    """An integer field."""
    return Leaf(Kind.INTEGER, help, null)


def number(help: str, *, null: bool = False) -> Leaf:  # noqa: A002
    """A number; seconds where the name ends in `_s`."""
    return Leaf(Kind.NUMBER, help, null)


def flag(help: str, *, null: bool = False) -> Leaf:  # noqa: A002
    """True or false."""
    return Leaf(Kind.FLAG, help, null)


def texts(help: str) -> Leaf:  # noqa: A002
    """A list of texts."""
    return Leaf(Kind.LIST, help)


def table(help: str) -> Leaf:  # noqa: A002
    """An object of texts."""
    return Leaf(Kind.TABLE, help)


PLAN: Shape = {
    "dry_run": flag("True: nothing was done, the plan is all there is."),
    "plan": Items(
        "What was (or would be) done, in order.",
        {"what": text("One step in plain words."), "detail": table("Its particulars.")},
    ),
}


def mismatches(value: object, shape: Shape, where: str = "result") -> list[str]:
    """How a document differs from its shape: unknown fields, missing ones, wrong types. Empty: it fits."""
    if not isinstance(value, Mapping):
        return [f"{where}: not an object"]
    found = [f"{where}.{name}: not documented" for name in value if name not in shape]
    for name, want in shape.items():
        if name not in value:
            found.append(f"{where}.{name}: missing")
            continue
        item = value[name]
        if isinstance(want, Nested):
            found += [] if item is None and want.null else mismatches(item, want.shape, f"{where}.{name}")
        elif isinstance(want, Items):
            if not isinstance(item, Sequence) or isinstance(item, str):
                found.append(f"{where}.{name}: not a list")
            else:
                for number_, one in enumerate(item):
                    found += mismatches(one, want.shape, f"{where}.{name}[{number_}]")
        elif not fits(want.kind, item) and not (item is None and want.null):
            found.append(f"{where}.{name}: expected {want.kind.value}, got {type(item).__name__}")
    return found


def fits(kind: Kind, value: object) -> bool:
    """Whether a JSON value has that type. A flag is no number."""
    if isinstance(value, bool):
        return kind in (Kind.FLAG, Kind.ANY)
    match kind:
        case Kind.ANY:
            return True
        case Kind.TEXT:
            return isinstance(value, str)
        case Kind.INTEGER:
            return isinstance(value, int)
        case Kind.NUMBER:
            return isinstance(value, int | float)
        case Kind.LIST:
            return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        case Kind.TABLE:
            return isinstance(value, Mapping) and all(
                isinstance(k, str) and isinstance(v, str) for k, v in value.items()
            )
        case Kind.FLAG:
            return False
