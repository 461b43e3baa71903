"""Commands in a container: bounded in time and output, and really ended when they are given up.

The engine has no request to end a command, so each carries a mark in its environment, by which it and what it started
are found among the processes of the run's cgroup.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from fractal.api.context import Context
from fractal.api.errors import BackendError
from fractal.api.runtime import ExecResult
from fractal_docker.cgroup import RunCgroup
from fractal_docker.engine import Engine
from fractal_docker.labels import Container
from fractal_docker.streams import frames, request

OUTPUT = 1 << 20
MARK = "FRACTAL_COMMAND"


async def execute(
    context: Context,
    engine: Engine,
    cgroup: RunCgroup,
    container: Container,
    argv: Sequence[str],
    stdin: bytes,
    timeout: float,
) -> ExecResult:
    """As `Runtime.exec`, in a container that runs. Raises BackendError on time-out."""
    if cgroup.frozen():
        raise BackendError(f"{container.key}: frozen by the guard; nothing can be run in it", retryable=True)
    mark = context.entropy.bytes(8).hex()
    what = f"{container.service}: {argv[0] if argv else ''}"
    done = False
    try:
        async with asyncio.timeout(timeout):
            made = await engine(
                what,
                engine.api.exec_create,
                container.id,
                list(argv),
                stdin=bool(stdin),
                environment={MARK: mark},
            )
            output = await _converse(engine, what, made["Id"], stdin)
            found = await engine(what, engine.api.exec_inspect, made["Id"])
        done = True
    except TimeoutError as error:
        raise BackendError(f"{container.key}: {what}: not finished after {timeout:g} s; killed") from error
    finally:
        if not done:
            cgroup.kill_marked(f"{MARK}={mark}".encode())
    if found.get("ExitCode") is None:
        raise BackendError(f"{container.key}: {what}: ended without an exit code", retryable=True)
    return ExecResult(int(found["ExitCode"]), output)


async def _converse(engine: Engine, what: str, command: str, stdin: bytes) -> bytes:
    body = json.dumps({"Detach": False, "Tty": False}).encode()
    kept = bytearray()
    path = f"/exec/{command}/start"
    async with request(engine.socket, what, "POST", path, body=body, hijack=True) as (reader, writer):
        giving = asyncio.create_task(_give(writer, stdin)) if stdin else None
        try:
            async for chunk in frames(reader):
                kept += chunk[: OUTPUT - len(kept)]
        finally:
            if giving is not None:
                giving.cancel()
                await asyncio.wait([giving])
    return bytes(kept)


async def _give(writer: asyncio.StreamWriter, stdin: bytes) -> None:
    try:
        writer.write(stdin)
        await writer.drain()
        writer.write_eof()
    except ConnectionError:
        return  # the command ended without reading all of it
