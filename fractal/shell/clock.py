"""The machine's clocks."""

from __future__ import annotations

import asyncio
import time

from fractal.api.context import Clock

_LONGEST_NAP = 5.0
"""Seconds. The event loop's timers stop while the machine sleeps; this bounds how late a wait ends after it wakes."""


class SystemClock(Clock):
    """CLOCK_BOOTTIME for deadlines, the wall clock for labels."""

    def boottime(self) -> float:
        """Seconds on CLOCK_BOOTTIME, suspended time included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        """Milliseconds since 1970; a label only."""
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Wait until `seconds` of CLOCK_BOOTTIME have passed; at least one turn of the event loop."""
        end = self.boottime() + seconds
        left = seconds
        while True:
            # Naps end together: many who wait for long wake the process once, not each at a time of its own.
            nap = _LONGEST_NAP - asyncio.get_running_loop().time() % _LONGEST_NAP
            await asyncio.sleep(max(0.0, min(left, nap)))  # of 0 it is one turn of the loop
            if (left := end - self.boottime()) <= 0:
                return
