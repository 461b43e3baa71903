"""A route that is taken away, as before a planned move: nobody's request is cut off, and nobody new comes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fractal.api.certificates import make_certificate
from fractal.api.transport import Peer, RouteKind, Target
from fractal.builtin.direct import open_direct
from fractal.builtin.direct.config import DirectConfig
from fractal.builtin.direct.device import FINISH
from fractal.shell.entropy import SystemEntropy
from fractal.testing.context import real_context
from fractal.testing.transport_parts import free_port, local_route, trust

NAME = "app.example"
GATEWAY, DEVICE = "a" * 20, "b" * 20
REQUEST = f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()


@asynccontextmanager
async def slow_app(seconds: float) -> AsyncIterator[int]:
    """Answers each request after so long; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(seconds)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("asked", [True, False], ids=["amid its answer", "amid its greeting"])
async def test_a_withdrawn_route_finishes_the_requests_under_way(tmp_path: Path, asked: bool) -> None:
    port = free_port()
    certificate = make_certificate(NAME, SystemEntropy(), 1_790_000_000_000)
    async with (
        slow_app(FINISH / 4) as app,
        real_context(tmp_path / "g", device=GATEWAY) as front,
        real_context(tmp_path / "d", device=DEVICE) as back,
        open_direct(front, dataclasses.replace(DirectConfig(), hold=FINISH / 2, https_port=port)) as gateway,
        open_direct(back, DirectConfig()) as device,
    ):
        peers = [Peer(device=GATEWAY, contact=gateway.contact())]
        await device.serve(peers, [local_route("a", NAME, app, certificate, RouteKind.HTTPS)])
        target = Target(
            group="g", app="a", name=NAME, kind=RouteKind.HTTPS, device=DEVICE, contact=device.contact()
        )
        await gateway.forward([Peer(device=DEVICE, contact=device.contact())], [target])

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection(
                "127.0.0.1", port, ssl=trust(certificate), server_hostname=NAME
            )

        reader, writer = await connect()
        if asked:
            writer.write(REQUEST)
            await asyncio.sleep(FINISH / 8)
        withdrawing = asyncio.create_task(device.serve(peers, []))
        await asyncio.sleep(FINISH / 20)
        if not asked:
            writer.write(REQUEST)
        answer = await reader.read(-1)
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok"), answer
        writer.close()
        await withdrawing
        # Nobody new is let in: the gateway would ask elsewhere, and here gives up in the end.
        with pytest.raises(OSError):
            await connect()
