"""Keeping an app's archive small by the group's rules: what its owner does for the archive's `thin` and `collect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fractal.archive.archive import Here, Rules
from fractal.core.retention import Keep

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob
    from fractal.api.context import Clock
    from fractal.archive.archive import Archive
    from fractal.archive.collecting import Leaving
    from fractal.archive.records import Record
    from fractal.archive.thinning import Outlook, Thinned
    from fractal.core.model import App, Point, Policy

MOST_STEPS = 50
"""Merges in one go: more wait for the next look."""


def keep_of(policy: Policy) -> Keep:
    """What an app's policy keeps, counted."""
    return Keep(
        ticks=max(1, policy.keep_ticks // policy.interval),
        hourly=policy.keep_hourly,
        daily=policy.keep_daily,
        weekly=policy.keep_weekly,
        bytes=policy.keep_bytes,
    )


class Thinning:
    """Belongs to one app's job; only the owner calls what changes anything."""

    def __init__(self, job: AppJob) -> None:
        self._job = job

    @property
    def _clock(self) -> Clock:
        return self._job.group.agent.clock

    async def rules(self) -> Rules:
        """By what the app's archive is kept, as the log says now."""
        job = self._job
        return Rules(
            epoch=job.app.epoch,
            bases=await job.data.bases(),
            keep=keep_of(job.app.policy),
            pins=frozenset(job.app.pins | self._wanted()),
        )

    def _wanted(self) -> set[Point]:
        """Moments that somebody is about to open: a restore that is not done, a fork that has stored nothing."""
        job = self._job
        points = {job.app.restore.point} if job.app.restore is not None else set()
        forks = (a for a in job.group.state.apps.values() if a.source is not None and not a.removed)
        return points | {
            a.source.point for a in forks if a.source and a.source.app == job.id and not self._begun(a)
        }

    def _begun(self, fork: App) -> bool:
        """Whether it is known to have stored a snapshot of its own. Before that, whoever takes it over begins with ours."""
        group = self._job.group
        if fork.owner == group.me:
            own = group.jobs.get(fork.id)
            return own is not None and own.facts.now.committed is not None
        beat = group.beats.get(fork.owner)
        said = beat.apps.get(fork.id) if beat is not None else None
        return said is not None and said.epoch == fork.epoch and said.committed is not None

    async def outlook(self) -> Outlook:
        """What the rules make of the archive as it stands. Raises BackendError."""
        job = self._job
        await job.group.list_epochs(job.app.store)
        archive, rules = await job.data.archive(), await self.rules()
        return await archive.outlook(rules, await job.data.held() if job.owns else frozenset())

    async def leaving(self) -> list[Leaving]:
        """What was let go and still stands. Raises BackendError."""
        return await (await self._job.data.archive()).leaving()

    async def thin(self) -> list[Thinned]:
        """Merge what is due and let go what may. Raises what the archive's `thin` raises."""
        job = self._job
        await job.group.list_epochs(job.app.store)
        await job.data.look()
        archive = await job.data.archive()
        done: list[Thinned] = []
        while not done or ((done[-1].merged or done[-1].refused) and len(done) < MOST_STEPS):
            done.append(await self._step(archive))
        return done

    async def _step(self, archive: Archive) -> Thinned:
        job = self._job
        data, rules = job.data, await self.rules()

        async def proof() -> bool:
            # A merge may take hours: what was pinned or wished for meanwhile is not let go.
            await job.group.journal.poll(0)
            return await self.owns_highest() and await self.rules() == rules

        here = Here(
            snapshotter=job.group.agent.snapshotter,
            volume=data.volume,
            name_of=job.facts.now.name_of,
            held=await data.held(),
        )
        with data.holding(map(here.name_of, here.held)):
            step = await archive.thin(rules, here, proof)
        if step.merged is not None:
            kind = "full" if step.merged.parent is None else ("", "hour", "day", "week")[step.merged.level]
            job.logger.info(
                "%s: %s merged into snapshot %d.%d, %d bytes",
                job.app.name,
                kind,
                step.merged.epoch,
                step.merged.number,
                step.merged.stored,
            )
        if step.trim:
            job.logger.info("%s: %d snapshot(s) let go by its policy", job.app.name, step.let_go)
        if step.back:
            # Pinned, or the policy keeps more than it did; or whoever owned the app before let go what it should not have.
            job.logger.warning(
                "%s: %d snapshot(s) that were let go are kept by its policy and pins, and count again",
                job.app.name,
                step.back,
            )
        return step

    async def collect(self) -> list[Record]:
        """Delete what was let go a day ago. Raises NotSupported, Corrupt, BackendError."""
        archive, rules = await self._job.data.archive(), await self.rules()
        gone = await archive.collect(rules, self.owns_highest)
        if gone:
            size = sum(record.stored for record in gone)
            self._job.logger.info(
                "%s: removed %d record(s) that were let go, %d bytes", self._job.app.name, len(gone), size
            )
        return gone

    async def owns_highest(self) -> bool:
        """Fresh proof: by a listing sent now, this device owns the app's highest epoch."""
        job = self._job
        opened = await job.group.list_epochs(job.app.store)
        return job.owns and job.app.release is None and opened.highest(job.id) == job.app.epoch
