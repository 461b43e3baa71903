"""The names that cross the boundary to backends, checked in one place for all of them. Pure."""

from __future__ import annotations

import re

from fractal.api.errors import InvalidInput

KEY_LENGTH = 400
NAME_LENGTH = 120

_KEY = re.compile(rf"[a-z0-9._/-]{{1,{KEY_LENGTH}}}")
_PREFIX = re.compile(rf"[a-z0-9._/-]{{0,{KEY_LENGTH}}}")
_NAME = re.compile(rf"[a-z0-9._-]{{1,{NAME_LENGTH}}}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_UPWARD = frozenset({"", ".", ".."})


def check_key(key: str) -> tuple[str, ...]:
    """The parts of a store key. Raises InvalidInput unless it keeps to the rules of `fractal.api.store.Store`."""
    parts = tuple(key.split("/"))
    if not _KEY.fullmatch(key) or not _UPWARD.isdisjoint(parts):
        raise InvalidInput(
            f"store key {key[:80]!r}: 1-{KEY_LENGTH} characters of [a-z0-9._/-], no part empty, '.' or '..'"
        )
    return parts


def check_prefix(prefix: str) -> None:
    """Raises InvalidInput for a listing prefix with characters that no key has. (A prefix may end inside a part.)"""
    if not _PREFIX.fullmatch(prefix):
        raise InvalidInput(f"store prefix {prefix[:80]!r}: 0-{KEY_LENGTH} characters of [a-z0-9._/-]")


def check_name(name: str, what: str = "name") -> None:
    """Raises InvalidInput unless a volume's or snapshot's name keeps to the rules of `fractal.api.snapshot`."""
    if not _NAME.fullmatch(name) or name in _UPWARD:
        raise InvalidInput(
            f"{what} {name[:80]!r}: 1-{NAME_LENGTH} characters of [a-z0-9._-], never '.' or '..'"
        )


def normal_host(text: str) -> str:
    """A DNS name in the one form in which names are compared: lower case, no dot at the end. Raises InvalidInput."""
    name = text.lower()
    name = name.removesuffix(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise InvalidInput(f"{text[:80]!r} is not a DNS name")
    return name
