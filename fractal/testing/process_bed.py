"""The runtimes' contract on the `process` runtime, with a guard of its own for each test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from fractal.api.app import AppRun, Port, ProcessSpec, ServiceSpec
from fractal.api.runtime import Runtime
from fractal.builtin.process.config import ProcessConfig
from fractal.builtin.process.runtime import ProcessRuntime, open_process
from fractal.guard.client import GuardClient
from fractal.guard.launch import end_guard, ensure_guard
from fractal.shell.clock import SystemClock
from fractal.shell.process import ProcessRun
from fractal.testing.context import real_context
from fractal.testing.runtime import RuntimeContract


@contextlib.asynccontextmanager
async def opened(folder: Path, settings: ProcessConfig) -> AsyncIterator[ProcessRuntime]:
    """A runtime on a guard of its own, which is ended with everything it keeps."""
    clock, guard = SystemClock(), folder / "guard"
    client = await ensure_guard(guard, run=ProcessRun(), clock=clock)
    await client.close()
    try:
        async with again(folder, settings) as runtime:
            yield runtime
    finally:
        await end_guard(guard, clock=clock)


@contextlib.asynccontextmanager
async def again(folder: Path, settings: ProcessConfig) -> AsyncIterator[ProcessRuntime]:
    """A runtime beside another one."""
    async with real_context(folder) as context:
        context = replace(context, guard_socket=folder / "guard" / "guard.sock")
        async with open_process(context, settings) as runtime:
            yield runtime


class ProcessContract(RuntimeContract):
    """How the suite's programs become process services."""

    settings: ClassVar[ProcessConfig] = ProcessConfig()

    def service(self, name: str, program: str) -> ServiceSpec:
        """A service of the interpreter that runs the tests."""
        process = ProcessSpec(argv=("{python}", "-S", "-c", program))
        env = {"DATA": "{data.data}", "PORT": "{port.web}", "HOST": "127.0.0.1"}
        return ServiceSpec(name=name, process=process, ports=(Port(name="web", container=0),), env=env)

    async def allow(self, run: AppRun, backend: Runtime) -> None:
        """Register the run with the guard and grant it ten minutes."""
        async with GuardClient(run.volume_root.parent / "guard" / "guard.sock") as guard:
            await guard.register(await backend.freezable(run))
            await guard.grant({run.key: SystemClock().boottime() + 600})

    def reopen(self, tmp_path: Path) -> AbstractAsyncContextManager[Runtime]:
        """Another runtime beside the one under test."""
        return again(tmp_path, self.settings)
