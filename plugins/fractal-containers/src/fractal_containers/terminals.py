"""Commands at a terminal in a container. Docker Engine API, which Podman answers too: the stream of a command with a terminal is raw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fractal.api.app import Command
from fractal.api.context import Clock
from fractal.api.errors import BackendError
from fractal_containers.streams import Wire

CHUNK = 1 << 16
PATIENCE = 10.0
"""Seconds for an engine to let a command begin, take what is typed, and say what it exited with."""
POLL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTerminal:
    """See `fractal.api.runtime.Terminal`."""

    wire: Wire
    clock: Clock
    command: str
    """The engine's name for it."""
    what: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read(self) -> bytes:
        """As `Terminal.read`."""
        try:
            return await self.reader.read(CHUNK)
        except ConnectionError:
            return b""  # how some engines end the stream

    async def write(self, data: bytes) -> None:
        """As `Terminal.write`."""
        try:
            self.writer.write(data)
            async with asyncio.timeout(PATIENCE):
                await self.writer.drain()
        except (ConnectionError, TimeoutError) as error:
            raise BackendError(f"{self.what}: takes nothing more", retryable=True) from error

    async def resize(self, rows: int, columns: int) -> None:
        """As `Terminal.resize`; one that is about to begin is waited for."""
        end = self.clock.boottime() + PATIENCE
        path = f"/exec/{self.command}/resize?h={rows}&w={columns}"
        while True:
            try:
                async with self.wire.request(self.what, "POST", path):
                    return
            except BackendError:
                if self.clock.boottime() >= end or await self._ended():
                    return  # a window of another size is no reason to end anything
            await self.clock.sleep(POLL)

    async def _ended(self) -> bool:
        found = await self.wire.answer(self.what, "GET", f"/exec/{self.command}/json")
        return not found.get("Running") and found.get("ExitCode") is not None

    async def exit_code(self) -> int:
        """As `Terminal.exit_code`. Raises BackendError if the engine does not say."""
        end = self.clock.boottime() + PATIENCE
        while self.clock.boottime() < end:
            found = await self.wire.answer(self.what, "GET", f"/exec/{self.command}/json")
            if not found.get("Running") and found.get("ExitCode") is not None:
                return int(found["ExitCode"])
            await self.clock.sleep(POLL)
        raise BackendError(f"{self.what}: ended without an exit code", retryable=True)


@asynccontextmanager
async def at_terminal(
    wire: Wire, clock: Clock, identity: str, command: Command, what: str
) -> AsyncIterator[EngineTerminal]:
    """Run a command at a terminal in a container that runs. Ours to end."""
    wanted = {
        "Cmd": list(command.argv),
        "Env": [f"{name}={value}" for name, value in command.env.items()],
        "User": command.user,
        "WorkingDir": command.working_dir,
        "Tty": True,
        **dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr"), True),
    }
    made = str((await wire.answer(what, "POST", f"/containers/{identity}/exec", wanted))["Id"])
    body = json.dumps({"Detach": False, "Tty": True}).encode()
    async with wire.request(what, "POST", f"/exec/{made}/start", body=body, hijack=True) as (reader, writer):
        yield EngineTerminal(wire=wire, clock=clock, command=made, what=what, reader=reader, writer=writer)
