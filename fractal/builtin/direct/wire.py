"""One end of an HTTP/1.1 connection: reads heads and bodies with limits, writes with back-pressure."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

from fractal.builtin.direct.http1 import MAX_HEAD, End, Framing, HttpError, chunk_size
from fractal.builtin.direct.sockets import CHUNK

_MAX_LINE = 4096
_MAX_TRAILER = 16 * 1024
_SHUTDOWN = 3.0

Send = Callable[[bytes], Awaitable[None]]


class Wire:
    """A connection with a buffer of at most one head plus one chunk. Methods raise OSError and, where said, EOFError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle: float) -> None:
        self._reader = reader
        self._writer = writer
        self._idle = idle
        self._buffer = bytearray()
        self.answered = False
        """Whether a final response has begun: after that, an error can only be shown by breaking off."""

    async def send(self, data: bytes) -> None:
        """Write, waiting for room. Raises TimeoutError if the other side takes nothing for the idle time."""
        self._writer.write(data)
        async with asyncio.timeout(self._idle):
            await self._writer.drain()

    async def some(self, most: int) -> bytes:
        """Between 1 and `most` bytes, or none at the end."""
        if not self._buffer:
            async with asyncio.timeout(self._idle):
                return await self._reader.read(min(most, CHUNK))
        data = bytes(self._buffer[:most])
        del self._buffer[:most]
        return data

    async def head(self, *, first: float, rest: float) -> bytes | None:
        """A message head with its empty line; None if the connection ended, or nothing came for `first` seconds.

        From its first byte on it must be complete in `rest` seconds. Raises HttpError, EOFError.
        """
        if not self._buffer:
            try:
                async with asyncio.timeout(first):
                    self._buffer += await self._reader.read(CHUNK)
            except TimeoutError:
                return None
        if not self._buffer:
            return None
        async with asyncio.timeout(rest):
            return await self._until(b"\r\n\r\n", MAX_HEAD, 431)

    async def pass_body(self, framing: Framing, send: Send) -> None:
        """Read a body and `send` it exactly as it came. Raises EOFError if it ends early, HttpError if malformed."""
        if framing is End.CLOSE:
            while data := await self.some(CHUNK):
                await send(data)
        elif framing is End.CHUNKED:
            await self._pass_chunks(send)
        else:
            await self._pass_bytes(framing, send)

    async def close(self) -> None:
        """Close in good order, or break off if the other side does not let us."""
        self._writer.close()
        try:
            async with asyncio.timeout(_SHUTDOWN):
                await self._writer.wait_closed()
        except OSError:
            self.abort()

    def abort(self) -> None:
        """Break off, so that the other side cannot take what it has for whole."""
        self._writer.transport.abort()

    async def _until(self, end: bytes, most: int, status: int) -> bytes:
        searched = 0
        while (at := self._buffer.find(end, searched)) < 0:
            if len(self._buffer) > most:
                raise HttpError(status, f"more than {most} bytes without an end")
            searched = max(0, len(self._buffer) - len(end) + 1)
            data = await self._reader.read(CHUNK)
            if not data:
                raise EOFError
            self._buffer += data
        if at > most:
            raise HttpError(status, f"more than {most} bytes without an end")
        found = bytes(self._buffer[: at + len(end)])
        del self._buffer[: at + len(end)]
        return found

    async def _line(self) -> bytes:
        async with asyncio.timeout(self._idle):
            return await self._until(b"\r\n", _MAX_LINE, 400)

    async def _pass_bytes(self, count: int, send: Send) -> None:
        while count:
            data = await self.some(min(count, CHUNK))
            if not data:
                raise EOFError
            count -= len(data)
            await send(data)

    async def _pass_chunks(self, send: Send) -> None:
        while True:
            line = await self._line()
            size = chunk_size(line[:-2])
            await send(line)
            if not size:
                break
            await self._pass_bytes(size, send)
            if (line := await self._line()) != b"\r\n":
                raise HttpError(400, "malformed chunk")
            await send(line)
        trailer = 0
        while True:
            line = await self._line()
            trailer += len(line)
            if trailer > _MAX_TRAILER:
                raise HttpError(400, "trailer too long")
            await send(line)
            if line == b"\r\n":
                return


class _Protocol(asyncio.StreamReaderProtocol):
    """Ends the connection's task when the client is gone, however long the app thinks about its answer."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._serving = asyncio.current_task()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._serving is not None:
            self._serving.cancel()

    def release(self) -> None:
        """The task is ending the connection itself."""
        self._serving = None


class TlsWire(Wire):
    """A wire whose closing by the client cancels the task that serves it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle: float, protocol: _Protocol
    ) -> None:
        super().__init__(reader, writer, idle)
        self._protocol = protocol

    async def close(self) -> None:
        self._protocol.release()
        await super().close()


async def tls_wire(
    sock: socket.socket, tls: ssl.SSLContext, handshake: float, idle: float
) -> tuple[Wire, ssl.SSLContext]:
    """Shake hands as server on an accepted socket, which it takes over; also the context that SNI chose."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK, loop=loop)
    protocol = _Protocol(reader, loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, sock, ssl=tls, ssl_handshake_timeout=handshake, ssl_shutdown_timeout=_SHUTDOWN
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    chosen: ssl.SSLContext = transport.get_extra_info("ssl_object").context
    return TlsWire(reader, writer, idle, protocol), chosen
