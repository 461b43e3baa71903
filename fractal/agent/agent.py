"""The agent: this device's backends and groups, held together. All that touches the outside was passed in."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fractal import __version__
from fractal.agent.contexts import Contexts
from fractal.agent.group import GroupAgent
from fractal.agent.jobs.coming_going import resume_joins, say_away
from fractal.agent.journal import Journal
from fractal.agent.membership import group_addresses
from fractal.agent.notes import Notes
from fractal.agent.outside import Outside
from fractal.agent.pulse import Pulse
from fractal.agent.routing import route
from fractal.agent.supervise import supervise
from fractal.agent.volumes import OneAtATime
from fractal.api.authority import Authority
from fractal.api.context import Clock, Context, Entropy, Run, Workers
from fractal.api.coordination import Coordinator
from fractal.api.errors import BackendError, Corrupt, NotFound, Unreachable
from fractal.api.events import Event
from fractal.api.runtime import Health, RunStatus, Runtime, SupportsImages, SupportsNews, Terminal
from fractal.api.snapshot import Snapshotter
from fractal.api.store import Store
from fractal.api.transport import LocalRoute, Transport
from fractal.core.model import StoreEntry
from fractal.crypto.keys import DeviceKeys
from fractal.guard.client import GuardClient

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob
    from fractal.config.model import DeviceConfig
    from fractal.plugins import Plugins

OBSERVE = 1.0
"""Seconds between two looks at the runtime; a routine one, as nothing is decided by it alone."""
OBSERVE_START = 0.2
"""The same while something starts: this is what a person waits for."""
OBSERVE_LIMIT = 30.0
GUARD_EVERY = 0.5
HANDING_OVER = 60.0
"""Seconds that apps are given to be handed over when the agent ends."""
RESTING = 75.0
"""Seconds that those which nobody takes are given to stop and to store their last snapshot."""
SAYING_AWAY = 5.0
"""Seconds to tell a group that this device is away. The three together stay below the unit's TimeoutStopSec."""
AWAY_MS = 240_000
"""How long the others are asked to wait for this device: below the five minutes that they grant, for clocks that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """What reaches outside the process: real in the agent, simulated in the simulator."""

    clock: Clock
    entropy: Entropy
    workers: Workers
    run: Run
    notes: Notes
    ensure_guard: Callable[[], Awaitable[GuardClient]]
    """Finds this device's guard, or starts a new one."""
    outside: Outside
    """How a client sees what is public."""
    free_memory: int
    """MiB that apps may use, as measured at start."""


