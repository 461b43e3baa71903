"""`x-homeserver.fields`: what is asked of whoever installs an app, each a variable of the file, with a type. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fractal.manifest import rules, secret_forms
from fractal.manifest.document import Items, Scalar, Table
from fractal.manifest.values import Where

TYPES = {
    "text": "a line of text",
    "number": "a number; `min` and `max` bound it",
    "boolean": "`true` or `false`",
    "choice": "one of `options`, a list, or a mapping of values to what they mean",
    "secret": "never shown, sealed in the log; `generate` makes one where none is given; `min` characters at least",
    "email": "an e-mail address",
    "url": "an address that begins with `http://` or `https://`",
    "path": "a folder of the device, such as `/srv/media`; it has to be allowed",
}
KEYS = {
    "type": "one of the types below; `text` if left out",
    "title": "what it is called when it is asked for",
    "help": "a sentence on what it does",
    "default": "the value where none is given; it can change with the manifest",
    "required": "whether it has to be given; `true` if left out and there is neither `default` nor `generate`",
    "options": "of a `choice`",
    "min": "of a `number`, or characters of a `secret`",
    "max": "of a `number`",
    "generate": "of a `secret`: `true`, or a form of generated secrets",
}
MAX_FIELDS = 100
MAX_VALUE = 2000
_WORDS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")
_EMAIL = re.compile(r"[^@\s<>\"]{1,64}@[^@\s<>\"]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """Something to ask for."""

    name: str
    """Of the variable."""
    type: str = "text"
    title: str = ""
    help: str = ""
    default: str | None = None
    required: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    """Value -> what it means."""
    low: float | None = None
    high: float | None = None
    generate: str = ""
    """Form of the secret to make where none is given, see `secret_forms`; "" for none."""

    @property
    def secret(self) -> bool:
        """Whether its value is never to be seen."""
        return self.type == "secret"


def normal(one: FormField, value: str) -> str:
    """A value as the app is given it. Raises ValueError that says what is expected and never repeats a secret."""
    if len(value) > MAX_VALUE or any(not c.isprintable() for c in value):
        raise ValueError(f"expected one line of at most {MAX_VALUE} characters")
    if value == "" and not one.required:
        return value
    reader = _READERS.get(one.type)
    return reader(one, value) if reader is not None else value


def normalised(fields: Sequence[FormField], values: Mapping[str, str]) -> dict[str, str]:
    """All values as an app is given them; those that do not fit their field stay as they are."""
    found = dict(values)
    for one in fields:
        if one.name in found:
            with suppress(ValueError):
                found[one.name] = normal(one, found[one.name])
    return found


def _number(one: FormField, value: str) -> str:
    low = one.low if one.low is not None else -math.inf
    high = one.high if one.high is not None else math.inf
    if not _NUMBER.fullmatch(value) or not low <= float(value) <= high:
        bounds = [f"from {low:g}"] * (low > -math.inf) + [f"up to {high:g}"] * (high < math.inf)
        raise ValueError(" ".join(["expected a number", *bounds]))
    return value


def _boolean(_: FormField, value: str) -> str:
    if value.lower() not in _WORDS:
        raise ValueError("expected true or false")
    return _WORDS[value.lower()]


def _choice(one: FormField, value: str) -> str:
    if value not in one.options:
        raise ValueError(f"expected one of {', '.join(one.options)}")
    return value


def _secret(one: FormField, value: str) -> str:
    if one.low is not None and len(value) < one.low:
        raise ValueError(f"expected at least {one.low:g} characters")
    return value


def _email(_: FormField, value: str) -> str:
    if not _EMAIL.fullmatch(value):
        raise ValueError("expected an e-mail address")
    return value


def _url(_: FormField, value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or " " in value:
        raise ValueError("expected an address such as https://example.org/")
    return value


def _path(_: FormField, value: str) -> str:
    if not value.startswith("/") or ".." in value.split("/") or ":" in value:
        raise ValueError("expected an absolute path such as /srv/media")
    return value


_READERS = {
    "number": _number,
    "boolean": _boolean,
    "choice": _choice,
    "secret": _secret,
    "email": _email,
    "url": _url,
    "path": _path,
}


def form_fields(where: Where | None) -> tuple[FormField, ...]:
    """The fields of `x-homeserver`, in order."""
    table = where.table().get("fields") if where is not None else None
    if table is None:
        return ()
    entries = table.table()
    if len(entries) > MAX_FIELDS:
        table.wrong(f"more than {MAX_FIELDS} fields")
        return ()
    return tuple(_field(name, item) for name, item in entries.items())


def _field(name: str, where: Where) -> FormField:
    table = where.table(frozenset(KEYS))
    if not rules.SECRET.fullmatch(name):
        where.wrong(f"{name[:80]!r} cannot be a variable's name")
    kind = (table["type"].choice(frozenset(TYPES)) if "type" in table else "") or "text"
    default = table["default"].plain() if "default" in table else None
    generate = _generate(table["generate"]) if "generate" in table else ""
    free = default is None and not generate
    one = FormField(
        name=name,
        type=kind,
        title=table["title"].plain() if "title" in table else "",
        help=table["help"].plain() if "help" in table else "",
        default=default,
        required=table["required"].flag() if "required" in table else free,
        options=_options(table["options"]) if "options" in table else {},
        low=float(table["min"].integer(-(10**15), 10**15)) if "min" in table else None,
        high=float(table["max"].integer(-(10**15), 10**15)) if "max" in table else None,
        generate=generate,
    )
    _fitting(one, where, table)
    return one


def _fitting(one: FormField, where: Where, table: Mapping[str, Where]) -> None:
    for key, kinds in (
        ("options", ("choice",)),
        ("min", ("number", "secret")),
        ("max", ("number",)),
        ("generate", ("secret",)),
    ):
        if key in table and one.type not in kinds:
            table[key].wrong(f"is for the type {' or '.join(kinds)}")
    if one.type == "choice" and not one.options:
        where.wrong("a choice needs `options`")
    elif one.default is not None and one.secret:
        table["default"].wrong("a secret that everybody can read in the manifest is none: use `generate`")
    elif one.default is not None:
        try:
            normal(one, one.default)
        except ValueError as error:
            table["default"].wrong(str(error))


def _generate(where: Where) -> str:
    text = where.plain()
    if text == "true":
        return secret_forms.DEFAULT
    if text == "false":
        return ""
    if not secret_forms.known(text):
        where.wrong(f"{text[:40]!r} is not one of {secret_forms.EXAMPLES}")
        return secret_forms.DEFAULT
    return text


def _options(where: Where) -> dict[str, str]:
    if isinstance(where.node, Table):
        return {name: item.plain() for name, item in where.table().items()}
    if isinstance(where.node, Items):
        return {item.plain(): "" for item in where.items() if isinstance(item.node, Scalar)}
    where.wrong("expected a list or a mapping")
    return {}
