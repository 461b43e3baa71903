"""Waking those who wait for something to change."""

from __future__ import annotations

import asyncio


class Pulse:
    """Each `beat` wakes everybody who waits at that moment, and everybody who has not waited since the last beat."""

    def __init__(self, above: Pulse | None = None) -> None:
        """A beat of this one is also one of `above`."""
        self._above = above
        self._count = 0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def count(self) -> int:
        """Beats so far; give it to `wait` so that none is missed."""
        return self._count

    def beat(self) -> None:
        """Something changed."""
        self._count += 1
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            _wake(waiter)
        if self._above is not None:
            self._above.beat()

    async def wait(self, seen: int, timeout: float) -> int:
        """Wait until the count differs from `seen`, at most `timeout` seconds; return the count."""
        if self._count == seen and timeout > 0:
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiting.append(waiter)
            alarm = loop.call_later(timeout, _wake, waiter)
            try:
                await waiter
            finally:
                alarm.cancel()
                if self._count == seen:  # else the beat took it off the list
                    self._waiting.remove(waiter)
        return self._count


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
