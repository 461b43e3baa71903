"""A real btrfs in a loop file for all tests, unmounted in the end also after failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.snapshotter import BtrfsSnapshotter, open_btrfs

from fractal.testing.context import real_context

Opener = Callable[..., AbstractAsyncContextManager[BtrfsSnapshotter]]


def missing() -> str:
    """Why real btrfs cannot be used here, or ""."""
    if os.geteuid() != 0:
        return "btrfs needs root"
    if shutil.which("mkfs.btrfs") is None:
        return "btrfs-progs is not installed"
    if "btrfs" not in Path("/proc/filesystems").read_text().split():
        return "the kernel has no btrfs"
    return ""


def loops(folder: Path) -> list[str]:
    """Loop devices over files below a folder."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = backing.read_text().strip()
        except OSError:
            continue  # detached meanwhile
        if file.startswith(f"{folder}/"):
            found.append(file)
    return found


def unmount_all(folder: Path) -> None:
    """Unmount what is mounted below a folder, the deepest first; loop devices go with their mounts."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split(" ")[4] for line in lines]
    below = sorted((t for t in targets if t.startswith(f"{folder}/")), reverse=True)
    codes = [subprocess.run(["umount", target], check=False, timeout=60).returncode for target in below]
    end = time.monotonic() + 60  # a copy of a mount in another namespace goes a moment later
    while loops(folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert (codes, loops(folder)) == ([0] * len(codes), [])


@pytest.fixture(scope="session")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Skips without real btrfs; fails instead with CI=true."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, which CI does not allow")
        pytest.skip(reason)
    # Where / is private, as in a container, a mount namespace that others make meanwhile (engines do) would hold each of the file
    # systems until its end. What is mounted below a shared mount is unmounted there too.
    folder = str(tmp_path_factory.getbasetemp())
    subprocess.run(["mount", "--bind", "--make-shared", folder, folder], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True, timeout=60)


@pytest.fixture(scope="session")
def disks(btrfs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Makes mounted file systems, each a file of its own, for the whole session."""
    folder = tmp_path_factory.mktemp("disks")
    numbers = count()

    def make() -> Path:
        number = next(numbers)
        file, target = folder / f"{number}.img", folder / f"{number}"
        target.mkdir()
        with file.open("wb") as opened:
            opened.truncate(1 << 30)
        subprocess.run(["mkfs.btrfs", "--quiet", str(file)], check=True, timeout=60)
        subprocess.run(["mount", "-o", "loop,noatime", str(file), str(target)], check=True, timeout=60)
        return target

    try:
        yield make
    finally:
        unmount_all(folder)


@pytest.fixture(scope="session")
def disk(disks: Callable[[], Path]) -> Path:
    """The file system that most tests share."""
    return disks()


@pytest.fixture(scope="session")
def other_disks(disks: Callable[[], Path]) -> tuple[Path, Path]:
    """Two more, for devices that share nothing."""
    return disks(), disks()


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    """Opens snapshotters in folders of a file system, each as a device of its own."""
    numbers = count()

    @asynccontextmanager
    async def opened(disk: Path, name: str = "") -> AsyncIterator[BtrfsSnapshotter]:
        path = disk / (name or f"{tmp_path.name}-{next(numbers)}")
        path.mkdir(exist_ok=True)
        async with (
            real_context(tmp_path / path.name) as context,
            open_btrfs(context, BtrfsConfig(path=path)) as snapshotter,
        ):
            yield snapshotter

    return opened


@pytest.fixture
async def snapshotter(disk: Path, opener: Opener) -> AsyncIterator[BtrfsSnapshotter]:
    """One on the shared file system, empty."""
    async with opener(disk) as opened:
        yield opened
