"""What every coordination builtin checks of its arguments, in the same words."""

from __future__ import annotations

import re
from functools import lru_cache

from fractal.api.coordination import MAX_ENTRY, MAX_SIGNAL
from fractal.api.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_name(what: str, text: str) -> str:
    """`text` if it is a group token, a token of an append or a device id. Raises InvalidInput."""
    if not _NAME.fullmatch(text):
        raise InvalidInput(
            f"{what}: 1 to 128 letters, digits, dots, dashes or underscores, not {text[:40]!r}"
        )
    return text


def check_entry(entry: bytes) -> bytes:
    """`entry` if a log takes it. Raises InvalidInput."""
    if not 1 <= len(entry) <= MAX_ENTRY:
        raise InvalidInput(f"an entry has 1 to {MAX_ENTRY} bytes, not {len(entry)}")
    return entry


def check_signal(payload: bytes) -> bytes:
    """`payload` if a signal may carry it. Raises InvalidInput."""
    if len(payload) > MAX_SIGNAL:
        raise InvalidInput(f"a signal has at most {MAX_SIGNAL} bytes, not {len(payload)}")
    return payload


def check_limit(limit: int) -> int:
    """`limit` if a page may have that many entries. Raises InvalidInput."""
    if limit < 1:
        raise InvalidInput(f"a page holds at least one entry, not {limit}")
    return limit


@lru_cache(maxsize=256)
def group_of(address: str, scheme: str) -> str:
    """The group token in an address `<scheme>#<token>`, remembered: the same few are asked for all the time. Raises InvalidInput."""
    found, _, token = address.partition("#")
    if found != scheme:
        raise InvalidInput(f"{address[:60]!r} is not an address of the {scheme} coordination backend")
    return check_name("log address", token)
