"""One job per app of the group: compare, take the next step, compare again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fractal.agent.app_job import AppJob
from fractal.agent.supervise import supervise

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent


LOOK = 5.0
"""Seconds between two looks when nothing wakes the job."""


async def run_apps(group: GroupAgent) -> None:
    """Keep a stepping, a saving, a caring, a mirroring and an image task for every app that exists or that left something here."""
    tasks: dict[str, list[asyncio.Task[None]]] = {}
    pulse = 0
    clock = group.agent.clock
    try:
        while True:
            for app in group.state.apps.values():
                if app.id not in tasks and not (app.removed and not AppJob.left_here(group, app.id)):
                    job = group.resting.pop(app.id, None) or AppJob(group, app.id)
                    group.jobs[app.id] = job
                    tasks[app.id] = [
                        asyncio.create_task(supervise(f"app {app.name}", job.run, clock, job.logger)),
                        asyncio.create_task(
                            supervise(f"saving {app.name}", job.saver.run, clock, job.logger)
                        ),
                        asyncio.create_task(
                            supervise(f"archive of {app.name}", job.care.run, clock, job.logger)
                        ),
                        asyncio.create_task(
                            supervise(f"mirrors of {app.name}", job.mirrors.run, clock, job.logger)
                        ),
                        asyncio.create_task(
                            supervise(f"images of {app.name}", job.images.run, clock, job.logger)
                        ),
                    ]
            for app_id in [a for a, pair in tasks.items() if pair[0].done()]:
                for task in tasks.pop(app_id):
                    task.cancel()
                if (ended := group.jobs.pop(app_id, None)) is not None:
                    group.resting[app_id] = ended  # it alone knows which of its moments are being looked into
            pulse = await group.pulse.wait(pulse, LOOK)
    finally:
        ending = [task for pair in tasks.values() for task in pair]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
