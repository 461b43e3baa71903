"""Telling the guard until when each run may go on. The guard freezes by itself when nothing more is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fractal.api.errors import FractalError, NotFound, Unreachable
from fractal.core.lease import owes_word, seconds

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


def _basis(group: GroupAgent) -> tuple[object, ...]:
    """All that the wishes of all apps are found of: mostly nothing of it differs from one look to the next."""
    stores = [(store.sent, store.listed) for store in group.stores.values()]
    facts = [(job, job.facts.now) for job in group.jobs.values()]
    return (group.state, group.journal.proof_sent, group.agent.runs, stores, facts)


def _wish(job: AppJob, last: _Wish | None) -> _Wish:
    """What the guard is to know now: found anew whenever anything differs that `AppJob.right`, `run_keys` and `replaced` read."""
    group, app = job.group, job.app
    shared = (group.state.timers, group.blind)
    basis = (app, job.facts.now, job.runs(), group.proofs(app), group.stored(app), shared)
    if last is not None and last.basis == basis:
        return last
    right, keys = job.right(), job.run_keys()
    until = right.deadline
    deadlines = {key: until for key, epoch in keys.items() if until is not None and epoch == app.epoch}
    over = (key for key, epoch in keys.items() if key not in deadlines and job.replaced(epoch))
    return _Wish(basis, deadlines, tuple(over))


class _Beside:
    """What is done beside the grants, once at a time for each name: a tree that is slow to stand still must not cost the others theirs."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Begin it unless it is under way."""
        self._tasks = {key: task for key, task in self._tasks.items() if not task.done()}
        if name not in self._tasks:
            self._tasks[name] = asyncio.create_task(work())

    async def stop(self) -> None:
        """Cancel all of it."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())


async def grant(group: GroupAgent) -> None:
    """Grant every run its deadline; freeze at once what was replaced."""
    clock = group.agent.clock
    beside = _Beside()
    wishes: dict[str, _Wish] = {}
    basis: tuple[object, ...] = ()
    told = ""
    granted: tuple[dict[str, float], float] = ({}, 0.0)
    pulse = 0
    try:
        while True:
            now = clock.boottime()
            if (found := _basis(group)) != basis:
                basis = found
                wishes = {app: _wish(job, wishes.get(app)) for app, job in group.jobs.items()}
            unbound = [job for job in group.jobs.values() if _unbound(job)]
            for job in unbound:
                beside.start(job.id, partial(_bind, group, job))
            for key in (key for wish in wishes.values() for key in wish.replaced):
                beside.start(key, partial(_freeze, group, key))
            grants = _grants(wishes, now, without={job.id for job in unbound})
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
        await beside.stop()


def _grants(wishes: Mapping[str, _Wish], now: float, *, without: Collection[str]) -> dict[str, float]:
    """Deadlines of all runs that have a right at present, but for those of some apps."""
    kept = now // AGAIN * AGAIN + KEPT  # no news each time: it is said again as often as what stays
    return {
        key: min(deadline, kept)
        for app, wish in wishes.items()
        if app not in without
        for key, deadline in wish.deadlines.items()
        if deadline > now
    }


def _unbound(job: AppJob) -> bool:
    """Whether the guard may still hold what a policy granted that this device has read the end of."""
    return owes_word(job.app, job.group.me) and job.bound != job.app.unproven


async def _grant(group: GroupAgent, grants: dict[str, float]) -> str:
    """What went wrong, "" if nothing. The agent replaces a guard that does not answer; until then nothing runs."""
    try:
        await group.agent.grants.grant(grants)
    except Unreachable as error:
        return str(error)
    return ""


async def _bind(group: GroupAgent, job: AppJob) -> None:
    """Take back what was granted for `KEPT` seconds while the policy kept the app: the guard holds on to the latest deadline.

    The app stands still until it is granted anew, by proof. Only then others are told that it runs by proof.
    """
    position = job.app.unproven
    try:
        for key in job.run_keys():
            with suppress(NotFound):  # nothing of it is there
                await group.agent.guard.freeze(key)
    except FractalError as error:
        # Also a guard that is being replaced: the next look tries again.
        group.logger.warning("%s: taking the guard's grant back: %s", job.app.name, error)
        return
    job.bound = position
    group.pulse.beat()


async def _freeze(group: GroupAgent, key: str) -> None:
    try:
        await group.agent.guard.freeze(key, final=True)
    except NotFound:
        return  # it ended since the last look
    except FractalError as error:
        # Also a guard that is being replaced: the next look freezes again.
        group.logger.warning("freezing %s: %s", key, error)
