"""Giving an app up: stopping it here, storing its last snapshot, releasing it to whoever is to have it.

What people wait for while an app moves happens between two of these lines, so nothing is done in between that can be done
later: what the run leaves (containers, networks) is removed once the epoch is released.

A release is final, and nobody acts on one that is not in the log. So the log is read right before an app is stopped for it, and
right before it is noted: an app whose owner cannot be heard goes on where it is, by what its store proves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fractal.api.errors import BackendError, FractalError, LeaseLost
from fractal.core.entries import Released
from fractal.core.lease import renews
from fractal.core.placement import refusal, successors

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob

STAY = 60.0
"""Seconds for which an app stays after a handover failed, before the next try."""
WITHDRAW_LIMIT = 3.0
"""Seconds that a transport may take to let requests under way finish before a planned move stops the app."""
HAND_OVER_LIMIT = 120.0
"""Seconds for the last snapshot of a handover to be stored; after that the app goes on where it is."""


REST = 300.0
"""Seconds until an app that got healthy on none of its devices is tried once more: its disk may have room by then, its image be mended."""


class Handover:
    """Belongs to one app's job."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self._stay_until = 0.0
        self.leaving = False
        """Whether the app is about to stop here to go on elsewhere: no route leads here any more."""
        self.rest_until = 0.0
        """When an app that got healthy on none of its devices is tried here once more (boottime)."""

    @property
    def target(self) -> str:
        """Device that is to have the app, "*" for any, this one for the app's next epoch; "" if all stays as it is."""
        job = self._job
        app, state, agent = job.app, job.group.state, job.group.agent
        if not job.owns or agent.clock.boottime() < self._stay_until:
            return ""
        wished = app.move_to if app.move_to != job.group.me else ""
        if wished and wished in successors(state, app) and job.group.online(wished):
            # Not to one that is away: the app would be released to nobody, taken by another, released again.
            return wished
        if agent.stopping and not agent.resting and app.policy.failover == "automatic":
            return self._anybody()
        if agent.stopping:
            return ""
        own = state.devices.get(job.group.me)
        if app.unproven and own is not None and refusal(state, app, own):
            # Nobody takes it from an owner that may run it without proof: that gives it up itself.
            return self._anybody()
        return job.group.me if renews(app) and job.group.me in successors(state, app) else ""

    def _anybody(self) -> str:
        """ "*" if another device that may have the app gives signs of life."""
        group = self._job.group
        others = successors(group.state, self._job.app, without=[group.me])
        return "*" if any(group.online(d) for d in others) else ""

    @property
    def problem(self) -> str:
        """What people should know of an epoch that is about to be renewed; "" if none is."""
        job = self._job
        return (
            "its policy keeps it when cut off only from its next epoch on"
            if job.owns and renews(job.app)
            else ""
        )

    def ready(self, target: str) -> bool:
        """Whether the target has said that it holds all that is stored, and nothing else is on its way there."""
        if target == "*":
            return True
        beat, facts = self._job.group.beats.get(target), self._job.facts.now
        if facts.committed is None or facts.ticks:
            return False
        if target == self._job.group.me:
            return True
        return beat is not None and beat.warm.get(self._job.id) == facts.committed

    async def hand_over(self) -> None:
        """Stop, take the last snapshot, store it, release. Raises FractalError: then the app stays."""
        job, epoch = self._job, self._job.app.epoch
        await self._hear(epoch)
        self.leaving = True
        try:
            await self._withdraw()
            halted = await job.halt()
            try:
                await job.saver.tick()
                await job.saver.drain(HAND_OVER_LIMIT)
                await self.release(epoch)
            except FractalError:
                # Without its last snapshot stored, or with nobody to hear of it, the app is better off running here; the wish is
                # tried again later.
                self._stay_until = job.group.agent.clock.boottime() + STAY
                await job.remove(halted)
                raise
            await job.remove(halted)
        finally:
            self.leaving = False
            job.group.pulse.beat()

    async def _withdraw(self) -> None:
        """Have no route lead here before the app stops: gateways hold requests then, instead of losing them."""
        agent = self._job.group.agent
        self._job.group.pulse.beat()
        end = agent.clock.boottime() + WITHDRAW_LIMIT
        while any(route.app == self._job.id for route in agent.serving) and agent.clock.boottime() < end:
            await agent.clock.sleep(0.02)

    async def give_up(self) -> None:
        """Release an app that does not get healthy here. Raises FractalError."""
        epoch = self._job.app.epoch
        await self._hear(epoch)
        await self.rest()  # should nobody else be left to take it
        await self.release(epoch, unhealthy=True)

    async def rest(self) -> None:
        """Stop an app that does not get healthy here, and leave it alone for a while. Raises FractalError."""
        await self._job.stop()
        self.rest_until = self._job.group.agent.clock.boottime() + REST

    def weariness(self) -> str:
        """What to tell of an app that rests; "" if it does not."""
        job = self._job
        left = self.rest_until - job.group.agent.clock.boottime()
        if left <= 0 or job.runs() or not job.nowhere:
            return ""
        return (
            f"it got healthy on none of its devices; tried here again within {left / 60 + 1:.0f} min. "
            f"Its log says why: `homeserver app logs {job.app.name}`"
        )

    async def let_go(self) -> None:
        """Release an epoch that cannot start here, of which nothing is here yet. It is not held against this device."""
        await self.release()

    async def _hear(self, epoch: int) -> None:
        """Read the log now. Raises BackendError if it cannot be read or proves nothing, LeaseLost if the epoch is over."""
        job = self._job
        await job.group.journal.poll(0)
        if job.group.blind:
            raise BackendError(
                "the log proves nothing at present: nobody would act on a release", retryable=True
            )
        if job.app.epoch != epoch or not job.owns:
            raise LeaseLost(f"epoch {epoch} of {job.app.name} is over: there is nothing to release")

    async def release(self, epoch: int = 0, *, unhealthy: bool = False) -> None:
        """Give an epoch up, the present one unless told: noted durably before it is sent, re-sent until read back, final.

        Nothing is noted if the log cannot be read now. Raises FractalError.
        """
        job = self._job
        epoch = epoch or job.app.epoch
        if job.facts.now.released < epoch:
            await self._hear(epoch)
        app, facts = job.id, job.facts.now
        # What is stopped stays so: nothing but a step of this job starts it, and from now on none does.
        stopped = not any(run.running for run in job.runs())
        clean = facts.waited == epoch and stopped
        # What an earlier epoch committed here is no news to whoever comes next.
        base = facts.committed if facts.root == epoch else None
        job.facts.change(released=epoch)
        await job.group.journal.append(
            Released(app=app, epoch=epoch, clean=clean, base=base, unhealthy=unhealthy),
            wanted=lambda state: state.apps[app].epoch == epoch and state.apps[app].release is None,
            timeout=600.0,
        )
        job.group.pulse.beat()
