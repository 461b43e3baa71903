"""What a backend is given: where it may write, the clock, randomness, and the one way to start a process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Time, passed in. All instants are seconds as float unless the name ends in `_ms`."""

    def boottime(self) -> float:
        """Seconds on CLOCK_BOOTTIME: goes on while the machine sleeps, never steps. The clock of every deadline."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 by the wall clock. For labels only; it may step either way at any time."""

    async def sleep(self, seconds: float) -> None:
        """Wait; cancellable."""


class Entropy(Protocol):
    """Randomness, passed in."""

    def bytes(self, count: int) -> bytes:
        """`count` bytes fit for keys."""

    def uniform(self, low: float, high: float) -> float:
        """A number for jitter; never for keys."""


class Workers(Protocol):
    """A small pool for work that blocks or computes (files, compression, ciphers)."""

    async def run(self, function: Callable[..., T], /, *arguments: object) -> T:
        """Run `function(*arguments)` off the event loop and return its result."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished process."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Run(Protocol):
    """Starts a process without a shell, in its own process group, and waits for it."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Completed:
        """Run `argv`; kill its whole group on time-out or cancellation.

        Raises NotInstalled if argv[0] is absent, BackendError on a non-zero exit (if `check`) or time-out.
        """


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a backend may use from outside itself."""

    device: str
    """Id of this device."""
    state_dir: Path
    """The backend's own durable folder (exists, 0700)."""
    runtime_dir: Path
    """Short-lived files and sockets; emptied at boot (exists, 0700)."""
    logger: logging.Logger
    clock: Clock
    entropy: Entropy
    workers: Workers
    run: Run
    guard_socket: Path | None = None
    """Socket of this device's guard, for runtimes whose processes the guard parents."""
