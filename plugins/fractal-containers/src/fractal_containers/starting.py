"""Starting the services of one run: network, containers, dependencies, restarts."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fractal.api.app import AppRun, Command, ServiceSpec
from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured
from fractal.api.runtime import ExecResult
from fractal_containers import elsewhere
from fractal_containers.ending import DYING, strike
from fractal_containers.engine import Engine
from fractal_containers.files import make_volumes, refuse_detours, write_files, write_secrets
from fractal_containers.filling import fill
from fractal_containers.found import Container, Network
from fractal_containers.images import Images
from fractal_containers.isolation import Isolation
from fractal_containers.labels import RESTART
from fractal_containers.networks import joined
from fractal_containers.options import settings
from fractal_containers.wanted import SECRETS, Place, other_files, secret_files, wanted

T = TypeVar("T")
LONG_LIFE = 60.0
"""Seconds of life after which an ended service counts as having worked: its back-off begins anew."""
BACKOFF = 0.5
MAX_BACKOFF = 60.0
SAID = 300
"""Bytes of a failed command's output that are told."""
COMPLETION = 600.0
"""Seconds to wait for a service that others need `completed`."""
POLL = 0.05
UntilHealthy = Callable[[str, str], Awaitable[None]]
"""Waits until a service is healthy; takes it and the one that needs it. Raises BackendError."""


class Change(Protocol):
    """A request that changes something: on cancellation it is still waited for by whoever ends the run."""

    async def __call__(self, key: str, request: Coroutine[Any, Any, T]) -> T:
        """Make it."""


