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
from typing import Any

from fractal.api.errors import InvalidInput

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 24

Value = dict[str, Any]
_ENCODER = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False
)
"""`_check` bounds the depth, so circles need no second look."""


def encode(value: Value) -> bytes:
    """Canonical bytes of an object. Raises InvalidInput for what the encoding cannot hold."""
    _check(value, 0)
    try:
        return _ENCODER.encode(value).encode("utf-8")
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise InvalidInput(f"value cannot be encoded: {error}") from error


def decode(data: bytes, *, limit: int = 1 << 20) -> Value:
    """The object behind canonical bytes. Raises InvalidInput for anything else, however hostile."""
    if len(data) > limit:
        raise InvalidInput(f"{len(data)} bytes where at most {limit} are allowed")
    try:
        value = json.loads(data.decode("utf-8"), parse_float=_no_float, parse_constant=_no_float)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidInput("not canonical JSON") from error
    if not isinstance(value, dict) or encode(value) != data:
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


def _check(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise InvalidInput(f"{value} is outside ±(2^53 - 1)")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput("keys must be strings")
            if type(item) is not str:  # most are, and need no look
                _check(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, depth + 1)
    else:
        raise InvalidInput(f"{type(value).__name__} cannot be encoded")
