"""What goes wrong with ZFS in the field, each with a real pool."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from pathlib import Path

import pytest
from fractal_zfs.snapshotter import ZfsSnapshotter
from fractal_zfs.streaming import RECORD, read_head
from fractal_zfs.testing import Pool, pool

from fractal.api.errors import BackendError, Corrupt, Misconfigured
from fractal.testing.trees import again, alter, plant, tree, undo

pytestmark = pytest.mark.timeout(600)

Opener = Callable[..., AbstractAsyncContextManager[ZfsSnapshotter]]
KILLED = """
import asyncio, sys
from pathlib import Path
from fractal_zfs.config import ZfsConfig
from fractal_zfs.snapshotter import open_zfs
from fractal.testing.context import real_context

async def half():
    yield Path(sys.argv[3]).read_bytes()
    print("half", flush=True)
    await asyncio.Event().wait()

async def main():
    async with real_context(Path(sys.argv[1])) as context, open_zfs(context, ZfsConfig(dataset=sys.argv[2])) as opened:
        await opened.receive("app", "s1", half(), stream_format=opened.format)

asyncio.run(main())
"""


def zfs(*words: str) -> str:
    """Run `zfs`."""
    return subprocess.run(["zfs", *words], check=True, capture_output=True, text=True, timeout=120).stdout


def datasets(top: str) -> list[str]:
    """Everything below a dataset, snapshots too."""
    return zfs("list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name", top).split()[1:]


async def hand_over(
    source: ZfsSnapshotter, target: ZfsSnapshotter, name: str, parent: str | None = None
) -> Path:
    """Send a snapshot of volume `app` to another device."""
    made = await target.receive(
        "app", name, source.send("app", name, parent), stream_format=source.format, parent=parent
    )
    return made.path


async def test_a_chain_goes_from_device_to_device(
    disk: Pool, other_disks: tuple[Pool, Pool], opener: Opener
) -> None:
    """A -> B -> A and A -> B -> C, each with its own pool, every step an increment, one of them a wide one."""
    async with AsyncExitStack() as stack:
        a, b, c = [await stack.enter_async_context(opener(place)) for place in (disk, *other_disks)]
        root = await a.create_root("app")
        plant(root)
        (root / "ballast").write_bytes(os.urandom(3 << 20))
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
        assert sum([len(chunk) async for chunk in a.send("app", "s4", "s0")]) < 1 << 20, "an increment"
        for target in (b, c):
            assert tree(await hand_over(a, target, "s4", "s0")) == tree(root)


async def test_what_is_received_never_takes_a_snapshot_away(snapshotter: ZfsSnapshotter) -> None:
    """`zfs receive -F` onto a line that went on would roll it back; here the newer ones and the root stay."""
    root = await snapshotter.create_root("app")
    plant(root)
    await snapshotter.snapshot("app", "s1")
    await snapshotter.receive("copy", "s1", snapshotter.send("app", "s1"), stream_format=snapshotter.format)
    other = await snapshotter.checkout("copy", "s1")
    (other / "own").write_bytes(b"of the copy")
    kept = {"s1": tree(root), "own": tree((await snapshotter.snapshot("copy", "own")).path)}
    (other / "later").write_bytes(b"in the root only")
    alter(root)
    kept["s2"] = tree((await snapshotter.snapshot("app", "s2")).path)
    await snapshotter.receive(
        "copy", "s2", snapshotter.send("app", "s2", "s1"), stream_format=snapshotter.format, parent="s1"
    )
    assert {s.name: tree(s.path) for s in await snapshotter.snapshots("copy")} == kept
    assert (other / "later").read_bytes() == b"in the root only"
    assert await snapshotter.root("copy") == other
    # What the root has in common with what came still goes as a difference.
    await snapshotter.snapshot("copy", "s3")
    assert sum([len(c) async for c in snapshotter.send("copy", "s3", "s1")]) < 100_000


async def test_space_of_old_snapshots_comes_back_after_checkouts(
    snapshotter: ZfsSnapshotter, disk: Pool
) -> None:
    """A clone pins its origin; whoever never promotes keeps every checkout's past for ever."""
    root = await snapshotter.create_root("app")
    (root / "file").write_bytes(os.urandom(1 << 20))
    for number in range(4):
        await snapshotter.snapshot("app", f"s{number}")
        await snapshotter.delete_root("app")
        root = await snapshotter.checkout("app", f"s{number}")
        (root / "file").write_bytes(os.urandom(1 << 20))
        if number:
            await snapshotter.delete("app", f"s{number - 1}")
    top = snapshotter._dataset
    lines = [d for d in datasets(top) if "/d-" in d and "@" not in d]
    snapshots = [d for d in datasets(top) if "@" in d]
    assert (len(lines), len(snapshots)) == (1, 1)
    await snapshotter.delete("app", "s3")
    await snapshotter.delete_root("app")
    assert datasets(top) == []


