"""What an engine gives or takes as a stream: output, images. Read by asyncio itself, so that it can be cancelled at any byte.

Docker Engine API, which Podman answers too: HTTP over a Unix socket. Requests are HTTP/1.0 where the answer is a stream,
so that it comes without transfer encoding and ends with the connection; a command's stream is "hijacked": after the
headers of the answer the connection carries stdin one way and framed output the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal.api.errors import BackendError, NotFound
from fractal_containers.advice import advised

CHUNK = 1 << 18
MAX_LINE = 1 << 20
"""Bytes of a line of an engine's progress."""
MAX_FRAME = 1 << 24
MAX_ERROR = 1 << 16
MAX_ANSWER = 1 << 22
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Wire:
    """An engine's socket."""

    socket: Path
    name: str
    """The engine's, for errors."""
    version: str
    """Of the API that is asked for."""
    oldest: str
    """The oldest engine that is supported."""

    def where(self, what: str) -> str:
        """Begin of an error's message."""
        return f"{self.name} at {self.socket}: {what}"

    @contextlib.asynccontextmanager
    async def request(
        self,
        what: str,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        chunks: AsyncIterator[bytes] | None = None,
        size: int | None = None,
        hijack: bool = False,
        patience: float = PATIENCE,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Send, and read the answer's headers within `patience` seconds. Raises NotFound, BackendError.

        `chunks` of a known `size` go as they are, so that the answer comes without transfer encoding too.
        """
        where = self.where(what)
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_unix_connection(str(self.socket), limit=MAX_LINE)
        except (OSError, TimeoutError) as error:
            told = f"{where}: {str(error) or 'no connection in time'}; does the engine run?"
            raise BackendError(advised(told, self.name, self.oldest), retryable=True) from error
        try:
            length = None if chunks is not None and size is None else size or len(body)
            tar = chunks is not None
            writer.write(self._head(method, path, length, tar=tar, hijack=hijack) + body)
            if chunks is not None:
                await _send(writer, chunks, framed=size is None)
            async with asyncio.timeout(patience):
                await self._answered(reader, where)
            yield reader, writer
        except (TimeoutError, ConnectionError, EOFError, asyncio.LimitOverrunError) as error:
            raise BackendError(
                f"{where}: {str(error) or 'no answer in time; is the engine hung?'}", retryable=True
            ) from error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answered(self, reader: asyncio.StreamReader, where: str) -> None:
        try:
            await _answer(reader, where)
        except BackendError as error:
            message = advised(str(error), self.name, self.oldest)
            raise type(error)(message, retryable=error.retryable) from error

    def _head(self, method: str, path: str, length: int | None, *, tar: bool, hijack: bool) -> bytes:
        version = "1.1" if length is None or hijack else "1.0"
        lines = [f"{method} /v{self.version}{path} HTTP/{version}", "Host: engine"]
        lines += ["Connection: Upgrade", "Upgrade: tcp"] if hijack else ["Connection: close"]
        lines += ["Transfer-Encoding: chunked"] if length is None else [f"Content-Length: {length}"]
        lines += [f"Content-Type: application/{'x-tar' if tar else 'json'}"]
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    async def answer(
        self, what: str, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Ask, and read an answer that is a JSON object. Raises NotFound, BackendError."""
        data = b"" if body is None else json.dumps(body).encode()
        async with self.request(what, method, path, body=data) as (reader, _), asyncio.timeout(PATIENCE):
            text = await reader.read(MAX_ANSWER)
            while chunk := await reader.read(MAX_ANSWER - len(text)):
                text += chunk
        try:
            found = json.loads(text)
        except ValueError as error:
            raise BackendError(f"{self.where(what)}: an answer that is not JSON") from error
        if not isinstance(found, dict):
            raise BackendError(f"{self.where(what)}: an answer that is not an object")
        return found

    async def told(self, what: str, path: str, chunks: AsyncIterator[bytes] | None, limit: float) -> str:
        """POST and read the engine's progress; what it said. Raises BackendError for an error among it."""
        said = []
        async with aclosing(self.progress(what, path, chunks, limit)) as messages:
            async for message in messages:
                if error := message.get("error"):
                    told = advised(f"{self.where(what)}: {error}", self.name, self.oldest)
                    raise BackendError(told, retryable=True)
                said.append(str(message.get("stream", "")))
        return "".join(said)

    async def progress(
        self,
        what: str,
        path: str,
        chunks: AsyncIterator[bytes] | None,
        limit: float,
        *,
        size: int | None = None,
    ) -> AsyncGenerator[dict[str, object], None]:
        """POST and yield the engine's messages, all within `limit` seconds. Raises BackendError if they do not come."""
        try:
            async with (
                asyncio.timeout(limit),
                self.request(what, "POST", path, chunks=chunks, size=size, patience=limit) as (reader, _),
            ):
                while line := await reader.readline():
                    yield _message(line)
        except TimeoutError as error:
            raise BackendError(f"{self.where(what)}: not done after {limit:g} s", retryable=True) from error
        except ValueError as error:
            raise BackendError(f"{self.where(what)}: {error}") from error


def _message(line: bytes) -> dict[str, object]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}  # the size of a chunk, where the answer comes in chunks
    return found if isinstance(found, dict) else {}


async def _send(writer: asyncio.StreamWriter, chunks: AsyncIterator[bytes], *, framed: bool) -> None:
    async for chunk in chunks:
        if chunk:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if framed else chunk)
            await writer.drain()
    if framed:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _answer(reader: asyncio.StreamReader, where: str) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    words = head.split(None, 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if status == 101 or 200 <= status < 300:
        return
    text = (await reader.read(MAX_ERROR)).decode("utf-8", "replace")
    start, end = text.find("{"), text.rfind("}")
    try:
        message = str(json.loads(text[start : end + 1])["message"])
    except (ValueError, KeyError, TypeError):
        message = text.strip() or f"status {status}"
    if status == 404:
        raise NotFound(f"{where}: {message}")
    raise BackendError(f"{where}: {message}", retryable=status >= 500)


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Payloads of a multiplexed stream (8 bytes before each: stream, 0, 0, 0, length big-endian), stdout and stderr alike."""
    while True:
        try:
            head = await reader.readexactly(8)
        except asyncio.IncompleteReadError:
            return
        left = int.from_bytes(head[4:8], "big")
        if left > MAX_FRAME or head[1:4] != b"\0\0\0":
            raise BackendError("the engine sent a stream that is not framed output")
        while left > 0:
            chunk = await reader.read(min(left, CHUNK))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk
