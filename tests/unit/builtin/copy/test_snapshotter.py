"""The `copy` snapshotter where the contract cannot look: kills, full disks, deep trees, what is shared and what is not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fractal.api.errors import BackendError, Corrupt, Misconfigured
from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.copy.snapshotter import CopySnapshotter, open_copy, probe_copy
from fractal.testing.context import real_context
from fractal.testing.trees import again, plant, tree

WORKER = """
import asyncio, sys
from pathlib import Path
from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.copy.snapshotter import open_copy
from fractal.testing.context import real_context

async def main(folder, start):
    async with real_context(Path(folder)) as context, open_copy(context, CopyConfig()) as copies:
        print("ready", flush=True)
        for number in range(start, start + 10000):
            root = await copies.create_root("app")
            for name in ("one", "two", "three"):
                (root / name).write_bytes(b"%d" % number * 1000)
            await copies.snapshot("app", f"s{number}")
            print("made", number, flush=True)
            chunks = copies.send("app", f"s{number}", f"s{number - 1}" if number > start else None)
            await copies.receive("copy", f"s{number}", chunks, stream_format=copies.format,
                                 parent=f"s{number - 1}" if number > start else None)
            if number % 3 == 0:
                await copies.delete_root("app")
                await copies.checkout("app", f"s{number}")

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture
async def copies(tmp_path: Path) -> AsyncIterator[CopySnapshotter]:
    async with real_context(tmp_path) as context, open_copy(context, CopyConfig()) as snapshotter:
        yield snapshotter


async def test_a_kill_at_any_moment_leaves_whole_snapshots(tmp_path: Path) -> None:
    chance = random.Random(7)
    for attempt in range(5):
        argv = [sys.executable, "-c", WORKER, str(tmp_path), str(attempt * 10_000)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4])
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.15))
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            out, _ = process.communicate(timeout=30)
        async with real_context(tmp_path) as context, open_copy(context, CopyConfig()) as copies:
            assert list((tmp_path / "state" / "copy" / "tmp").iterdir()) == []
            made = {f"s{line.split()[1]}" for line in out.splitlines() if line.startswith("made")}
            found = {volume: await copies.snapshots(volume) for volume in ("app", "copy")}
            assert made <= {snapshot.name for snapshot in found["app"]}
            for snapshot in [*found["app"], *found["copy"]]:
                content = b"%d" % int(snapshot.name[1:]) * 1000
                assert {path.read_bytes() for path in snapshot.path.iterdir()} == {content}
                assert len(list(snapshot.path.iterdir())) == 3


async def test_unchanged_files_are_shared_by_snapshots_and_never_with_the_root(
    copies: CopySnapshotter,
) -> None:
    root = await copies.create_root("app")
    plant(root)
    one = await copies.snapshot("app", "s1")
    (root / "-rf").write_bytes(b"new")
    two = await copies.snapshot("app", "s2")
    big = Path("data", "big.db")
    assert (one.path / big).samefile(two.path / big)
    assert not (root / big).samefile(one.path / big)
    assert not (root / "-rf").samefile(two.path / "-rf")
    assert (two.path / "sparse").stat().st_blocks * 512 < 1 << 20, "the hole is kept"


async def test_the_first_snapshot_after_a_checkout_copies_nothing(copies: CopySnapshotter) -> None:
    root = await copies.create_root("app")
    plant(root)
    one = await copies.snapshot("app", "s1")
    await copies.delete_root("app")
    await copies.checkout("app", "s1")
    assert await copies.unchanged("app", "s1")
    two = await copies.snapshot("app", "s2")
    assert (one.path / "data" / "big.db").samefile(two.path / "data" / "big.db")


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"basis": "../../etc", "stamp": 9e99, "entries": {"a": 1}}', b"\xff"]
)
async def test_a_damaged_index_only_costs_work(
    copies: CopySnapshotter, tmp_path: Path, damage: bytes
) -> None:
    root = await copies.create_root("app")
    plant(root)
    await copies.snapshot("app", "s1")
    index = tmp_path / "state" / "copy" / "volumes" / "app" / "index"
    assert json.loads(index.read_bytes())["basis"].endswith("-s1")
    index.write_bytes(damage)
    assert not await copies.unchanged("app", "s1")
    assert tree((await copies.snapshot("app", "s2")).path) == tree(root)


