"""An engine that begins an answer and never ends it: what waits for the rest gives up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fractal_containers.config import EngineConfig
from fractal_containers.found import Container
from fractal_containers.runtime import open_runtime
from fractal_docker.config import DockerConfig
from fractal_docker.engine import DockerEngine

from fractal.api.errors import BackendError
from fractal.testing.context import real_context

BEGUN = b"HTTP/1.0 200 OK\r\n\r\n" + b"\x01\0\0\0\0\0\0\x09half"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[tuple[EngineConfig, DockerEngine]]:
    """It answers everything with the same half."""
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(BEGUN)
        await over.wait()
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "engine.sock")
    config = DockerConfig(socket=str(tmp_path / "engine.sock"), timeout=0.5, pull_timeout=0.5)
    try:
        yield config, DockerEngine(config)
    finally:
        over.set()
        server.close()


async def test_an_image_that_is_never_saved_is_given_up(engine: tuple[EngineConfig, DockerEngine]) -> None:
    """Its time-out is for the engine's next bytes: whoever takes them may be slower."""
    chunks = engine[1].save("sha256:" + "ab" * 32, "saving")
    assert (await anext(chunks)).endswith(b"half")
    await asyncio.sleep(1.0)
    async with asyncio.timeout(60):
        with pytest.raises(BackendError, match="no answer in time") as caught:
            await anext(chunks)
    assert caught.value.retryable


async def test_a_last_line_that_never_ends_hides_nothing(
    engine: tuple[EngineConfig, DockerEngine], tmp_path: Path
) -> None:
    ended = Container(id="abc", labels={}, running=False, begun=True, code=1)
    async with real_context(tmp_path) as context, open_runtime(context, *engine) as runtime:
        async with asyncio.timeout(60):
            assert await runtime._last_line(ended) == ""
