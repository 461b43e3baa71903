"""Starting the services of one run: files, ports, environment, dependencies, restarts."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fractal.api.app import AppRun, ServiceSpec
from fractal.api.context import Context
from fractal.api.errors import BackendError, Conflict
from fractal.builtin.process.config import ProcessConfig
from fractal.builtin.process.environments import Environments
from fractal.builtin.process.placeholders import fill
from fractal.builtin.process.ports import HOST, choose, is_free
from fractal.builtin.process.state import RunRecord, ServiceRecord, fixed_port
from fractal.guard.client import GuardClient, GuardRun, GuardService, SpawnRequest

LONG_LIFE = 60.0
"""Seconds of life after which an ended service counts as having worked: its back-off begins anew."""
BACKOFF = 0.5
MAX_BACKOFF = 60.0
COMPLETION = 600.0
"""Seconds to wait for a service that others need `completed`."""
POLL = 0.05
UntilHealthy = Callable[[str], Awaitable[None]]
"""Waits until a service is healthy; takes the name of the one that needs it, for the error. Raises BackendError."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where things of a run are."""

    run: Path
    """Short-lived: state, files, scratch."""
    logs: Path

    @property
    def scratch(self) -> Path:
        """`{run}`."""
        return self.run / "scratch"

    def file(self, service: str, name: str) -> Path:
        """`{file.NAME}`."""
        return self.run / "files" / service / name

    def log(self, service: str) -> Path:
        """Output of a service."""
        return self.logs / f"{service}.log"


def wait_left(record: ServiceRecord, ended: GuardService, now: float) -> float:
    """Seconds until an ended service may be started again."""
    backoff = min(MAX_BACKOFF, BACKOFF * 2.0 ** min(record.streak, 16))
    return (ended.ended if ended.ended is not None else now) + backoff - now


