"""Having on this device what an app needs to start: its images, and what its runtime wants beside them.

That may take minutes, so it goes on beside the app's steps: an app that is replaced, moved or stopped meanwhile waits for no
image.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fractal.api.app import AppRun
from fractal.api.errors import FractalError

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob

AT_ONCE = 1.0
"""Seconds for which a step waits: mostly everything is here already."""
ENDING = 5.0
"""Seconds for which what is cancelled may take to end; a runtime that hangs keeps no app from being stopped."""


class Bringing:
    """Belongs to one app's job."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self._task: asyncio.Task[None] | None = None
        self._for: object = None
        """What is being brought, or was last."""
        self._here: object = None
        """What was brought."""
        self._missing: tuple[int, float] | None = None
        """Epoch for which something cannot be had here, and since when."""

    @property
    def here(self) -> bool:
        """Whether all that a start needs was brought."""
        return self._here == self._wanted

    @property
    def under_way(self) -> bool:
        """Whether it is being brought at this moment."""
        return self._task is not None and not self._task.done() and self._for == self._wanted

    @property
    def missing(self) -> tuple[int, float] | None:
        """Epoch for which something cannot be had here, and since when (boottime)."""
        return self._missing

    @property
    def _wanted(self) -> object:
        app = self._job.app
        return app.epoch, app.spec, self._job.images.digests()

    @property
    def coming_run(self) -> AppRun:
        """What the runtime prepares for: its volumes need not be here yet."""
        job = self._job
        return AppRun(
            group=job.group.id,
            app=job.id,
            epoch=job.app.epoch,
            spec=job.spec,
            volume_root=Path("/nonexistent"),
            secrets=job.data.secrets(),
            images=job.images.digests(),
        )

    async def whole_run(self) -> AppRun:
        """What the runtime is given to start. Raises BackendError if there is no volume root."""
        data = self._job.data
        root = await data.root()
        ignored = data.ignored_root() if self._job.spec.ignored else None
        return replace(self.coming_run, volume_root=root, ignored_root=ignored)

    async def begin(self) -> None:
        """Begin, if that was not done. `step` takes in what came of it."""
        wanted = self._wanted
        if self._task is None or self._for != wanted:
            await self.stop()
            self._for = wanted
            self._task = asyncio.create_task(self._bring())
            self._task.add_done_callback(self._ended)

    async def step(self) -> None:
        """Begin, or take in what came of it. Raises FractalError."""
        await self.begin()
        wanted, task = self._for, self._task
        assert task is not None
        await asyncio.wait([task], timeout=AT_ONCE)
        if not task.done():
            return
        self._task = None
        try:
            task.result()
        except FractalError:
            # Not to be had here counts like not getting healthy here: another device may have it.
            if self._missing is None or self._missing[0] != self._job.app.epoch:
                self._missing = (self._job.app.epoch, self._job.group.agent.clock.boottime())
            raise
        self._here, self._missing = wanted, None

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # retrieved, also if nobody wants it any more; `step` raises it
        self._job.group.pulse.beat()

    async def _bring(self) -> None:
        await self._job.images.bring()
        await self._job.group.agent.runtime.prepare(self.coming_run)

    def forget(self) -> None:
        """What was brought may be gone: look anew before the next start."""
        self._here = self._missing = None

    async def stop(self) -> None:
        """End what is under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=ENDING)
