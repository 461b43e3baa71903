"""A service's output in a file, with one older file beside it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

from fractal.api.context import Clock

FOLLOW_EVERY = 0.2
CHUNK = 1 << 16
LIMITS = 4
"""As many times its limit a log's older file holds at most: a service that floods its log must not hold up who copies it."""


def rotate(path: Path, limit: int) -> None:
    """Copy the end of a log that has outgrown `limit` bytes to `NAME.1` and empty it.

    The service goes on writing into the same file (opened for appending), so what it writes between copy and truncation
    is lost; that is the price of not standing between the service and its log.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return
    if size <= limit:
        return
    older = path.with_name(path.name + ".1")
    left = min(size, LIMITS * limit)
    with path.open("rb") as file, older.open("wb") as copy:
        file.seek(size - left)
        while left > 0 and (part := file.read(min(left, CHUNK))):
            copy.write(part)
            left -= len(part)
    older.chmod(0o600)
    os.truncate(path, 0)


def last_line(path: Path) -> str:
    """The last line with something in it, shortened; "" if there is none."""
    lines = _end(path, 4096).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _end(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - count))
            return file.read(count)
    except FileNotFoundError:
        return b""


async def read(path: Path, tail: int, *, follow: bool, clock: Clock) -> AsyncIterator[bytes]:
    """The last `tail` lines (0: everything kept), then what is added."""
    older = path.with_name(path.name + ".1")
    text = (older.read_bytes() if older.exists() else b"") + (path.read_bytes() if path.exists() else b"")
    position = path.stat().st_size if path.exists() else 0
    if tail:
        text = b"".join(text.splitlines(keepends=True)[-tail:])
    for start in range(0, len(text), CHUNK):
        yield text[start : start + CHUNK]
    while follow:
        await clock.sleep(FOLLOW_EVERY)
        size = path.stat().st_size if path.exists() else 0
        if size < position:  # rotated: begin anew
            position = 0
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                data = file.read(CHUNK)
            position += len(data)
            yield data
