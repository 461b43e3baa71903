"""One simulated device: what survives a crash (notes, disk, processes), and the real agent that runs on it."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from fractal.agent.agent import Agent, Shell
from fractal.agent.group import GroupAgent
from fractal.agent.notes import MemoryNotes
from fractal.api.authority import Answer, AuthorityBackend, Issued
from fractal.api.context import Completed, Context
from fractal.api.coordination import CoordinationBackend
from fractal.api.errors import BackendError, FractalError, NotSupported
from fractal.api.events import Event
from fractal.api.runtime import RuntimeBackend
from fractal.api.snapshot import SnapshotBackend
from fractal.api.store import StoreBackend
from fractal.api.transport import Link, TransportBackend
from fractal.builtin.self_signed_config import SelfSignedConfig
from fractal.config.model import Chosen, Device, DeviceConfig
from fractal.core.entries import Entry
from fractal.core.model import DeviceRole
from fractal.crypto.keys import DeviceKeys
from fractal.guard.client import GuardClient
from fractal.plugins import Plugins
from fractal.shell.outside import SystemOutside
from fractal.sim.log_server import SimCoordinator
from fractal.sim.loop import LIFE, Crashed, Life, VirtualLoop
from fractal.sim.processes import SimGuard, SimGuardClient, SimRuntime
from fractal.sim.store_server import SimStore
from fractal.sim.volumes import Disk, SimSnapshotter

if TYPE_CHECKING:
    from fractal.sim.world import World

T = TypeVar("T")
WALL_START = 1_750_000_000_000
RELEASED = re.compile(rb'"released":([0-9]+)')
WAKING = 0.35
"""Seconds after a machine woke within which its guard has looked and frozen what has no proof (docs/explanation/failover.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoConfig:
    """The simulated backends have nothing to configure."""


class DeviceClock:
    """A device's clocks: boottime begins anew at each boot and has a rate of its own; the wall clock may step."""

    def __init__(self, loop: VirtualLoop, rate: float) -> None:
        self._loop = loop
        self.rate = rate
        self.booted = 0.0
        self.slept = 0.0
        """Seconds of sleep since boot: CLOCK_MONOTONIC would not have them."""
        self.step_ms = 0

    def boottime(self) -> float:
        """Seconds since boot, as this device counts them."""
        return 100.0 + (self._loop.now - self.booted) * self.rate

    def wall_ms(self) -> int:
        """A label."""
        return WALL_START + int(self._loop.time() * 1000) + self.step_ms

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        if seconds > 0:
            await self._loop.until(self._loop.now + seconds / self.rate)
        else:
            await asyncio.sleep(0)


class SeededEntropy:
    """Randomness out of the seed."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def bytes(self, count: int) -> bytes:
        """As `Entropy.bytes`."""
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        """As `Entropy.uniform`."""
        return self._random.uniform(low, high)


class InlineWorkers:
    """At once, after others had a turn."""

    async def run(self, function: Callable[..., T], /, *arguments: object) -> T:
        """As `Workers.run`."""
        await asyncio.sleep(0)
        return function(*arguments)


class SimNotes(MemoryNotes):
    """Durable when `write` returns; a crash may come right before or right after it."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self._parts: dict[str, dict[str, bytes]] = {}
        """By what stands before the first slash, as scans are many and notes too."""

    def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        """As `Notes.scan`."""
        part = self._parts.get(prefix.partition("/")[0])
        if not part:
            return []  # asked every few seconds for what is hardly ever there
        return sorted((key, value) for key, value in part.items() if key.startswith(prefix))

    def write(self, changes: Mapping[str, bytes | None]) -> None:
        """As `Notes.write`."""
        self._machine.moment("note")
        if self._machine.notes_full > 0:
            raise BackendError("the agent's notes: no space left on device", retryable=True)
        releases = self._machine.fuse is not None and any(
            _released(value) != _released(self.get(key)) for key, value in changes.items()
        )
        super().write(changes)
        for key, value in changes.items():
            parts = self._parts.setdefault(key.partition("/")[0], {})
            if value is None:
                parts.pop(key, None)
            else:
                parts[key] = bytes(value)
        self._machine.world.truth.noted(self._machine, changes)
        self._machine.moment("note of a release" if releases else "note")


def _released(note: bytes | None) -> bytes:
    """Which epoch a note says was released, if it says so."""
    found = RELEASED.search(note or b"")
    return found[1] if found else b""


class SimTransport:
    """A `Transport` that leads nowhere."""

    def __init__(self, canary: str) -> None:
        self._canary = canary

    def contact(self) -> Mapping[str, str]:
        """Something that only the group may read."""
        return {"canary": self._canary}

    async def serve(self, gateways: object, routes: object) -> None:
        """Nothing."""

    async def forward(self, peers: object, targets: object) -> None:
        """Nothing."""

    async def links(self) -> tuple[Link, ...]:
        """None."""
        return ()


class SimAuthority:
    """An `Authority` that nobody asks: no app has a public name."""

    identity = "simulated"
    needs_traffic = False

    async def issue(self, name: str, account: bytes, answer: Answer) -> Issued:
        """None."""
        raise NotSupported(f"no certificates are simulated, not even for {name}")


class SimPlugins(Plugins):
    """Offers this device's simulated backends under any name."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def _record(self, kind: type[T], make: Callable[[Context], object], **more: Any) -> T:
        def opening(context: Context, _: NoConfig) -> AbstractAsyncContextManager[Any]:
            @asynccontextmanager
            async def opened() -> AsyncIterator[object]:
                yield make(context)

            return opened()

        build: Any = kind
        record: T = build(name="sim", summary="simulated", config=NoConfig, open=opening, **more)
        return record

    def runtime(self, name: str) -> RuntimeBackend[Any]:
        """The process tree."""
        return self._record(RuntimeBackend, lambda _: SimRuntime(self._machine))

    def snapshotter(self, name: str) -> SnapshotBackend[Any]:
        """The disk."""
        return self._record(SnapshotBackend, lambda _: SimSnapshotter(self._machine), instant=True)

    def store(self, name: str) -> StoreBackend[Any]:
        """The store."""
        return self._record(StoreBackend, lambda _: SimStore(self._machine))

    def transport(self, name: str) -> TransportBackend[Any]:
        """None to speak of."""
        return self._record(TransportBackend, lambda _: SimTransport(self._machine.world.canary))

    def coordinator(self, name: str) -> CoordinationBackend[Any]:
        """The log."""
        return self._record(CoordinationBackend, lambda c: SimCoordinator(c, self._machine))

    def authority(self, name: str) -> AuthorityBackend[Any]:
        """One that is asked for nothing."""
        return self._record(AuthorityBackend, lambda _: SimAuthority())

    def event(self, event: Event) -> None:
        """Part of the timeline."""
        self._machine.world.say(self._machine, f"{event.kind}: {event.text}")


class Machine:
    """A device and the agent on it, across crashes."""

    def __init__(self, world: World, name: str, keys: DeviceKeys, rate: float, folder: Path) -> None:
        self.world = world
        self.name = name
        self.keys = keys
        self.clock = DeviceClock(world.loop, rate)
        self.notes = SimNotes(self)
        self.disk = Disk(self)
        self.guard = SimGuard(self)
        self.entropy = SeededEntropy(Random(world.random.getrandbits(64)))
        self.folder = folder
        self.life: Life | None = None
        self.agent: Agent | None = None
        self.fuse: tuple[str, int] | None = None
        """(kind of moment, how many of them) until it crashes."""
        self.parting = False
        """Its agent is ending in order, and takes its machine with it."""
        self.doomed = 0.0
        """The fuse is one of the whole machine, which stays off for so many seconds; 0: only the agent's."""
        self.down = 0
        """How many faults want it to be off."""
        self.lost = False
        """It never comes back."""
        self.removed = False
        """Somebody put it out of the group, or it left."""
        self.founder = True
        """It was there from the beginning."""
        self.disk_full = 0
        self.notes_full = 0
        self.slow_disk = 0
        self.asleep = 0
        """How many faults keep it suspended."""
        self.woke = float("-inf")

    @property
    def id(self) -> str:
        """The device's id."""
        return self.keys.id

    @property
    def group(self) -> GroupAgent | None:
        """Its part of the group, while its agent runs."""
        agent = self.agent
        if agent is None or self.life is None or self.life.dead:
            return None
        return next(iter(agent.groups.values()), None)

    # --- life ---

    def boot(self) -> None:
        """Start the agent."""
        assert self.life is None or self.life.dead
        life = self.life = Life(self.name)
        self.parting = False
        if self.guard.dead:
            self.guard = SimGuard(self)
        context = copy_context()
        context.run(LIFE.set, life)
        self.world.keep(self.world.loop.create_task(self._main(life), context=context))
        self.world.say(self, "agent starts")

    async def _main(self, life: Life) -> None:
        try:
            agent = Agent(
                config=self._config(),
                plugins=SimPlugins(self),
                keys=self.keys,
                shell=self._shell(),
                logger=self.world.logger(self),
                guard=await self._ensure_guard(),
                pid=1,
                started=self.clock.boottime(),
            )
            async with agent:
                self.agent = agent
                await agent.run()
        except asyncio.CancelledError:
            self.world.say(self, "agent ended in order")
        except FractalError as error:
            # As a service manager does. Only a disk that is full is a reason to end like this.
            self.world.say(self, f"agent failed: {error}")
            if self.notes_full <= 0:
                self.world.wrong("agent", f"{self.name}: the agent died: {error!r}")
            self.world.later(5.0, self.revive)
        except Exception as error:  # outermost: an agent that dies by itself is what the simulation looks for
            self.world.wrong("agent", f"{self.name}: the agent died: {error!r}")
        life.dead = True

    def moment(self, kind: str) -> None:
        """A point at which the agent may be killed. Raises Crashed if it is, or was."""
        life = LIFE.get()
        if life is None:
            return
        if life.dead:
            raise Crashed
        if self.fuse is not None and self.fuse[0] in kind and life is self.life:
            self.fuse = (self.fuse[0], self.fuse[1] - 1)
            if self.fuse[1] <= 0:
                self.fuse = None
                self.world.say(self, f"killed at {kind}")
                if self.doomed:
                    self._dies_too()
                    raise Crashed
                self.kill()
                self.world.later(
                    self.world.random.uniform(0.3, self.world.random.choice((2.0, 25.0))), self.revive
                )
                raise Crashed

    def _dies_too(self) -> None:
        """The second of a double failure: nobody after it."""
        self.power_off()
        self.world.later(self.doomed, self.revive)
        for app in self.world.truth.deaths:
            self.world.truth.deaths[app] = (self.world.truth.deaths[app][0], True)
        for machine in self.world.machines:
            machine.fuse, machine.doomed = None, 0.0

    def kill(self) -> None:
        """SIGKILL of the agent: guard and containers go on."""
        if self.life is not None:
            self.life.dead = True
        self.agent = None

    def sleep(self) -> None:
        """Suspend the machine: agent, guard and apps stop at once; CLOCK_BOOTTIME goes on, timers do not."""
        self.asleep += 1
        if self.asleep > 1:
            return
        self.world.say(self, "falls asleep")
        self.guard.sleep()
        if self.life is not None and not self.life.dead and self.life.asleep is None:
            self.life.asleep, self.life.frozen = self.world.loop.time(), True

    def wake(self) -> None:
        """The machine goes on."""
        self.asleep -= 1
        if self.asleep > 0:
            return
        self.world.say(self, "wakes")
        self.woke = self.world.loop.time()
        self.guard.wake()
        if self.life is not None:
            self.clock.slept += self.woke - (self.woke if self.life.asleep is None else self.life.asleep)
            self.world.loop.wake(self.life)
        self.world.later(WAKING, self.world.truth.awake, self)

    def power_off(self) -> None:
        """Everything of this device dies; its disk stays."""
        self.kill()
        self.guard.die()

    def revive(self) -> None:
        """Start the agent if it is off and nothing else keeps it off."""
        if self.asleep > 0:
            self.world.later(1.0, self.revive)
            return
        if (self.life is None or self.life.dead) and not self.down and not self.lost:
            if self.guard.dead:
                self.clock.booted = self.world.loop.time()
            self.boot()

    def act(self, what: str, make: Callable[[GroupAgent], Entry | None]) -> None:
        """Let somebody say something through this device's agent."""
        group = self.group
        entry = make(group) if group is not None else None
        if group is None or entry is None:
            return

        async def say() -> None:
            await group.journal.append(entry)

        self.run(what, say)

    def run(self, what: str, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Let somebody use this device's agent for something, which may fail and ends with the agent."""
        life = self.life
        if life is None or life.dead:
            return

        async def tried() -> None:
            try:
                await work()
            except FractalError as error:
                self.world.say(self, f"{what}: {error}")

        context = copy_context()
        context.run(LIFE.set, life)
        self.world.say(self, what)
        self.world.keep(self.world.loop.create_task(tried(), context=context))

    def goodbye(self) -> None:
        """The orderly end of the agent: it hands its apps over."""
        agent, life = self.agent, self.life
        if agent is None or life is None or life.dead:
            return
        self.parting = True

        async def end() -> None:
            await agent.hand_over()
            self.world.say(self, "handed over")
            self.world.outside().run(self.power_off)

        context = copy_context()
        context.run(LIFE.set, life)
        self.world.keep(self.world.loop.create_task(end(), context=context))

    # --- what the agent is given ---

    async def _ensure_guard(self) -> GuardClient:
        await self.clock.sleep(0.1)
        if self.guard.dead:
            self.guard = SimGuard(self)
        return SimGuardClient(self, self.guard)

    def _shell(self) -> Shell:
        async def run(*_: object, **__: object) -> Completed:
            raise NotImplementedError

        return Shell(
            clock=self.clock,
            entropy=self.entropy,
            workers=InlineWorkers(),
            run=run,
            notes=self.notes,
            ensure_guard=self._ensure_guard,
            outside=SystemOutside(),
            free_memory=4096,
        )

    def _config(self) -> DeviceConfig:
        chosen = Chosen(backend="sim", settings=NoConfig())
        return DeviceConfig(
            path=self.folder / "homeserver.toml",
            device=Device(
                name=self.name,
                state_dir=self.folder,
                runtime_dir=self.folder / "run",
                roles=frozenset({DeviceRole.HOST}),
            ),
            runtime=chosen,
            snapshot=chosen,
            transport=chosen,
            authority=Chosen(backend="self-signed", settings=SelfSignedConfig()),
            coordination=chosen,
            catalogs=(),
        )


class SimLogger(logging.Logger):
    """Gives `tell` each text with what was raised. Nobody reads where a line was logged, which costs more than all else of it."""

    def __init__(self, name: str, tell: Callable[[str, BaseException | None], None]) -> None:
        super().__init__(name, logging.INFO)
        self._tell = tell

    def getChild(self, suffix: str) -> SimLogger:  # noqa: N802
        """All parts of an agent write into one timeline."""
        return self

    def _log(
        self, level: int, msg: object, args: object, exc_info: object = None, *_: object, **__: object
    ) -> None:
        text = str(msg) % args if args else str(msg)
        if not isinstance(exc_info, BaseException):
            exc_info = sys.exception() if exc_info else None
        self._tell(text, exc_info)
