"""The process runtime passes the runtimes' contract."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from fractal.api.app import AppRun, Port, ProcessSpec, ServiceSpec
from fractal.api.runtime import Runtime
from fractal.builtin.process.config import ProcessConfig
from fractal.builtin.process.runtime import open_process
from fractal.guard.client import GuardClient
from fractal.guard.launch import end_guard, ensure_guard
from fractal.shell.clock import SystemClock
from fractal.shell.process import ProcessRun
from fractal.testing.context import real_context
from fractal.testing.runtime import RuntimeContract


@contextlib.asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[Runtime]:
    """A runtime on a guard of its own, which is ended with everything it keeps."""
    clock, guard = SystemClock(), tmp_path / "guard"
    client = await ensure_guard(guard, run=ProcessRun(), clock=clock)
    await client.close()
    try:
        async with again(tmp_path) as runtime:
            yield runtime
    finally:
        await end_guard(guard, clock=clock)


@contextlib.asynccontextmanager
async def again(tmp_path: Path) -> AsyncIterator[Runtime]:
    """A runtime beside another one."""
    async with real_context(tmp_path) as context:
        context = replace(context, guard_socket=tmp_path / "guard" / "guard.sock")
        async with open_process(context, ProcessConfig()) as runtime:
            yield runtime


class ProcessContract(RuntimeContract):
    """How the suite's programs become process services."""

    def service(self, name: str, program: str) -> ServiceSpec:
        process = ProcessSpec(argv=("{python}", "-S", "-c", program))
        env = {"DATA": "{data.data}", "PORT": "{port.web}", "HOST": "127.0.0.1"}
        return ServiceSpec(name=name, process=process, ports=(Port(name="web", container=0),), env=env)

    async def allow(self, run: AppRun, backend: Runtime) -> None:
        async with GuardClient(run.volume_root.parent / "guard" / "guard.sock") as guard:
            await guard.register(await backend.freezable(run))
            await guard.grant({run.key: SystemClock().boottime() + 600})

    def reopen(self, tmp_path: Path) -> AbstractAsyncContextManager[Runtime]:
        return again(tmp_path)


class TestProcessRuntime(ProcessContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Runtime]:
        async with opened(tmp_path) as runtime:
            yield runtime
