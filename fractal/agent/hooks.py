"""An app's own commands around each snapshot: bounded, told when they fail, and never leaving behind what the first ones took.

Between the first command before a snapshot and the last one after it, a mark is on this device's disk: an agent that was killed
in between runs those after it when it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fractal.api.app import run_key
from fractal.api.errors import FractalError
from fractal.api.runtime import Health

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob

GRACE = 2.0
"""Seconds beyond its own time-out after which a runtime that does not give a command up is not waited for any longer."""
SAID = 200
"""Bytes of a failed command's output that are told."""


class SnapshotHooks:
    """Belongs to one app's saver."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self.problem = ""
        """What went wrong at the last snapshot; "" if nothing did."""

    @property
    def due(self) -> bool:
        """Whether the app has commands to run, and is up to run them."""
        run = self._job.health()
        return (
            self._job.spec.consistency == "hook"
            and run is not None
            and not run.frozen
            and run.health not in (Health.STARTING, Health.STOPPED)
        )

    @property
    def held(self) -> bool:
        """Whether commands before a snapshot were run, and not all of those after it."""
        return bool(self._job.facts.now.hooked)

    @asynccontextmanager
    async def around(self) -> AsyncIterator[None]:
        """Run the commands before and after what is done inside, whatever comes of it and of them. Raises nothing of theirs."""
        if self.held:
            await self.release()
        if self.held or not self.due:
            # What is still held is not taken once more.
            self.problem = self.problem if self.held else ""
            yield
            return
        trouble = ""
        self._job.facts.change(hooked=self._key)
        try:
            trouble = await self._before()
            yield
        finally:
            after = await self._after()
            self._tell(trouble or after)

    async def release(self) -> None:
        """Run the commands after a snapshot that were left out, if the run that they are for is still there."""
        key, run = self._job.facts.now.hooked, self._job.health()
        if key == self._key and run is not None and run.running:
            self._tell(await self._after())
        elif key:
            # With the run ended whatever its commands held.
            self._job.facts.change(hooked="")

    @property
    def _key(self) -> str:
        return run_key(self._job.group.id, self._job.id, self._job.app.epoch)

    async def _before(self) -> str:
        """All together have the manifest's time; what went wrong first."""
        clock, spec = self._job.group.agent.clock, self._job.spec
        end, trouble = clock.boottime() + spec.hook_timeout, ""
        for service, argv in spec.before_snapshot:
            left = end - clock.boottime()
            if left <= 0:
                return trouble or f"snapshot hook of {service}: not run, as those before it took too long"
            found = await self._run(service, argv, left)
            trouble = trouble or found
        return trouble and f"{trouble}; the snapshot is as after a loss of power"

    async def _after(self) -> str:
        """Each has the manifest's time of its own: one that hangs keeps none of the others from letting go."""
        spec, troubles = self._job.spec, []
        for service, argv in spec.after_snapshot:
            troubles.append(await self._run(service, argv, spec.hook_timeout))
        trouble = next((t for t in troubles if t), "")
        if not trouble:
            self._job.facts.change(hooked="")
        return trouble

    async def _run(self, service: str, argv: tuple[str, ...], limit: float) -> str:
        """What went wrong, or ""."""
        where = f"snapshot hook of {service} ({argv[0]})"
        try:
            async with asyncio.timeout(limit + GRACE):
                result = await self._job.group.agent.runtime.exec(self._key, service, argv, timeout=limit)
        except TimeoutError:
            return f"{where}: not finished after {limit:g} s, and not to be ended"
        except FractalError as error:
            return f"{where}: {error}"
        if not result.exit_code:
            return ""
        said = result.output[-SAID:].decode("utf-8", "replace").strip()
        return f"{where} exited with {result.exit_code}{': ' if said else ''}{said}"

    def _tell(self, trouble: str) -> None:
        job = self._job
        if trouble and trouble != self.problem:
            job.logger.warning("%s: %s", job.app.name, trouble)
        if trouble and not self.problem:
            job.group.agent.tell(
                "app.hook.failed", group=job.group, app=job.id, text=f"{job.app.name}: {trouble}"
            )
        if self.problem and not trouble:
            job.logger.info("%s: its snapshot hooks work again", job.app.name)
        self.problem = trouble
