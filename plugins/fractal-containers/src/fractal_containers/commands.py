"""Commands in a container: bounded in time and output, and really ended when they are given up.

No engine has a request to end a command, so each carries a mark in its environment, by which it and what it started
are found among the processes of the run's cgroup.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from fractal.api.app import Command
from fractal.api.context import Context
from fractal.api.errors import BackendError
from fractal.api.runtime import ExecResult
from fractal_containers.cgroup import RunCgroup
from fractal_containers.engine import Engine
from fractal_containers.found import Container
from fractal_containers.terminals import EngineTerminal, at_terminal

OUTPUT = 1 << 20
MARK = "FRACTAL_COMMAND"


def _marked(context: Context, cgroup: RunCgroup, container: Container, command: Command) -> tuple[str, str]:
    """A mark, and what to call the command. Raises BackendError for a run that is frozen."""
    if cgroup.frozen():
        raise BackendError(f"{container.key}: frozen by the guard; nothing can be run in it", retryable=True)
    what = f"{container.key}: {container.service}: {command.argv[0] if command.argv else ''}"
    return context.entropy.bytes(8).hex(), what


@asynccontextmanager
async def terminal(
    context: Context,
    engine: Engine,
    cgroup: RunCgroup,
    container: Container,
    command: Command,
    size: tuple[int, int],
) -> AsyncIterator[EngineTerminal]:
    """As `SupportsTerminal.terminal`, in a container that runs; `size` in rows and columns."""
    mark, what = _marked(context, cgroup, container, command)
    marked = replace(command, env={**command.env, MARK: mark})
    try:
        async with at_terminal(engine.wire, context.clock, container.id, marked, what) as made:
            await made.resize(*size)
            yield made
    finally:
        cgroup.kill_marked(f"{MARK}={mark}".encode())


async def execute(
    context: Context,
    engine: Engine,
    cgroup: RunCgroup,
    container: Container,
    command: Command,
    stdin: bytes,
    timeout: float,
) -> ExecResult:
    """As `Runtime.exec`, in a container that runs. Raises BackendError on time-out."""
    mark, what = _marked(context, cgroup, container, command)
    done = False
    try:
        async with asyncio.timeout(timeout):
            marked = replace(command, env={**command.env, MARK: mark})
            ended = await engine.command(container.id, marked, stdin, OUTPUT, what)
        done = True
    except TimeoutError as error:
        raise BackendError(f"{what}: not finished after {timeout:g} s; killed") from error
    finally:
        if not done:
            cgroup.kill_marked(f"{MARK}={mark}".encode())
    if ended.exit_code is None:
        raise BackendError(f"{what}: ended without an exit code", retryable=True)
    return ExecResult(int(ended.exit_code), ended.output)
