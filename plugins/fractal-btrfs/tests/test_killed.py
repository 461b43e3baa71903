"""Killed around every step that changes the file system, and full disks, on a real one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from fractal_btrfs.snapshotter import BtrfsSnapshotter

from fractal.api.errors import BackendError
from fractal.testing.trees import again, alter, plant, tree

Opener = Callable[..., AbstractAsyncContextManager[BtrfsSnapshotter]]


@pytest.mark.timeout(900)
async def test_killed_around_every_step_what_is_there_is_whole_and_the_rest_can_be_repeated(
    disk: Path, opener: Opener, tmp_path: Path
) -> None:
    streams = tmp_path / "streams"
    streams.mkdir()
    async with opener(disk) as source:
        root = await source.create_root("app")
        plant(root)
        for name, parent in (("s1", None), ("s2", "s1")):
            if parent is not None:
                alter(root)
            made = await source.snapshot("app", name)
            stream = b"".join([chunk async for chunk in source.send("app", name, parent)])
            (streams / name).write_bytes(stream)
            subprocess.run(
                ["cp", "-a", str(made.path), str(streams / f"{name}-tree")], check=True, timeout=60
            )
            assert tree(streams / f"{name}-tree") == tree(made.path)
    place = disk / f"{tmp_path.name}-everywhere"
    place.mkdir()
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, str(Path(__file__).with_name("killed_everywhere.py"))],
        *[str(tmp_path / "state"), str(place), str(streams)],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, problem = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, problem.decode()
    places = Counter(json.loads(line) for line in said.splitlines())
    steps = {"create", "snapshot", "destroy", "set_read_only", "set_received", "sync_file_system"}
    steps |= {"feed", "finish", "rename", "fsync"}
    assert {f"{when} {step}" for step in steps for when in ("before", "after")} <= places.keys()


@pytest.fixture
def small_disk(btrfs: None, tmp_path: Path) -> Iterator[Path]:
    """A file system with room for some 60 MB."""
    file, target = tmp_path / "small.img", tmp_path / "small"
    target.mkdir()
    with file.open("wb") as opened:
        opened.truncate(128 << 20)
    subprocess.run(["mkfs.btrfs", "--quiet", "--mixed", str(file)], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", str(file), str(target)], check=True, timeout=60)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True, timeout=60)


async def test_a_full_disk_where_a_stream_arrives_is_told_and_leaves_nothing(
    snapshotter: BtrfsSnapshotter, opener: Opener, small_disk: Path
) -> None:
    root = await snapshotter.create_root("app")
    plant(root)
    await snapshotter.snapshot("app", "s1")
    first = b"".join([chunk async for chunk in snapshotter.send("app", "s1")])
    (root / "large").write_bytes(os.urandom(160 << 20))
    await snapshotter.snapshot("app", "s2")
    async with opener(small_disk) as opened:
        made = await opened.receive("app", "s1", again(first), stream_format=opened.format)
        before = tree(made.path)
        with pytest.raises(BackendError, match="the file system is full: free some space"):
            await opened.receive(
                "app",
                "s2",
                snapshotter.send("app", "s2", "s1"),
                stream_format=opened.format,
                parent="s1",
            )
        assert [s.name for s in await opened.snapshots("app")] == ["s1"]
        assert not list((opened._volumes.folder / "app").glob(".new-*"))
        assert tree(made.path) == before
        (root / "large").unlink()
        await snapshotter.snapshot("app", "s3")
        subprocess.run(["btrfs", "filesystem", "sync", str(small_disk)], check=True, timeout=60)
        subprocess.run(["btrfs", "subvolume", "sync", str(small_disk)], check=True, timeout=120)
        last = await opened.receive(
            "app",
            "s3",
            snapshotter.send("app", "s3", "s1"),
            stream_format=opened.format,
            parent="s1",
        )
        assert tree(last.path) == tree(root)