@dataclass(slots=True)
class History:
    """Restarts of one service since this agent started."""

    restarts: int = 0
    streak: int = 0
    """Restarts in a row after short lives; what the back-off grows with."""
    last: float = field(default=float("-inf"))
    """CLOCK_BOOTTIME of the last restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One call of `start`."""

    context: Context
    engine: Engine
    change: Change
    images: Images
    isolation: Isolation
    networks: Callable[[], Awaitable[Mapping[str, Network]]]
    """Makes the run's, if they are not there, and shuts them in; by their names in the app's file."""
    run: AppRun
    place: Place
    secrets: Path
    """Folder for the run's secrets."""
    histories: Mapping[str, History]
    containers: Callable[[], Awaitable[list[Container]]]
    """Those of the run, as they are now."""
    execute: Callable[[Container, Command], Awaitable[ExecResult]]
    until_healthy: UntilHealthy
    overtaken: Callable[[], bool]
    """Whether the run was stopped or killed meanwhile."""

    async def everything(self) -> None:
        """Start what is not running."""
        key = self.run.key
        self.place.cgroup.make()
        if self.place.cgroup.frozen():
            raise BackendError(f"{key}: frozen by the guard; it starts only with proof", retryable=True)
        refuse_detours(self.run, self.place.config)
        make_volumes(self.run)
        networks = await self.networks()
        waiting: set[str] = set()
        for order, spec in enumerate(self.run.spec.services):
            there = {c.service: c for c in await self.containers()}
            found = there.get(spec.name)
            options = settings(spec.options, frozenset(self.place.config.capabilities))
            if found is not None and found.running and found.outlived(there.get(options.shares_with)):
                found = await self._ended(found)  # what it has is the network of the other's earlier life
            if found is not None and found.running:
                await self._after_start(spec)  # an agent that was killed in between left them out
                continue
            if waiting & set(spec.depends_on):
                waiting.add(spec.name)  # what it needs is in its back-off
                continue
            if found is not None and found.begun:
                if self._ended_for_good(found):
                    continue
                if not self._due(found):
                    waiting.add(spec.name)
                    continue
            await self._conditions(spec)
            self._mark(spec)
            own = [networks[name] for name, _ in joined(options)]
            await self._begin(spec, order, found, own, options.shares_with)
            for network in own:
                await self._shut_in(spec, network)
            await self._after_start(spec)

    async def _ended(self, container: Container) -> Container:
        """End a container, and wait until it has. Raises BackendError."""
        await self._give_up(container)
        clock = self.context.clock
        end = clock.boottime() + DYING
        while (now := await self.engine.inspect(container.id)).running:
            if clock.boottime() >= end:
                raise BackendError(
                    f"{self.run.key}: service {container.service} does not end", retryable=True
                )
            await clock.sleep(POLL)
        return now

    async def _shut_in(self, spec: ServiceSpec, network: Network) -> None:
        """What nothing shuts in does not run: its bridge must be where the firewall is. Raises Misconfigured."""
        if self.isolation.sees(network):
            return
        found = {c.service: c for c in await self.containers()}.get(spec.name)
        if found is None or not found.running or self.isolation.sees(network):
            return  # it has ended, and Podman takes a bridge away with its last container
        await strike(self.context.clock, self.place.cgroup, self.run.key)
        raise Misconfigured(
            "socket",
            f"the engine's bridge {network.bridge} is not to be seen: engine and agent must be in one network namespace",
        )

    def _marked(self, spec: ServiceSpec) -> Path:
        return self.secrets / f"{spec.name}~started"

    def _mark(self, spec: ServiceSpec) -> None:
        """Note that commands are to be run, before anything is there to run them in."""
        if spec.post_start:
            self.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._marked(spec).touch()

    async def _after_start(self, spec: ServiceSpec) -> None:
        """Run what the service wants run after its start. If that fails, so did the start: it ends, and its policy decides."""
        if not spec.post_start or not self._marked(spec).exists():
            return
        container = {c.service: c for c in await self.containers()}[spec.name]
        what = f"{self.run.key}: service {spec.name}: {{}} after its start"
        for command in spec.post_start:
            try:
                result = await self.execute(container, command)
                if result.exit_code:
                    said = result.output[-SAID:].decode("utf-8", "replace").strip()
                    raise BackendError(f"exited with {result.exit_code}: {said}", retryable=True)
            except BackendError as error:
                await self._give_up(container)
                raise BackendError(f"{what.format(command.argv[0])}: {error}", retryable=True) from error
            self._go_on()
        self._marked(spec).unlink(missing_ok=True)

    async def _give_up(self, container: Container) -> None:
        with contextlib.suppress(BackendError):  # it has ended by itself
            what = f"{self.run.key}: service {container.service}"
            await self.change(self.run.key, self.engine.signal(container.id, "SIGKILL", what))

    def _ended_for_good(self, container: Container) -> bool:
        policy = container.labels.get(RESTART, "always")
        return policy == "no" or (policy == "on-failure" and container.exit_code == 0)

    def _due(self, container: Container) -> bool:
        """Whether its back-off is over; counts the restart if so."""
        history, now = self.histories[container.service], self.context.clock.boottime()
        if container.lived >= LONG_LIFE:
            history.streak = 0
        if history.streak and now - history.last < min(MAX_BACKOFF, BACKOFF * 2.0 ** min(history.streak, 16)):
            return False
        history.restarts += 1
        history.streak += 1
        history.last = now
        return True

    async def _begin(
        self, spec: ServiceSpec, order: int, found: Container | None, own: Sequence[Network], other: str
    ) -> None:
        key, what = self.run.key, f"{self.run.key}: service {spec.name}"
        try:
            if found is not None and not found.begun and len(own) > 1:
                # Who made it may have been killed before it was in all of its networks.
                await self.change(key, self.engine.remove(found.id, what))
                found = None
            identity = found.id if found is not None else await self._create(spec, order, own, other)
            self._go_on()
            await self.change(key, self.engine.start(identity, what))
        except BackendError as error:
            self._go_on()
            raise BackendError(f"{what} does not start: {error}", retryable=error.retryable) from error
        self._go_on()

    async def _create(self, spec: ServiceSpec, order: int, own: Sequence[Network], other: str) -> str:
        image = await self.images.digest(self.run.images.get(spec.image, spec.image))
        await fill(self.context, self.engine, self.run, spec, image)
        secrets = write_secrets(self.secrets / spec.name, secret_files(self.run, spec))
        files = write_files(self.secrets / f"{spec.name}~files", other_files(self.run, spec))
        if secrets is not None:
            files[SECRETS] = secrets
        self._go_on()
        joins = {c.service: c.id for c in await self.containers()}[other] if other else ""
        names = sorted(network.name for network in own)
        await self.change(self.run.key, elsewhere.make(self.context, self.engine, self.run, spec))
        volumes = elsewhere.attached(self.place.device, self.run, spec)
        filtered = settings(spec.options, frozenset(self.place.config.capabilities)).filtered
        filters = write_secrets(
            self.secrets / f"{spec.name}~filter", {"seccomp": filtered} if filtered else {}
        )
        filter_file = filters / "seccomp" if filters is not None else None
        container = wanted(
            self.place, self.run, spec, order, image, files, names, joins, volumes, filter_file
        )
        what = f"{self.run.key}: service {spec.name}"
        return await self.change(self.run.key, self.engine.create(container, what))

    async def _conditions(self, spec: ServiceSpec) -> None:
        for name, condition in spec.depends_on.items():
            if condition == "completed":
                await self._completed(spec.name, name)
            elif condition == "healthy":
                await self.until_healthy(name, spec.name)
            self._go_on()

    async def _completed(self, needed_by: str, name: str) -> None:
        clock = self.context.clock
        end = clock.boottime() + COMPLETION
        while clock.boottime() < end:
            self._go_on()
            found = {c.service: c for c in await self.containers()}.get(name)
            code = found.exit_code if found is not None else None
            if code == 0:
                return
            if code is not None:
                message = f"{self.run.key}: service {needed_by}: {name} failed with exit code {code}"
                raise BackendError(message, retryable=True)
            await clock.sleep(POLL)
        raise BackendError(
            f"{self.run.key}: service {needed_by}: {name} did not complete in {COMPLETION:g} s"
        )

    def _go_on(self) -> None:
        if self.overtaken():
            raise BackendError(f"{self.run.key}: stopped while it was starting", retryable=True)