async def test_a_fork_outlives_what_it_was_made_of(snapshotter: ZfsSnapshotter) -> None:
    root = await snapshotter.create_root("app")
    plant(root)
    before = tree((await snapshotter.snapshot("app", "s1")).path)
    fork = await snapshotter.clone("app", "s1", "fork")
    await snapshotter.delete("app", "s1")
    await snapshotter.delete_root("app")
    assert await snapshotter.volumes() == ["fork"]
    assert await snapshotter.snapshots("app") == []
    assert tree(fork) == before
    assert tree(await snapshotter.create_root("app")) == {}


async def test_a_killed_receive_leaves_nothing_to_run_on(
    snapshotter: ZfsSnapshotter, disk: Pool, opener: Opener, tmp_path: Path
) -> None:
    root = await snapshotter.create_root("app")
    plant(root)
    (root / "large").write_bytes(os.urandom(3 << 20))
    await snapshotter.snapshot("app", "s1")
    whole = b"".join([chunk async for chunk in snapshotter.send("app", "s1")])
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    process = await asyncio.create_subprocess_exec(
        *[
            sys.executable,
            "-c",
            KILLED,
            str(tmp_path / "killed"),
            f"{disk.name}/killed",
            str(tmp_path / "half"),
        ],
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"half\n"
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with opener(disk, "killed") as opened:
        assert await opened.volumes() == []
        made = await opened.receive("app", "s1", again(whole), stream_format=opened.format)
        assert tree(made.path) == tree(root)


async def test_what_was_killed_half_way_is_finished_at_the_next_open(disk: Pool, opener: Opener) -> None:
    name = f"half-{os.getpid()}"
    async with opener(disk, name) as opened:
        root = await opened.create_root("app")
        plant(root)
        before = tree(root)
        top = opened._dataset
        await opened.create_root("other")
        await opened.snapshot("other", "s1")
    (line,) = [d for d in datasets(top) if "/v-app/d-" in d]
    (other,) = [d for d in datasets(top) if "/v-other/d-" in d and "@" not in d]
    # Set aside, but not yet no root; a look that was never cleared up; a checkout before it took its history over.
    zfs("snapshot", "-o", "homeserver:aside=on", f"{line}@000000000001-aside")
    zfs("snapshot", f"{other}@look-0123")
    zfs("inherit", "homeserver:root", other)
    zfs("clone", "-o", "homeserver:root=on", f"{other}@000000000001-s1", f"{top}/v-other/d-0123")
    async with opener(disk, name) as opened:
        assert await opened.root("app") is None
        assert [(s.name, tree(s.path)) for s in await opened.snapshots("app")] == [("aside", before)]
        assert await opened.root("other") is not None
        left = [d for d in datasets(top) if "/v-other/d-" in d]
        assert left == [f"{top}/v-other/d-0123", f"{top}/v-other/d-0123@000000000001-s1"]


async def test_what_a_reboot_unmounted_is_there_again(disk: Pool, opener: Opener) -> None:
    name = f"boot-{os.getpid()}"
    async with opener(disk, name) as opened:
        root = await opened.create_root("app")
        plant(root)
        before = tree((await opened.snapshot("app", "s1")).path)
    for path in sorted(datasets(f"{disk.name}/{name}"), reverse=True):
        if "@" not in path and zfs("get", "-H", "-o", "value", "mounted", path).strip() == "yes":
            zfs("unmount", path)
    assert not (root / "data").exists()
    async with opener(disk, name) as opened:
        assert await opened.root("app") == root
        assert tree(root) == before
        (snapshot,) = await opened.snapshots("app")
        assert tree(snapshot.path) == before


async def test_long_names_are_kept_whole(snapshotter: ZfsSnapshotter) -> None:
    volume, names = "v" * 120, ["s" * 119 + "1", "s" * 119 + "2", "s" * 119 + "3"]
    root = await snapshotter.create_root(volume)
    plant(root)
    for name in names[:2]:
        await snapshotter.snapshot(volume, name)
    await snapshotter.set_aside(volume, names[2])
    assert [s.name for s in await snapshotter.snapshots(volume)] == names
    copy = "c" * 120
    for name, parent in zip(names, (None, *names), strict=False):
        await snapshotter.receive(
            copy,
            name,
            snapshotter.send(volume, name, parent),
            stream_format=snapshotter.format,
            parent=parent,
        )
    assert [s.name for s in await snapshotter.snapshots(copy)] == names
    assert sorted(await snapshotter.volumes()) == [copy, volume]


async def test_a_store_into_a_mapping_is_a_change(snapshotter: ZfsSnapshotter) -> None:
    """Nothing but the processor sees it; what lies in memory only has to be handed over before anybody looks."""
    root = await snapshotter.create_root("app")
    (root / "db").write_bytes(bytes(8192))
    with (root / "db").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapping:
        mapping[0] = 1
        for number in range(3):
            made = await snapshotter.snapshot("app", f"s{number}")
            assert (made.path / "db").read_bytes() == bytes(mapping)
            assert await snapshotter.unchanged("app", f"s{number}")
            mapping[5000] = number + 1
            assert not await snapshotter.unchanged("app", f"s{number}")


async def test_reading_is_no_change(snapshotter: ZfsSnapshotter) -> None:
    root = await snapshotter.create_root("app")
    plant(root)
    await snapshotter.snapshot("app", "s1")
    assert b"first" in (root / "data" / "notes.txt").read_bytes()
    assert await snapshotter.unchanged("app", "s1")


async def test_a_checkout_is_unchanged_until_it_is_written(snapshotter: ZfsSnapshotter) -> None:
    root = await snapshotter.create_root("app")
    plant(root)
    await snapshotter.snapshot("app", "s1")
    await snapshotter.delete_root("app")
    root = await snapshotter.checkout("app", "s1")
    assert await snapshotter.unchanged("app", "s1")
    alter(root)
    assert not await snapshotter.unchanged("app", "s1")


async def test_packages_of_streams_are_refused(snapshotter: ZfsSnapshotter, tmp_path: Path) -> None:
    """They bring properties: a mount point over /etc, for one."""
    root = await snapshotter.create_root("app")
    plant(root)
    await snapshotter.snapshot("app", "s1")
    (path,) = [d for d in datasets(snapshotter._dataset) if d.endswith("-s1")]
    zfs("set", f"mountpoint={tmp_path / 'elsewhere'}", path.partition("@")[0])
    package = subprocess.run(["zfs", "send", "-p", path], check=True, capture_output=True, timeout=120).stdout
    with pytest.raises(Corrupt, match="properties"):
        await snapshotter.receive("copy", "s1", again(package), stream_format=snapshotter.format)
    assert "copy" not in await snapshotter.volumes()


async def test_a_stream_that_says_another_length_is_refused(snapshotter: ZfsSnapshotter) -> None:
    root = await snapshotter.create_root("app")
    (root / "file").write_bytes(b"content" * 9)
    await snapshotter.snapshot("app", "s1")
    whole = b"".join([chunk async for chunk in snapshotter.send("app", "s1")])
    twice = whole[:-RECORD] + whole[-RECORD:] * 2
    for damaged in (
        whole + b"more",
        twice,
        whole + whole[-RECORD:] * 300,
        whole[:-RECORD],
        whole[:-RECORD] + bytes(RECORD),
        whole[:RECORD],
    ):
        with pytest.raises(Corrupt):
            await snapshotter.receive("copy", "s1", again(damaged), stream_format=snapshotter.format)
        assert await snapshotter.snapshots("copy") == []
    with pytest.raises(Corrupt):
        foreign = bytearray(whole)
        struct.pack_into("<Q", foreign, 40, read_head(whole).guid ^ 1)
        await snapshotter.receive("copy", "s1", again(bytes(foreign)), stream_format=snapshotter.format)
    assert await snapshotter.snapshots("copy") == []


async def test_slow_readers_of_streams_hold_nobody_up(snapshotter: ZfsSnapshotter) -> None:
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
    assert [s.name for s in await snapshotter.snapshots("app")] == ["s2"]


async def test_a_busy_root_is_given_up_all_the_same(snapshotter: ZfsSnapshotter) -> None:
    """Somebody has a shell in it: it cannot be unmounted, but it is no root any more, and its snapshots stay."""
    root = await snapshotter.create_root("app")
    plant(root)
    before = tree((await snapshotter.snapshot("app", "s1")).path)
    process = subprocess.Popen(["sleep", "300"], cwd=root / "data")
    try:
        await snapshotter.delete_root("app")
        assert await snapshotter.root("app") is None
        assert tree(await snapshotter.checkout("app", "s1")) == before
    finally:
        process.kill()
        process.wait()


async def test_a_full_pool_is_told_and_leaves_nothing(
    snapshotter: ZfsSnapshotter, opener: Opener, zfs: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = await snapshotter.create_root("app")
    (root / "large").write_bytes(os.urandom(90 << 20))
    await snapshotter.snapshot("app", "s1")
    with pool(tmp_path_factory.mktemp("small"), 80 << 20) as small:
        async with opener(small) as opened:
            with pytest.raises(BackendError, match="full") as caught:
                await opened.receive("app", "s1", snapshotter.send("app", "s1"), stream_format=opened.format)
            assert not isinstance(caught.value, Corrupt)
            assert await opened.volumes() == []


async def test_two_agents_do_not_share_a_dataset(
    snapshotter: ZfsSnapshotter, disk: Pool, opener: Opener
) -> None:
    with pytest.raises(BackendError, match="in use by another process"):
        async with opener(disk, snapshotter._dataset.rpartition("/")[2]):
            pass


async def test_a_dataset_that_cannot_be_is_told_by_its_key(disk: Pool, opener: Opener) -> None:
    with pytest.raises(Misconfigured, match="nothing above it"):
        async with opener(disk, "no/such/place"):
            pass
    zfs("create", "-o", "mountpoint=none", f"{disk.name}/nowhere-{os.getpid()}")
    with pytest.raises(Misconfigured, match="mount point"):
        async with opener(disk, f"nowhere-{os.getpid()}"):
            pass
