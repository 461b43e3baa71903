"""A device with ZFS takes an app over from one with btrfs, by replaying what that one archived."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.snapshotter import BtrfsSnapshotter, open_btrfs
from fractal_zfs.snapshotter import ZfsSnapshotter

from fractal.api.errors import Corrupt
from fractal.testing import trees
from fractal.testing.context import real_context
from fractal.testing.trees import Tree, again, alter, plant, undo

pytestmark = pytest.mark.timeout(600)

Opener = Callable[..., AbstractAsyncContextManager[ZfsSnapshotter]]


@pytest.fixture
def btrfs_disk(zfs: None, tmp_path: Path) -> Iterator[Path]:
    """A file system in a file."""
    file, target = tmp_path / "btrfs.img", tmp_path / "btrfs"
    target.mkdir()
    with file.open("wb") as opened:
        opened.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "--quiet", str(file)], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", str(file), str(target)], check=True, timeout=60)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True, timeout=60)


@pytest.fixture
async def source(btrfs_disk: Path, tmp_path: Path) -> AsyncIterator[BtrfsSnapshotter]:
    """The other device."""
    async with (
        real_context(tmp_path / "source") as context,
        open_btrfs(context, BtrfsConfig(path=btrfs_disk / "apps")) as opened,
    ):
        yield opened


def tree(top: Path) -> Tree:
    """Times to the second: zfs-fuse cuts off the rest of a time that is set."""
    found = trees.tree(top)
    return {path: _coarse(what) for path, what in found.items()}


def _coarse(what: tuple[object, ...]) -> tuple[object, ...]:
    if what[0] != "file":
        return what
    kind, mode, modified, digest = what
    assert isinstance(modified, int)
    return kind, mode, modified // 10**9, digest


async def hand_over(
    source: BtrfsSnapshotter, target: ZfsSnapshotter, name: str, parent: str | None = None
) -> Path:
    assert source.format in target.receives
    made = await target.receive(
        "app", name, source.send("app", name, parent), stream_format=source.format, parent=parent
    )
    return made.path


async def test_a_chain_is_replayed_and_goes_on_as_zfs(
    source: BtrfsSnapshotter, snapshotter: ZfsSnapshotter
) -> None:
    root = await source.create_root("app")
    plant(root)
    states, parent = {}, None
    for number, change in enumerate((None, alter, undo)):
        if change is not None:
            change(root)
        # The same bytes in two places: the kernel sends the second as a reference to the first.
        data = os.urandom(1 << 20)
        (root / f"one-{number}").write_bytes(data)
        subprocess.run(
            ["cp", "--reflink=always", f"one-{number}", f"two-{number}"], check=True, cwd=root, timeout=60
        )
        name = f"s{number}"
        states[name] = tree((await source.snapshot("app", name)).path)
        assert tree(await hand_over(source, snapshotter, name, parent)) == states[name]
        parent = name
    assert {s.name: tree(s.path) for s in await snapshotter.snapshots("app")} == states
    # Taken over: a root of its own, whose snapshots go as ZFS's own streams.
    root = await snapshotter.checkout("app", "s2")
    assert tree(root) == states["s2"]
    (root / "after the takeover").write_bytes(b"new" * 1000)
    await snapshotter.snapshot("app", "s3")
    made = await snapshotter.receive(
        "copy", "s3", snapshotter.send("app", "s3"), stream_format=snapshotter.format
    )
    assert tree(made.path) == tree(root)


async def test_a_difference_needs_its_own_parent_and_leaves_nothing_else(
    source: BtrfsSnapshotter, snapshotter: ZfsSnapshotter
) -> None:
    root = await source.create_root("app")
    plant(root)
    await source.snapshot("app", "s1")
    await hand_over(source, snapshotter, "s1")
    alter(root)
    await source.snapshot("app", "s2")
    chunks = [chunk async for chunk in source.send("app", "s2", "s1")]
    other = await snapshotter.create_root("other")
    plant(other)
    await snapshotter.snapshot("other", "s1")
    for volume, parent in (("other", "s1"), ("app", None)):
        with pytest.raises(Corrupt):
            await snapshotter.receive(
                volume, "s2", again(*chunks), stream_format=source.format, parent=parent
            )
    whole = b"".join(chunks)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:30], whole[: len(whole) // 2], whole[:-1], bytes(flipped), whole + b"x"):
        with pytest.raises(Corrupt):
            await snapshotter.receive("app", "s2", again(damaged), stream_format=source.format, parent="s1")
        assert [s.name for s in await snapshotter.snapshots("app")] == ["s1"]
    # A half-replayed one left the line dirty: the next begins at the parent again.
    made = await snapshotter.receive("app", "s2", again(whole), stream_format=source.format, parent="s1")
    assert tree(made.path) == tree(root)


async def test_a_damaged_full_stream_leaves_no_dataset(
    source: BtrfsSnapshotter, snapshotter: ZfsSnapshotter
) -> None:
    root = await source.create_root("app")
    plant(root)
    await source.snapshot("app", "s1")
    whole = b"".join([chunk async for chunk in source.send("app", "s1")])
    for damaged in (whole[:-1], whole[: len(whole) // 3]):
        with pytest.raises(Corrupt):
            await snapshotter.receive("app", "s1", again(damaged), stream_format=source.format)
    listed = subprocess.run(
        ["zfs", "list", "-H", "-r", "-o", "name", snapshotter._dataset],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert listed.stdout.split() == [snapshotter._dataset]
