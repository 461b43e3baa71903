"""Telling the guard until when each run may go on. The guard freezes by itself when nothing more is said."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fractal.api.errors import FractalError, NotFound, Unreachable
from fractal.core.lease import seconds

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob
    from fractal.agent.group import GroupAgent

INTERVAL = 0.5
AGAIN = 2.0
"""Seconds after which deadlines are said again that have not changed."""
KEPT = 3600.0
"""Seconds granted at a time to an app that its policy keeps running when the device is cut off."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the guard is to know of one app's runs."""

    basis: tuple[object, ...]
    """All that the rest was found of."""
    deadlines: Mapping[str, float]
    """By run, also where they are over."""
    replaced: tuple[str, ...]
    """Runs of epochs that are over."""


def _wish(job: AppJob, shared: tuple[object, ...], last: _Wish | None) -> _Wish:
    """What the guard is to know now: found anew whenever anything differs that `AppJob.right`, `run_keys` and `replaced` read.

    `shared` is what they read that is the same for all apps.
    """
    group, app = job.group, job.app
    basis = (app, job.facts.now, job.runs(), group.proofs(app), group.stored(app), shared)
    if last is not None and last.basis == basis:
        return last
    right, keys = job.right(), job.run_keys()
    until = right.deadline
    deadlines = {key: until for key, epoch in keys.items() if until is not None and epoch == app.epoch}
    over = (key for key, epoch in keys.items() if key not in deadlines and job.replaced(epoch))
    return _Wish(basis, deadlines, tuple(over))


async def grant(group: GroupAgent) -> None:
    """Grant every run its deadline; freeze at once what was replaced."""
    clock = group.agent.clock
    freezing: dict[str, asyncio.Task[None]] = {}
    wishes: dict[str, _Wish] = {}
    told = ""
    granted: tuple[dict[str, float], float] = ({}, 0.0)
    pulse = 0
    try:
        while True:
            now = clock.boottime()
            grants: dict[str, float] = {}
            shared = (group.state.timers, group.blind)
            wishes = {app: _wish(job, shared, wishes.get(app)) for app, job in group.jobs.items()}
            for wish in wishes.values():
                for key, deadline in wish.deadlines.items():
                    if deadline > now:
                        grants[key] = min(deadline, now + KEPT)
                for key in wish.replaced:
                    if key not in freezing or freezing[key].done():
                        # Beside the grants: a tree that is slow to stand still must not cost the others theirs.
                        freezing[key] = asyncio.create_task(_freeze(group, key))
            freezing = {key: task for key, task in freezing.items() if not task.done()}
            problem = ""
            # What the guard knows already is said again only now and then, for one that was replaced meanwhile.
            if grants and (grants != granted[0] or now >= granted[1] + AGAIN or told):
                problem = await _grant(group, grants)
                granted = (grants, now)
            if problem and problem != told:
                group.logger.warning("no grants: %s", problem)
            told = problem
            if any(job.runs() for job in group.jobs.values()):
                await clock.sleep(min(INTERVAL, seconds(group.state.timers.margin) / 4))
            else:
                pulse = await group.pulse.wait(pulse, AGAIN)  # whoever sees a run beats it
    finally:
        for task in freezing.values():
            task.cancel()
        if freezing:
            await asyncio.wait(freezing.values())


async def _grant(group: GroupAgent, grants: dict[str, float]) -> str:
    """What went wrong, "" if nothing. The agent replaces a guard that does not answer; until then nothing runs."""
    try:
        await group.agent.grants.grant(grants)
    except Unreachable as error:
        return str(error)
    return ""


async def _freeze(group: GroupAgent, key: str) -> None:
    try:
        await group.agent.guard.freeze(key, final=True)
    except NotFound:
        return  # it ended since the last look
    except FractalError as error:
        # Also a guard that is being replaced: the next look freezes again.
        group.logger.warning("freezing %s: %s", key, error)
