"""Names that the plugin uses in Matrix rooms, and how bytes travel in JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

LOG = "network.fractal.log.entry"
"""Type of an event that holds an entry."""
CONTACT = "network.fractal.log.contact"
"""Type of the state event in which an account says which device of the group it is, with its login."""
SIGNAL = "network.fractal.log.signal"
"""Type of a to-device message that holds a signal."""
ROOT = "network.fractal.homeserver"
"""Type of an account's own note of its root Space."""
VERSION = 1


def pack(data: bytes) -> str:
    """Base 85 without any character that JSON escapes: an entry of 48 KiB is 61,440 bytes, below the 64,500 that fit."""
    return base64.b85encode(data).decode("ascii")


def unpack(text: object, limit: int) -> bytes | None:
    """The inverse; None for anything that `pack` does not make of at most `limit` bytes."""
    if not isinstance(text, str) or not text.isascii() or len(text) > limit * 5 // 4 + 5:
        return None
    try:
        data = base64.b85decode(text)
    except ValueError:
        return None
    return data if len(data) <= limit and pack(data) == text else None


def text_of(content: Mapping[str, Any], name: str, *, longest: int = 255) -> str:
    """A text field that somebody else wrote; "" if it is none."""
    value = content.get(name)
    return value if isinstance(value, str) and len(value) <= longest else ""
