"""What goes wrong with btrfs in the field, each with a real file system."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from pathlib import Path

import pytest
from fractal_btrfs import ioctls
from fractal_btrfs.snapshotter import BtrfsSnapshotter
from fractal_btrfs.volumes import Volumes

from fractal.api.errors import BackendError, Corrupt
from fractal.testing.trees import again, alter, plant, tree, undo

Opener = Callable[..., AbstractAsyncContextManager[BtrfsSnapshotter]]
KILLED = """
import asyncio, sys
from pathlib import Path
from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.snapshotter import open_btrfs
from fractal.testing.context import real_context

async def half():
    yield Path(sys.argv[3]).read_bytes()
    print("half", flush=True)
    await asyncio.Event().wait()

async def main():
    config = BtrfsConfig(path=Path(sys.argv[2]))
    async with real_context(Path(sys.argv[1])) as context, open_btrfs(context, config) as opened:
        await opened.receive("app", "s1", half(), stream_format=opened.format)

asyncio.run(main())
"""


async def hand_over(
    source: BtrfsSnapshotter, target: BtrfsSnapshotter, name: str, parent: str | None = None
) -> Path:
    """Send a snapshot of volume `app` to another device."""
    made = await target.receive(
        "app", name, source.send("app", name, parent), stream_format=source.format, parent=parent
    )
    return made.path


async def test_a_chain_goes_from_device_to_device(
    disk: Path, other_disks: tuple[Path, Path], opener: Opener
) -> None:
    """A -> B -> A and A -> B -> C, each with its own file system, every step an increment, one of them a wide one."""
    async with AsyncExitStack() as stack:
        a, b, c = [await stack.enter_async_context(opener(place)) for place in (disk, *other_disks)]
        root = await a.create_root("app")
        plant(root)
        for name, parent in (("s0", None), ("s1", "s0")):
            await a.snapshot("app", name)
            await hand_over(a, b, name, parent)
            await hand_over(a, c, name, parent)
            alter(root) if name == "s0" else None
        await a.delete_root("app")
        root = await b.checkout("app", "s1")
        undo(root)
        await b.snapshot("app", "s2")
        (root / "more").write_bytes(b"of B" * 10_000)
        state = tree((await b.snapshot("app", "s3")).path)
        for target in (a, c):
            await hand_over(b, target, "s2", "s1")
            assert tree(await hand_over(b, target, "s3", "s2")) == state
        await b.delete_root("app")
        root = await a.checkout("app", "s3")
        (root / "home").write_bytes(b"again")
        await a.snapshot("app", "s4")
        for target in (b, c):
            assert tree(await hand_over(a, target, "s4", "s0")) == tree(root)


async def test_what_was_received_is_never_made_writable(snapshotter: BtrfsSnapshotter, disk: Path) -> None:
    """A checkout leaves the snapshot as it is; whoever flips one by hand makes it useless for the next increment, loudly."""
    root = await snapshotter.create_root("app")
    plant(root)
    await snapshotter.snapshot("app", "s1")
    made = await snapshotter.receive(
        "copy", "s1", snapshotter.send("app", "s1"), stream_format=snapshotter.format
    )
    checked_out = await snapshotter.checkout("copy", "s1")
    descriptors = [os.open(path, os.O_RDONLY) for path in (root, made.path, checked_out)]
    try:
        assert [ioctls.is_read_only(d) for d in descriptors] == [False, True, False]
        sender = ioctls.describe(descriptors[0])
        received, own = (ioctls.describe(d) for d in descriptors[1:])
        assert received.received_uuid not in {ioctls.NO_UUID, sender.uuid}
        assert own.received_uuid == ioctls.NO_UUID
        assert own.parent_uuid == received.uuid
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    subprocess.run(["btrfs", "property", "set", "-f", str(made.path), "ro", "false"], check=True)
    subprocess.run(["btrfs", "property", "set", "-f", str(made.path), "ro", "true"], check=True)
    alter(root)
    await snapshotter.snapshot("app", "s2")
    with pytest.raises(Corrupt, match="another snapshot"):
        await snapshotter.receive(
            "copy",
            "s2",
            snapshotter.send("app", "s2", "s1"),
            stream_format=snapshotter.format,
            parent="s1",
        )


async def test_a_killed_receive_leaves_nothing_to_run_on(
    snapshotter: BtrfsSnapshotter, disk: Path, opener: Opener, tmp_path: Path
) -> None:
    root = await snapshotter.create_root("app")
    plant(root)
    (root / "large").write_bytes(os.urandom(3 << 20))
    await snapshotter.snapshot("app", "s1")
    whole = b"".join([chunk async for chunk in snapshotter.send("app", "s1")])
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    place = disk / f"{tmp_path.name}-killed"
    place.mkdir()
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(place), str(tmp_path / "half")],
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"half\n"
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    (partial,) = (place / "volumes" / "app").iterdir()
    assert partial.name.startswith(".new-")
    assert any(partial.iterdir())
    async with opener(place.parent, place.name) as opened:
        assert list((place / "volumes" / "app").iterdir()) == []
        assert await opened.volumes() == []
        made = await opened.receive("app", "s1", again(whole), stream_format=opened.format)
        assert tree(made.path) == tree(root)


async def test_a_root_that_was_half_set_aside_is_a_snapshot_after_the_next_open(
    disk: Path, opener: Opener, tmp_path: Path
) -> None:
    async with opener(disk, tmp_path.name) as opened:
        root = await opened.create_root("app")
        plant(root)
        before = tree(root)
        root.rename(root.parent / "000000000001-aside")
    async with opener(disk, tmp_path.name) as opened:
        (snapshot,) = await opened.snapshots("app")
        assert (snapshot.name, tree(snapshot.path)) == ("aside", before)
        with pytest.raises(OSError, match="Read-only"):
            (snapshot.path / "new").touch()


async def test_every_flipped_bit_and_every_cut_is_noticed(snapshotter: BtrfsSnapshotter) -> None:
    root = await snapshotter.create_root("app")
    (root / "file").write_bytes(b"content" * 9)
    (root / "link").symlink_to("file")
    await snapshotter.snapshot("app", "s1")
    whole = b"".join([chunk async for chunk in snapshotter.send("app", "s1")])
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        for damaged in (bytes(flipped), whole[:at]):
            with pytest.raises(Corrupt):
                await snapshotter.receive("copy", "s1", again(damaged), stream_format=snapshotter.format)
    assert list((root.parent.parent / "copy").iterdir()) == []


async def test_a_store_into_a_mapping_is_a_change(snapshotter: BtrfsSnapshotter) -> None:
    """The page was dirtied before the snapshot and stays mapped; nothing but the processor sees the next store."""
    root = await snapshotter.create_root("app")
    (root / "db").write_bytes(bytes(8192))
    with (root / "db").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapping:
        mapping[0] = 1
        for number in range(10):
            await snapshotter.snapshot("app", f"s{number}")
            assert await snapshotter.unchanged("app", f"s{number}")
            mapping[5000] = number + 1
            assert not await snapshotter.unchanged("app", f"s{number}")


async def test_a_checkout_is_unchanged_until_it_is_written(snapshotter: BtrfsSnapshotter) -> None:
    root = await snapshotter.create_root("app")
    plant(root)
    await snapshotter.snapshot("app", "s1")
    await snapshotter.delete_root("app")
    root = await snapshotter.checkout("app", "s1")
    assert await snapshotter.unchanged("app", "s1")
    alter(root)
    assert not await snapshotter.unchanged("app", "s1")


async def test_subvolumes_inside_an_apps_data_are_told_of_and_go_with_it(
    snapshotter: BtrfsSnapshotter, caplog: pytest.LogCaptureFixture
) -> None:
    """A container engine makes them. They are no part of a snapshot, and the kernel deletes no folder that holds one."""
    root = await snapshotter.create_root("app")
    (root / "deep" / "er").mkdir(parents=True)
    for path in (root / "deep" / "er" / "one", root / "two", root / "deep" / "er" / "one" / "inner"):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            ioctls.create(folder, path.name)
        finally:
            os.close(folder)
        (path / "file").write_bytes(b"inside")
    await snapshotter.snapshot("app", "s1")
    warned = caplog.text
    assert "deep/er/one is a subvolume" in warned
    assert "two is a subvolume" in warned
    await snapshotter.set_aside("app", "aside")
    await snapshotter.delete("app", "aside")
    await snapshotter.delete("app", "s1")
    assert await snapshotter.volumes() == []


async def test_slow_readers_of_streams_hold_nobody_up(snapshotter: BtrfsSnapshotter) -> None:
    """More sends wait for their readers than there are workers."""
    root = await snapshotter.create_root("app")
    (root / "large").write_bytes(os.urandom(6 << 20))
    await snapshotter.snapshot("app", "s1")
    async with AsyncExitStack() as stack:
        for _ in range(6):
            chunks = await stack.enter_async_context(aclosing(snapshotter.send("app", "s1")))
            await anext(chunks)
        async with asyncio.timeout(60):
            await snapshotter.snapshot("app", "s2")
    await snapshotter.delete("app", "s1")


async def test_a_cancelled_send_is_over_when_it_returns(snapshotter: BtrfsSnapshotter) -> None:
    root = await snapshotter.create_root("app")
    (root / "large").write_bytes(os.urandom(6 << 20))
    await snapshotter.snapshot("app", "s1")
    begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(snapshotter.send("app", "s1")) as chunks:
            async for _ in chunks:
                begun.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(read())
    async with asyncio.timeout(60):
        await begun.wait()
    task.cancel()
    await asyncio.wait([task], timeout=60)
    assert task.cancelled()
    await snapshotter.delete("app", "s1")
    assert list(await snapshotter.snapshots("app")) == []


async def test_two_agents_do_not_share_a_folder(snapshotter: BtrfsSnapshotter, opener: Opener) -> None:
    path = Path((await snapshotter.create_root("app")).parents[2])
    with pytest.raises(BackendError, match="in use by another process"):
        async with opener(path.parent, path.name):
            pass
    assert Volumes(path, snapshotter._volumes.logger).names() == ["app"]
