"""Health checks of services, done while the runtime is asked what it sees, never in the way of the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fractal.api.app import HealthSpec
from fractal.api.errors import BackendError
from fractal.api.probing import answers
from fractal.api.runtime import Health
from fractal.builtin.process.ports import HOST

START_INTERVAL = 0.25
"""Seconds between checks until the first good one: this is what a person waits for."""
Exec = Callable[[HealthSpec], Awaitable[bool]]


@dataclass(slots=True)
class Watch:
    """What is known of one service's health since it (or we) started."""

    spec: HealthSpec
    started: float
    """CLOCK_BOOTTIME of the service's start."""
    health: Health = Health.STARTING
    failures: int = 0
    detail: str = ""
    last: float = 0.0
    """CLOCK_BOOTTIME of the last check's begin."""
    task: asyncio.Task[None] | None = None

    def due(self, now: float) -> bool:
        """Whether a check should begin."""
        interval = self.spec.interval
        if self.health is Health.STARTING:
            interval = min(interval, START_INTERVAL)
        return self.task is None and now - self.last >= interval

    def begin(self, now: float, port: int, run: Exec) -> asyncio.Task[None]:
        """Begin a check. Its outcome is in `health` when the task is done."""
        self.last = now
        self.task = asyncio.create_task(self._check(now, port, run))
        return self.task

    async def stop(self) -> None:
        """Cancel a check that is under way."""
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    async def _check(self, now: float, port: int, run: Exec) -> None:
        try:
            async with asyncio.timeout(self.spec.timeout):
                if self.spec.test:
                    good, detail = await run(self.spec), "health command failed"
                else:
                    good, detail = await answers(HOST, port, self.spec.http)
        except (OSError, TimeoutError, BackendError) as error:
            good, detail = False, str(error) or "no answer in time"
        finally:
            self.task = None
        self.judge(now, good=good, detail=detail)

    def judge(self, now: float, *, good: bool, detail: str) -> None:
        """Take in the outcome of a check begun at `now`."""
        if good:
            self.health, self.failures, self.detail = Health.HEALTHY, 0, ""
            return
        self.detail = detail
        if self.health is Health.STARTING and now - self.started < self.spec.start_period:
            return
        self.failures += 1
        if self.failures >= self.spec.retries:
            self.health = Health.UNHEALTHY
