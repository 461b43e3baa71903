"""The control server: `POST /v1/NOUN/VERB` over a Unix socket that only this user and root may use.

A request's body is one JSON object of parameters. The answer is a stream of JSON lines: any number of
`{"progress": {...}}` and `{"output": {...}}`, then exactly one `{"result": {...}}` or `{"error": {...}}`. A caller that
sees the end without one of the two knows that the agent died. docs/reference/json-output.md has the whole of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fractal.agent.contexts import Contexts
from fractal.agent.control.dispatch import Command, Result
from fractal.agent.control.names import UnknownName
from fractal.agent.control.params import Params, parse_params
from fractal.api.errors import (
    BackendError,
    Denied,
    ExitCode,
    FractalError,
    InvalidInput,
    Misconfigured,
    NotFound,
)

if TYPE_CHECKING:
    from aiohttp import web

MAX_BODY = 1 << 20
CONTEXT = "/v1/app/context"
"""Takes a body that is no JSON: the context of a build, which `app.install` and `app.update` then name."""
MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path, by sockaddr_un."""
SHUTDOWN = 2.0
"""Seconds that open answers get when the server stops."""
QUEUE = 256
"""Progress lines kept for a slow reader."""

log = logging.getLogger(__name__)


class LineProgress:
    """`Progress` that hands lines to the response's writer through a bounded queue."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[dict[str, object]] = asyncio.Queue(QUEUE)

    def say(self, text: str) -> None:
        """Dropped when the reader is slow: progress is a courtesy."""
        with suppress(asyncio.QueueFull):
            self.lines.put_nowait({"progress": {"text": text}})

    def step(self, done: int, total: int, unit: str = "") -> None:
        """Dropped when the reader is slow."""
        with suppress(asyncio.QueueFull):
            self.lines.put_nowait({"progress": {"done": done, "total": total, "unit": unit}})

    async def output(self, record: Mapping[str, object]) -> None:
        """Waits for the reader."""
        await self.lines.put({"output": dict(record)})


class ControlServer:
    """Serves commands to local callers. `open_control` binds it to a socket."""

    def __init__(
        self,
        agent: object,
        commands: Mapping[str, Command],
        *,
        uids: frozenset[int],
        contexts: Contexts | None = None,
    ) -> None:
        self._agent = agent
        self._contexts = contexts
        self._commands = commands
        self._uids = uids
        self._running: set[asyncio.Task[Result]] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request. The outermost frame of a command: whatever it raises becomes an error line."""
        from aiohttp import web

        try:
            self._check_peer(request)
            if request.path == CONTEXT and self._contexts is not None:
                return await self._keep_context(request, self._contexts)
            command, params = await self._parse(request)
        except FractalError as error:
            return web.json_response(error_line(error), status=_status(error))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        progress = LineProgress()
        task = asyncio.create_task(command.run(self._agent, params, progress), name=command.spec.name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await _pump(response, progress, task)
            await _write(response, _outcome(command.spec.name, task))
        except (ConnectionError, asyncio.CancelledError):
            # The caller went away. Reading stops; a change goes on, so that nothing is left half done.
            if not command.spec.changes:
                task.cancel()
            task.add_done_callback(_log_lost)
            raise
        return response

    async def _keep_context(self, request: web.Request, contexts: Contexts) -> web.StreamResponse:
        """Take the context of a build, a tar archive, which is no parameter: it may have hundreds of megabytes."""
        from aiohttp import web

        try:
            name = await contexts.receive(request.content.iter_any())
        except FractalError:
            raise
        except (web.RequestPayloadError, ConnectionError, ValueError) as error:
            raise InvalidInput("the build context broke off") from error
        except OSError as error:
            raise BackendError(f"the build context could not be kept: {error.strerror}") from error
        return web.json_response({"result": {"context": name}})

    async def stop(self) -> None:
        """Cancel what still runs and wait for it."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _check_peer(self, request: web.Request) -> None:
        uid = _peer_uid(request)
        if uid not in self._uids:
            raise Denied(f"user {uid} may not control this agent: run the command as its user or as root")

    async def _parse(self, request: web.Request) -> tuple[Command, Params]:
        from aiohttp import web

        parts = request.path.split("/")
        if request.method != "POST" or len(parts) != 4 or parts[:2] != ["", "v1"]:
            raise NotFound("the control API knows only POST /v1/NOUN/VERB")
        name = f"{parts[2]}.{parts[3]}"
        command = self._commands.get(name)
        if command is None:
            raise NotFound(
                f"this agent knows no command {name[:80]!r}: it may be older than your command line; restart it"
            )
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise InvalidInput(f"the request is larger than {MAX_BODY} bytes") from error
        except (web.RequestPayloadError, ConnectionError, ValueError) as error:
            raise InvalidInput("the request's body broke off") from error
        return command, parse_params(command.spec, body)


@asynccontextmanager
async def open_control(
    socket: Path,
    agent: object,
    commands: Mapping[str, Command],
    *,
    uids: frozenset[int] | None = None,
    contexts: Contexts | None = None,
) -> AsyncIterator[ControlServer]:
    """Serve `commands` on `socket` (0600, in a folder of ours) for the length of the context.

    Requests of users other than `uids` (our own and root) are refused. Raises Misconfigured for a socket path that
    cannot be.
    """
    from aiohttp import web

    path = os.fsencode(socket)
    if len(path) > MAX_SOCKET_PATH:
        raise Misconfigured(
            "device.runtime_dir",
            f"the control socket {socket} has {len(path)} bytes and at most {MAX_SOCKET_PATH} work: choose a shorter one",
        )
    server = ControlServer(agent, commands, uids=uids or frozenset({os.getuid(), 0}), contexts=contexts)
    application = web.Application(client_max_size=MAX_BODY, logger=log)
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(
        application, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN, logger=log
    )
    await runner.setup()
    try:
        site = web.UnixSite(runner, socket)
        try:
            await site.start()
            # The folder is 0700 and each peer's user is checked, so the moment before this is covered.
            socket.chmod(0o600)
        except OSError as error:
            raise Misconfigured(
                "device.runtime_dir", f"cannot listen on {socket}: {error.strerror}"
            ) from error
        yield server
    finally:
        await server.stop()
        await runner.cleanup()
        socket.unlink(missing_ok=True)


def error_line(error: FractalError) -> dict[str, object]:
    """The `{"error": ...}` line of an expected error."""
    fields: dict[str, object] = {
        "code": error.code,
        "message": str(error),
        "exit_code": int(error.exit_code),
    }
    if isinstance(error, UnknownName):
        fields["candidates"] = list(error.candidates)
    return {"error": fields}


async def _pump(response: web.StreamResponse, progress: LineProgress, task: asyncio.Task[Result]) -> None:
    """Write lines as they come until the command has ended and all of them are written."""
    while not task.done():
        line = asyncio.ensure_future(progress.lines.get())
        try:
            await asyncio.wait({line, task}, return_when=asyncio.FIRST_COMPLETED)
            if line.done():
                await _write(response, line.result())
        finally:
            line.cancel()
    while not progress.lines.empty():
        await _write(response, progress.lines.get_nowait())


async def _write(response: web.StreamResponse, line: Mapping[str, object]) -> None:
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    await response.write(text.encode("utf-8", "replace") + b"\n")


def _outcome(name: str, task: asyncio.Task[Result]) -> dict[str, object]:
    if task.cancelled():
        return {
            "error": {
                "code": "interrupted",
                "message": f"{name}: the agent is stopping; ask again when it runs",
                "exit_code": int(ExitCode.UNREACHABLE),
            }
        }
    error = task.exception()
    if error is None:
        return {"result": dict(task.result())}
    if isinstance(error, FractalError):
        return error_line(error)
    # Isolation point: a bug in one command is told to its caller and logged, and the agent goes on.
    log.error("command %s failed unexpectedly", name, exc_info=error)
    return {
        "error": {
            "code": "internal",
            "message": f"{name}: unexpected {type(error).__name__}: this is a bug; the agent's log has the particulars",
            "exit_code": int(ExitCode.FAILED),
        }
    }


def _log_lost(task: asyncio.Task[Result]) -> None:
    """A command whose caller left ends: nobody else would hear of its error."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("command %s failed after its caller had left: %s", task.get_name(), error)


def _status(error: FractalError) -> int:
    return {ExitCode.NOT_FOUND: 404, ExitCode.DENIED: 403}.get(error.exit_code, 400)


def _peer_uid(request: web.Request) -> int:
    """User id of the process at the other end, by SO_PEERCRED. Raises Denied if the kernel does not tell."""
    import socket

    endpoint = request.transport.get_extra_info("socket") if request.transport is not None else None
    if endpoint is None:
        raise Denied("the caller of the control API cannot be told")
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)
