"""The dataset that holds all volumes: found or made, mounted, held for this process alone."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shutil
from pathlib import Path

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured, NotFound, NotInstalled
from fractal_zfs.command import ENVIRONMENT, Zfs
from fractal_zfs.config import ZfsConfig

_libc = ctypes.CDLL(None, use_errno=True)


async def find_place(context: Context, zfs: Zfs, config: ZfsConfig) -> Path:
    """The dataset's mount point. Raises Misconfigured, NotInstalled, BackendError."""
    if shutil.which("zfs", path=ENVIRONMENT["PATH"]) is None:
        raise NotInstalled("snapshot zfs: no zfs command: install zfsutils-linux (or zfs-fuse)")
    try:
        found = await _look(zfs, config.dataset)
    except NotFound:
        await _make(zfs, config)
        found = await _look(zfs, config.dataset)
    mountpoint, mounted = found
    if not mountpoint.startswith("/"):
        raise Misconfigured(
            "dataset",
            f"{config.dataset} has the mount point {mountpoint}: give it one, or choose another dataset",
        )
    if mounted != "yes":
        await zfs("mount", config.dataset)
    path = Path(mountpoint)
    await context.workers.run(path.chmod, 0o700)
    return path


async def _look(zfs: Zfs, dataset: str) -> list[str]:
    (row,) = await zfs.rows("list", "-H", "-o", "mountpoint,mounted", dataset)
    return row


async def _make(zfs: Zfs, config: ZfsConfig) -> None:
    # Blocks of apps are never trusted with devices or rights of other users; access times would make reading a change.
    options = {"recordsize": config.recordsize, "atime": "off", "devices": "off", "setuid": "off"}
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    try:
        await zfs("create", *words, config.dataset)
    except NotFound as error:
        raise Misconfigured(
            "dataset", f"{config.dataset} cannot be made, as there is nothing above it: see `zpool list`"
        ) from error


def lock(path: Path) -> int:
    """Hold the place for this process: the descriptor to close in the end."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BackendError(
            f"snapshot zfs: {path} is in use by another process: stop that agent, or choose another dataset"
        ) from error
    return descriptor


def flush(path: Path) -> None:
    """Hand over what is in memory only, such as stores into a mapping, to the file system at this path. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


async def probe(config: ZfsConfig) -> Probe:
    """Whether it can be used, without touching anything."""
    if shutil.which("zfs", path=ENVIRONMENT["PATH"]) is None:
        return Probe(ready=False, detail="no zfs command: install zfsutils-linux")
    process = await asyncio.create_subprocess_exec(
        *["zfs", "list", "-H", "-o", "name", config.dataset.partition("/")[0]],
        env=ENVIRONMENT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Probe(ready=False, detail="zfs list does not answer: see `zpool status`")
    if process.returncode:
        return Probe(ready=False, detail=" ".join(said.decode(errors="replace").split())[:300])
    return Probe(ready=True, detail=f"dataset {config.dataset}")
