"""The agent's snapshotter sends lean where its backend does, and everything where it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from fractal.agent.volumes import OneAtATime
from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.copy.snapshotter import CopySnapshotter, open_copy
from fractal.testing.context import real_context


class Leaning(CopySnapshotter):
    """As a snapshotter that leaves everything out."""

    async def send_lean(self, volume: str, name: str, parent: str) -> AsyncIterator[bytes]:
        yield f"{volume} {name} {parent}".encode()


async def test_lean_streams_are_the_backends_or_whole(tmp_path: Path) -> None:
    async with real_context(tmp_path) as context, open_copy(context, CopyConfig()) as plain:
        root = await plain.create_root("app")
        await plain.snapshot("app", "s1")
        (root / "file").write_bytes(b"content")
        await plain.snapshot("app", "s2")
        whole = [chunk async for chunk in plain.send("app", "s2", "s1")]
        assert [chunk async for chunk in OneAtATime(plain).send_lean("app", "s2", "s1")] == whole
        leaning = OneAtATime(Leaning(context, plain._volumes))
        assert [chunk async for chunk in leaning.send_lean("app", "s2", "s1")] == [b"app s2 s1"]
