"""The pool: a file that holds a btrfs file system, made, mounted and grown here. It stays mounted when the agent ends."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured
from fractal.api.snapshot import Usage
from fractal_btrfs import ioctls
from fractal_btrfs.blocking import in_worker, opened
from fractal_btrfs.config import BtrfsConfig

LOOK = 30.0
"""Seconds between looks at the free space."""
STEP = 64 << 20
"""Bytes; a pool grows by no less."""
_OPTIONS = "loop,noatime,nodev,nosuid,discard=async"
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    kind: str
    source: str


class Place:
    """A folder on btrfs that somebody else cares for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def make_room(self) -> None:
        """Nothing to be done."""

    async def watch(self) -> None:
        """Nothing to be watched."""

    def usage(self) -> Usage:
        """Room on the file system."""
        usage = shutil.disk_usage(self.path)
        return Usage(total=usage.total, free=usage.free)


class Pool(Place):
    """A mounted pool."""

    def __init__(self, context: Context, path: Path, file: Path, device: Path, limit: int) -> None:
        super().__init__(path)
        self._context = context
        self._file = file
        self._device = device
        self._limit = limit
        self._growing = asyncio.Lock()

    async def make_room(self) -> None:
        """Grow if an eighth or less of the pool is free and the limit allows. Raises BackendError."""
        async with self._growing:
            await in_worker(self._context.workers, f"pool {self._file}", self._grow)

    async def watch(self) -> None:
        """Make room again and again, until cancelled."""
        while True:
            await self._context.clock.sleep(LOOK)
            try:
                await self.make_room()
            except BackendError as error:
                self._context.logger.warning("%s", error)

    def usage(self) -> Usage:
        """What the pool has and may get, but never more than the disk below can give."""
        inside, below = shutil.disk_usage(self.path), shutil.disk_usage(self._file.parent)
        more = max(0, self._most() - self._file.stat().st_size)
        return Usage(total=inside.total + more, free=min(inside.free + more, below.free))

    def fill(self) -> None:
        """Take the whole file, in case that a growth was interrupted."""
        device = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        try:
            with opened(self.path) as folder:
                ioctls.grow(folder, device)
        finally:
            os.close(device)

    def _grow(self) -> None:
        size = self._file.stat().st_size
        if shutil.disk_usage(self.path).free > max(size // 8, STEP):
            return
        wanted = min(size + max(size // 2, STEP), self._most()) >> 20 << 20
        if wanted - size < STEP:
            return
        os.truncate(self._file, wanted)
        self.fill()
        self._context.logger.info("snapshot btrfs: pool %s grew to %d MiB", self._file, wanted >> 20)

    def _most(self) -> int:
        """Bytes that the file may have."""
        below = shutil.disk_usage(self._file.parent)
        used = self._file.stat().st_blocks * 512
        room = used + max(0, below.free - below.total // 10)
        return min(room, self._limit) if self._limit else room


async def open_place(context: Context, config: BtrfsConfig) -> Place:
    """The folder for volumes, on btrfs. Makes and mounts the pool if there is to be one. Raises BackendError."""
    if os.geteuid() != 0:
        raise BackendError(
            "snapshot btrfs: needs root: run the agent as root, or choose the snapshotter 'copy'"
        )
    if config.path is not None:
        if not is_btrfs(_nearest(config.path)):
            raise Misconfigured(
                "path", f"{config.path} is not on btrfs: choose another folder, or name a pool"
            )
        return Place(config.path)  # made by `Volumes.lock` if only its last part is missing
    if config.pool is None and is_btrfs(context.state_dir):
        return Place(context.state_dir)
    file = config.pool or context.state_dir / "pool.btrfs"
    target = context.state_dir / "pool"
    target.mkdir(mode=0o700, exist_ok=True)
    mounted = mounts().get(os.path.realpath(target))
    if mounted is None:
        if not file.exists():
            await make(context, file, config.size_bytes)
        await context.run(["mount", "-t", "btrfs", "-o", _OPTIONS, str(file), str(target)])
        mounted = mounts().get(os.path.realpath(target))
    device = _device(mounted, file, target)
    pool = Pool(context, target, file, device, config.limit_bytes)
    await in_worker(context.workers, f"pool {file}", pool.fill)
    await in_worker(context.workers, f"pool {file}", target.chmod, 0o700)
    return pool


async def make(context: Context, file: Path, size: int) -> None:
    """A file with an empty file system: whole as soon as it has its name. Takes from the disk only what is used."""
    scratch = file.with_name(f"{file.name}.new")
    try:
        scratch.unlink(missing_ok=True)
        descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured("pool", f"{file} cannot be made: {error.strerror}") from error
    try:
        os.ftruncate(descriptor, size)
        await context.run(["mkfs.btrfs", "--quiet", "--force", "--label", "homeserver", str(scratch)])
        await in_worker(context.workers, f"pool {file}", os.fsync, descriptor)
        scratch.rename(file)
    finally:
        os.close(descriptor)
        scratch.unlink(missing_ok=True)


def _nearest(path: Path) -> Path:
    """The folder itself, or where it would be made."""
    return path if path.exists() else path.parent


def is_btrfs(path: Path) -> bool:
    """Whether the path is a folder on btrfs."""
    try:
        with opened(path) as folder:
            ioctls.describe(folder)
    except OSError:
        return False
    return True


def mounts() -> dict[str, Mount]:
    """What is mounted where; the last one at a place is what is seen."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, source = after.split(" ")[:2]
        found[_plain(before.split(" ")[4])] = Mount(kind, _plain(source))
    return found


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _device(mount: Mount | None, file: Path, target: Path) -> Path:
    """The loop device of the mounted pool. Raises Misconfigured if something else is mounted there."""
    if mount is None:
        raise BackendError(f"snapshot btrfs: {file} was mounted at {target} and is not there", retryable=True)
    device = Path(mount.source)
    backing = Path("/sys/block", device.name, "loop", "backing_file")
    try:
        found = Path(backing.read_text().rstrip("\n"))
    except OSError:
        found = device
    if mount.kind != "btrfs" or found != Path(os.path.realpath(file)):
        raise Misconfigured(
            "pool",
            f"{target} has {found} ({mount.kind}) mounted instead of {file}: unmount it, or name that pool",
        )
    return device


def probe(config: BtrfsConfig) -> Probe:
    """Whether it can be used, without touching anything."""
    if os.geteuid() != 0:
        return Probe(ready=False, detail="needs root")
    if "btrfs" not in Path("/proc/filesystems").read_text().split():
        return Probe(ready=False, detail="the kernel has no btrfs: load the module btrfs")
    if config.path is not None:
        ready = is_btrfs(_nearest(config.path))
        return Probe(ready=ready, detail=f"{config.path} is {'' if ready else 'not '}on btrfs")
    missing = [tool for tool in ("mkfs.btrfs", "mount") if shutil.which(tool) is None]
    if missing:
        return Probe(ready=False, detail=f"no {missing[0]}: install btrfs-progs and mount")
    return Probe(ready=True, detail=f"a pool in {config.pool or 'the state folder'}")
