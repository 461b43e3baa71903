"""A device's processes: a simulated process tree per run, the guard that halts them, and the runtime that starts them.

The guard is a program of its own: it goes on when the agent hangs or is killed, and it alone thaws. Its commands do what
`fractal.guard.commands` does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fractal.api.app import AppRun, AppSpec
from fractal.api.errors import BackendError, Conflict, NotFound, Unreachable
from fractal.api.runtime import ExecResult, Freezable, Health, Refusal, RunStatus, ServiceStatus
from fractal.guard.client import GuardClient, GuardRun

if TYPE_CHECKING:
    from fractal.sim.machine import Machine

HEALTHY_AFTER = 1.0
"""Seconds that the simulated app needs to get healthy."""
SLOW_LOOKS = 0.25
"""Share of looks at what runs whose answer takes a while."""


@dataclass(slots=True, eq=False)
class Tree:
    """One run: what the guard knows of it, and its processes."""

    key: str
    group: str
    app: str
    epoch: int
    volume: str = ""
    alive: bool = False
    frozen: bool = True
    final: bool = False
    paused: bool = False
    asleep: bool = False
    """Its machine sleeps."""
    deadline: float = 0.0
    started: float = 0.0
    writes: int = 0
    written: float = 0.0
    """Simulated time up to which the app's own writes were carried out."""

    @property
    def moving(self) -> bool:
        """Whether its processes compute at this instant."""
        return self.alive and not self.frozen and not self.paused and not self.asleep


class SimGuard:
    """Holds deadlines and freezes by itself."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.trees: dict[str, Tree] = {}
        self.dead = False
        self.asleep = False

    def _watch(self, tree: Tree) -> None:
        """Look again when the deadline has passed: at most 0.2 s late, as a loaded machine may be."""
        clock = self._machine.clock
        late = self._machine.world.random.uniform(0.0, 0.2)
        delay = (tree.deadline - clock.boottime()) / clock.rate + late
        self._machine.world.later(max(0.0, delay), self._look, tree)

    def _look(self, tree: Tree) -> None:
        if self.dead or tree.frozen or self.asleep:
            return
        if self._machine.clock.boottime() < tree.deadline:
            self._watch(tree)
            return
        self.halt(tree)
        self._machine.world.counts["guard: froze"] += 1
        if tree.alive:
            self._machine.world.say(self._machine, f"guard froze {tree.app[:4]} at epoch {tree.epoch}")

    def sleep(self) -> None:
        """The machine is suspended: nothing here computes any more."""
        self.asleep = True
        for tree in self.trees.values():
            self._machine.disk.app_writes(tree)
            tree.asleep = True

    def wake(self) -> None:
        """The machine goes on, with the apps as they were; the guard looks within its interval of 0.1 s, or a little later."""
        self.asleep = False
        world = self._machine.world
        for tree in self.trees.values():
            tree.asleep = False
            tree.written = world.loop.time()
            if not tree.frozen:
                world.later(world.random.uniform(0.0, 0.3), self._look, tree)

    def halt(self, tree: Tree) -> None:
        """Freeze."""
        self._machine.disk.app_writes(tree)
        tree.frozen = True

    def release(self, tree: Tree, deadline: float) -> None:
        """Grant until `deadline`."""
        tree.deadline = max(tree.deadline, deadline)
        if tree.frozen:
            tree.frozen = False
            self._machine.world.counts["guard: thawed"] += 1
            tree.written = self._machine.world.loop.time()
            self._machine.world.truth.moved(self._machine, tree)
            self._watch(tree)

    def die(self) -> None:
        """The guard is killed: its undertaker kills every tree."""
        self.dead = True
        for tree in self.trees.values():
            self._machine.disk.app_writes(tree)
            tree.alive = False
        self.trees.clear()


class SimGuardClient(GuardClient):
    """The agent's side; every command is a short wait, then done at once."""

    def __init__(self, machine: Machine, guard: SimGuard) -> None:
        super().__init__(Path("/nonexistent/guard.sock"))
        self._machine = machine
        self._guard = guard

    async def _reach(self) -> SimGuard:
        await self._machine.clock.sleep(self._machine.world.random.uniform(0.001, 0.02))
        self._machine.moment("guard")
        self._guard = self._machine.guard
        if self._guard.dead or self._guard.asleep:
            raise Unreachable("guard: no answer in time")
        return self._guard

    async def _known(self, run: str) -> tuple[SimGuard, Tree]:
        guard = await self._reach()
        tree = guard.trees.get(run)
        if tree is None:
            raise NotFound(f"{run}: no such run; register it first")
        return guard, tree

    async def close(self) -> None:
        """Nothing to close."""

    async def ping(self) -> tuple[int, int]:
        """It lives. Asked twice a second, so without the wait of the others."""
        self._machine.moment("guard")
        if self._machine.guard.dead:
            raise Unreachable("guard: no answer in time")
        return 1, 1

    async def register(self, run: Freezable) -> None:
        """Known from now on, frozen."""
        guard = await self._reach()
        group, app, epoch = run.run.split(".")
        guard.trees.setdefault(run.run, Tree(run.run, group, app, int(epoch)))

    async def grant(self, deadlines: Mapping[str, float]) -> frozenset[str]:
        """Thaw until a deadline."""
        guard = await self._reach()
        now = self._machine.clock.boottime()
        granted = []
        for key, deadline in deadlines.items():
            tree = guard.trees.get(key)
            if tree is not None and not tree.final and deadline > now:
                guard.release(tree, deadline)
                granted.append(key)
        return frozenset(granted)

    async def freeze(self, run: str, *, final: bool = False) -> None:
        """Freeze now."""
        guard, tree = await self._known(run)
        guard.halt(tree)
        tree.final = tree.final or final
        tree.deadline = 0.0

    async def kill(self, run: str) -> None:
        """Nothing of it is left."""
        _, tree = await self._known(run)
        self._machine.disk.app_writes(tree)
        tree.alive = tree.paused = False

    async def forget(self, run: str) -> None:
        """Drop it."""
        guard = await self._reach()
        tree = guard.trees.get(run)
        if tree is not None and tree.alive:
            raise Conflict(f"{run}: still has processes")
        guard.trees.pop(run, None)

    async def status(self) -> Mapping[str, GuardRun]:
        """Nobody in the agent asks for it."""
        raise NotImplementedError