@dataclass(slots=True)
class Agent:
    """Built by `open_agent`; `run` goes on until cancelled."""

    config: DeviceConfig
    plugins: Plugins
    keys: DeviceKeys
    shell: Shell
    logger: logging.Logger
    guard: GuardClient
    pid: int
    started: float
    """Boottime."""
    groups: dict[str, GroupAgent] = field(default_factory=dict)
    pulse: Pulse = field(default_factory=Pulse)
    """Beats with that of each group."""
    runs: Sequence[RunStatus] = ()
    stopping: bool = False
    """The agent is about to end: apps are handed over."""
    resting: bool = False
    """Handing over has had its time: what is still here comes to rest."""
    runtime: Runtime = field(init=False)
    snapshotter: Snapshotter = field(init=False)
    transport: Transport = field(init=False)
    authority: Authority = field(init=False)
    coordinator: Coordinator = field(init=False)
    instant_snapshots: bool = field(init=False, default=False)
    grants: GuardClient = field(init=False)
    """A second connection, so that no slow command delays a grant."""
    broken: dict[str, str] = field(default_factory=dict)
    """Groups that could not be opened, and why."""
    awaiting: set[str] = field(default_factory=set)
    """Groups whose welcome a command awaits at present."""
    link_problem: str = ""
    serving: tuple[LocalRoute, ...] = ()
    """Routes that the transport was last told to serve here, and does."""
    guard_problem: str = ""
    terminals: dict[str, Terminal] = field(default_factory=dict)
    """Open ones, by names that only who opened them knows."""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _asked: tuple[Runtime, bool] | None = None
    _contexts: Contexts | None = None
    _looks: int = 0
    """Looks at the runtime that were begun."""
    _shown: int = 0
    """The last one of which `runs` tells; what began before it is old news."""
    _void: int = 0
    """The last one that began before something was stopped here."""

    # --- passed in -----------------------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """Time."""
        return self.shell.clock

    @property
    def entropy(self) -> Entropy:
        """Randomness."""
        return self.shell.entropy

    @property
    def workers(self) -> Workers:
        """Threads."""
        return self.shell.workers

    @property
    def notes(self) -> Notes:
        """Durable facts of this device."""
        return self.shell.notes

    @property
    def outside(self) -> Outside:
        """How a client sees what is public."""
        return self.shell.outside

    @property
    def has_images(self) -> bool:
        """Whether the runtime runs container images. Asking a protocol is slow, and the answer never changes."""
        if self._asked is None or self._asked[0] is not self.runtime:
            self._asked = (self.runtime, isinstance(self.runtime, SupportsImages))
        return self._asked[1]

    @property
    def contexts(self) -> Contexts:
        """Contexts of builds that came to this device."""
        if self._contexts is None:
            self._contexts = Contexts(self.folder("contexts"), self.clock, self.entropy, self.workers)
        return self._contexts

    def capacity(self) -> int:
        """Memory for apps in MiB."""
        return self.shell.free_memory

    def folder(self, name: str) -> Path:
        """A folder below the state folder, made if need be."""
        path = self.config.device.state_dir / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def context(self, kind: str, name: str) -> Context:
        """What a backend is given."""
        state = self.config.device.state_dir / kind / name
        runtime = self.config.device.runtime_dir / kind / name
        for path in (state, runtime):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Context(
            device=self.keys.id,
            state_dir=state,
            runtime_dir=runtime,
            logger=self.logger.getChild(name),
            clock=self.clock,
            entropy=self.entropy,
            workers=self.workers,
            run=self.shell.run,
            guard_socket=self.guard.path,
        )

    # --- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the configured backends and every group that this device is in; nothing stays open if one fails."""
        try:
            await self._open()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _open(self) -> None:
        self.grants = await self.shell.ensure_guard()
        self._stack.push_async_callback(self.grants.close)
        self._stack.push_async_callback(self.guard.close)
        config, plugins, enter = self.config, self.plugins, self._stack.enter_async_context
        coordination = plugins.coordinator(config.coordination.backend)
        snapshot = plugins.snapshotter(config.snapshot.backend)
        runtime = plugins.runtime(config.runtime.backend)
        transport = plugins.transport(config.transport.backend)
        self.coordinator = await enter(
            coordination.open(self.context("coordination", coordination.name), config.coordination.settings)
        )
        volumes = await enter(
            snapshot.open(self.context("snapshot", snapshot.name), config.snapshot.settings)
        )
        self.snapshotter = OneAtATime(volumes)
        self.instant_snapshots = snapshot.instant
        self.runtime = await enter(
            runtime.open(self.context("runtime", runtime.name), config.runtime.settings)
        )
        self.transport = await enter(
            transport.open(self.context("transport", transport.name), config.transport.settings)
        )
        authority = plugins.authority(config.authority.backend)
        self.authority = await enter(
            authority.open(self.context("authority", authority.name), config.authority.settings)
        )
        await self.observe()
        for group in group_addresses(self.notes):
            try:
                await self.open_group(group)
            except Corrupt as error:
                # The other groups must not suffer. Nothing of this one is granted to run, and nothing is deleted.
                self.broken[group] = str(error)
                self.logger.warning("group %s: %s", group, error)

    async def __aexit__(self, *error: object) -> None:
        """Close everything, last opened first."""
        for group in list(self.groups):
            await self.close_group(group)
        await self._stack.aclose()

    async def run(self) -> None:
        """Observe, route, keep the guard's hand; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervise("runtime", self._observing, self.clock, self.logger))
            tasks.create_task(supervise("routes", lambda: route(self), self.clock, self.logger))
            tasks.create_task(supervise("guard", self._guarding, self.clock, self.logger))
            tasks.create_task(supervise("joining", lambda: resume_joins(self), self.clock, self.logger))

    async def hand_over(self) -> None:
        """Give apps to other devices, or bring them to rest where there is none: the orderly end of an agent.

        The apps' own jobs do it, as they see that the agent is stopping; this waits for them, within bounds. Where apps stay
        with this device, the others are asked to wait for it a few minutes: a reboot moves nothing.
        """
        self.stopping = True
        for group in self.groups.values():
            group.pulse.beat()
        await self._wait(HANDING_OVER, lambda job: not job.handing_over)
        self.resting = True
        await self._wait(RESTING, lambda job: job.resting)
        for group in self.groups.values():
            for job in group.jobs.values():
                if not job.resting:
                    self.logger.warning(
                        "%s: not at rest in time: %s", job.app.name, job.problem() or "it still stops"
                    )
        await asyncio.gather(*(say_away(group, AWAY_MS, SAYING_AWAY) for group in self.groups.values()))

    async def _wait(self, limit: float, true: Callable[[AppJob], bool]) -> None:
        """Wait until something is true for every app here, at most `limit` seconds."""
        end = self.clock.boottime() + limit
        while self.clock.boottime() < end and not all(
            true(job) for group in self.groups.values() for job in group.jobs.values()
        ):
            await self.clock.sleep(0.1)

    async def open_group(self, group: str) -> GroupAgent:
        """Start taking part in a group that this device is a member of. Raises NotFound."""
        if group in self.groups:
            return self.groups[group]
        address = group_addresses(self.notes).get(group)
        if address is None:
            raise NotFound(f"this device is not in group {group}")
        journal = Journal(
            group=group,
            address=address,
            coordinator=self.coordinator,
            keys=self.keys,
            notes=self.notes,
            clock=self.clock,
            entropy=self.entropy,
            logger=self.logger.getChild(group[:8]),
        )
        opened = self.groups[group] = GroupAgent(self, group, journal)
        opened.start()
        return opened

    async def close_group(self, group: str) -> None:
        """Stop taking part; what is durable stays."""
        opened = self.groups.pop(group, None)
        if opened is not None:
            await opened.close()

    @asynccontextmanager
    async def open_store(self, entry: StoreEntry) -> AsyncIterator[Store]:
        """Open a store of a group with its configuration out of the log, and what this device's config adds.

        Raises BackendError, InvalidInput.
        """
        from fractal.config.stores import store_settings

        backend = self.plugins.store(entry.backend)
        settings = store_settings(self.config, entry.name, backend.config, entry.config)
        # One folder for all stores of a backend: what a device is let in by must be there before the store has an id.
        async with backend.open(self.context("store", entry.backend), settings) as store:
            yield store

    # --- what jobs use -------------------------------------------------------------------------------------------

    async def observe(self) -> None:
        """Look at what runs on this device."""
        while True:
            self._looks += 1
            look = self._looks
            found = tuple(await self.runtime.observe())
            if look > self._void:
                break  # else something ended meanwhile, which it may not have seen
        if look > self._shown:
            self._shown = look
            self._show(found)

    def ended(self, keys: Collection[str]) -> None:
        """Nothing of these runs runs any more: known at once, as the runtime said so when it had stopped them."""
        self._void = self._shown = self._looks
        self._show(tuple(_ended(run) if run.key in keys else run for run in self.runs))

    def _show(self, runs: Sequence[RunStatus]) -> None:
        if runs == self.runs:
            return  # the same value stays, so that what was made of it does too
        self.runs = runs
        for group in self.groups.values():
            group.pulse.beat()

    async def _observing(self) -> None:
        news = self.runtime if isinstance(self.runtime, SupportsNews) else None
        while True:
            try:
                async with asyncio.timeout(OBSERVE_LIMIT):
                    await self.observe()
            except TimeoutError as error:
                why = f"runtime {self.config.runtime.backend} did not answer within {OBSERVE_LIMIT:g} s"
                raise BackendError(why, retryable=True) from error
            await self._sweep()
            starting = any(run.health is Health.STARTING for run in self.runs)
            pause = OBSERVE_START if starting else OBSERVE
            if news is None:
                await self.clock.sleep(pause)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await news.news()

    async def _guarding(self) -> None:
        """A dead or hung guard is replaced at once; its successor comes up with everything frozen."""
        while True:
            try:
                await self.grants.ping()
                self.guard_problem = ""
            except Unreachable as error:
                self.guard_problem = str(error)
                self.logger.warning("starting a new guard: %s", error)
                # Our own connections find the new one by its socket; whoever had runs there starts them again.
                await (await self.shell.ensure_guard()).close()
                await self.observe()
            await self.clock.sleep(GUARD_EVERY)

    async def _sweep(self) -> None:
        """Runs of groups or apps that this device no longer knows have no right to exist."""
        for run in self.runs:
            group = self.groups.get(run.group)
            if run.group in self.broken:
                continue
            if group is None or (group.journal.proof_sent is not None and run.app not in group.state.apps):
                self.logger.warning("ending run %s: nobody here knows its app", run.key)
                await self.runtime.kill(run.key)
                await self.runtime.remove(run.key)

    def self_description(self) -> dict[str, Any]:
        """What the group must know of this device, by field of `core.model.Device`."""
        return {
            "arch": platform.machine(),
            "version": __version__,
            "runtime": self.config.runtime.backend,
            "snapshot_format": self.snapshotter.format,
            "receives": self.snapshotter.receives,
            "images": self.has_images,
            "contact": dict(self.transport.contact()),
        }

    def tell(self, kind: str, *, group: GroupAgent, app: str = "", text: str = "") -> None:
        """Tell observers of an event."""
        self.plugins.event(
            Event(
                kind=kind,
                group=group.id,
                app=app,
                device=self.keys.id,
                wall_ms=self.clock.wall_ms(),
                text=text,
            )
        )

    def status(self) -> Mapping[str, Any]:
        """The answer of `agent.status`."""
        from fractal.agent.status import agent_status

        return agent_status(self)


def _ended(run: RunStatus) -> RunStatus:
    """As it is observed once nothing of it runs."""
    stopped = (replace(s, running=False, health=Health.STOPPED, endpoints=()) for s in run.services)
    return replace(run, services=tuple(stopped))
