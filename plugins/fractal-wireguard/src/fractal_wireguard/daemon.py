"""A program that is to run as long as the transport: started again when it ends, ended with us."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from fractal.api.context import Context
from fractal.api.errors import BackendError

READY_LIMIT = 15.0
"""Seconds in which a program must have become ready."""
_LOOK = 0.02
_PAUSES = (0.1, 1.0, 5.0, 15.0, 30.0)
"""Seconds before the next start after so many that failed in a row."""


class Daemon:
    """Keeps one program running. `ready` raises BackendError while it is not; `started` fills it with what it has to know."""

    def __init__(
        self,
        context: Context,
        argv: Sequence[str],
        *,
        ready: Callable[[], Awaitable[None]],
        started: Callable[[], Awaitable[None]],
    ) -> None:
        self._context = context
        self._argv = argv
        self._ready = ready
        self._started = started
        self._keeping: asyncio.Task[None] | None = None
        self.up = False
        """Whether it runs and knows what it has to."""

    async def open(self) -> None:
        """Start it. Raises BackendError with its last words if it does not get ready."""
        running = self._run()
        try:
            await self._settle(running)
        except BaseException:
            await _end(running)
            raise
        self._keeping = asyncio.create_task(self._keep(running))

    async def close(self) -> None:
        """End it."""
        if self._keeping is not None:
            await _end(self._keeping)

    def _run(self) -> asyncio.Task[str]:
        return asyncio.create_task(self._outcome())

    async def _outcome(self) -> str:
        """How it ended. Cancelling this kills it."""
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LOG_LEVEL": "error"}
        done = await self._context.run(self._argv, env=environment, timeout=math.inf, check=False)
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        # wireguard-go frames an advertisement for the kernel's.
        words = [line.strip() for line in text.splitlines() if line.strip() and line[0] not in "┌│└"]
        return f"ended with status {done.returncode}" + (f": {'; '.join(words[-3:])[:1000]}" if words else "")

    async def _settle(self, running: asyncio.Task[str]) -> None:
        limit = self._context.clock.boottime() + READY_LIMIT
        while True:
            if running.done():
                raise BackendError(f"transport wireguard: {self._name} {running.result()}")
            try:
                await self._ready()
                break
            except BackendError as error:
                if self._context.clock.boottime() > limit:
                    raise BackendError(
                        f"transport wireguard: {self._name} is not ready after {READY_LIMIT:g} s: {error}"
                    ) from error
            await self._context.clock.sleep(_LOOK)
        await self._started()
        self.up = True

    async def _keep(self, running: asyncio.Task[str]) -> None:
        failures = 0
        while True:
            try:
                if not self.up:
                    await self._settle(running)
                    failures = 0
                problem = f"{self._name} {await asyncio.shield(running)}"
            except BackendError as error:
                problem = str(error)
            finally:
                self.up = False
                await _end(running)
            self._context.logger.warning("transport wireguard: %s; starting it again", problem)
            await self._context.clock.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1
            running = self._run()

    @property
    def _name(self) -> str:
        return next(word for word in self._argv if word in ("haproxy", "wireguard-go"))


async def _end(task: asyncio.Task[str] | asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def kill_orphans(program: str, argument: str) -> None:
    """End what an agent that died without a word has left: processes of `program` that were given exactly `argument`."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # gone in the meantime, or not ours to look at
            words = (folder / "cmdline").read_bytes().split(b"\0")
            name = Path(words[0].decode("utf-8", "replace")).name
            if name == program and argument.encode() in words[1:]:
                os.kill(int(folder.name), signal.SIGKILL)
