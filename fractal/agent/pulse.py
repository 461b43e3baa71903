"""Waking those who wait for something to change."""

from __future__ import annotations

import asyncio


class Pulse:
    """Each `beat` wakes everybody who waits at that moment, and everybody who has not waited since the last beat."""

    def __init__(self) -> None:
        self._count = 0
        self._next: asyncio.Future[None] | None = None

    @property
    def count(self) -> int:
        """Beats so far; give it to `wait` so that none is missed."""
        return self._count

    def beat(self) -> None:
        """Something changed."""
        self._count += 1
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    async def wait(self, seen: int, timeout: float) -> int:
        """Wait until the count differs from `seen`, at most `timeout` seconds; return the count."""
        if self._count == seen and timeout > 0:
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._next], timeout=timeout)
        return self._count
