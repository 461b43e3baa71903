"""Starting a process and waiting for it: no shell, a process group of its own, bounded time and output."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from fractal.api.context import Completed, Run
from fractal.api.errors import BackendError, NotInstalled

OUTPUT_LIMIT = 64 << 20
"""Bytes of stdout and of stderr that are kept; a process that writes more is killed."""


class ProcessRun(Run):
    """Runs on this machine. Stdin is empty unless given; the environment is the agent's unless `env` replaces it."""

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
        """As `fractal.api.context.Run`."""
        name = argv[0]
        path = (os.environ if env is None else env).get("PATH", os.defpath)
        if shutil.which(name, path=path) is None:
            raise NotInstalled(f"{name}: no such program on this device; install the package that brings it")
        loop = asyncio.get_running_loop()
        try:
            transport, output = await loop.subprocess_exec(
                lambda: _Output(loop),
                *argv,
                stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise BackendError(f"{name}: cannot be started: {error}") from error
        try:
            if stdin is not None:
                _feed(transport, stdin)
            async with asyncio.timeout(timeout):
                await output.done
        except TimeoutError as error:
            raise BackendError(f"{name}: not finished after {timeout:g} s; killed", retryable=True) from error
        finally:
            _kill_group(transport.get_pid())
            transport.close()
        if output.overflow:
            raise BackendError(f"{name}: wrote more than {OUTPUT_LIMIT} bytes; killed")
        completed = Completed(transport.get_returncode() or 0, output.text(1), output.text(2))
        if check and completed.returncode != 0:
            raise BackendError(f"{name}: exit status {completed.returncode}{_last_line(completed.stderr)}")
        return completed


class _Output(asyncio.SubprocessProtocol):
    """Collects both outputs; `done` when the process has ended and both are closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self.overflow = False
        self._chunks: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self._open = {1, 2}
        self._running = True

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        chunks = self._chunks[fd]
        if len(chunks) + len(data) > OUTPUT_LIMIT:
            self.overflow = True
            self._finish()
        else:
            chunks += data

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        # A process that closes its stdin early decides that itself: its exit status tells.
        self._open.discard(fd)
        self._finish_if_over()

    def process_exited(self) -> None:
        self._running = False
        self._finish_if_over()

    def text(self, fd: int) -> bytes:
        return bytes(self._chunks[fd])

    def _finish_if_over(self) -> None:
        if not self._open and not self._running:
            self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def _feed(transport: asyncio.SubprocessTransport, data: bytes) -> None:
    pipe = transport.get_pipe_transport(0)
    assert isinstance(pipe, asyncio.WriteTransport)
    pipe.write(data)
    pipe.close()  # after what was written has gone out


def _kill_group(group: int) -> None:
    """SIGKILL to whatever of the group is left. The group id is its leader's pid, which stays reserved while it has members."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nothing left, or only a zombie of another user


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1][:500]}" if lines else ""
