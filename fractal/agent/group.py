"""One group on this device: its log, its stores, what is known of the others, and the jobs that act on it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fractal.agent.beats import Beat, Ear, Voice
from fractal.agent.jobs.certifying import Certifying
from fractal.agent.journal import Journal
from fractal.agent.pulse import Pulse
from fractal.agent.remote import Remote
from fractal.agent.supervise import supervise
from fractal.api.errors import BackendError, NotFound
from fractal.api.runtime import RunStatus
from fractal.api.store import Store
from fractal.archive.epochs import EpochRecord, Epochs
from fractal.archive.images import Images
from fractal.core.lease import Proofs, Seen, Suspicion
from fractal.core.model import App, DeviceRole, GroupState, Timers

if TYPE_CHECKING:
    from fractal.agent.agent import Agent
    from fractal.agent.app_job import AppJob
    from fractal.agent.walk import Break


@dataclass(slots=True)
class OpenStore:
    """A store of the group, opened, with what its last listing showed."""

    store: Store
    epochs: Epochs
    listed: dict[str, dict[int, EpochRecord]] = field(default_factory=dict)
    sent: float | None = None
    """Boottime at which the request of the last complete listing was sent."""
    problem: str = ""

    def highest(self, app: str) -> int:
        """Highest epoch of the app that any listing showed."""
        return max(self.listed.get(app, ()), default=0)


class GroupAgent:
    """Holds what the jobs share. Jobs wait on `pulse` and compare; none depends on having seen an event."""

    def __init__(self, agent: Agent, group: str, journal: Journal) -> None:
        self.agent = agent
        self.id = group
        self.me = agent.keys.id
        """Id of this device."""
        self.journal = journal
        self.pulse = Pulse(agent.pulse)
        journal.news = self.pulse.beat
        journal.heard = self.heard_log
        self.stores: dict[str, OpenStore] = {}
        self.beats: dict[str, Beat] = {}
        """What each other device said last ..."""
        self.heard: dict[str, float] = {}
        """... and when that was heard (boottime)."""
        self.ear = Ear()
        self.voice = Voice(agent.notes, group)
        self.suspicion = Suspicion(since=agent.clock.boottime())
        self.seen = Seen()
        self.jobs: dict[str, AppJob] = {}
        self.resting: dict[str, AppJob] = {}
        """Of removed apps of which nothing is here: nobody runs these jobs, but their archives can be read."""
        self.remote = Remote(self)
        self.log_problem = ""
        self.deaf = False
        """Whether the last read of the log that came to an end was not answered in time."""
        self.certifying = Certifying()
        self._images: dict[str, Images] = {}
        self._proofs: dict[str, Proofs] = {}
        self._runs: tuple[Sequence[RunStatus], Mapping[str, tuple[RunStatus, ...]]] = ((), {})
        """What was observed last, and the group's part of it by app."""
        self._pace: tuple[tuple[object, ...], Timers] | None = None
        """What `pace` was found of, and what it was."""
        self.logger = agent.logger.getChild(group[:8])
        self._stack = AsyncExitStack()
        self._opening: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._task: asyncio.Task[None] | None = None

    # --- what the jobs read -------------------------------------------------------------------------------------

    @property
    def state(self) -> GroupState:
        """The folded log."""
        return self.journal.state

    @property
    def blind(self) -> bool:
        """Whether the log proves nothing at present."""
        state = self.journal.state
        return bool(state.sealed_out or state.forked or state.left)

    @property
    def hosts(self) -> bool:
        """Whether this device runs apps, or still owns one. One that does not has no use for a store, and often no way into it."""
        state = self.state
        own = state.devices.get(self.me)
        return (own is not None and DeviceRole.HOST in own.roles) or any(
            a.owner == self.me for a in state.apps.values()
        )

    def app(self, app: str) -> App:
        """An app by id. Raises NotFound."""
        found = self.journal.state.apps.get(app)
        if found is None:
            raise NotFound(f"app {app} is not in group {self.state.name!r}")
        return found

    def job(self, app: str) -> AppJob | None:
        """What knows the app's data here, also for one that was removed. None for an app that no job knows yet."""
        from fractal.agent.app_job import AppJob

        found = self.state.apps.get(app)
        if app in self.jobs or found is None or not found.removed:
            return self.jobs.get(app)
        if app not in self.resting:
            self.resting[app] = AppJob(self, app)
        return self.resting[app]

    def runs(self, app: str) -> tuple[RunStatus, ...]:
        """Runs of an app on this device, as last observed."""
        runs = self.agent.runs
        if self._runs[0] is not runs:
            found: defaultdict[str, tuple[RunStatus, ...]] = defaultdict(tuple)
            for run in runs:
                if run.group == self.id:
                    found[run.app] += (run,)
            self._runs = (runs, dict(found))
        return self._runs[1].get(app, ())

    def proofs(self, app: App) -> Proofs:
        """When this device last proved that an app's epoch is the highest."""
        store = self.stores.get(app.store)
        listed = store is not None and app.epoch in store.listed.get(app.id, ())
        log, listing = self.journal.proof_sent, store.sent if store is not None and listed else None
        last = self._proofs.get(app.id)
        if last is None or last.log != log or last.store != listing:
            last = self._proofs[app.id] = Proofs(log=log, store=listing)
        return last  # the same value stays: it is asked for several times a second

    def stored(self, app: App) -> Mapping[int, EpochRecord]:
        """The app's epochs in its store, as last listed."""
        store = self.stores.get(app.store)
        return store.listed.get(app.id, {}) if store else {}

    @property
    def pace(self) -> Timers:
        """The timers by which log and stores are read: often enough for whichever app here has the shortest proofs."""
        # All that says who owns what here, and which proofs the epoch objects of that allow.
        basis = (self.state, tuple(self.jobs), [store.listed for store in self.stores.values()])
        if self._pace is None or self._pace[0] != basis:
            owned = (job.terms.timers for job in self.jobs.values() if job.owns)
            self._pace = (basis, min(owned, key=lambda timers: timers.proof, default=self.state.timers))
        return self._pace[1]

    async def store(self, store: str) -> OpenStore:
        """A store of the group, opened on first use. Raises NotFound, BackendError."""
        # One store that does not answer keeps nobody from another.
        async with self._opening[store]:
            if store in self.stores:
                return self.stores[store]
            entry = self.state.stores.get(store)
            if entry is None or entry.removed:
                raise NotFound(f"store {store} is not in group {self.state.name!r}")
            opened = await self._stack.enter_async_context(self.agent.open_store(entry))
            epochs = Epochs(
                group=self.id,
                store=opened,
                keys=self.agent.keys,
                group_key=self.journal.group_key,
                sign_key_of=self.sign_key_of,
                clock=self.agent.clock,
                entropy=self.agent.entropy,
                notes=self.agent.notes,
                name=store,
                announced=lambda app: self.state.apps[app].epoch if app in self.state.apps else None,
            )
            self.stores[store] = OpenStore(store=opened, epochs=epochs)
            return self.stores[store]

    async def images(self, store: str) -> Images:
        """The container images of the group's apps in a store. Raises NotFound, BackendError."""
        if store not in self._images:
            opened, agent = await self.store(store), self.agent
            self._images.setdefault(
                store,
                Images(
                    group=self.id,
                    store=opened.store,
                    clock=agent.clock,
                    entropy=agent.entropy,
                    workers=agent.workers,
                    notes=agent.notes,
                    named=partial(self._named_images, store),
                    place=store,
                    folder=agent.folder("spool") / f"{self.id[:16]}.images.{store}",
                ),
            )
        return self._images[store]

    async def _named_images(self, store: str) -> set[str]:
        """Objects of images that live apps have in a store, or in it as a mirror, by a read of the log that is sent now."""
        await self.journal.poll(0)
        live = (a for a in self.state.apps.values() if store in (a.store, *a.mirrors) and not a.removed)
        return {image.object for app in live for image in app.images}

    def sign_key_of(self, device: str) -> bytes | None:
        """Signing key of a device of the group, also of one that was removed since."""
        known = self.state.devices.get(device)
        return known.sign_key if known else None

    async def list_epochs(self, store: str) -> OpenStore:
        """List a store's epochs now; the result proves what it shows from the moment the request was sent.

        Raises BackendError; the last result stays.
        """
        opened = await self.store(store)
        sent = self.agent.clock.boottime()
        try:
            async with asyncio.timeout(self.state.timers.read_timeout / 1000):
                listed = await opened.epochs.listing()
        except TimeoutError as error:
            opened.problem = f"listing store {self.state.stores[store].name!r} timed out"
            raise BackendError(opened.problem, retryable=True) from error
        except BackendError as error:
            opened.problem = str(error)
            raise
        if opened.sent is not None and sent < opened.sent:
            return opened  # a look that began later was quicker
        opened.sent, opened.problem = sent, ""
        if listed != opened.listed:  # the same value stays, so that what was made of it does too
            opened.listed = listed
            self.pulse.beat()
        return opened

    def heard_log(self, answered: bool) -> None:
        """A read of the log was answered in time, or was not. Silence counts only while reads work, and from zero after an outage."""
        if self.deaf or not answered:
            now = self.agent.clock.boottime()
            self.suspicion, self.seen = self.suspicion.deaf(now), self.seen.deaf(now)
        self.deaf = not answered

    def online(self, device: str) -> bool:
        """Whether the device gave a sign of life lately. A hint, never proof."""
        if device == self.me:
            return True
        heard = self.heard.get(device)
        timers = self.state.timers
        limit = (timers.patience + timers.beat) / 1000
        return heard is not None and self.agent.clock.boottime() - heard <= limit

    def unstored(self) -> list[str]:
        """Names of apps of which this device holds something that no store has yet."""
        return sorted(job.app.name for job in self.jobs.values() if job.facts.now.queue)

    async def erase(self) -> None:
        """Delete everything of the group's apps from this device. Only after `close`. Raises BackendError."""
        for job in self.jobs.values():
            await job.data.clean_up()

    def certificate(self, route: str) -> str:
        """PEM chain of a route's certificate; "" where this device does not hold the app's key."""
        wish = self.state.routes.get(route)
        job = self.jobs.get(wish.app) if wish else None
        try:
            return job.data.secrets().get(f"tls.{route}.chain", "") if job else ""
        except BackendError:
            return ""

    async def walk(self, route: str, *, whole: bool = True) -> list[Break]:
        """What is broken between a route's name and its app's data, as far as this device sees; or with the name alone."""
        from fractal.agent.walk import walk

        return await walk(self, route, whole=whole)

    def status(self) -> Mapping[str, Any]:
        """One item of `groups` of `status.show`."""
        from fractal.agent.status import group_status

        return group_status(self)

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the group's jobs."""
        self._task = asyncio.create_task(self._run(), name=f"group-{self.id[:8]}")

    async def close(self) -> None:
        """End the jobs and close the stores."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        await self.remote.close()
        await self._stack.aclose()

    async def _run(self) -> None:
        from fractal.agent.jobs import beating, certifying, failover, guarding, reading, running, upkeep

        jobs: dict[str, Callable[[GroupAgent], Awaitable[None]]] = {
            "log": reading.follow_log,
            "stores": reading.follow_stores,
            "signals": beating.exchange_signals,
            "answers": failover.answer,
            "challenges": failover.challenge,
            "takeover": failover.take_over,
            "guard": guarding.grant,
            "apps": running.run_apps,
            "upkeep": upkeep.keep_up,
            "certificates": certifying.certify,
        }
        async with asyncio.TaskGroup() as tasks:
            for name, job in jobs.items():
                one = partial(job, self)
                tasks.create_task(supervise(name, one, self.agent.clock, self.logger), name=name)
