"""Making an epoch's volume root: out of which snapshot, by whom that is chosen, and what comes of tries that fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fractal.api.errors import Corrupt, FractalError, NotFound
from fractal.core.chain import EMPTY
from fractal.core.keeping import STRAY, outdone_strays
from fractal.core.model import Point

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob
    from fractal.agent.group import OpenStore


class Rooting:
    """Belongs to one app's job."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self._failing: tuple[int, float] | None = None
        self._spoilt = 0

    def since(self, epoch: int) -> float | None:
        """Since when (boottime) the epoch's root cannot be made; None if no try failed, or the last one did not."""
        return self._failing[1] if self._failing is not None and self._failing[0] == epoch else None

    def spoilt(self, epoch: int) -> bool:
        """Whether something that is not valid stands where the epoch's base belongs: it is there for good."""
        return self._spoilt == epoch

    async def prepare(self) -> None:
        """Choose the epoch's base (late in the wait) and make the volume root out of it. Raises FractalError."""
        epoch = self._job.app.epoch
        try:
            await self._prepare(epoch)
        except FractalError:
            if self.since(epoch) is None:
                self._failing = (epoch, self._job.group.agent.clock.boottime())
            raise
        self._failing = None

    async def _prepare(self, epoch: int) -> None:
        job, data = self._job, self._job.data
        snapshotter = job.group.agent.snapshotter
        await self._clear_unknown_root()
        opened = await job.group.list_epochs(job.app.store)
        base = (await data.bases()).get(epoch)
        if base is None:
            base = await self._choose(opened, epoch)
        if base == EMPTY and job.app.source is not None:
            await self._copy_source()
        elif base == EMPTY:
            await snapshotter.create_root(data.volume)
        else:
            # What is stored first makes room, or the app's leaving.
            name = await data.hold(base, prune=False)
            await snapshotter.checkout(data.volume, name)
        try:
            await data.forget_ignored()
            await data.make_folders()
        except FractalError:
            # Nothing ever ran in it. Left there, each try would put one more whole copy aside.
            await snapshotter.delete_root(data.volume)
            raise
        data.fetched = base
        committed = base if base != EMPTY else None
        job.facts.change(root=epoch, committed=committed, spec="", updated_ms=0)

    async def _choose(self, opened: OpenStore, epoch: int) -> Point:
        """What the epoch starts from, written down once for all."""
        job = self._job
        await self._let_listings_catch_up(opened.store.staleness)
        newest = await job.data.look()
        try:
            return await opened.epochs.create_base(job.id, epoch, newest)
        except Corrupt:
            self._spoilt = epoch
            raise

    async def _let_listings_catch_up(self, staleness: float) -> None:
        """Before a base is chosen in a store whose listings lag by up to S: a snapshot may have been called committed up to S after
        this epoch's put, by a listing that did not show it yet, and is seen for certain S after that.
        """
        if staleness:
            await self._job.group.agent.clock.sleep(2 * staleness)

    async def _clear_unknown_root(self) -> None:
        """A root that no epoch claims is left from a crash in the middle of `prepare`: keep it aside, begin again.

        Only the newest: each is a whole copy of the app's data.
        """
        volume, snapshotter = self._job.data.volume, self._job.group.agent.snapshotter
        if await snapshotter.root(volume) is None:
            return
        counter = self._job.facts.now.counter + 1
        self._job.facts.change(counter=counter)
        await snapshotter.set_aside(volume, f"{STRAY}{counter}")
        for name in outdone_strays(s.name for s in await snapshotter.snapshots(volume)):
            await snapshotter.delete(volume, name)

    async def _copy_source(self) -> None:
        """The first root of a fork: another app's moment, restored below this app's own volume."""
        app = self._job.app
        source = app.source
        if source is None:
            return
        origin = self._job.group.job(source.app)
        if origin is None:
            raise NotFound(f"the app that {app.name} is a fork of is not known here yet")
        volume, snapshotter = self._job.data.volume, self._job.group.agent.snapshotter
        archive = await origin.data.archive()
        snapshot = await archive.restore(
            source.point,
            snapshotter=snapshotter,
            volume=volume,
            name_of=lambda p: f"s-{p.epoch}-{p.number}",
        )
        await snapshotter.checkout(volume, snapshot.name)
