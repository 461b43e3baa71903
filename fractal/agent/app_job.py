"""One app on this device: gathers what `core.plan` needs to see, and carries out the step that it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from fractal.agent.app_data import AppData
from fractal.agent.beats import AppBeat
from fractal.agent.bringing import Bringing
from fractal.agent.care import Care
from fractal.agent.handover import HAND_OVER_LIMIT, Handover
from fractal.agent.images import ImageCare
from fractal.agent.local import LocalFacts
from fractal.agent.manifest_use import ManifestUse
from fractal.agent.mending import Mending
from fractal.agent.mirrors import Mirrors
from fractal.agent.rooting import Rooting
from fractal.agent.saver import Saver
from fractal.agent.terms import Terms
from fractal.api.app import AppSpec, run_key
from fractal.api.errors import BackendError, FractalError, NotFound
from fractal.api.runtime import Health, RunStatus
from fractal.core.entries import AppRestored, Serving
from fractal.core.lease import Right, right_to_run
from fractal.core.model import App, Point
from fractal.core.placement import standbys, successors
from fractal.core.plan import Step, View, next_step, steady

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

LOOK, LOOK_OWNER, LOOK_STEADY = 5.0, 1.0, 15.0
"""Seconds between two looks when nothing wakes the job; where the app runs or should and not all is as it should be; and where all
is, so that whatever makes anything due wakes the job or is known ahead.
"""
LOOK_AGAIN = 30.0
"""Seconds between two looks for a snapshot that its owner says is there."""
START_LIMIT = 120.0
START_AGAIN = 0.5
"""Seconds between two starts of what does not stay up; the runtime's own back-off is longer for each service that fails."""
RESTORE_AGAIN = 20.0
"""Seconds before a restore that failed is tried again; the app runs and is saved meanwhile."""


