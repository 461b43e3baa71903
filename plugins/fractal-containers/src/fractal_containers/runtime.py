"""The runtime itself. What it knows it reads from the engine's labels and the cgroups, so nothing is lost with the agent."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fractal.api.app import AppRun, AppSpec, Command
from fractal.api.building import ImageBuild
from fractal.api.context import Context
from fractal.api.errors import BackendError, NotFound
from fractal.api.runtime import ExecResult, Freezable, Health, Refusal, RunStatus, ServiceStatus, Terminal
from fractal_containers import elsewhere
from fractal_containers.building import built
from fractal_containers.cgroup import RunCgroup
from fractal_containers.check import refusals
from fractal_containers.commands import execute, terminal
from fractal_containers.config import EngineConfig
from fractal_containers.ending import DYING, STEP, strike
from fractal_containers.engine import Engine
from fractal_containers.filling import drop
from fractal_containers.found import Container, Network
from fractal_containers.health import Watches, judged
from fractal_containers.images import Images
from fractal_containers.isolation import Isolation
from fractal_containers.labels import APP, BOOT, DEVICE, EPOCH, GROUP, RUN, run_name
from fractal_containers.networks import wanted_networks
from fractal_containers.options import settings
from fractal_containers.starting import COMPLETION, POLL, History, Start
from fractal_containers.stopping import Stopping
from fractal_containers.wanted import Place

T = TypeVar("T")
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
CHECK_WAIT, START_WAIT = 0.5, 0.05
"""Seconds for which `observe` waits for probes, and for those of what starts: `news` tells when they are done."""
LAST_LINE = 300
AFTER_START = 60.0
"""Seconds for each command after a start."""


class ContainerRuntime:
    """See `fractal.api.runtime.Runtime`, `SupportsImages` and `SupportsBuild`."""

    def __init__(self, context: Context, config: EngineConfig, engine: Engine) -> None:
        self._context = context
        self._config = config
        self._allowed = frozenset(config.capabilities)
        self._engine = engine
        self._images = Images(engine)
        self._isolation = Isolation(context, config.reach)
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ends: defaultdict[str, int] = defaultdict(int)
        """How often each run was stopped or killed: a start that began before starts nothing after."""
        self._changes: defaultdict[str, set[asyncio.Future[Any]]] = defaultdict(set)
        """Requests on their way that may make or start something, by run."""
        self._histories: defaultdict[str, defaultdict[str, History]] = defaultdict(
            lambda: defaultdict(History)
        )
        self._isolating = asyncio.Lock()
        """Held while a network is made and shut in, and while it is found that none is left."""
        self._news = asyncio.Event()
        self._watches = Watches(
            clock=context.clock,
            repeated=engine.repeats_checks,
            frozen=lambda container: self._cgroup(container.key).frozen(),
            test=self._test,
            changed=self._news.set,
        )

    async def close(self) -> None:
        """Stop looking; containers run on."""
        await self._watches.stop()
        for change in [c for changes in self._changes.values() for c in changes]:
            change.cancel()

    # -- what can run

    def check(self, spec: AppSpec) -> Sequence[Refusal]:
        """As `Runtime.check`."""
        return list(refusals(spec, self._config))

    async def freezable(self, run: AppRun) -> Freezable:
        """A cgroup that is there before any container is: what the guard freezes now, containers are born into."""
        cgroup = self._cgroup(run.key)
        try:
            cgroup.make()
        except OSError as error:
            raise BackendError(f"{cgroup.outer}: {error.strerror}; may the agent make cgroups?") from error
        return Freezable(run=run.key, cgroup=cgroup.outer)

    # -- images

    async def image_digest(self, image: str) -> str:
        """As `SupportsImages.image_digest`."""
        return await self._images.digest(image)

    async def image_architecture(self, image: str) -> str:
        """As `SupportsImages.image_architecture`."""
        return await self._images.architecture(image)

    async def save_image(self, image: str) -> AsyncIterator[bytes]:
        """As `SupportsImages.save_image`."""
        async for chunk in self._images.save(image):
            yield chunk

    async def load_image(self, image: str, chunks: AsyncIterator[bytes]) -> str:
        """As `SupportsImages.load_image`."""
        return await self._images.load(image, chunks)

    async def build_image(
        self, build: ImageBuild, size: int, context: AsyncIterator[bytes], said: Callable[[str], None]
    ) -> str:
        """As `SupportsBuild.build_image`."""
        return await built(self._engine, self._images, build, size, context, said)

    async def find_image(self, image: str, platform: str = "") -> bool:
        """As `SupportsBuild.find_image`."""
        await self._engine.about()
        try:
            await self._images.bring(image, platform)
        except BackendError as error:
            self._context.logger.info("not to be had from a registry: %s", error)
            return False
        return True

    # -- starting and ending

    async def prepare(self, run: AppRun) -> None:
        """Pull what images are not here; those that are pinned have to be. Make the network, which takes an engine a while."""
        self._refuse(run)
        for service in run.spec.services:
            if pinned := run.images.get(service.image):
                await self._images.digest(pinned)
            else:
                platform = settings(service.options, self._allowed).platform
                await self._images.bring(service.image, platform)
        async with self._locks[run.key]:
            await self._made_networks(run)

    async def _made_networks(self, run: AppRun) -> Mapping[str, Network]:
        """The run's networks by their names in the app's file, shut in."""
        key = run.key
        wanted = wanted_networks(self._context.device, run, self._allowed)
        async with self._isolating:
            # Those of all runs: where the table was cleared meanwhile, setting it for this one must open no other.
            there = {network.name: network for network in await self._engine.networks(self._labels())}
            missing = [network for network in wanted.values() if network.name not in there]
            for network in missing:
                making = self._engine.create_network(network, f"{key}: network {network.name}")
                await self._change(key, making)
            if missing:
                there = {network.name: network for network in await self._engine.networks(self._labels())}
            await self._isolation.ensure(there.values())
        return {name: there[network.name] for name, network in wanted.items()}

    async def start(self, run: AppRun) -> None:
        """Start what does not run; called again for a run that lost services, it applies their restart policies."""
        self._refuse(run)
        key, cgroup = run.key, self._cgroup(run.key)
        ends = self._ends[key]
        async with self._locks[key]:
            await self._clear_ended(key)
            cgroup.thaw()  # held since a kill; what the guard froze stays
            start = Start(
                context=self._context,
                engine=self._engine,
                change=self._change,
                images=self._images,
                isolation=self._isolation,
                run=run,
                place=Place(
                    device=self._context.device,
                    boot=self._boot,
                    cgroup=cgroup,
                    config=self._config,
                ),
                secrets=self._folder("secrets", key),
                histories=self._histories[key],
                containers=lambda: self._containers(key),
                execute=lambda container, command: self._execute(container, command, b"", AFTER_START),
                until_healthy=lambda name, needed_by: self._until_healthy(key, name, needed_by),
                overtaken=lambda: self._ends[key] != ends,
                networks=lambda: self._made_networks(run),
            )
            await start.everything()

    async def _clear_ended(self, key: str) -> None:
        """Remove containers that were ended on purpose or by a reboot: the run starts anew, whatever its policies."""
        mark = self._folder("ended", key)
        if self._ended(key):
            await self._noticed(key)
        for container in sorted(await self._containers(key), key=lambda c: c.order, reverse=True):
            if mark.exists() or (not container.running and container.labels.get(BOOT) != self._boot):
                await self._remove_container(container)
        if mark.exists():
            self._histories.pop(key, None)
            mark.unlink(missing_ok=True)

    async def stop(self, key: str) -> None:
        """In reverse order: stop signal, grace, SIGKILL. A frozen run is killed frozen."""
        self._mark_ended(key)
        async with self._locks[key]:
            cgroup = self._cgroup(key)
            containers = await self._containers(key)
            if not cgroup.frozen():
                cgroup.thaw()
                stopping = Stopping(
                    clock=self._context.clock,
                    logger=self._context.logger,
                    engine=self._engine,
                    cgroup=cgroup,
                    execute=lambda container, command, left: self._execute(container, command, b"", left),
                )
                for container in sorted(containers, key=lambda c: c.order, reverse=True):
                    await stopping.stop(container)
            await self._end(key)

    async def kill(self, key: str) -> None:
        """As `Runtime.kill`: by cgroup first, so that neither a hung engine nor a `start` under way holds it up."""
        self._mark_ended(key)
        await self._end(key)

    async def _end(self, key: str) -> None:
        """End all processes. The engine may take note later: nothing of it runs, and what comes late comes up frozen."""
        await strike(self._context.clock, self._cgroup(key), key)
        if changes := set(self._changes[key]):
            await asyncio.wait(changes, timeout=self._engine.timeout)
            await self._noticed(key)

    async def _noticed(self, key: str) -> None:
        """Wait until the engine, too, says of an ended run that nothing of it runs. Raises BackendError."""
        clock = self._context.clock
        end = clock.boottime() + DYING
        try:
            while any(c.running for c in await self._containers(key)):
                await strike(self._context.clock, self._cgroup(key), key)
                if clock.boottime() >= end:
                    raise BackendError(
                        f"{key}: killed, but the engine says that it runs; restart the engine", retryable=True
                    )
                await clock.sleep(POLL)
        except BackendError as error:
            if self._cgroup(key).pids():
                raise
            # Nothing is alive, and the cgroup stays frozen: what the engine still may start stands still.
            self._context.logger.warning("%s: killed without the engine: %s", key, error)

    def _ended(self, key: str) -> bool:
        """Whether a run was ended on purpose, with nothing of it left alive, whatever the engine has noticed so far."""
        return self._folder("ended", key).exists() and not self._cgroup(key).pids()

    def _mark_ended(self, key: str) -> None:
        self._cgroup(key)  # refuses what names no run
        self._ends[key] += 1
        self._mark("ended", key)

    def _mark(self, kind: str, key: str) -> None:
        mark = self._folder(kind, key)
        mark.parent.mkdir(mode=0o700, exist_ok=True)
        mark.touch()

    async def remove(self, key: str) -> None:
        """Remove containers, network, secrets and cgroups of a run. One that runs is refused."""
        cgroup = self._cgroup(key)
        async with self._locks[key]:
            if cgroup.pids():
                raise BackendError(f"{key}: still has processes; stop it first", retryable=True)
            if self._ended(key):
                await self._noticed(key)
            # Last first: Podman removes none whose network another one has.
            for container in sorted(await self._containers(key), key=lambda c: c.order, reverse=True):
                await self._remove_container(container)
            await drop(self._context, self._engine, key)
            await elsewhere.remove(self._engine, self._labels(key), key)
            await self._remove_networks(key)
            shutil.rmtree(self._folder("secrets", key), ignore_errors=True)
            for kind in ("ended", "paused"):
                self._folder(kind, key).unlink(missing_ok=True)
            self._histories.pop(key, None)
            if not cgroup.remove():
                raise BackendError(f"{cgroup.outer}: cannot be removed; something entered it", retryable=True)

    async def _remove_networks(self, key: str) -> None:
        for network in await self._engine.networks(self._labels(key)):
            with contextlib.suppress(NotFound):
                await self._engine.remove_network(network.name, f"{key}: network {network.name}")
            async with self._isolating:
                others = await self._engine.networks(self._labels())
                await self._isolation.forget(network, last=not others)

    async def _remove_container(self, container: Container) -> None:
        what = f"{container.key}: service {container.service}"
        with contextlib.suppress(NotFound):
            await self._change(container.key, self._engine.remove(container.id, what))

    # -- pausing

    async def pause(self, key: str) -> None:
        """All services at one instant, beside any freeze of the guard's."""
        cgroup, clock = self._cgroup(key), self._context.clock
        self._mark("paused", key)
        end = clock.boottime() + DYING
        while not cgroup.freeze():
            if clock.boottime() >= end:
                await self.unpause(key)
                raise BackendError(f"{cgroup.inner}: does not come to a halt", retryable=True)
            await clock.sleep(STEP)

    async def unpause(self, key: str) -> None:
        """Undo `pause`; a run that was killed meanwhile stays held."""
        if not self._folder("ended", key).exists():
            self._cgroup(key).thaw()
        self._folder("paused", key).unlink(missing_ok=True)

    def unpause_all(self) -> None:
        """Undo the pauses that a killed agent left."""
        for mark in sorted((self._context.runtime_dir / "paused").glob("*")):
            if not (self._context.runtime_dir / "ended" / mark.name).exists():
                RunCgroup(mark.name).thaw()
            mark.unlink(missing_ok=True)

    # -- looking

    async def news(self) -> None:
        """As `SupportsNews.news`."""
        await self._news.wait()
        self._news.clear()

    async def observe(self) -> Sequence[RunStatus]:
        """Every run with a container, running or not, or with a network; probes health on the way."""
        runs: dict[str, tuple[dict[str, str], list[Container]]] = {}
        networks = await self._engine.networks(self._labels())
        await self._keep_apart(networks)
        for network in networks:
            runs.setdefault(network.labels.get(RUN, ""), (dict(network.labels), []))
        for container in await self._containers():
            runs.setdefault(container.key, (dict(container.labels), []))[1].append(container)
        containers = [c for _, cs in runs.values() for c in cs]
        tasks = [task for c in containers if (task := self._watches.begin(c)) is not None]
        if tasks:
            await asyncio.wait(
                tasks, timeout=START_WAIT if self._watches.starting(containers) else CHECK_WAIT
            )
        self._watches.forget(containers)
        return [
            await self._run_status(key, labels, containers)
            for key, (labels, containers) in sorted(runs.items())
            if key and labels.get(EPOCH, "").isdecimal()
        ]

    async def _keep_apart(self, networks: Sequence[Network]) -> None:
        try:
            await self._isolation.keep(networks)
        except BackendError as error:
            self._context.logger.warning("%s", error)  # no reason to hide what runs

    async def _run_status(self, key: str, labels: dict[str, str], containers: list[Container]) -> RunStatus:
        mine = sorted((c for c in containers if c.service), key=lambda c: c.order)
        if self._ended(key):
            mine = [replace(c, running=False) for c in mine]
        alive = any(c.running for c in mine)  # after a stop, what had completed is stopped like the rest
        services = [await self._service_status(c, completed=alive and c.completed) for c in mine]
        return RunStatus(
            group=labels.get(GROUP, ""),
            app=labels.get(APP, ""),
            epoch=int(labels[EPOCH]),
            services=tuple(services),
            frozen=self._cgroup(key).frozen(),
        )

    async def _service_status(self, container: Container, *, completed: bool = False) -> ServiceStatus:
        health, detail = Health.STOPPED, ""
        if container.running:
            health, detail = judged(container, self._watches.of(container))
        elif completed:
            health, detail = Health.HEALTHY, "completed"  # what it was there for is done
        elif container.exit_code or container.error:
            detail = container.error or await self._last_line(container)
        return ServiceStatus(
            name=container.service,
            running=container.running,
            health=health,
            restarts=self._histories[container.key][container.service].restarts,
            exit_code=container.exit_code,
            detail=detail,
            endpoints=container.endpoints if container.running else (),
        )

    async def _last_line(self, container: Container) -> str:
        last = b""
        try:
            async with asyncio.timeout(self._engine.timeout):
                async for chunk in self._engine.logs(container.id, f"{container.key}: last line", tail=1):
                    last = (last + chunk)[-LAST_LINE:]
        except (BackendError, TimeoutError):
            return ""  # a detail, not worth hiding what is known, nor waiting for
        return last.decode("utf-8", "replace").strip()

    async def _containers(self, key: str = "") -> list[Container]:
        """Ours, or those of one run."""
        return await self._engine.containers(self._labels(key))

    def _labels(self, key: str = "") -> dict[str, str]:
        """By which ours, or those of one run, are found."""
        return {DEVICE: self._context.device, **({RUN: key} if key else {})}

    async def logs(
        self, key: str, service: str, *, tail: int = 100, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """As `Runtime.logs`."""
        container = await self._find(key, service)
        what = f"{key}: logs of {service}"
        async for chunk in self._engine.logs(container.id, what, tail=tail, follow=follow):
            yield chunk

    async def exec(
        self, key: str, service: str, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0
    ) -> ExecResult:
        """As `Runtime.exec`."""
        container = await self._find(key, service)
        if not container.running:
            raise NotFound(f"{key}: service {service} does not run")
        return await self._execute(container, Command(argv=tuple(argv)), stdin, timeout)

    @contextlib.asynccontextmanager
    async def terminal(
        self, key: str, service: str, command: Command, *, rows: int, columns: int
    ) -> AsyncIterator[Terminal]:
        """As `SupportsTerminal.terminal`."""
        container = await self._find(key, service)
        if not container.running:
            raise NotFound(f"{key}: service {service} does not run")
        cgroup, size = self._cgroup(key), (rows, columns)
        async with terminal(self._context, self._engine, cgroup, container, command, size) as made:
            yield made

    async def _execute(
        self, container: Container, command: Command, stdin: bytes, timeout: float
    ) -> ExecResult:
        cgroup = self._cgroup(container.key)
        return await execute(self._context, self._engine, cgroup, container, command, stdin, timeout)

    async def _find(self, key: str, service: str) -> Container:
        for container in await self._containers(key):
            if container.service == service:
                return container
        raise NotFound(f"{key}: no service {service!r} on this device")

    # -- health

    async def _test(self, container: Container, argv: Sequence[str], timeout: float) -> bool:
        # It is given up, and killed, at its own time-out; ours must not come before the check's.
        result = await self._execute(container, Command(argv=tuple(argv)), b"", timeout + 1.0)
        return result.exit_code == 0

    async def _until_healthy(self, key: str, name: str, needed_by: str) -> None:
        clock = self._context.clock
        container = await self._find(key, name)
        spec = self._watches.spec(container)
        limit = (
            COMPLETION
            if spec is None
            else spec.start_period + spec.retries * (spec.interval + spec.timeout) + 5.0
        )
        end, ends, status = clock.boottime() + limit, self._ends[key], None
        while clock.boottime() < end and self._ends[key] == ends:
            container = await self._find(key, name)
            if (task := self._watches.begin(container)) is not None:
                await asyncio.wait([task], timeout=CHECK_WAIT)
            status = await self._service_status(container)
            if status.health is Health.HEALTHY:
                return
            if not status.running or status.health is Health.UNHEALTHY:
                break
            await clock.sleep(POLL)
        detail = f": {status.detail}" if status is not None and status.detail else ""
        raise BackendError(f"{key}: service {needed_by}: {name} did not get healthy{detail}", retryable=True)

    # -- small things

    async def _change(self, key: str, request: Coroutine[Any, Any, T]) -> T:
        """A request that changes something. Cancelled, it is left to finish, and the run's end waits for it."""
        change = asyncio.ensure_future(request)
        self._changes[key].add(change)
        change.add_done_callback(lambda done: self._changed(key, done))
        return await asyncio.shield(change)

    def _changed(self, key: str, change: asyncio.Future[Any]) -> None:
        self._changes[key].discard(change)
        if not change.cancelled():
            change.exception()  # retrieved: whoever asked may have been cancelled

    def _refuse(self, run: AppRun) -> None:
        self._cgroup(run.key)
        if found := self.check(run.spec):
            text = "; ".join(f"service {r.service}: {r.key}: {r.reason}" for r in found)
            raise BackendError(f"{self._engine.name} runtime: {run.spec.name}: {text}")

    def _cgroup(self, key: str) -> RunCgroup:
        if not KEY.fullmatch(key) or ".." in key:
            raise BackendError(f"{self._engine.name} runtime: {key!r} cannot name a run")
        return RunCgroup(run_name(self._context.device, key))

    def _folder(self, kind: str, key: str) -> Path:
        return self._context.runtime_dir / kind / run_name(self._context.device, key)


@contextlib.asynccontextmanager
async def open_runtime(
    context: Context, config: EngineConfig, engine: Engine
) -> AsyncIterator[ContainerRuntime]:
    """The engine need not run yet, nor answer: what hangs or died must still be killed."""
    async with engine:
        runtime = ContainerRuntime(context, config, engine)
        runtime.unpause_all()
        try:
            yield runtime
        finally:
            await runtime.close()
