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


async def ran(script: str, *words: Path) -> bytes:
    """What a script beside this file said; it must come to its end."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, str(Path(__file__).with_name(script)), *map(str, words)],
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
    return said


def sides(steps: set[str]) -> set[str]:
    """The places at which one is killed: each step has two."""
    return {f"{when} {step}" for step in steps for when in ("before", "after")}


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
    said = await ran("killed_everywhere.py", tmp_path / "state", place, streams)
    places = Counter(json.loads(line) for line in said.splitlines())
    ours = ("create", "snapshot", "destroy", "set_read_only", "set_received", "sync_file_system")
    steps = {*(f"ioctls.{name}" for name in ours), "Receiver.feed", "Receiver.finish"}
    assert sides(steps | {"Path.rename", "os.fsync"}) <= places.keys()


@pytest.mark.timeout(900)
async def test_killed_in_the_middle_of_a_lean_send_no_moment_is_lost_and_nothing_is_left(
    disk: Path, other_disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """And around every step of what becomes of it: spooled, stored, read back, counted on."""
    here, there = (place / f"{tmp_path.name}-merging" for place in (disk, other_disks[0]))
    for place in (here, there):
        place.mkdir()
    said = await ran("killed_merging.py", tmp_path / "work", here, there)
    killed = [json.loads(line) for line in said.splitlines()]
    places = Counter(what for what, _, _ in killed)
    steps = {"ioctls.send", "sending._chunk", "Lean.feed", "Lean.finish", "Lean.close", "spool.begin"}
    steps |= {"ObjectWriter.write", "ObjectWriter.finish", "Path.replace", "spool.discard"}
    steps |= {f"Upload.{name}" for name in ("adopt", "begin", "commit", "discard")}
    assert sides(steps) <= places.keys()
    assert min(places[step] for step in sides({"sending._chunk", "Lean.feed", "ObjectWriter.write"})) > 2
    left = {file.partition("/")[0] for _, _, files in killed for file in files}
    assert left == {"one", "store"}, "there was something to be tidied up, in the spool and in the store"


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
