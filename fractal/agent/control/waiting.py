"""Waiting for a wish to come true, and telling what is going on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fractal.agent.control.progress import Progress
from fractal.agent.pulse import Pulse
from fractal.api.context import Clock

DEFAULT = 120.0
"""Seconds that a command waits unless it is told otherwise."""
LOOK = 0.5
"""Longest time in seconds between two looks; not everything beats the pulse."""


class HasClock(Protocol):
    """Of the agent: its clock."""

    @property
    def clock(self) -> Clock:
        """Time."""


class Waitable(Protocol):
    """Of a group: what wakes a waiter."""

    @property
    def agent(self) -> HasClock:
        """Whose clock counts."""

    @property
    def pulse(self) -> Pulse:
        """Beats when something changed."""


async def wait_until(
    group: Waitable,
    seconds: float,
    fulfilled: Callable[[], bool],
    progress: Progress,
    words: Callable[[], str],
) -> bool:
    """Whether `fulfilled` became true within `seconds`; looks at least once, and at every beat of the group's pulse.

    `words` says how things are; each time that it says something new, the caller is told. Cancellable; changes nothing.
    """
    clock, said = group.agent.clock, ""
    end = clock.boottime() + seconds
    while True:
        seen = group.pulse.count
        if fulfilled():
            return True
        left = end - clock.boottime()
        if left <= 0:
            return False
        if (now := words()) != said:
            progress.say(now)
            said = now
        await group.pulse.wait(seen, min(LOOK, left))
