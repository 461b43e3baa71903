"""The pool: made, mounted, found again, grown, and never taken for another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.plugin import fractal_snapshotters
from fractal_btrfs.pool import mounts, probe
from fractal_btrfs.snapshotter import BtrfsSnapshotter, open_btrfs

from fractal.api.errors import BackendError, Conflict, Misconfigured
from fractal.api.snapshot import SnapshotBackend
from fractal.config.convert import convert
from fractal.plugins import Plugins
from fractal.testing.check import cleared
from fractal.testing.context import real_context
from fractal.testing.trees import plant, tree


@pytest.fixture
def away(btrfs: None, tmp_path: Path) -> Iterator[Path]:
    """A folder whose mounts and loop devices are gone in the end."""
    yield tmp_path
    unmount(tmp_path)
    left = [t for t in mounts() if t.startswith(f"{tmp_path}/")]
    backing = [f.read_text() for f in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert (left, [b for b in backing if b.startswith(f"{tmp_path}/")]) == ([], [])


def unmount(folder: Path) -> None:
    for target in sorted((t for t in mounts() if t.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", target], check=True, timeout=60)


@asynccontextmanager
async def opened(folder: Path, config: BtrfsConfig) -> AsyncIterator[BtrfsSnapshotter]:
    async with real_context(folder) as context, open_btrfs(context, config) as snapshotter:
        yield snapshotter


async def test_a_pool_outlives_agent_and_reboot(away: Path) -> None:
    config = BtrfsConfig(size="256M")
    async with opened(away, config) as snapshotter:
        root = await snapshotter.create_root("app")
        plant(root)
        await snapshotter.snapshot("app", "s1")
        before = tree(root)
    file = away / "state" / "pool.btrfs"
    assert file.stat().st_size == 256 << 20
    assert file.stat().st_blocks * 512 < 64 << 20, "the disk gives only what is used"
    assert file.stat().st_mode & 0o777 == 0o600
    assert tree(root) == before, "the apps run on while the agent is away"
    async with opened(away, config) as snapshotter:
        assert len([t for t in mounts() if t.startswith(f"{away}/")]) == 1
        assert await snapshotter.unchanged("app", "s1")
    unmount(away)
    assert not root.exists()
    async with opened(away, config) as snapshotter:
        assert await snapshotter.root("app") == root
        assert tree(root) == before


async def test_a_pool_grows_when_it_fills(away: Path) -> None:
    config = BtrfsConfig(pool=away / "apps.btrfs", size="256M", limit="600M")
    async with opened(away, config) as snapshotter:
        root = await snapshotter.create_root("app")
        assert (await snapshotter.usage()).total == 600 << 20
        (root / "large").write_bytes(os.urandom(120 << 20))
        await snapshotter.snapshot("app", "s1")
        stream = snapshotter.send("app", "s1")
        made = await snapshotter.receive("copy", "s1", stream, stream_format=snapshotter.format)
        assert (made.path / "large").read_bytes() == (root / "large").read_bytes()
        assert 256 << 20 < config.pool.stat().st_size <= 600 << 20  # type: ignore[union-attr]  # it is set above
    unmount(away)
    async with opened(away, config) as snapshotter:
        assert (await snapshotter.snapshots("copy"))[0].path == made.path


async def test_a_growth_that_was_interrupted_is_completed(away: Path) -> None:
    config = BtrfsConfig(pool=away / "apps.btrfs", size="256M")
    async with opened(away, config) as snapshotter:
        place = (await snapshotter.create_root("app")).parents[2]
        before = os.statvfs(place).f_blocks
        os.truncate(away / "apps.btrfs", 512 << 20)
    async with opened(away, config):
        assert os.statvfs(place).f_blocks == 2 * before


async def test_a_pool_that_was_half_made_is_made_again(away: Path) -> None:
    (away / "apps.btrfs.new").write_bytes(b"half")
    async with opened(away, BtrfsConfig(pool=away / "apps.btrfs", size="256M")) as snapshotter:
        await snapshotter.create_root("app")
    assert not (away / "apps.btrfs.new").exists()


async def test_another_mount_is_not_taken_for_the_pool(away: Path) -> None:
    async with opened(away, BtrfsConfig(pool=away / "one.btrfs", size="256M")):
        pass
    with pytest.raises(Misconfigured, match=r"one\.btrfs .* mounted instead of .*two\.btrfs"):
        async with opened(away, BtrfsConfig(pool=away / "two.btrfs", size="256M")):
            pass
    assert not (away / "two.btrfs").exists()


async def test_a_file_that_is_no_pool_is_left_alone(away: Path) -> None:
    (away / "letters.txt").write_bytes(b"dear" * 100_000)
    with pytest.raises(BackendError, match="mount"):
        async with opened(away, BtrfsConfig(pool=away / "letters.txt")):
            pass
    assert (away / "letters.txt").read_bytes() == b"dear" * 100_000


async def test_a_folder_elsewhere_is_refused(btrfs: None, tmp_path: Path) -> None:
    assert not probe(BtrfsConfig(path=Path("/proc"))).ready
    for path in (Path("/proc"), Path("/proc/absent"), tmp_path / "absent" / "folder"):
        with pytest.raises(Misconfigured, match="is not on btrfs"):
            async with opened(tmp_path, BtrfsConfig(path=path)):
                pass


async def test_a_state_folder_on_btrfs_needs_no_pool(disk: Path, tmp_path: Path) -> None:
    folder = disk / f"{tmp_path.name}-state"
    folder.mkdir()
    async with opened(folder, BtrfsConfig()) as snapshotter:
        root = await snapshotter.create_root("app")
        assert root.is_relative_to(folder / "state" / "volumes")
    assert not (folder / "state" / "pool.btrfs").exists()
    assert probe(BtrfsConfig(path=folder)).ready


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"size": "ten"}, "'ten' is no size"),
        ({"size": "1M"}, "too small"),
        ({"size": "2G", "limit": "1G"}, "less than"),
        ({"path": "relative"}, "absolute"),
        ({"path": "/a", "pool": "/b"}, "name one of them"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, str], problem: str) -> None:
    found = convert(BtrfsConfig, settings)
    assert found.value is None
    assert problem in str(found.problems[0])


def test_the_plugin_is_found_by_name() -> None:
    found = Plugins.discover().snapshotter("btrfs")
    assert (found.name, found.config) == ("btrfs", BtrfsConfig)
    assert found.instant


def check(*settings: str) -> dict[str, object]:
    """`homeserver plugin check btrfs`."""
    command = [sys.executable, "-c", "from fractal.cli.main import main; main()", "plugin", "check", "btrfs"]
    options = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [*command, *options, "--json"], capture_output=True, text=True, timeout=110, check=False
    )
    return {"exit": done.returncode, **json.loads(done.stdout)["checks"][0]}


def test_its_contract_can_be_checked_on_the_device(disk: Path, tmp_path: Path) -> None:
    """And leaves nothing in the folder that is checked."""
    folder = disk / f"{tmp_path.name}-check"
    folder.mkdir()
    found = check(f"path={folder}/apps")
    assert found["exit"] == 0, found
    assert list(folder.iterdir()) == []


async def test_a_check_refuses_a_pool_that_is_in_use(away: Path) -> None:
    """It empties what it tests."""
    config = BtrfsConfig(pool=away / "apps.btrfs", size="256M")
    async with opened(away, config) as snapshotter:
        root = await snapshotter.create_root("app")
        plant(root)
        before = tree(root)
    unmount(away)
    (record,) = (b for b in fractal_snapshotters() if isinstance(b, SnapshotBackend))
    with pytest.raises(Conflict, match=r"is not empty \(it has volume app\)"):
        async with cleared(record, config)(away / "check"):
            pass
    assert mounts().keys().isdisjoint({str(away / "check" / "state" / "pool")})
    async with opened(away, config):
        assert tree(root) == before
