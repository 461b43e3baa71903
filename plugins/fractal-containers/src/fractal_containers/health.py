"""Health of containers: what the engine's own check says, and probes of ours over the run's network.

Probes go to the container's own address: at the published port the engine's proxy would accept a connection that nobody
inside listens for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from fractal.api.app import HealthSpec
from fractal.api.context import Clock
from fractal.api.errors import BackendError
from fractal.api.probing import answers
from fractal.api.runtime import Health
from fractal_containers.found import Container

START_INTERVAL = 0.25
"""Seconds between looks until the first good one: this is what a person waits for."""
CONNECT_INTERVAL, CONNECT_SPAN = 0.1, 1.0
"""A look that only connects, and so costs next to nothing, is repeated so often until then, for so long."""
EXEC_SHARE = 3.0
"""Commands cost more: so many times as long as the last one took between two of them, at least."""
Test = Callable[[Container, Sequence[str], float], Awaitable[bool]]
"""Runs a command in a container; whether it exited with 0."""


@dataclass(slots=True)
class Watch:
    """What our probes found of one start of one container."""

    spec: HealthSpec
    repeated: bool
    """Whether the engine repeats the command by itself: then ours only shortens the wait for the first good look."""
    started: float
    """CLOCK_BOOTTIME when we first saw it run."""
    health: Health = Health.STARTING
    failures: int = 0
    detail: str = ""
    last: float = float("-inf")
    """CLOCK_BOOTTIME of the last probe's begin."""
    took: float = 0.0
    """Seconds that the last probe took."""
    task: asyncio.Task[None] | None = None

    def due(self, now: float) -> bool:
        """Whether a probe should begin."""
        starting = self.health is Health.STARTING
        if self.repeated and not starting:
            return False
        quick = max(START_INTERVAL, EXEC_SHARE * self.took if self.spec.test else 0.0)
        interval = min(self.spec.interval, quick) if starting else self.spec.interval
        return self.task is None and now - self.last >= interval

    def begin(
        self, clock: Clock, container: Container, test: Test, frozen: Callable[[], bool]
    ) -> asyncio.Task[None]:
        """Begin to probe. The outcome is in `health` when the task is done."""
        self.last = clock.boottime()
        self.task = asyncio.create_task(self._look(clock, container, test, frozen))
        return self.task

    async def stop(self) -> None:
        """Cancel a probe that is under way."""
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    async def _look(self, clock: Clock, container: Container, test: Test, frozen: Callable[[], bool]) -> None:
        """One probe; several where they are cheap and somebody waits, as long as none counts as a failure."""
        end = min(self.last + CONNECT_SPAN, self.started + self.spec.start_period)
        try:
            while not frozen():
                await self._probe(clock, container, test)
                cheap = bool(container.address) and not self.spec.test
                if self.health is not Health.STARTING or not cheap or clock.boottime() >= end:
                    return
                await clock.sleep(min(CONNECT_INTERVAL, self.spec.interval))
                self.last = clock.boottime()
        finally:
            self.task = None

    async def _probe(self, clock: Clock, container: Container, test: Test) -> None:
        now = self.last
        try:
            async with asyncio.timeout(self.spec.timeout):
                if self.spec.test:
                    good = await test(container, self.spec.test, self.spec.timeout)
                    detail = "health command failed"
                else:
                    good, detail = await _connect(container, self.spec)
        except (OSError, TimeoutError, BackendError) as error:
            good, detail = False, str(error) or "no answer in time"
        finally:
            self.took = clock.boottime() - now
        self.judge(now, good=good, detail=detail)

    def judge(self, now: float, *, good: bool, detail: str) -> None:
        """Take in the outcome of a probe begun at `now`."""
        if good:
            self.health, self.failures, self.detail = Health.HEALTHY, 0, ""
            return
        self.detail = detail
        if self.repeated or (self.health is Health.STARTING and now - self.started < self.spec.start_period):
            return
        self.failures += 1
        if self.failures >= self.spec.retries:
            self.health = Health.UNHEALTHY


class Watches:
    """Our own looks at all that runs. The outcome of a look is in the next answer if it is slow."""

    def __init__(
        self,
        *,
        clock: Clock,
        repeated: bool,
        frozen: Callable[[Container], bool],
        test: Test,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when a look found another health than the last one."""
        self._clock = clock
        self._changed = changed
        self._repeated = repeated
        self._frozen = frozen
        self._test = test
        self._watches: dict[tuple[str, str], Watch] = {}

    def of(self, container: Container) -> Watch | None:
        """What is known of this start of the container."""
        return self._watches.get(_start(container))

    def starting(self, containers: Sequence[Container]) -> bool:
        """Whether one of them was not seen healthy since its start."""
        found = [self.of(container) for container in containers]
        return any(watch is not None and watch.health is Health.STARTING for watch in found)

    def spec(self, container: Container) -> HealthSpec | None:
        """How we look: as the app says; where the engine does not run the image's own check, that one."""
        return container.health or (None if self._repeated else container.test)

    def begin(self, container: Container) -> asyncio.Task[None] | None:
        """Begin a look if one is due; the one that is under way, if any."""
        now = self._clock.boottime()
        spec = self.spec(container)
        if spec is None or not container.running or self._frozen(container):
            return None
        repeated = self._repeated and bool(spec.test)
        watch = self._watches.setdefault(_start(container), Watch(spec, repeated, now))
        if watch.due(now):
            before = watch.health
            task = watch.begin(self._clock, container, self._test, lambda: self._frozen(container))
            task.add_done_callback(lambda _: None if watch.health is before else self._changed())
        return watch.task

    def forget(self, containers: Sequence[Container]) -> None:
        """Those of what is not among these, or does not run."""
        living = {_start(c) for c in containers if c.running}
        for name, watch in list(self._watches.items()):
            if name not in living and watch.task is None:
                del self._watches[name]

    async def stop(self) -> None:
        """Cancel every look."""
        for watch in list(self._watches.values()):
            await watch.stop()
        self._watches.clear()


def _start(container: Container) -> tuple[str, str]:
    """One start of one container."""
    return container.id, container.started


def judged(container: Container, watch: Watch | None) -> tuple[Health, str]:
    """A running container's health, and why."""
    if watch is not None and not watch.repeated:
        return watch.health, watch.detail
    checked = container.checked
    if checked is None:
        return Health.HEALTHY, ""
    if checked.status == "unhealthy":
        return Health.UNHEALTHY, checked.output.strip()[-300:]
    if checked.status == "starting":
        good = watch is not None and watch.health is Health.HEALTHY
        return (Health.HEALTHY if good else Health.STARTING), ("" if watch is None else watch.detail)
    return Health.HEALTHY, ""


async def _connect(container: Container, spec: HealthSpec) -> tuple[bool, str]:
    ports = [port for name, port in container.ports.items() if not spec.port or name == spec.port]
    number = next((int(port.partition("/")[0]) for port in ports if port.endswith("/tcp")), 0)
    if not container.address or not number:
        return False, "has no address yet"
    return await answers(container.address, number, spec.http)