class AppJob:
    """Steps are serialised: at most one is under way for an app, besides its saver storing snapshots."""

    def __init__(self, group: GroupAgent, app: str) -> None:
        self.group = group
        self.id = app
        self.facts = LocalFacts(group.agent.notes, group.id, app)
        self.logger = group.logger.getChild(app[:8])
        self.data = AppData(self)
        self.saver = Saver(self)
        self.care = Care(self)
        self.mirrors = Mirrors(self)
        self.mending = Mending(self)
        self.images = ImageCare(self)
        self.manifest = ManifestUse(self)
        self.bringing = Bringing(self)
        self.rooting = Rooting(self)
        self.handover = Handover(self)
        self.terms = Terms(self)
        self.trouble = ""
        self.bound = 0
        """`App.unproven` for which the guard's long grants were taken back."""
        self._started: tuple[int, float] | None = None
        """Epoch that is being started, and since when: each epoch has its own time to get healthy."""
        self._backoff = 0.0
        self._limit: tuple[AppSpec, float] | None = None
        """A specification, and the seconds that an app with it has to get healthy."""
        self._looked: tuple[Point | None, float] = (None, 0.0)
        """What the owner had said when the archive was looked into last, and when that was."""
        self._start_at = 0.0
        self._restore_at = 0.0
        self._restore_tried = ""
        self._restore_trouble = ""
        self._actions: dict[Step, Callable[[], Awaitable[None]]] = {
            Step.KILL: self._kill,
            Step.SET_ASIDE: self.data.set_aside,
            Step.FETCH: self._fetch,
            Step.PREPARE: self._prepare,
            Step.FINISH_WAIT: self._finish_wait,
            Step.RESTORE: self._restore,
            Step.STOP: self.stop,
            Step.UPDATE: self.stop,
            Step.BRING: self.bringing.step,
            Step.START: self._start,
            Step.ANNOUNCE: self._announce,
            Step.GIVE_UP: self.handover.give_up,
            Step.REST: self.handover.rest,
            Step.LET_GO: self.handover.let_go,
            Step.HAND_OVER: self.handover.hand_over,
            Step.RELEASE: self.handover.release,
            Step.TICK: self.saver.tick,
            Step.MAKE_ROOM: self.data.make_room,
            Step.CLEAN_UP: self.data.clean_up,
        }

    @staticmethod
    def left_here(group: GroupAgent, app: str) -> bool:
        """Whether this device still holds anything of the app."""
        facts = LocalFacts(group.agent.notes, group.id, app).now
        return bool(facts.root or facts.queue or facts.names)

    # --- what others read ---------------------------------------------------------------------------------------

    @property
    def app(self) -> App:
        """The app as the log has it."""
        return self.group.app(self.id)

    @property
    def spec(self) -> AppSpec:
        """The app's services, as the log has them."""
        return self.manifest.spec

    @property
    def owns(self) -> bool:
        """Whether this device is the app's owner."""
        group = self.group
        app = group.app(self.id)
        return app.owner == group.me and not app.removed

    @property
    def fetched(self) -> Point | None:
        """Newest point of the main line that a local snapshot holds."""
        return self.data.fetched

    def right(self) -> Right:
        """Until when the app may run here."""
        group = self.group
        app = group.app(self.id)
        store = group.stores.get(app.store)
        return right_to_run(
            app,
            group.me,
            timers=self.terms.timers,
            proofs=group.proofs(app),
            standing=self.facts.standing,
            stored=store.highest(app.id) if store else 0,
            blind=group.blind,
        )

    def run_keys(self) -> dict[str, int]:
        """Runs of the app that exist here or are about to: key -> epoch."""
        keys = {r.key: r.epoch for r in self.runs()}
        root = self.facts.now.root
        if root and self.owns and root == self.app.epoch:
            keys[run_key(self.group.id, self.id, root)] = root
        return keys

    def replaced(self, epoch: int) -> bool:
        """Whether the log or the store says that this device's epoch is over."""
        store = self.group.stores.get(self.app.store)
        return max(self.app.epoch, store.highest(self.id) if store else 0) > epoch or self.app.removed

    def runs(self) -> tuple[RunStatus, ...]:
        """Runs of the app on this device, as last observed."""
        return self.group.runs(self.id)

    def health(self) -> RunStatus | None:
        """The present run, if there is one."""
        return self._present(self.runs())

    def _present(self, runs: Sequence[RunStatus]) -> RunStatus | None:
        epoch = self.app.epoch if runs else 0
        return next((r for r in runs if r.epoch == epoch), None)

    def beat(self) -> AppBeat:
        """What this device tells the others about the app."""
        run = self.health()
        return AppBeat(
            epoch=self.app.epoch,
            health=run.health.value if run else Health.STOPPED.value,
            frozen=run.frozen if run else False,
            committed=self.facts.now.committed,
            would_lose=self.saver.would_lose(),
            spec=self.manifest.told(),
            detail=self.problem()[:200],
            mirrors=self.mirrors.said(),
        )

    def problem(self) -> str:
        """What is wrong here in one line; "" if nothing is."""
        if update := self.manifest.problem():
            return f"{update}; {self.trouble}" if self.trouble else update
        if self.trouble:
            return self.trouble
        if self._restore_trouble and self.app.restore is not None:
            return f"{self._restore_trouble}; `homeserver app restore` to another moment replaces the wish"
        if weariness := self.handover.weariness():
            return weariness
        right = self.right()
        if self.owns and right.deadline is None:
            return f"not running: {right.reason}"
        if self.owns and right.deadline is not None and right.deadline < self.group.agent.clock.boottime():
            return "frozen: neither log nor store could be read lately"
        saver = self.saver
        return (
            saver.problem
            or saver.hooks.problem
            or self.care.problem
            or self.images.problem
            or self.handover.problem
        )

    @property
    def handing_over(self) -> bool:
        """Whether the agent's end still waits for this app to be released to somebody."""
        return self.owns and self.app.release is None and bool(self.handover.target)

    @property
    def resting(self) -> bool:
        """Whether nothing of the app runs here and its last snapshot is stored: what an agent's end waits for."""
        if not self.owns or self.app.release is not None:
            return not self.runs()
        right = self.right()
        if right.deadline is None or right.deadline <= self.group.agent.clock.boottime():
            return True  # frozen, or not begun: without proof an end can do nothing more for it
        stored = self.saver.caught_up and not self.facts.now.queue
        return not self.runs() and (stored or not self.facts.now.root)

    # --- stepping -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Step until the app is gone from the group and from this device."""
        self._backoff = 0.0
        await self._unpause()
        try:
            await self._step_on()
        finally:
            await self.bringing.stop()

    async def _step_on(self) -> None:
        pulse = self.group.pulse.count
        while True:
            if not self.owns:
                await self.bringing.stop()
            self.manifest.note_health()
            view = self.view()
            step = next_step(view)
            if step is Step.IDLE:
                pulse = await self.group.pulse.wait(pulse, self._idle(view))
                continue
            pulse = self.group.pulse.count
            await self._attempt(step)
            if step is Step.CLEAN_UP and not self.trouble:
                self.group.pulse.beat()
                return

    async def _unpause(self) -> None:
        """An agent that was killed in the middle of a snapshot left the app paused, or holding still for its hooks."""
        for run in self.runs():
            if run.epoch == self.app.epoch and self.owns:
                await self.group.agent.runtime.unpause(run.key)
        await self.saver.hooks.release()

    async def _attempt(self, step: Step) -> None:
        clock = self.group.agent.clock
        try:
            await self._actions[step]()
        except FractalError as error:
            trouble = f"{step.value}: {error}"
            if trouble != self.trouble:
                self.logger.warning("%s: %s", self.app.name, trouble)
            self.trouble = trouble
            if step is Step.RESTORE:
                self._restore_trouble = trouble
            self._backoff = min(10.0, max(0.5, self._backoff * 2))
            await clock.sleep(self._backoff)
        else:
            if step not in (Step.TICK, Step.BRING, Step.MAKE_ROOM):
                self.logger.info("%s: %s: done", self.app.name, step.value)
            self.trouble, self._backoff = "", 0.0

    def view(self) -> View:
        """The app as it is now."""
        group, app, facts = self.group, self.app, self.facts.now
        now, owns, runs = group.agent.clock.boottime(), self.owns, self.runs()
        run = self._present(runs)
        if self._started is None and owns and app.serving != app.epoch and run is not None and run.services:
            # Started by an agent that ended since: the app still has only so long to get healthy. Not if there are only networks,
            # which are made before: a device that is cut off then must not give up what it never tried to start.
            self._started = (app.epoch, now)
        target = self.handover.target
        unprepared = self.rooting.since(app.epoch)
        return View(
            me=group.me,
            now=now,
            app=app,
            standing=self.facts.standing,
            right=self.right(),
            runs={r.epoch: r.health for r in runs},
            wait_over=self.terms.wait_over(now),
            fetched=self.data.fetched,
            newest=self._newest(),
            standby=not owns and group.me in standbys(group.state, app),
            crowded=self.data.crowded and group.hosts,
            started=self._since(app.epoch),
            start_limit=self._start_limit(),
            tick_due=self._tick_due(run),
            changed_since_tick=not self.saver.settled,
            hand_over_to=target,
            rounds=self.saver.rounds,
            last_round=self.saver.last_round,
            saving=bool(facts.ticks),
            target_ready=self.handover.ready(target),
            outdated=self.manifest.outdated,
            held=bool(facts.queue) or self.data.opened,
            here=self.bringing.here,
            bringing=self.bringing.under_way,
            ending=group.agent.stopping,
            start_at=self._start_at,
            rest_until=self.handover.rest_until,
            restore_at=self._restore_at if app.restore and app.restore.id == self._restore_tried else 0.0,
            others_left=not app.failed or any(self._untried()),
            unprepared=unprepared,
            spoilt=self.rooting.spoilt(app.epoch),
            log_away=bool(group.log_problem) or group.blind,
            others_there=unprepared is not None and any(map(group.online, self._untried())),
        )

    @property
    def nowhere(self) -> bool:
        """Whether the app got healthy on none of the devices that may have it, of which this one keeps it."""
        return self.owns and self.group.me in self.app.failed and not self._untried()

    def _untried(self) -> list[str]:
        """Other devices that could have the app and have not failed to run it."""
        app, group = self.app, self.group
        return [d for d in successors(group.state, app, without=[group.me]) if d not in app.failed]

    def _since(self, epoch: int) -> float | None:
        """When this epoch's time to get healthy began."""
        for known in (self.bringing.missing, self._started):
            if known is not None and known[0] == epoch:
                return known[1]
        return None

    def _start_limit(self) -> float:
        """Seconds to get healthy: what the manifest itself asks for may be more than the usual."""
        spec = self.spec
        if self._limit is None or self._limit[0] is not spec:
            checks = [s.health for s in spec.services if s.health is not None]
            longest = [c.start_period + c.retries * (c.interval + c.timeout) for c in checks]
            self._limit = (spec, max([START_LIMIT, *longest]))
        return self._limit[1]

    def _tick_due(self, run: RunStatus | None) -> float:
        """When the next snapshot is due. Not while an app comes up for the first time: half-made, it would not start again from
        it, and nobody has anything to lose. As long as that is within what a start may take.
        """
        app = self.app
        since = self._since(app.epoch)
        if app.serving or run is None or run.health is not Health.STARTING or since is None:
            return self.saver.due
        return max(self.saver.due, since + START_LIMIT)

    def _newest(self) -> Point | None:
        """What the owner says that it committed last; else what the last look into the archive showed.

        An owner may say anything: what was looked for and not found is not looked for at once again.
        """
        said, (looked_for, at) = self._said_newest(), self._looked
        if said is None or (said == looked_for and self.group.agent.clock.boottime() - at < LOOK_AGAIN):
            return self.data.newest
        return said

    def _said_newest(self) -> Point | None:
        """What the owner said last, in a signal or as it released the app: then the next one need not wait for a look."""
        app = self.app
        if self.owns:
            return None
        beat = self.group.beats.get(app.owner)
        said = beat.apps.get(self.id) if beat else None
        told = [said.committed] if said is not None and said.epoch == app.epoch else []
        if app.release is not None and app.release.epoch == app.epoch:
            told.append(app.release.base)
        return max((point for point in told if point is not None), default=None)

    async def _fetch(self) -> None:
        said, release = self._said_newest(), self.app.release
        await self.data.fetch(
            release.base if release is not None and release.epoch == self.app.epoch else None
        )
        self._looked = (said, self.group.agent.clock.boottime())

    def _idle(self, view: View) -> float:
        if not self.owns:
            waits = [LOOK]
        else:
            waits = [LOOK_STEADY if steady(view) else LOOK_OWNER]
            soon = (view.tick_due, view.wait_over or 0.0, view.start_at, view.restore_at)
            waits += [at - view.now for at in soon if at > view.now]
        return max(0.02, min(waits))

    # --- steps --------------------------------------------------------------------------------------------------

    async def _kill(self) -> None:
        agent = self.group.agent
        for run in self.runs():
            given_up = self.app.release is not None or self.facts.now.released >= run.epoch
            if run.epoch != self.app.epoch or not self.owns or given_up:
                with suppress(NotFound):  # a new guard knows nothing of what its predecessor took along
                    await agent.guard.freeze(run.key, final=True)
                await agent.runtime.kill(run.key)
                await agent.runtime.remove(run.key)
        await agent.observe()

    async def _prepare(self) -> None:
        # What a start needs and no right to run does: while the wait goes on, and beside the data, so that nothing but the start
        # itself comes after them.
        await self.bringing.begin()
        await self.rooting.prepare()
        self.saver.reset()
        try:
            await self.bringing.step()
        except FractalError as error:
            self.logger.info("%s: not ready yet, the start tries again: %s", self.app.name, error)

    async def _finish_wait(self) -> None:
        # The terms are noted too: the store may be away when an agent starts again.
        epoch = self.app.epoch
        self.facts.change(waited=epoch, stated=epoch, proof=self.terms.stated)

    async def _start(self) -> None:
        agent = self.group.agent
        await self.data.require_root()
        run = await self.bringing.whole_run()
        await agent.guard.register(await agent.runtime.freezable(run))
        right = self.right()
        if right.deadline is None or right.deadline <= agent.clock.boottime():
            raise BackendError(f"not started: {right.reason}", retryable=True)
        await agent.guard.grant({run.key: min(right.deadline, agent.clock.boottime() + 3600)})
        epoch = self.app.epoch
        if self._started is None or self._started[0] != epoch or self.app.serving == epoch:
            self._started = (epoch, agent.clock.boottime())
        self._start_at = agent.clock.boottime() + START_AGAIN
        await self.manifest.note_start()
        try:
            await agent.runtime.start(run)
        except FractalError:
            self.bringing.forget()
            raise
        self._start_at = agent.clock.boottime() + START_AGAIN
        await agent.observe()

    async def halt(self) -> list[str]:
        """Stop the app; what is left of its runs stays until it is started again or removed. The runs' keys."""
        agent = self.group.agent
        # Asked before: what is stopped and has no process may not be observed any more.
        keys = [run.key for run in self.runs()]
        if self._started is not None:
            # A start that failed may have left services that no look has shown since: a look may hang where the start did.
            tried = run_key(self.group.id, self.id, self._started[0])
            keys += [tried] if tried not in keys else []
        for key in keys:
            await agent.runtime.stop(key)
        agent.ended(keys)
        self._started = None
        self.bringing.forget()
        self.saver.hurry()
        return keys

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove what stopped runs left."""
        for key in keys:
            await self.group.agent.runtime.remove(key)
        await self.group.agent.observe()

    async def stop(self) -> None:
        """Stop the app and remove what its run left."""
        await self.remove(await self.halt())

    async def _announce(self) -> None:
        epoch = self.app.epoch
        await self.group.journal.append(
            Serving(app=self.id, epoch=epoch),
            wanted=lambda state: state.apps[self.id].epoch == epoch and state.apps[self.id].serving != epoch,
        )
        took = self.group.agent.clock.boottime() - self._started[1] if self._started else 0.0
        self.logger.info("%s became healthy after %.1f s", self.app.name, took)
        self.group.pulse.beat()
        self.group.agent.tell(
            "app.serving", group=self.group, app=self.id, text=f"{self.app.name} is healthy here"
        )

    async def _hold(self, point: Point) -> None:
        """Fetch a moment, which may take hours, and save the app meanwhile as ever."""
        fetching = asyncio.create_task(self.data.hold(point))
        try:
            while not fetching.done():
                await self._tick_if_due()
                await asyncio.wait([fetching], timeout=1.0)
            await fetching
        finally:
            fetching.cancel()
            await asyncio.wait([fetching])

    async def _tick_if_due(self) -> None:
        if not self.owns or self.saver.due > self.group.agent.clock.boottime():
            return
        try:
            if await self.data.has_root():
                await self.saver.tick()
        except FractalError as error:
            self.trouble = f"{Step.TICK.value}: {error}"  # tried again soon; the restore goes on

    async def _restore(self) -> None:
        wish = self.app.restore
        if wish is None or wish.id == self.app.restored:
            return
        self._restore_at, self._restore_tried = self.group.agent.clock.boottime() + RESTORE_AGAIN, wish.id
        # Fetched while the app runs: what cannot be had costs no downtime.
        await self._hold(wish.point)
        if self.runs():
            await self.stop()
        if await self.data.has_root():
            # The present is stored first: a restore can itself be undone.
            await self.saver.tick()
            await self.saver.drain(HAND_OVER_LIMIT)
        await self.data.put_back(wish.point)
        self.saver.reset()
        await self.group.journal.append(
            AppRestored(app=self.id, id=wish.id), wanted=lambda state: state.apps[self.id].restored != wish.id
        )
        self._restore_at, self._restore_trouble = 0.0, ""
