"""The one encoding of everything that is signed or hashed: a strict subset of JSON.

An object with sorted keys, no white space, UTF-8 without escapes that are not needed; values are objects, arrays,
strings, booleans, null and integers within ±(2^53 - 1). No floats. Bytes travel as unpadded URL-safe base64 strings.
`decode` accepts exactly the bytes that `encode` gives, so a value has one representation and one hash. (The rules are
those of Matrix's canonical JSON; see docs/explanation/decisions/0002-canonical-encoding.md.)
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from fractal.api.errors import InvalidInput

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 24

Value = dict[str, Any]
_PLAIN = frozenset({str, bool, type(None)})
"""Types of which every value can be encoded."""
_ENCODER = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False
)
"""`_check` bounds the depth, so circles need no second look."""
_KEYS = frozenset({str})
_LONG_NUMBER = re.compile(rb"[0-9]{16}")
"""What is in every text of an integer beyond `MAX_INTEGER`."""


def encode(value: Value) -> bytes:
    """Canonical bytes of an object. Raises InvalidInput for what the encoding cannot hold."""
    _check(value)
    try:
        return _ENCODER.encode(value).encode("utf-8")
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise InvalidInput(f"value cannot be encoded: {error}") from error


def decode(data: bytes, *, limit: int = 1 << 20) -> Value:
    """The object behind canonical bytes. Raises InvalidInput for anything else, however hostile."""
    if len(data) > limit:
        raise InvalidInput(f"{len(data)} bytes where at most {limit} are allowed")
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidInput("not canonical JSON") from error
    if not isinstance(value, dict):
        raise InvalidInput("not in canonical form")
    # What was JSON has no types that are not; numbers and depth are looked at one by one only where the text leaves a doubt.
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH or _LONG_NUMBER.search(data):
        _check(value)
    if _ENCODER.encode(value).encode("utf-8", "surrogatepass") != data:
        raise InvalidInput("not in canonical form")
    return value


def pack(data: bytes) -> str:
    """Bytes as unpadded URL-safe base64."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unpack(text: object, *, size: int | None = None) -> bytes:
    """Bytes out of `pack`'s text; exactly `size` bytes if given. Raises InvalidInput."""
    if not isinstance(text, str):
        raise InvalidInput("expected base64 text")
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError) as error:
        raise InvalidInput("not base64") from error
    if pack(data) != text or (size is not None and len(data) != size):
        raise InvalidInput("base64 text of the wrong form or length")
    return data


def _no_float(text: str) -> None:
    raise ValueError(f"{text}: only integers are allowed")


_DECODER = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float)


def _check(value: object) -> None:
    """Raises InvalidInput for what the encoding cannot hold. Level by level: most values are small, and calls are what costs."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[object] = []
        for item in level:
            kind = type(item)
            if kind is dict or isinstance(item, dict):
                if not _KEYS.issuperset(map(type, item)):  # type: ignore[call-overload]  # a dict, as said
                    raise InvalidInput("keys must be strings")
                deeper += [i for i in item.values() if type(i) not in _PLAIN]  # type: ignore[attr-defined]
            elif kind is int or (isinstance(item, int) and kind is not bool):
                if not -MAX_INTEGER <= item <= MAX_INTEGER:  # type: ignore[operator]  # an int, as said
                    raise InvalidInput(f"{item} is outside ±(2^53 - 1)")
            elif isinstance(item, list | tuple):
                deeper += [i for i in item if type(i) not in _PLAIN]
            elif item is not None and not isinstance(item, str | bool):
                raise InvalidInput(f"{kind.__name__} cannot be encoded")
        if not deeper:
            return
        level = deeper
    raise InvalidInput(f"nested deeper than {MAX_DEPTH}")
