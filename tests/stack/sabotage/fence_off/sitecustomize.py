"""Fence off: the directory store overwrites what exists, so creating an epoch is no lock."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

if sys.orig_argv[-2:] == ["agent", "run"] or "fractal.demo.race" in sys.orig_argv:
    from fractal.api.errors import Conflict
    from fractal.builtin.directory import DirectoryStore

    _put_new = DirectoryStore.put_new

    async def overwrite(self: DirectoryStore, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        try:
            await _put_new(self, key, data)
        except Conflict:
            await self.delete(key)
            await _put_new(self, key, data)

    DirectoryStore.put_new = overwrite  # type: ignore[method-assign]  # the sabotage
