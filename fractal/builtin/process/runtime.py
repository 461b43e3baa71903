"""The runtime itself. Its processes belong to the guard; what it knows of them it asks the guard and reads from files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

from fractal.api.app import AppRun, AppSpec, HealthSpec
from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured, NotFound, Unreachable
from fractal.api.runtime import ExecResult, Freezable, Health, Refusal, RunStatus, ServiceStatus
from fractal.builtin.process import logs
from fractal.builtin.process.check import refusals
from fractal.builtin.process.config import ProcessConfig
from fractal.builtin.process.environments import Environments
from fractal.builtin.process.health import Watch
from fractal.builtin.process.ports import HOST
from fractal.builtin.process.starting import COMPLETION, POLL, Folders, Start, wanted_again
from fractal.builtin.process.state import RunRecord, ServiceRecord, load, mark, record_of, save
from fractal.guard.client import GuardClient, GuardRun, GuardService, NotStarted, SpawnRequest
from fractal.guard.processes import GUARD_MARK, RUN_MARK

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
CHECK_WAIT = 0.5
"""Seconds for which `observe` waits for health checks; slower ones are in the next answer."""
ROTATE = 10.0
"""Seconds between two looks at how long the logs are."""
EXEC_OUTPUT = 1 << 20
CANNOT_START = 127
"""Exit code of a command that cannot be started, as a shell has it."""


class ProcessRuntime:
    """See `fractal.api.runtime.Runtime`. Safe to use beside another process that asks the same guard."""

    def __init__(self, context: Context, config: ProcessConfig, guard: GuardClient) -> None:
        self._context = context
        self._config = config
        self._guard = guard
        self._environments = Environments(context, config)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ends: defaultdict[str, int] = defaultdict(int)
        """How often each run was stopped or killed: a start that began before starts nothing after."""
        self._watches: dict[tuple[str, str, int], Watch] = {}
        self._folders = lru_cache(maxsize=1024)(self._folders_of)
        self._seen: dict[str, tuple[object, RunRecord]] = {}
        """What the last looks found, with the mark of the file that says it; nobody changes these."""
        self._statuses: dict[str, tuple[tuple[object, ...], RunStatus]] = {}
        """What was made of them where all services run, with all that it was made of."""
        self._rotated = -ROTATE

    async def close(self) -> None:
        """Stop looking; services run on."""
        for watch in list(self._watches.values()):
            await watch.stop()
        self._watches.clear()

    def check(self, spec: AppSpec) -> Sequence[Refusal]:
        """As `Runtime.check`."""
        return list(refusals(spec))

    async def freezable(self, run: AppRun) -> Freezable:
        """The guard parents our processes, so it needs no cgroup."""
        return Freezable(run=run.key)

    async def prepare(self, run: AppRun) -> None:
        """Make the Python environments that the run's services need."""
        self._refuse(run)
        for service in run.spec.services:
            assert service.process is not None
            await self._environments.python(service.process.requirements)

    async def start(self, run: AppRun) -> None:
        """Start what does not run; called again for a run that lost services, it applies their restart policies."""
        self._refuse(run)
        folders = self._folders(run.key)
        ends = self._ends[run.key]
        async with self._locks[run.key]:
            old = self._load(run.key)
            record = record_of(run, old)
            record.stopped = old is not None and old.stopped
            folders.run.mkdir(mode=0o700, parents=True, exist_ok=True)
            save(folders.run, record)  # before the first process, so that `observe` finds what a crash leaves
            start = Start(
                context=self._context,
                config=self._config,
                guard=self._guard,
                environments=self._environments,
                run=run,
                record=record,
                folders=folders,
                overtaken=lambda: self._ends[run.key] != ends,
            )
            waits = {s.name: partial(self._until_healthy, run.key, record, s.name) for s in run.spec.services}
            try:
                with _guard_errors():
                    await start.everything(waits)
                record.stopped = False
            finally:
                save(folders.run, record)

    async def stop(self, key: str) -> None:
        """In reverse order: stop signal, grace, SIGKILL; then whatever is left. A frozen run is killed frozen."""
        folders = self._folders(key)
        self._ends[key] += 1
        async with self._locks[key]:
            record = self._load(key)
            if record is not None:
                record.stopped = True
                save(folders.run, record)
            with _guard_errors():
                state = (await self._guard.status()).get(key)
                if state is None:
                    return
                if record is not None and not state.frozen:
                    await self._guard.unpause(key)
                    for service in reversed(record.services.values()):
                        await self._stop_service(key, service)
                await self._guard.kill(key)

    async def _stop_service(self, key: str, service: ServiceRecord) -> None:
        if not await self._guard.signal(key, service.name, service.stop_signal):
            return
        clock = self._context.clock
        end = clock.boottime() + service.stop_grace
        while clock.boottime() < end:
            state = (await self._guard.status()).get(key)
            if state is None or state.frozen:
                return
            current = state.services.get(service.name)
            if current is None or current.code is not None:
                return
            await clock.sleep(POLL)
        await self._guard.signal(key, service.name, "SIGKILL")

    async def kill(self, key: str) -> None:
        """As `Runtime.kill`; not held up by a `start` or `stop` under way."""
        folders = self._folders(key)
        self._ends[key] += 1
        with _guard_errors(), contextlib.suppress(NotFound):
            await self._guard.kill(key)
        record = self._load(key)
        if record is not None:
            record.stopped = True
            save(folders.run, record)

    async def remove(self, key: str) -> None:
        """Forget a stopped run, with its scratch files and logs. Raises Conflict while it has processes."""
        folders = self._folders(key)
        async with self._locks[key]:
            with _guard_errors():
                await self._guard.forget(key)
            for folder in (folders.run, folders.logs):
                await self._context.workers.run(shutil.rmtree, folder, True)
            for name in [name for name in self._watches if name[0] == key]:
                await self._watches.pop(name).stop()

    async def pause(self, key: str) -> None:
        """As `Runtime.pause`."""
        with _guard_errors():
            await self._guard.pause(key)

    async def unpause(self, key: str) -> None:
        """As `Runtime.unpause`."""
        with _guard_errors():
            await self._guard.unpause(key)

    async def observe(self) -> Sequence[RunStatus]:
        """Every run with a process, and every one that should have some; rotates logs and checks health on the way."""
        with _guard_errors():
            states = await self._guard.status()
        self._seen = {key: seen for key, seen in self._seen.items() if key in states}
        self._statuses = {key: status for key, status in self._statuses.items() if key in states}
        found: list[tuple[RunRecord, GuardRun]] = []
        for key, state in states.items():
            record = self._look(key) or (_stranger(state) if state.pids else None)
            if record is not None and (state.pids or (not record.stopped and state.services)):
                found.append((record, state))
        if (now := self._context.clock.boottime()) - self._rotated >= ROTATE:
            self._rotated = now
            for record, state in found:
                self._rotate(state.run, record)
        tasks = [task for record, state in found for task in self._begin_checks(record, state)]
        if tasks:
            await asyncio.wait(tasks, timeout=CHECK_WAIT)
        self._forget_watches({(s.run, n, v.pid) for _, s in found for n, v in s.services.items()})
        return [self._observed(record, state) for record, state in found]

    async def logs(
        self, key: str, service: str, *, tail: int = 100, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """As `Runtime.logs`."""
        path = self._folders(key).log(self._service(key, service).name)
        async for chunk in logs.read(path, tail, follow=follow, clock=self._context.clock):
            yield chunk

    async def exec(
        self, key: str, service: str, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0
    ) -> ExecResult:
        """Run a command with the service's environment, in the same run: frozen and killed together with it."""
        self._service(key, service)
        with _guard_errors():
            state = (await self._guard.status()).get(key)
            current = state.services.get(service) if state is not None else None
            if current is None or current.code is not None:
                raise NotFound(f"{key}: service {service} does not run")
            return await self._exec(key, argv, _environment_of(current.pid), stdin, timeout)

    async def _exec(
        self, key: str, argv: Sequence[str], env: Mapping[str, str], stdin: bytes, timeout: float
    ) -> ExecResult:
        folders = self._folders(key)
        name = f"~exec-{self._context.entropy.bytes(6).hex()}"
        output, given = folders.run / name, folders.run / f"{name}.in"
        try:
            given.write_bytes(stdin)
            request = SpawnRequest(
                run=key, service=name, argv=tuple(argv), cwd=folders.scratch, log=output, stdin=given, env=env
            )
            try:
                await self._guard.spawn(request)
            except NotStarted as error:
                return ExecResult(CANNOT_START, f"{str(error).removeprefix('guard: ')}\n".encode())
            try:
                async with asyncio.timeout(timeout):
                    code = await self._exit_code(key, name)
            except TimeoutError as error:
                raise BackendError(f"{key}: {argv[0]}: not finished after {timeout:g} s; killed") from error
            finally:
                await self._guard.signal(key, name, "SIGKILL")
            with output.open("rb") as file:
                return ExecResult(code, file.read(EXEC_OUTPUT))
        finally:
            output.unlink(missing_ok=True)
            given.unlink(missing_ok=True)

    async def _exit_code(self, key: str, name: str) -> int:
        while True:
            state = (await self._guard.status()).get(key)
            current = state.services.get(name) if state is not None else None
            if current is None:
                raise BackendError(f"{key}: ended while a command was running in it", retryable=True)
            if current.code is not None:
                return current.code
            await self._context.clock.sleep(POLL)

    # -- health

    def _begin_checks(self, record: RunRecord, state: GuardRun) -> list[asyncio.Task[None]]:
        if state.frozen or state.paused:
            return []
        now = self._context.clock.boottime()
        tasks = []
        for service in record.services.values():
            current = state.services.get(service.name)
            if service.health is None or current is None or current.code is not None:
                continue
            watch = self._watch(state.run, service, current)
            if watch.due(now):
                watch.begin(now, _health_port(service), partial(self._test, state.run, current.pid))
            if watch.task is not None:
                tasks.append(watch.task)
        return tasks

    def _watch(self, key: str, service: ServiceRecord, current: GuardService) -> Watch:
        assert service.health is not None
        name = (key, service.name, current.pid)
        if name not in self._watches:
            self._watches[name] = Watch(service.health, current.started, last=-service.health.interval)
        return self._watches[name]

    async def _test(self, key: str, pid: int, spec: HealthSpec) -> bool:
        # The runner kills it at its own time-out; ours must not come before the check's.
        result = await self._exec(key, spec.test, _environment_of(pid), b"", spec.timeout + 1.0)
        return result.exit_code == 0

    def _forget_watches(self, living: set[tuple[str, str, int]]) -> None:
        for name, watch in list(self._watches.items()):
            if name not in living and watch.task is None:
                del self._watches[name]

    async def _until_healthy(self, key: str, record: RunRecord, name: str, needed_by: str) -> None:
        clock = self._context.clock
        spec = record.services[name].health
        limit = (
            COMPLETION
            if spec is None
            else spec.start_period + spec.retries * (spec.interval + spec.timeout) + 5.0
        )
        end = clock.boottime() + limit
        status: ServiceStatus | None = None
        while clock.boottime() < end:
            state = (await self._guard.status()).get(key)
            if state is None:
                break
            tasks = self._begin_checks(record, state)
            if tasks:
                await asyncio.wait(tasks, timeout=CHECK_WAIT)
            status = next(s for s in self._status(record, state).services if s.name == name)
            if status.health is Health.HEALTHY:
                return
            if not status.running or status.health is Health.UNHEALTHY:
                break
            await clock.sleep(POLL)
        detail = f": {status.detail}" if status is not None and status.detail else ""
        raise BackendError(f"{key}: service {needed_by}: {name} did not get healthy{detail}", retryable=True)

    def _observed(self, record: RunRecord, state: GuardRun) -> RunStatus:
        """As `_status`, of a record that nobody changes: the same value while nothing differs, as mostly nothing does."""
        watches = [self._watches.get((state.run, name, s.pid)) for name, s in state.services.items()]
        judged = [watch and (watch.health, watch.detail) for watch in watches]
        basis = (record, state.services, state.frozen, judged)
        last = self._statuses.pop(state.run, None)
        status = last[1] if last is not None and last[0] == basis else self._status(record, state)
        if all(service.running for service in status.services):  # of what ended the log's last line is told
            self._statuses[state.run] = (basis, status)
        return status

    def _status(self, record: RunRecord, state: GuardRun) -> RunStatus:
        services = tuple(self._service_status(record, state, s) for s in record.services.values())
        return RunStatus(
            group=record.group, app=record.app, epoch=record.epoch, services=services, frozen=state.frozen
        )

    def _service_status(self, record: RunRecord, state: GuardRun, service: ServiceRecord) -> ServiceStatus:
        current = state.services.get(service.name)
        running = current is not None and current.code is None
        health, detail = Health.STOPPED, ""
        if current is not None and running:
            watch = self._watch(state.run, service, current) if service.health is not None else None
            health = Health.HEALTHY if watch is None else watch.health
            detail = "" if watch is None else watch.detail
        elif (
            current is not None and not record.stopped and current.code == 0 and not wanted_again(service, 0)
        ):
            health, detail = Health.HEALTHY, "completed"  # what it was there for is done
        elif not record.stopped:
            detail = logs.last_line(self._folders(state.run).log(service.name))
        return ServiceStatus(
            name=service.name,
            running=running,
            health=health,
            restarts=service.restarts,
            exit_code=current.code if current is not None else None,
            detail=detail,
            endpoints=tuple((name, HOST, port) for name, port in service.ports.items() if port),
        )

    # -- files

    def _rotate(self, key: str, record: RunRecord) -> None:
        for service in record.services:
            path = self._folders(key).log(service)
            try:
                logs.rotate(path, self._config.log_bytes)
            except OSError as error:  # a full disk must not hide what runs
                self._context.logger.warning("%s: cannot rotate: %s", path, error.strerror)

    def _refuse(self, run: AppRun) -> None:
        self._folders(run.key)
        if found := list(refusals(run.spec)):
            text = "; ".join(f"service {r.service}: {r.key}: {r.reason}" for r in found)
            raise BackendError(f"process runtime: {run.spec.name}: {text}")

    def _folders_of(self, key: str) -> Folders:
        if not KEY.fullmatch(key) or ".." in key:
            raise BackendError(f"process runtime: {key!r} cannot name a run")
        return Folders(self._context.runtime_dir / "runs" / key, self._context.state_dir / "logs" / key)

    def _look(self, key: str) -> RunRecord | None:
        """As `_load`, but read only when the file was replaced since the last look."""
        now = mark(self._folders(key).run)
        seen = self._seen.get(key)
        if seen is not None and seen[0] == now:
            return seen[1]
        record = self._load(key)
        if record is not None:
            self._seen[key] = (now, record)
        return record

    def _load(self, key: str) -> RunRecord | None:
        try:
            return load(self._folders(key).run)
        except ValueError as error:
            self._context.logger.warning("%s; going on without it", error)
            return None

    def _service(self, key: str, service: str) -> ServiceRecord:
        record = self._load(key)
        if record is None or service not in record.services:
            raise NotFound(f"{key}: no service {service!r} on this device")
        return record.services[service]


def _health_port(service: ServiceRecord) -> int:
    assert service.health is not None
    return service.ports.get(service.health.port) or next(iter(service.ports.values()), 0)


def _environment_of(pid: int) -> dict[str, str]:
    """What the service was started with, out of /proc: so no secret needs to be written down for later."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError as error:
        raise NotFound(f"process {pid} has ended") from error
    pairs = (item.partition(b"=") for item in raw.split(b"\0") if b"=" in item[1:])
    env = {os.fsdecode(k): v.decode("utf-8", "replace") for k, _, v in pairs}
    return {k: v for k, v in env.items() if k not in (RUN_MARK, GUARD_MARK)}


def _stranger(state: GuardRun) -> RunRecord | None:
    """A run of ours whose record is lost: told by its key, so that somebody kills it."""
    group, _, rest = state.run.partition(".")
    app, _, epoch = rest.rpartition(".")
    if not state.services or not epoch.isdecimal():
        return None
    names = [name for name in state.services if not name.startswith("~")]
    return RunRecord(group, app, int(epoch), services={name: ServiceRecord(name) for name in names})


@contextlib.contextmanager
def _guard_errors() -> Iterator[None]:
    """A guard that does not answer is a backend's error that may pass: the agent starts another guard."""
    try:
        yield
    except Unreachable as error:
        raise BackendError(f"process runtime: {error}", retryable=True) from error


@contextlib.asynccontextmanager
async def open_process(context: Context, config: ProcessConfig) -> AsyncIterator[ProcessRuntime]:
    """Connect to the device's guard. Pauses that a killed agent left are undone; freezes are not."""
    if context.guard_socket is None:
        raise Misconfigured("backend", "the process runtime needs the agent's guard, and none was given")
    if not 1024 <= config.first_port <= config.last_port <= 65535:
        raise Misconfigured(
            "first_port", "first_port and last_port must lie between 1024 and 65535, in this order"
        )
    async with GuardClient(context.guard_socket) as guard:
        runtime = ProcessRuntime(context, config, guard)
        with _guard_errors():
            for key, state in (await guard.status()).items():
                if state.paused:
                    await guard.unpause(key)
        try:
            yield runtime
        finally:
            await runtime.close()
