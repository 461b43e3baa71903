"""TCP and UDP ports that arrive at an app's address, passed on to where the app listens.

In user space, so that an app on loopback, in a container or behind IPv6 is all the same, and nothing of this device is forwarded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

from fractal.api.context import Context

CHUNK = 64 * 1024
MAX_FLOWS = 1024
IDLE_FLOW = 120.0
"""Seconds; RFC 4787 asks NATs for at least as much."""
_MAX_WAITING = 32
_CONNECT = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an app listens."""

    host: str
    port: int


class TcpRelay:
    """One listening port."""

    def __init__(self, context: Context, place: Place, idle: float, most: int) -> None:
        self._context = context
        self._idle = idle
        self._most = most
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.place = place

    async def open(self, address: str, port: int) -> None:
        """Begin to listen. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, address, port, limit=CHUNK)

    async def close(self) -> None:
        """Stop, and end all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            if len(self._tasks) <= self._most:
                await self._pass(reader, writer)
        except (OSError, TimeoutError) as error:
            self._context.logger.debug("transport wireguard: %s: %s", self.place, error)
        finally:
            writer.transport.abort() if task.cancelling() else writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_CONNECT):
            inner_reader, inner_writer = await asyncio.open_connection(
                self.place.host, self.place.port, limit=CHUNK
            )
        try:
            async with asyncio.timeout(self._idle) as quiet, asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, inner_writer, quiet))
                both.create_task(self._pump(inner_reader, writer, quiet))
        except* (OSError, TimeoutError) as group:
            raise OSError(str(group.exceptions[0])) from group
        finally:
            inner_writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, quiet: asyncio.Timeout
    ) -> None:
        """One direction, to its end. Either side may end its half first, or say nothing while the other speaks."""
        loop = asyncio.get_running_loop()
        while data := await reader.read(CHUNK):
            if not quiet.expired():
                quiet.reschedule(loop.time() + self._idle)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


class _Socket(asyncio.DatagramProtocol):
    """An app's answers to one client."""

    def __init__(self, relay: UdpRelay, client: tuple[str, int]) -> None:
        self._relay = relay
        self._client = client

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002 - asyncio's signature
        self._relay.answer(data, self._client)

    def error_received(self, exc: Exception) -> None:
        """A lost datagram; UDP promises no more."""


class _Flow:
    """One client's socket towards the app."""

    def __init__(self, used: float) -> None:
        self.used = used
        self.waiting: list[bytes] = []
        self.transport: asyncio.DatagramTransport | None = None
        self.opening: asyncio.Task[None] | None = None

    def send(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.sendto(data)
        elif len(self.waiting) < _MAX_WAITING:
            self.waiting.append(data)

    def close(self) -> None:
        if self.opening is not None:
            self.opening.cancel()
        if self.transport is not None:
            self.transport.close()


class UdpRelay(asyncio.DatagramProtocol):
    """One port, with a flow for each client."""

    def __init__(self, context: Context, place: Place) -> None:
        self._context = context
        self._flows: OrderedDict[tuple[str, int], _Flow] = OrderedDict()
        self._transport: asyncio.DatagramTransport | None = None
        self.place = place

    async def open(self, address: str, port: int) -> None:
        """Begin to listen. Raises OSError."""
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=(address, port))

    async def close(self) -> None:
        """Stop, and end all flows."""
        if self._transport is not None:
            self._transport.close()
        for flow in self._flows.values():
            flow.close()
        self._flows.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, as asyncio's own one is no DatagramTransport before Python 3.12.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        now = self._context.clock.boottime()
        while self._flows and next(iter(self._flows.values())).used < now - IDLE_FLOW:
            self._flows.popitem(last=False)[1].close()
        flow = self._flows.get(addr)
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                self._flows.popitem(last=False)[1].close()
            flow = self._flows[addr] = _Flow(now)
            flow.opening = asyncio.create_task(self._connect(flow, addr))
        flow.used = now
        self._flows.move_to_end(addr)
        flow.send(data)

    def answer(self, data: bytes, client: tuple[str, int]) -> None:
        """Send what the app answered."""
        if self._transport is not None:
            self._transport.sendto(data, client)

    def error_received(self, exc: Exception) -> None:
        """A lost datagram; UDP promises no more."""

    async def _connect(self, flow: _Flow, client: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        try:
            flow.transport, _ = await loop.create_datagram_endpoint(
                lambda: _Socket(self, client), remote_addr=(self.place.host, self.place.port)
            )
        except OSError:
            return  # as lost as any datagram; the flow ages out and the next one tries again
        for data in flow.waiting:
            flow.transport.sendto(data)
        flow.waiting.clear()
