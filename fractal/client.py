"""Talks to the agent over its control socket. Imports nothing heavy: every command of the command line goes through here.

The agent answers a request with JSON lines (docs/reference/json-output.md); HTTP/1.0 keeps them free of any framing.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fractal.api.errors import ExitCode, FractalError, Unreachable

MAX_LINE = 64 << 20
CONNECT_TIMEOUT = 5.0
"""Seconds; the agent is on this machine."""
IDLE_TIMEOUT = 900.0
"""Longest silence of a command unless told otherwise, in seconds."""

Listener = Callable[[Mapping[str, Any]], None]


class CommandError(FractalError):
    """The agent answered with an error; its code and exit code are this one's. `candidates` are names that were meant, perhaps."""

    def __init__(
        self, message: str, code: str, exit_code: ExitCode, candidates: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code
        self.candidates = candidates


class Client:
    """Calls commands of one agent, one connection each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def call(
        self,
        command: str,
        params: Mapping[str, object] | None = None,
        *,
        on_progress: Listener | None = None,
        on_output: Listener | None = None,
        timeout: float = IDLE_TIMEOUT,
    ) -> dict[str, Any]:
        """Run `noun.verb` and return its result; listeners get the lines before it as they come.

        Parameters that are None are left out. `timeout` bounds each silence, in seconds. Raises CommandError with the
        agent's own error, Unreachable if there is no agent or it hangs up or falls silent.
        """
        with self._connect() as connection:
            connection.settimeout(timeout)
            try:
                connection.sendall(_request(command, params or {}))
                with connection.makefile("rb") as answer:
                    return _read(answer, on_progress, on_output)
            except TimeoutError as error:
                raise Unreachable(
                    f"the agent has been silent for {timeout:.0f} s about {command}: see `homeserver agent status`"
                ) from error
            except OSError as error:
                raise Unreachable(
                    f"the agent hung up during {command} ({error.strerror}): see its log"
                ) from error

    def send_context(self, archive: BinaryIO, size: int, *, timeout: float = IDLE_TIMEOUT) -> str:
        """Give the agent the context of a build, a tar archive of `size` bytes; its id. Raises CommandError, Unreachable."""
        with self._connect() as connection:
            connection.settimeout(timeout)
            try:
                connection.sendall(_head("app.context", size, "application/x-tar"))
                # An agent that does not want it says why and hangs up: what it said is read all the same.
                with suppress(ConnectionError):
                    connection.sendfile(archive)
                with connection.makefile("rb") as answer:
                    return str(_read(answer, None, None)["context"])
            except TimeoutError as error:
                raise Unreachable(f"the agent took no build context for {timeout:.0f} s") from error
            except OSError as error:
                raise Unreachable(f"the agent hung up ({error.strerror}): see its log") from error

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_TIMEOUT)
        try:
            connection.connect(os.fspath(self._path))
        except OSError as error:
            connection.close()
            raise Unreachable(_why(self._path, error)) from error
        return connection


def _why(path: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            return (
                f"no agent listens on {path}: start one with `homeserver agent run` (or `systemctl start homeserver`); "
                "if it does not start, see `homeserver config check`"
            )
        case PermissionError():
            return f"no permission for {path}: run the command as the agent's user or as root"
        case _:
            return f"cannot reach the agent at {path}: {error.strerror or error}"


def _request(command: str, params: Mapping[str, object]) -> bytes:
    body = json.dumps({k: v for k, v in params.items() if v is not None}).encode()
    return _head(command, len(body), "application/json") + body


def _head(command: str, size: int, kind: str) -> bytes:
    noun, _, verb = command.partition(".")
    head = (
        f"POST /v1/{noun}/{verb} HTTP/1.0\r\nHost: agent\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {size}\r\n\r\n"
    )
    return head.encode("ascii")


def _read(answer: BinaryIO, on_progress: Listener | None, on_output: Listener | None) -> dict[str, Any]:
    status = answer.readline(1024)
    if not status.startswith(b"HTTP/1."):
        raise Unreachable("what listens on the control socket is no agent, or it died just now")
    while answer.readline(16384).strip():
        pass
    while line := answer.readline(MAX_LINE):
        match _parse(line):
            case {"result": dict(result)}:
                return result
            case {"error": dict(error)}:
                raise _command_error(error)
            case {"progress": dict(progress)} if on_progress:
                on_progress(progress)
            case {"output": dict(output)} if on_output:
                on_output(output)
            case _:
                # A newer agent may send kinds of lines that we do not know.
                continue
    raise Unreachable(
        "the agent ended before it answered; what it had begun may be done: see `homeserver status`"
    )


def _parse(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise Unreachable("the agent's answer broke off: see its log") from error


def _command_error(error: Mapping[str, Any]) -> CommandError:
    try:
        exit_code = ExitCode(error.get("exit_code", 1))
    except ValueError:
        exit_code = ExitCode.FAILED
    candidates = tuple(str(c) for c in error.get("candidates", ()))
    return CommandError(
        str(error.get("message", "failed")), str(error.get("code", "failed")), exit_code, candidates
    )
