"""Looking after an app's archive: its owner verifies it, thins it by the app's policy, and removes what nothing needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fractal.agent.thinning import Thinning
from fractal.api.canonical import decode, encode
from fractal.api.errors import FractalError, InvalidInput, NotSupported
from fractal.api.plain import from_plain, to_plain

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob

DAY_MS = 24 * 3600 * 1000
HOUR_MS = 3600 * 1000
THIN = 300.0
"""Seconds between two looks whether something is to be merged or let go."""
LOOK = 60.0
"""Seconds between two looks whether something is due."""
LONGEST = 3600.0
"""Seconds between two tries of something that fails, at most; the first pause is `LOOK`, and each is twice the one before."""
FIRST = 120.0
"""Seconds after the agent's start before the first look: starting apps come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cared:
    """What was found last; instants are wall-clock labels, so that a day counts over restarts. 0: never."""

    verified_ms: int = 0
    problems: int = 0
    first: str = ""
    """The first problem in words."""
    collected_ms: int = 0
    orphans: int = 0
    """Orphans that are not old enough to go yet."""
    swept_ms: int = 0
    grows: bool = False
    """The store deletes nothing: what is let go stays there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A step that failed."""

    words: str
    """What failed, and why."""
    pause: float
    """Seconds until it is tried again."""
    again: float
    """When that is, by boot time."""


class Care:
    """Belongs to one app's job. Only the owner acts; who gets the app later goes on from its own notes."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self._key = f"care/{job.group.id}/{job.id}"
        self.found = self._recall()
        self.thinning = Thinning(job)
        self.trouble = ""
        self._failed: dict[str, Failed] = {}
        """By what could not be done."""
        self._thinned: float | None = None

    @property
    def problem(self) -> str:
        """What is wrong with the archive, and what to do; "" if nothing is known to be."""
        if self.found.problems:
            return (
                f"its archive has {self.found.problems} problem(s), first: {self.found.first}; "
                f"see `homeserver snapshot verify {self._job.app.name!r}`"
            )
        return self.trouble

    async def run(self) -> None:
        """Look for ever, from a while after start on."""
        clock = self._job.group.agent.clock
        await clock.sleep(FIRST)
        while True:
            await self.look()
            await clock.sleep(LOOK)

    async def look(self) -> None:
        """Do what is due; what fails is told and tried again, ever later."""
        job, now = self._job, self._job.group.agent.clock.wall_ms()
        if not job.owns or job.group.blind or job.facts.now.root != job.app.epoch:
            return
        steps = list(self._steps(now))
        if job.app.mirrors:
            steps.append(("mended", self._mend))
        for name, step in steps:
            failed = self._failed.get(name)
            if failed is not None and job.group.agent.clock.boottime() < failed.again:
                continue
            try:
                await step()
                self._failed.pop(name, None)
            except FractalError as error:
                pause = LOOK if failed is None else min(LONGEST, 2 * failed.pause)
                self._failed[name] = Failed(
                    words=f"its archive could not be {name}: {error}",
                    pause=pause,
                    again=job.group.agent.clock.boottime() + pause,
                )
        trouble = next((failed.words for failed in self._failed.values()), "")
        if trouble and trouble != self.trouble:
            job.logger.warning("%s: %s", job.app.name, trouble)
        self.trouble = trouble

    def _steps(self, now: int) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """What is due, each by itself: one that fails keeps none of the others from being done."""
        if _due(self.found.verified_ms, DAY_MS, now):
            yield "checked", partial(self._verify, now)
        # An orphan's age counts only what was observed, an hour at most for each look.
        if _due(self.found.collected_ms, HOUR_MS if self.found.orphans else DAY_MS, now):
            yield "tidied", partial(self._collect, now)
        clock = self._job.group.agent.clock
        if self._thinned is None or clock.boottime() - self._thinned >= THIN:
            yield "thinned", self._thin
        if _due(self.found.swept_ms, HOUR_MS, now):
            yield "cleared of what was let go", partial(self._sweep, now)

    async def _verify(self, now: int) -> None:
        job = self._job
        await job.group.list_epochs(job.app.store)
        archive = await job.data.archive()
        report = await archive.verify(deep=False)
        if report.problems and job.app.mirrors:
            job.mending.notice(await archive.faults(deep=False))
        first = f"{report.problems[0].key}: {report.problems[0].what}" if report.problems else ""
        if first:
            job.logger.error(
                "%s: %d problem(s) in its archive, first: %s", job.app.name, len(report.problems), first
            )
        self._note(verified_ms=now, problems=len(report.problems), first=first)

    async def _mend(self) -> None:
        """Put back a few objects that the app's store lacks."""
        mending = self._job.mending
        if await mending.due() and await mending.round():
            self._note(verified_ms=0)  # whether all is well again is found out by looking

    async def _collect(self, now: int) -> None:
        job = self._job
        archive = await job.data.archive()
        try:
            gone = await archive.collect_orphans(self.thinning.owns_highest)
            left = len(await archive.orphans())
            if self._first_of_its_store():
                images = await job.group.images(job.app.store)
                gone += await images.collect_orphans(self.thinning.owns_highest)
                left += len(await images.orphans())
        except NotSupported:
            gone, left = [], 0  # a store that deletes nothing keeps them: they cost room, not safety
        if gone:
            size = sum(orphan.bytes for orphan in gone)
            job.logger.info(
                "%s: removed %d object(s), %d bytes, that nothing names", job.app.name, len(gone), size
            )
        self._note(collected_ms=now, orphans=left)

    def _first_of_its_store(self) -> bool:
        """Images belong to all apps of a store: the owner of one of them looks after them."""
        job = self._job
        return job.id == min(
            a.id
            for a in job.group.state.apps.values()
            if job.app.store in (a.store, *a.mirrors) and not a.removed
        )

    async def _thin(self) -> None:
        self._thinned = self._job.group.agent.clock.boottime()
        await self.thinning.thin()

    async def _sweep(self, now: int) -> None:
        try:
            await self.thinning.collect()
            grows = False
        except NotSupported:
            grows = True
        if grows and not self.found.grows:
            self._job.logger.warning(
                "%s: its store deletes nothing: what retention lets go stays there", self._job.app.name
            )
        self._note(swept_ms=now, grows=grows)

    def verified(self, problems: int, first: str) -> None:
        """Somebody had the archive verified: what that found replaces what was known."""
        self._failed.pop("checked", None)
        self._note(
            verified_ms=self._job.group.agent.clock.wall_ms(),
            problems=problems,
            first=first,
        )

    def forget(self) -> None:
        """The app is gone."""
        self._job.group.agent.notes.write({self._key: None})
        self.found = Cared()

    def _recall(self) -> Cared:
        noted = self._job.group.agent.notes.get(self._key)
        try:
            return from_plain(Cared, decode(noted), drop_unknown=True) if noted else Cared()
        except InvalidInput:
            return Cared()  # it is found out again

    def _note(self, **changes: int | str) -> None:
        self.found = from_plain(Cared, {**to_plain(self.found), **changes})
        self._job.group.agent.notes.write({self._key: encode(to_plain(self.found))})


def _due(last_ms: int, interval_ms: int, now_ms: int) -> bool:
    """Whether it is time again; also when the wall clock was set back behind the last time."""
    return not last_ms <= now_ms < last_ms + interval_ms
