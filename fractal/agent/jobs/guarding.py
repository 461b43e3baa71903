"""Telling the guard until when each run may go on. The guard freezes by itself when nothing more is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fractal.core.lease import seconds

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

INTERVAL = 0.5
KEPT = 3600.0
"""Seconds granted at a time to an app that its policy keeps running when the device is cut off."""


async def grant(group: GroupAgent) -> None:
    """Grant every run its deadline; freeze at once what was replaced."""
    clock = group.agent.clock
    while True:
        now = clock.boottime()
        grants: dict[str, float] = {}
        for job in group.jobs.values():
            right = job.right()
            for key, epoch in job.run_keys().items():
                if right.deadline is not None and epoch == job.app.epoch:
                    if right.deadline > now:
                        grants[key] = min(right.deadline, now + KEPT)
                elif job.replaced(epoch):
                    await group.agent.guard.freeze(key, final=True)
        if grants:
            await group.agent.grants.grant(grants)
        await clock.sleep(min(INTERVAL, seconds(group.state.timers.margin) / 4))