@lru_cache(maxsize=1000)
def _status(group: str, app: str, epoch: int, health: Health, frozen: bool) -> RunStatus:
    service = ServiceStatus(name="main", running=True, health=health)
    return RunStatus(group=group, app=app, epoch=epoch, services=(service,), frozen=frozen)


class SimRuntime:
    """A `Runtime` whose apps are counters that write to their volume."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._guard = SimGuardClient(machine, machine.guard)

    def _tree(self, key: str) -> Tree | None:
        return self._machine.guard.trees.get(key)

    async def _work(self, low: float, high: float) -> None:
        await self._machine.clock.sleep(self._machine.world.random.uniform(low, high))
        self._machine.moment("runtime")

    def check(self, spec: AppSpec) -> Sequence[Refusal]:
        """Everything can run."""
        return ()

    async def prepare(self, run: AppRun) -> None:
        """Quick, mostly."""
        await self._work(0.01, 0.5)

    async def start(self, run: AppRun) -> None:
        """Start the processes. Raises BackendError while the run is frozen or unknown."""
        self._machine.world.truth.starting(run.app)
        await self._work(0.05, 0.5)
        if (self._machine.name, run.app) in self._machine.world.broken:
            raise BackendError(f"{run.key}: the image is not one for this machine")
        tree = self._tree(run.key)
        if tree is None or tree.frozen:
            raise BackendError(f"{run.key}: frozen by the guard; it starts only with proof", retryable=True)
        if not tree.alive:
            now = self._machine.world.loop.time()
            tree.alive, tree.paused, tree.started, tree.written = True, False, now, now
            tree.volume = run.volume_root.name
            self._machine.world.truth.moved(self._machine, tree)
            self._machine.world.say(self._machine, f"started {tree.app[:4]} at epoch {tree.epoch}")

    async def stop(self, key: str) -> None:
        """The stop signal, some grace, the end."""
        await self._work(0.05, 1.0)
        await self.kill(key)

    async def kill(self, key: str) -> None:
        """At once."""
        if self._tree(key) is not None:
            await self._guard.kill(key)

    async def remove(self, key: str) -> None:
        """Forget it."""
        await self._guard.forget(key)

    async def pause(self, key: str) -> None:
        """Suspend."""
        await self._work(0.001, 0.02)
        if tree := self._tree(key):
            self._machine.disk.app_writes(tree)
            tree.paused = True

    async def unpause(self, key: str) -> None:
        """Go on, unless frozen."""
        await self._work(0.001, 0.02)
        if tree := self._tree(key):
            tree.paused = False
            tree.written = self._machine.world.loop.time()
            self._machine.world.truth.moved(self._machine, tree)

    async def observe(self) -> Sequence[RunStatus]:
        """Every tree that has processes. Asked every second: most answers come at once, and those that do not are enough to be late."""
        if self._machine.world.random.random() < SLOW_LOOKS:
            await self._work(0.001, 0.02)
        else:
            self._machine.moment("runtime")
        return [self._status(t) for _, t in sorted(self._machine.guard.trees.items()) if t.alive]

    def _status(self, tree: Tree) -> RunStatus:
        world = self._machine.world
        ready = world.loop.time() - tree.started >= HEALTHY_AFTER
        if (self._machine.name, tree.app) in world.sick:
            health = Health.UNHEALTHY
        else:
            health = Health.HEALTHY if ready else Health.STARTING
        return _status(tree.group, tree.app, tree.epoch, health, tree.frozen)

    async def logs(
        self,
        key: str,
        service: str,
        *,
        tail: int = 100,
        follow: bool = False,
    ) -> AsyncIterator[bytes]:
        """None are kept."""
        lines: tuple[bytes, ...] = ()
        for line in lines:
            yield line

    async def exec(
        self,
        key: str,
        service: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = 60.0,
    ) -> ExecResult:
        """Nothing to run."""
        return ExecResult(0, b"")

    async def freezable(self, run: AppRun) -> Freezable:
        """A tree."""
        return Freezable(run=run.key)