def wanted_again(record: ServiceRecord, code: int) -> bool:
    """What the restart policy says of a service that ended with `code`."""
    return record.restart == "always" or (record.restart == "on-failure" and code != 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One call of `start`."""

    context: Context
    config: ProcessConfig
    guard: GuardClient
    environments: Environments
    run: AppRun
    record: RunRecord
    folders: Folders
    overtaken: Callable[[], bool]
    """Whether the run was stopped or killed meanwhile."""

    async def everything(self, healthy: Mapping[str, UntilHealthy]) -> None:
        """Start what is not running; `healthy` waits for each service's health."""
        self._make_folders()
        state = await self._state()
        if state.frozen:
            raise BackendError(
                f"{self.run.key}: frozen by the guard; it starts only with proof", retryable=True
            )
        self._choose_ports(state)
        waiting: set[str] = set()
        for spec in self.run.spec.services:
            if waiting & set(spec.depends_on):
                waiting.add(spec.name)  # what it needs is in its back-off
                continue
            await self._conditions(spec, healthy)
            if not await self._service(spec, (await self._state()).services.get(spec.name)):
                waiting.add(spec.name)

    async def _service(self, spec: ServiceSpec, last: GuardService | None) -> bool:
        """Start one service; False if it has to wait for its back-off."""
        record = self.record.services[spec.name]
        if last is not None and last.code is None:
            return True
        if last is not None and last.pid == record.pid and not self.record.stopped:
            if not wanted_again(record, last.code or 0):
                return True
            if wait_left(record, last, self.context.clock.boottime()) > 0:
                return False
            lived = (last.ended or last.started) - last.started
            record.streak = 0 if lived >= LONG_LIFE else record.streak + 1
            record.restarts += 1
        else:
            record.restarts, record.streak = 0, 0
        await self._spawn(spec, record)
        return True

    async def _spawn(self, spec: ServiceSpec, record: ServiceRecord) -> None:
        assert spec.process is not None
        for port in spec.ports:
            if not is_free(record.ports[port.name], port.protocol):
                message = f"{self.run.key}: service {spec.name}: port {record.ports[port.name]} is in use"
                raise BackendError(message, retryable=True)
        python = await self.environments.python(spec.process.requirements)
        values = self._values(spec, python)
        for name, text in spec.process.files.items():
            _write_private(self.folders.file(spec.name, name), fill(text, values))
        if spec.health is not None:
            record.health = replace(spec.health, test=tuple(fill(text, values) for text in spec.health.test))
        request = SpawnRequest(
            run=self.run.key,
            service=spec.name,
            argv=tuple(fill(text, values) for text in spec.process.argv),
            cwd=self.folders.scratch,
            log=self.folders.log(spec.name),
            env=self._environment(spec, python, values),
            limits=spec.limits,
        )
        if self.overtaken():
            raise BackendError(f"{self.run.key}: stopped while it was starting", retryable=True)
        try:
            record.pid = await self.guard.spawn(request)
        except Conflict as error:
            raise BackendError(f"{self.run.key}: service {spec.name}: {error}", retryable=True) from error
        except BackendError as error:
            raise BackendError(f"{self.run.key}: service {spec.name} does not start: {error}") from error

    async def _conditions(self, spec: ServiceSpec, healthy: Mapping[str, UntilHealthy]) -> None:
        for name, condition in spec.depends_on.items():
            if condition == "completed":
                await self._completed(spec.name, name)
            elif condition == "healthy":
                await healthy[name](spec.name)

    async def _completed(self, needed_by: str, name: str) -> None:
        clock = self.context.clock
        end = clock.boottime() + COMPLETION
        while clock.boottime() < end:
            service = (await self._state()).services.get(name)
            if service is not None and service.code is not None:
                if service.code == 0:
                    return
                message = f"{self.run.key}: service {needed_by}: {name} failed with exit code {service.code}"
                raise BackendError(message, retryable=True)
            await clock.sleep(POLL)
        raise BackendError(
            f"{self.run.key}: service {needed_by}: {name} did not complete in {COMPLETION:g} s"
        )

    async def _state(self) -> GuardRun:
        state = (await self.guard.status()).get(self.run.key)
        if state is None:
            raise BackendError(
                f"{self.run.key}: the guard does not know this run; register it first", retryable=True
            )
        return state

    def _choose_ports(self, state: GuardRun) -> None:
        """Fixed numbers stay; the others are chosen, and chosen anew while the service does not run and lost its number."""
        records = self.record.services
        taken = {number for record in records.values() for number in record.ports.values()}
        for spec in self.run.spec.services:
            service = state.services.get(spec.name)
            if service is not None and service.code is None:
                continue
            ports = records[spec.name].ports
            for port in spec.ports:
                number = ports[port.name]
                if fixed_port(spec, port) or (number and is_free(number, port.protocol)):
                    continue
                first, last = self.config.first_port, self.config.last_port
                ports[port.name] = choose(self.context.entropy, first, last, port.protocol, taken)
                taken.add(ports[port.name])

    def _make_folders(self) -> None:
        for folder in (self.folders.scratch, self.folders.logs, self.folders.run / "files"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for volume in self.run.spec.volumes:
            path = self.run.folder(volume)
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                # An app may write what it likes below its volumes, but never lead the runtime out of them.
                raise BackendError(f"{path}: volume {volume!r} is not a folder")
            path.mkdir(mode=0o700, exist_ok=True)

    def _values(self, spec: ServiceSpec, python: Path) -> dict[str, str]:
        assert spec.process is not None
        values = {"python": str(python), "run": str(self.folders.scratch)}
        for name, record in self.record.services.items():
            values |= {f"port.{name}.{port}": str(number) for port, number in record.ports.items()}
        values |= {
            f"port.{port}": str(number) for port, number in self.record.services[spec.name].ports.items()
        }
        values |= {f"data.{volume}": str(self.run.folder(volume)) for volume in self.run.spec.volumes}
        values |= {f"file.{name}": str(self.folders.file(spec.name, name)) for name in spec.process.files}
        for name in spec.secrets:
            if name not in self.run.secrets:
                raise BackendError(f"{self.run.key}: service {spec.name}: secret {name!r} has no value")
            values[f"secret.{name}"] = self.run.secrets[name]
        return values

    def _environment(self, spec: ServiceSpec, python: Path, values: Mapping[str, str]) -> dict[str, str]:
        return {
            "PATH": f"{python.parent}:{os.defpath}",
            "HOME": str(self.folders.scratch),
            "TMPDIR": str(self.folders.scratch),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "HOST": HOST,
            **{name: fill(text, values) for name, text in spec.env.items()},
        }


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
