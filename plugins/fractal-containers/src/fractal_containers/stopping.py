"""Stopping one service of a run as it wishes to be: its commands, its signal, its grace."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fractal.api.app import Command
from fractal.api.context import Clock
from fractal.api.errors import BackendError, NotFound
from fractal.api.runtime import ExecResult
from fractal_containers.cgroup import RunCgroup
from fractal_containers.ending import STEP
from fractal_containers.engine import Engine
from fractal_containers.found import Container

ASK, ASK_BESIDE = 0.05, 0.5
"""Seconds between two questions to the engine whether a container has ended: alone, and beside looks at its cgroup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """What ends of itself. What does not is left to `ending`."""

    clock: Clock
    logger: logging.Logger
    engine: Engine
    cgroup: RunCgroup
    """Of the run."""
    execute: Callable[[Container, Command, float], Awaitable[ExecResult]]
    """Runs a command for at most so many seconds."""

    async def stop(self, container: Container) -> None:
        """Stop signal, grace, SIGKILL; returns early if the run is frozen meanwhile. Raises BackendError."""
        if not container.running:
            return
        what, signal = f"{container.key}: service {container.service}", container.stop_signal
        await self._before(container)
        seen = bool(self.cgroup.pids_of(container.id))
        try:
            await self.engine.signal(container.id, signal, what)
        except BackendError as error:
            if await self._runs(container.id):
                raise BackendError(f"{what}: {signal} cannot be sent: {error}", retryable=True) from error
            return
        if await self._ends_within(container, seen=seen):
            return
        with contextlib.suppress(
            BackendError
        ):  # it ended at the last moment; if not, the run's end sees to it
            await self.engine.signal(container.id, "SIGKILL", what)

    async def _before(self, container: Container) -> None:
        """What it wants done first, as long as its grace allows. What fails is told, and keeps nothing from ending."""
        end = self.clock.boottime() + container.grace
        for command in container.pre_stop:
            what = f"{container.key}: service {container.service}: {command.argv[0]} before its end"
            if (left := end - self.clock.boottime()) <= 0:
                self.logger.warning("%s: not run: those before it took too long", what)
                return
            try:
                result = await self.execute(container, command, left)
            except BackendError as error:
                self.logger.warning("%s: %s", what, error)
            else:
                if result.exit_code:
                    self.logger.warning("%s: exited with %d", what, result.exit_code)

    async def _ends_within(self, container: Container, *, seen: bool) -> bool:
        """Whether it has ended, or its run is frozen, before its grace is over.

        Told by its cgroup if its processes were `seen` there: an engine that tidies up after an end is slow to answer. The engine
        is asked all the same: a process that lives outside the container's own space is no part of its end.
        """
        now = self.clock.boottime()
        end, ask_at = now + container.grace, now + (ASK_BESIDE if seen else 0.0)
        while now < end:
            if self.cgroup.frozen() or (seen and not self.cgroup.pids_of(container.id)):
                return True
            if now >= ask_at:
                if not await self._runs(container.id):
                    return True
                ask_at = self.clock.boottime() + (ASK_BESIDE if seen else ASK)
            await self.clock.sleep(STEP)
            now = self.clock.boottime()
        return False

    async def _runs(self, identity: str) -> bool:
        try:
            return (await self.engine.inspect(identity)).running
        except NotFound:
            return False
