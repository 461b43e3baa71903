"""Runtime kind: runs an app's services. See docs/reference/plugin-api.md for the contract in words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, runtime_checkable

from fractal.api.app import AppRun, AppSpec, Command, run_key
from fractal.api.backend import Backend, C, Offer


class Health(Enum):
    """A service's health, or an app's: the worst of its services."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    STOPPED = "stopped"


_WORST_FIRST = (Health.STOPPED, Health.UNHEALTHY, Health.STARTING, Health.HEALTHY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """What the runtime sees of one service of one run."""

    name: str
    running: bool
    health: Health
    restarts: int = 0
    exit_code: int | None = None
    detail: str = ""
    """Last line worth showing: why it does not start."""
    endpoints: tuple[tuple[str, str, int], ...] = ()
    """(port name, host, port) at which this device reaches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One run that exists on this device, whether started by this agent, an earlier one, or left over."""

    group: str
    app: str
    epoch: int
    services: tuple[ServiceStatus, ...]
    frozen: bool = False

    @property
    def key(self) -> str:
        """`AppRun.key`."""
        return run_key(self.group, self.app, self.epoch)

    @property
    def running(self) -> bool:
        """Whether anything of it runs."""
        return any(service.running for service in self.services)

    @property
    def health(self) -> Health:
        """The worst of the services' health; STOPPED if none runs."""
        found = [service.health for service in self.services]
        return next((health for health in _WORST_FIRST if health in found), Health.STOPPED)


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command inside a service gave."""

    exit_code: int
    output: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Freezable:
    """How the guard freezes a run without the engine: a cgroup of its own, or processes that the guard parents."""

    run: str
    """`AppRun.key`."""
    cgroup: Path | None = None
    """Folder of the run's cgroup (v2), or of its freezer cgroup (v1). None: the guard started its processes itself."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something in a manifest that this runtime cannot honour."""

    service: str
    key: str
    reason: str


class Runtime(Protocol):
    """Runs apps. Every call is idempotent, may be cancelled at any await, and is safe to repeat after a crash.

    A runtime never restarts anything by itself across an agent restart, never thaws what the guard froze, and marks each
    thing that it starts with group, app and epoch so that `observe` finds it again, also after the agent was killed.
    """

    def check(self, spec: AppSpec) -> Sequence[Refusal]:
        """What of `spec` cannot run here, by service and key. Empty: all of it can. No I/O."""

    async def prepare(self, run: AppRun) -> None:
        """Bring what the run needs (images, environments, networks) without starting anything. May take minutes.

        Its volumes need not be here yet.
        """

    async def start(self, run: AppRun) -> None:
        """Start every service in dependency order, waiting for conditions. Returns when all were started.

        The guard has been told of the run before. Raises BackendError naming the service that does not start.
        """

    async def stop(self, key: str) -> None:
        """Stop gracefully: stop signal, grace, SIGKILL, in reverse order. Nothing to do if it does not exist."""

    async def kill(self, key: str) -> None:
        """SIGKILL everything of the run, frozen or not, without thawing it first. Nothing of it runs afterwards."""

    async def remove(self, key: str) -> None:
        """Remove what a stopped run left (containers, scratch files). Never the volume root."""

    async def pause(self, key: str) -> None:
        """Suspend every process of the run, for a consistent snapshot."""

    async def unpause(self, key: str) -> None:
        """Undo `pause` (never a freeze by the guard)."""

    async def observe(self) -> Sequence[RunStatus]:
        """Every run on this device that this runtime started and that still has a process or container."""

    def logs(self, key: str, service: str, *, tail: int = 100, follow: bool = False) -> AsyncIterator[bytes]:
        """The last `tail` lines (0: all kept), then live ones if `follow`. Raises NotFound."""

    async def exec(
        self, key: str, service: str, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0
    ) -> ExecResult:
        """Run `argv` inside the service. Output is stdout and stderr together, 1 MiB at most. Raises NotFound."""

    async def freezable(self, run: AppRun) -> Freezable:
        """How the guard can freeze this run; called before `start`."""


@runtime_checkable
class SupportsNews(Protocol):
    """Says when there is something to observe, so that nobody waits for the next look."""

    async def news(self) -> None:
        """Return once a service's health changed that `observe` has not told yet. A hint: whoever misses it looks all the same."""


@runtime_checkable
class SupportsImages(Protocol):
    """Saves and loads container images, so that a takeover needs no registry."""

    async def image_digest(self, image: str) -> str:
        """`sha256:` and the SHA-256, in hex, of a local image's configuration (OCI image specification, "ImageID").

        It names the image's content on every engine and survives `save_image` and `load_image`. A digest by which a
        registry knows the image is another one. Raises NotFound.
        """

    async def image_architecture(self, image: str) -> str:
        """For which machines a local image is, as `platform.machine()` names them: `x86_64`, `aarch64`. Raises NotFound."""

    def save_image(self, image: str) -> AsyncIterator[bytes]:
        """The image, and it alone, as a docker archive (`docker save`), which every engine loads. Raises NotFound."""

    async def load_image(self, image: str, chunks: AsyncIterator[bytes]) -> str:
        """Load such an archive, whichever engine saved it, tag it `image`, return its digest.

        Nothing of it is trusted but that digest, which the engine computes: compare it with the one that was recorded.
        """


class Terminal(Protocol):
    """A command's terminal, seen from outside."""

    async def read(self) -> bytes:
        """What it shows next, as it comes; b"" once the command has ended."""

    async def write(self, data: bytes) -> None:
        """Type something: all of it has been taken when this returns."""

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the command another size of the window, in characters."""

    async def exit_code(self) -> int:
        """What the command exited with, once `read` has given b""."""


@runtime_checkable
class SupportsTerminal(Protocol):
    """Runs commands at a terminal, for people."""

    def terminal(
        self, key: str, service: str, command: Command, *, rows: int, columns: int
    ) -> AbstractAsyncContextManager[Terminal]:
        """Run a command inside the service at a terminal of that size. Leaving the context ends it. Raises NotFound."""


class RuntimeOffer(Offer):
    """A `RuntimeBackend` of any config type: what `fractal_runtimes` yields."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeBackend(RuntimeOffer, Backend[Runtime, C]):
    """Offers a `Runtime`."""

    isolates: bool = True
    """False: apps run beside everything else on the device; said plainly by `plugin show` and at install."""
