"""A line to a server that fails as lines do: what it does to requests is `fault`, changed while it runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum


class Fault(Enum):
    """What happens to the next answers. All but NONE apply to requests that `method` and `part` pick."""

    NONE = "none"
    CUT_ANSWER = "the server has answered, and the line is cut before a byte of it arrives"
    LOSE_ANSWER = "the same, but the line stays silent"
    CUT_REQUEST = "the line is cut before the server hears of it"
    BREAK_BODY = "the line is cut in the middle of the answer"
    SLOW = "the answer takes half a second"
    MIDWAY = "with half of what the request carries on its way, `midway` is called: whatever a test wants to happen then"


@dataclass
class Proxy:
    """Passes HTTP on. `fault` holds for `times` requests whose first line begins with `method` and holds `part`."""

    port: int = 0
    fault: Fault = Fault.NONE
    method: str = ""
    part: str = ""
    times: int = 0
    midway: Callable[[], None] | None = None
    seen: list[str] = field(default_factory=list)
    """First lines of requests, and their Host headers."""

    def arrange(self, fault: Fault, method: str, part: str = "", times: int = 1) -> None:
        """From now on."""
        self.fault, self.method, self.part, self.times = fault, method, part, times

    def take(self, line: str) -> Fault:
        """What happens to the request with this first line."""
        if self.times and line.startswith(self.method) and self.part in line:
            self.times -= 1
            return self.fault
        return Fault.NONE


@asynccontextmanager
async def proxy(target: int, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    """On loopback, to the server on loopback with port `target`."""
    made = Proxy()
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", target)
                try:
                    await _pass_on(made, reader, writer, up_reader, up_writer)
                finally:
                    up_writer.close()
        except asyncio.CancelledError:
            return  # the proxy ends; asyncio's own callback would stumble over it
        finally:
            writer.transport.abort()
            running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in [*running]:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _pass_on(
    made: Proxy,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    up_reader: asyncio.StreamReader,
    up_writer: asyncio.StreamWriter,
) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        made.seen.append(f"{lines[0]} {_header(lines, 'host')}")
        fault = made.take(lines[0])
        if fault is Fault.CUT_REQUEST:
            return
        up_writer.write(head)
        if _header(lines, "expect"):
            # Whether the body is wanted at all: an answer other than 100 ends the request.
            answer = await up_reader.readuntil(b"\r\n\r\n")
            if b" 100 " not in answer.split(b"\r\n")[0]:
                writer.write(answer + await _body(answer, up_reader))
                return
            writer.write(answer)
        size = int(_header(lines, "content-length") or 0)
        if not await _pass_body(reader, up_writer, size, made.midway if fault is Fault.MIDWAY else None):
            return
        answer = await up_reader.readuntil(b"\r\n\r\n")
        if lines[0].startswith("HEAD"):
            body = b""
        else:
            body = await _body(answer, up_reader)
        if fault is Fault.CUT_ANSWER:
            return
        if fault is Fault.LOSE_ANSWER:
            await asyncio.sleep(3600)  # the test ends it
        if fault is Fault.SLOW:
            await asyncio.sleep(0.5)
        if fault is Fault.BREAK_BODY:
            writer.write(answer + body[: len(body) // 2])
            await writer.drain()
            await asyncio.sleep(0.2)  # it arrives before the cut
            return
        writer.write(answer + body)
        await writer.drain()


async def _pass_body(
    reader: asyncio.StreamReader,
    up_writer: asyncio.StreamWriter,
    size: int,
    midway: Callable[[], None] | None,
) -> bool:
    """What a request carries; whether all of it came."""
    left = size
    while left:
        block = await reader.read(min(left, 1 << 16))
        if not block:
            return False
        left -= len(block)
        up_writer.write(block)
        await up_writer.drain()
        if midway is not None and 2 * left <= size:
            midway()
            midway = None
    return True


async def _body(answer: bytes, reader: asyncio.StreamReader) -> bytes:
    lines = answer.decode("latin-1").split("\r\n")
    if "chunked" in _header(lines, "transfer-encoding"):
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await reader.readuntil(b"\r\n")
        return body
    return await reader.readexactly(int(_header(lines, "content-length") or 0))


def _header(lines: list[str], name: str) -> str:
    found = [line.partition(":")[2].strip() for line in lines[1:] if line.lower().startswith(f"{name}:")]
    return found[0] if found else ""
