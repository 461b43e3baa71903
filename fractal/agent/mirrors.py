"""Second copies of an app's archive: its owner fills and tends them, beside everything else that it does.

Each mirror has a task of its own. None of them holds a lock that a snapshot, a restore or a handover waits for, and what a
mirror is sent was brought to this device before: one that is slow or down delays nothing but itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fractal.agent.beats import MirrorBeat
from fractal.agent.pulse import Pulse
from fractal.agent.supervise import supervise
from fractal.api.errors import BackendError, Corrupt, FractalError, NotFound, NotSupported
from fractal.archive.archive import Mirror, Place
from fractal.archive.restore import OPEN_LIMIT

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob
    from fractal.api.store import Store
    from fractal.archive.records import Record
    from fractal.core.retention import Slot

COMPARE = 3600.0
"""Seconds between two comparisons of what the app's store lists with what a mirror lists."""
AGAIN, LONGEST = 5.0, 300.0
"""Seconds before a round that failed is tried again: the first time, and at most."""
LISTING_LIMIT = 1800.0
"""Seconds that a comparison may take."""
LOOK, LOOK_WITHOUT = 5.0, 60.0
"""Seconds between two looks at the app's policy when nothing wakes the job; and where it names no mirror, as only the log can."""
ENDING = 5.0
"""Seconds for which a copy that is cancelled may take to end: a store that hangs keeps no agent from ending."""
REMEMBERED = 2000
"""Records committed since the last look that are known by heart; a mirror that is away for weeks must not fill the memory."""
WORDS = 120
"""Characters of a problem that others are told."""


class Copy:
    """One mirror of one app, as its owner knows it."""

    def __init__(self, job: AppJob, store: str) -> None:
        self._job = job
        self.store = store
        self.lacking: dict[Slot, Record] | None = None
        """What is to be copied; None before the first comparison."""
        self.problem = ""
        self._key = f"mirrors/{job.group.id}/{job.id}/{store}"
        self._fresh: dict[Slot, Record] = {}
        """Committed since, and not looked at yet."""
        self._stuck: set[Slot] = set()
        """What no store has whole, or has another in its place: not tried again before the next comparison."""
        self._news = Pulse()
        self._compare_at = 0.0
        self._since = self._recall()

    # --- what others read ----------------------------------------------------------------------------------------

    def said(self) -> MirrorBeat:
        """How far behind it is."""
        behind = -1 if self.lacking is None else len(self.lacking.keys() | self._fresh.keys())
        now = self._job.group.agent.clock.boottime()
        since = -1 if self._since is None else int(1000 * (now - self._since))
        return MirrorBeat(behind=behind, since=since, problem=self.problem[:WORDS])

    def committed(self, record: Record) -> None:
        """A snapshot stands in the app's store and is to be copied."""
        self._fresh[record.slot] = record
        if len(self._fresh) > REMEMBERED:
            # It has been away for a day or more: what it lacks is found by comparing, once it is back.
            del self._fresh[next(iter(self._fresh))]
            self._compare_at = 0.0
        if self._since is None:
            self._since = self._job.group.agent.clock.boottime()
        self._news.beat()

    def forget(self) -> None:
        """It is no mirror any more: if it becomes one again, how long it lagged before says nothing."""
        self._job.group.agent.notes.write({self._key: None})

    # --- copying -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Copy what is lacking, for ever."""
        clock, pause, seen = self._job.group.agent.clock, AGAIN, self._news.count
        while True:
            seen = self._news.count
            try:
                await self._round()
            except FractalError as error:
                self._trouble(str(error))
                self._compare_at = 0.0  # what is there and what is not may be otherwise by then
                await clock.sleep(pause)
                pause = min(LONGEST, 2 * pause)
                continue
            pause = AGAIN
            await self._news.wait(seen, max(0.1, self._compare_at - clock.boottime()))

    async def _round(self) -> None:
        job = self._job
        clock = job.group.agent.clock
        mirror = await job.mirrors.open(self.store)
        compared = clock.boottime() >= self._compare_at
        if compared:
            await self._compare(mirror)
            self._compare_at = clock.boottime() + COMPARE
        trouble = await self._copy(mirror)
        if compared:
            await mirror.copy_trim()
            await self._copy_images()
        if self.lacking or self._fresh:
            self._trouble(trouble or self.problem)
            return
        self._level()
        if compared:
            # A store that deletes nothing keeps what was let go: that costs room, not safety.
            with suppress(NotSupported):
                thinning = job.care.thinning
                await mirror.sweep(await thinning.rules(), thinning.owns_highest)
                await self._collect_images()

    async def _compare(self, mirror: Mirror) -> None:
        try:
            async with asyncio.timeout(LISTING_LIMIT):
                found = await mirror.look()
        except TimeoutError as error:
            raise BackendError(
                f"store {mirror.name} was not compared within {LISTING_LIMIT:g} s", retryable=True
            ) from error
        self.lacking = {record.slot: record for record in found}
        self._stuck = set()
        if found and self._since is None:
            self._since = self._job.group.agent.clock.boottime()
        if found:
            self._job.logger.info(
                "%s: %d record(s) to be copied to store %s", self._job.app.name, len(found), mirror.name
            )

    async def _copy(self, mirror: Mirror) -> str:
        """Copy what is lacking, oldest first; what was wrong with what could not be.

        Until the next comparison is due: filling a large archive takes days, in which some of it is let go.
        """
        clock, trouble = self._job.group.agent.clock, ""
        while True:
            lacking = self.lacking if self.lacking is not None else {}
            lacking.update(self._fresh)
            self._fresh, self.lacking = {}, lacking
            slot = min((slot for slot in lacking if slot not in self._stuck), default=None)
            if slot is None or clock.boottime() >= self._compare_at:
                return trouble
            try:
                await mirror.copy(lacking[slot])
            except Corrupt as error:
                self._stuck.add(slot)
                trouble = trouble or str(error)
            else:
                del lacking[slot]
            self._job.mending.notice(mirror.noticed())

    async def _copy_images(self) -> None:
        """The container images too: what runs the app is as good as lost with them."""
        job = self._job
        place = next((place for place in job.mirrors.places() if place.id == self.store), None)
        if place is None:
            return
        images = await job.group.images(job.app.store)
        for image in job.app.images:
            if await images.copy(image, place):
                job.logger.info("%s: image %s copied to store %s", job.app.name, image.name, place.name)

    async def _collect_images(self) -> None:
        """Images belong to all apps of a store: the owner of the first of them looks after them, as where they are archived."""
        job, apps = self._job, self._job.group.state.apps.values()
        users = (a.id for a in apps if self.store in (a.store, *a.mirrors) and not a.removed)
        if job.id == min(users, default=""):  # nobody's, if it ceased to be a mirror this very moment
            images = await job.group.images(self.store)
            await images.collect_orphans(job.care.thinning.owns_highest)

    def _trouble(self, words: str) -> None:
        job = self._job
        if words != self.problem:
            name = job.group.state.stores[self.store].name
            job.logger.warning("%s: mirror %s: %s", job.app.name, name, words)
            job.group.pulse.beat()
        self.problem = words
        clock = job.group.agent.clock
        if self._since is None:
            self._since = clock.boottime()
        if job.group.agent.notes.get(self._key) is None:
            # Durable only for what lasts: most of the time a mirror lags for the moment that a copy takes.
            ago = int(1000 * (clock.boottime() - self._since))
            job.group.agent.notes.write({self._key: b"%d" % (clock.wall_ms() - ago)})

    def _level(self) -> None:
        self.problem, self._since = "", None
        if self._job.group.agent.notes.get(self._key) is not None:
            self._job.group.agent.notes.write({self._key: None})

    def _recall(self) -> float | None:
        """Since when it is behind, over restarts: by the wall clock, which is a label."""
        agent = self._job.group.agent
        noted = agent.notes.get(self._key)
        if noted is None:
            return None
        return agent.clock.boottime() - max(0, agent.clock.wall_ms() - int(noted)) / 1000


class Mirrors:
    """Belongs to one app's job. Only the owner copies; what others know of it they hear from the owner."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self.copies: dict[str, Copy] = {}
        """By store."""
        self._opened: dict[str, Mirror] = {}

    def said(self) -> Mapping[str, MirrorBeat]:
        """How each mirror is, by store."""
        return {store: copy.said() for store, copy in self.copies.items()}

    def committed(self, record: Record) -> None:
        """A snapshot was committed here."""
        for copy in self.copies.values():
            copy.committed(record)

    def places(self) -> list[Place]:
        """The mirrors that the app's policy names, in its order: where any device looks for what the app's store lacks."""
        group = self._job.group

        async def open_store(store: str) -> Store:
            return (await group.store(store)).store

        known = group.state.stores
        return [
            Place(id=store, name=known[store].name, open=partial(open_store, store))
            for store in self._job.app.mirrors
            if store in known and not known[store].removed
        ]

    async def open(self, store: str) -> Mirror:
        """The copy in one of the mirrors. Raises NotFound, BackendError."""
        if store not in self._opened:
            job = self._job
            place = next((p for p in self.places() if p.id == store), None)
            if place is None:
                raise NotFound(f"store {store} is no mirror of {job.app.name}")
            try:
                async with asyncio.timeout(OPEN_LIMIT):
                    opened = await place.open()
            except TimeoutError as error:
                raise BackendError(
                    f"store {place.name} could not be opened within {OPEN_LIMIT:g} s", retryable=True
                ) from error
            self._opened[store] = (await job.data.archive()).mirror(place, opened)
        return self._opened[store]

    @property
    def _tends(self) -> bool:
        job = self._job
        app = job.app
        return job.owns and app.release is None and not job.group.blind and job.facts.now.root == app.epoch

    async def run(self) -> None:
        """Keep one task for each mirror as long as this device owns the app."""
        job, tasks = self._job, dict[str, asyncio.Task[None]]()
        pulse = 0
        try:
            while True:
                tends = bool(job.app.mirrors) and self._tends
                wanted: set[str] = {place.id for place in self.places()} if tends else set()
                for store, task in list(tasks.items()):
                    if task.done():
                        del tasks[store]
                    elif store not in wanted:
                        task.cancel()
                        gone = self.copies.pop(store, None)
                        if gone is not None and store not in job.app.mirrors:
                            gone.forget()
                for store in wanted - tasks.keys():
                    copy = self.copies[store] = Copy(job, store)
                    words = f"mirror {job.group.state.stores[store].name} of {job.app.name}"
                    tasks[store] = asyncio.create_task(
                        supervise(words, copy.run, job.group.agent.clock, job.logger)
                    )
                pulse = await job.group.pulse.wait(pulse, LOOK if job.app.mirrors else LOOK_WITHOUT)
        finally:
            self.copies = {}
            for task in tasks.values():
                task.cancel()
            if tasks:
                await asyncio.wait(tasks.values(), timeout=ENDING)