async def test_what_is_no_data_is_left_out(copies: CopySnapshotter) -> None:
    root = await copies.create_root("app")
    os.mkfifo(root / "pipe")
    (root / "file").write_bytes(b"x")
    os.setxattr(root / "file", "user.colour", b"blue")
    snapshot = await copies.snapshot("app", "s1")
    assert set(tree(snapshot.path)) == {"file"}
    chunks = [chunk async for chunk in copies.send("app", "s1")]
    received = await copies.receive("copy", "s1", again(*chunks), stream_format=copies.format)
    assert os.getxattr(received.path / "file", "user.colour") == b"blue"
    assert await copies.unchanged("app", "s1")


async def test_a_tree_too_deep_is_refused_and_still_removed(copies: CopySnapshotter) -> None:
    root = await copies.create_root("app")
    here = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(BackendError, match="deep"):
        await copies.snapshot("app", "s1")
    await copies.delete_root("app")
    assert await copies.volumes() == []


async def test_a_link_in_place_of_the_root_is_not_followed(copies: CopySnapshotter, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    root = await copies.create_root("app")
    root.rmdir()
    root.symlink_to(tmp_path / "outside")
    assert await copies.root("app") is None
    with pytest.raises(BackendError):
        await copies.snapshot("app", "s1")
    await copies.delete_root("app")
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"


async def test_one_process_at_a_time(copies: CopySnapshotter, tmp_path: Path) -> None:
    async with real_context(tmp_path) as context:
        with pytest.raises(BackendError, match="in use by another process"):
            async with open_copy(context, CopyConfig()):
                pass
        with pytest.raises(Misconfigured, match="absolute"):
            async with open_copy(context, CopyConfig(path=Path("relative"))):
                pass


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as disk:
        async with (
            real_context(tmp_path) as context,
            open_copy(context, CopyConfig(path=disk / "copy")) as copies,
        ):
            root = await copies.create_root("app")
            (root / "file").write_bytes(os.urandom(3 << 20))
            await copies.snapshot("app", "s1")
            (root / "file").write_bytes(os.urandom(3 << 20))
            with pytest.raises(BackendError, match="free some space"):
                await copies.snapshot("app", "s2")
            assert [snapshot.name for snapshot in await copies.snapshots("app")] == ["s1"]
            assert list((disk / "copy" / "tmp").iterdir()) == []
            chunks = [chunk async for chunk in copies.send("app", "s1")]
            with pytest.raises(BackendError, match="free some space"):
                await copies.receive("other", "s1", again(*chunks), stream_format=copies.format)
            assert await copies.volumes() == ["app"]
            await copies.delete("app", "s1")
            await copies.snapshot("app", "s2")


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    path.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(argv, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


async def test_a_stream_of_an_earlier_version_is_still_received(copies: CopySnapshotter) -> None:
    folder = Path(__file__).parents[3] / "golden" / "portable"
    for number, parent in ((1, None), (2, "s1")):
        data = (folder / f"{number}.stream").read_bytes()
        made = await copies.receive(
            "app", f"s{number}", again(data), stream_format="portable/1", parent=parent
        )
        expected = json.loads((folder / f"{number}.json").read_text())
        assert json.loads(json.dumps(tree(made.path))) == expected


async def test_a_stream_for_another_volume_is_told_from_damage(copies: CopySnapshotter) -> None:
    folder = Path(__file__).parents[3] / "golden" / "portable"
    await copies.create_root("app")
    await copies.snapshot("app", "s1")
    with pytest.raises(Corrupt, match="made against another snapshot"):
        data = (folder / "2.stream").read_bytes()
        await copies.receive("app", "s2", again(data), stream_format="portable/1", parent="s1")


async def test_the_probe_tells_without_touching(tmp_path: Path) -> None:
    assert (await probe_copy(CopyConfig())).ready
    assert (await probe_copy(CopyConfig(path=tmp_path / "new"))).ready
    assert not (await probe_copy(CopyConfig(path=tmp_path / "no" / "folder"))).ready
    assert list(tmp_path.iterdir()) == []
