"""What the engine gives or takes as a stream: output, images. Read by asyncio itself, so that it can be cancelled at any byte.

Docker Engine API 1.41: HTTP over a Unix socket. Requests are HTTP/1.0 where the answer is a stream, so that it comes
without transfer encoding and ends with the connection; a command's stream is "hijacked": after the headers of the
answer the connection carries stdin one way and framed output the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

from fractal.api.errors import BackendError, NotFound
from fractal_docker.engine import API

CHUNK = 1 << 18
MAX_FRAME = 1 << 24
MAX_ERROR = 1 << 16


@contextlib.asynccontextmanager
async def request(
    socket: Path,
    what: str,
    method: str,
    path: str,
    *,
    body: bytes = b"",
    chunks: AsyncIterator[bytes] | None = None,
    hijack: bool = False,
    patience: float = 30.0,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send, and read the answer's headers within `patience` seconds. Raises NotFound, BackendError."""
    where = f"docker at {socket}: {what}"
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_unix_connection(str(socket))
    except (OSError, TimeoutError) as error:
        raise BackendError(f"{where}: {error}; does the engine run?", retryable=True) from error
    try:
        version = "1.0" if chunks is None and not hijack else "1.1"
        head = [f"{method} /v{API}{path} HTTP/{version}", "Host: docker", "Content-Type: application/json"]
        head += ["Connection: Upgrade", "Upgrade: tcp"] if hijack else ["Connection: close"]
        head += (
            [f"Content-Length: {len(body)}"]
            if chunks is None
            else ["Transfer-Encoding: chunked", "Content-Type: application/x-tar"]
        )
        writer.write("\r\n".join([*head, "", ""]).encode("ascii") + body)
        if chunks is not None:
            await _send(writer, chunks)
        async with asyncio.timeout(patience):
            await _answer(reader, where)
        yield reader, writer
    except (TimeoutError, ConnectionError, EOFError, asyncio.LimitOverrunError) as error:
        raise BackendError(
            f"{where}: {error or 'no answer in time; is the engine hung?'}", retryable=True
        ) from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        if chunk:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
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
            raise BackendError("docker: a stream that is not framed output")
        while left > 0:
            chunk = await reader.read(min(left, CHUNK))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk
