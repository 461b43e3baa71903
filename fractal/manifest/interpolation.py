"""Variables in Compose files: `$X`, `${X}`, `${X:-y}`, `${X-y}`, `${X:?e}`, `${X?e}`, `${X:+y}`, `${X+y}`, nested, and `$$`.

A `$` that neither a name, a brace nor another `$` follows is itself, as Docker Compose takes it: `(.*)$`, `$1`, `^/(sys|proc)($|/)`.
The form is that of the Compose Specification: https://github.com/compose-spec/compose-spec/blob/main/12-interpolation.md
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_DEPTH = 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a variable, innermost ones of its `rest` not yet looked at."""

    name: str
    operator: str
    """"" or one of `:-` `-` `:?` `?` `:+` `+`."""
    rest: str


class Malformed(ValueError):
    """A `${` that begins nothing."""


def expand(text: str, value: Callable[[Use], str], limit: int = 1 << 17, sign: str = "$") -> str:
    """`text` with every variable replaced by what `value` says of it, and each dollar sign by `sign`. Raises Malformed, also for
    more than `limit` characters."""
    if "$" not in text:
        return text
    parts, at, seen, size = list[str](), 0, 0, 0
    while (dollar := text.find("$", at)) >= 0:
        size += sum(map(len, parts[seen:]))
        seen = len(parts)
        if size > limit:
            raise Malformed(f"longer than {limit} characters with its values")
        parts.append(text[at:dollar])
        following = text[dollar + 1 : dollar + 2]
        if following == "$":
            parts.append(sign)
            at = dollar + 2
        elif following == "{":
            end = _closing(text, dollar + 1)
            parts.append(value(_use(text[dollar + 2 : end])))
            at = end + 1
        elif match := _NAME.match(text, dollar + 1):
            parts.append(value(Use(match[0], "", "")))
            at = match.end()
        else:
            parts.append(sign)
            at = dollar + 1
    return "".join([*parts, text[at:]])


def filled_in(text: str, value: Callable[[str], str | None], limit: int = 1 << 17) -> str:
    """`text` with some variables written out, for `expand` to do the rest: those that `value` says None of stay, and so does `$$`.

    What `value` says is such a text itself, and not looked through. Raises Malformed, also for more than `limit` characters.
    """
    if "$" not in text:
        return text

    def kept(use: Use) -> str:
        found, rest = value(use.name), filled_in(use.rest, value, limit)
        if found is None:
            return f"${{{use.name}{use.operator}{rest}}}"
        full = found != "" or not use.operator.startswith(":")
        if use.operator.endswith("+"):
            return rest if full else ""
        return found if full or use.operator == ":?" else rest

    found = expand(text, kept, limit, "$$")
    if len(found) > limit:
        raise Malformed(f"longer than {limit} characters with its values")
    return found


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Malformed(f"variables are nested deeper than {MAX_DEPTH}")
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
    raise Malformed("`${` is not closed: write $$ for a dollar sign")


def _use(inside: str) -> Use:
    match = _NAME.match(inside)
    if match is None:
        raise Malformed(f"`${{{inside[:40]}}}` names no variable: write $$ for a dollar sign")
    rest = inside[match.end() :]
    if not rest:
        return Use(match[0], "", "")
    operator = _OPERATOR.match(rest)
    if operator is None:
        raise Malformed(f"`${{{inside[:40]}}}` is not understood: write $$ for a dollar sign")
    return Use(match[0], operator[0], rest[operator.end() :])
