"""Ending what runs, by cgroup alone."""

from __future__ import annotations

from fractal.api.context import Clock
from fractal.api.errors import BackendError
from fractal_containers.cgroup import RunCgroup

DYING = 10.0
"""Seconds within which what was sent SIGKILL must be gone."""
STEP = 0.01
LOOKS = 20
"""Looks, one STEP apart, between a SIGKILL and the next freeze: what is frozen again too early cannot die under v1."""


async def strike(clock: Clock, cgroup: RunCgroup, key: str) -> None:
    """SIGKILL until nothing is left, with the cgroup frozen afterwards, and the guard's too if it was."""
    outer = cgroup.frozen()
    end = clock.boottime() + DYING
    try:
        while not cgroup.strike():
            for _ in range(LOOKS):
                await clock.sleep(STEP)
                if not cgroup.pids():
                    break
            cgroup.hold(outer=outer)
            if cgroup.pids() and clock.boottime() >= end:
                raise BackendError(
                    f"{key}: processes {cgroup.pids()[:5]} outlive SIGKILL (a disk that does not answer?)",
                    retryable=True,
                )
    except OSError as error:
        raise BackendError(f"{cgroup.outer}: {error.strerror}; may the agent change cgroups?") from error
