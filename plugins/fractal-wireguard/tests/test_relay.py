"""TCP ports are passed on for as long as either side speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fractal_wireguard.relay import Place, TcpRelay

from fractal.testing.context import real_context

IDLE = 1.0
LINES = 30


@asynccontextmanager
async def relayed(folder: Path, lines: int) -> AsyncIterator[asyncio.StreamReader]:
    """A client that says nothing, of an app that says so many lines and then nothing more."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(lines):
            writer.write(b"news\n")
            await asyncio.sleep(2 * IDLE / LINES)
        await over.wait()
        writer.close()

    over = asyncio.Event()
    app = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with real_context(folder) as context:
        relay = TcpRelay(context, Place("127.0.0.1", app.sockets[0].getsockname()[1]), IDLE, 10)
        await relay.open("127.0.0.1", 0)
        assert relay._server is not None
        reader, writer = await asyncio.open_connection(*relay._server.sockets[0].getsockname())
        try:
            yield reader
        finally:
            over.set()
            writer.close()
            await relay.close()
            app.close()


async def test_a_client_that_only_listens_is_not_cut_off(tmp_path: Path) -> None:
    """For twice as long as a quiet connection may live."""
    async with relayed(tmp_path, LINES) as reader:
        for _ in range(LINES):
            assert await reader.readline() == b"news\n"


async def test_a_connection_on_which_nobody_speaks_ends(tmp_path: Path) -> None:
    async with relayed(tmp_path, 1) as reader, asyncio.timeout(60):
        assert await reader.read() == b"news\n"
