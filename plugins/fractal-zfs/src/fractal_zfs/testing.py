"""A ZFS for tests: the kernel's if it has one, else the daemon `zfs-fuse`; pools in files. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START = 30.0
"""Seconds that the daemon may take to answer."""


def missing() -> str:
    """Why ZFS cannot be used here, or ""."""
    if os.geteuid() != 0:
        return "ZFS needs root"
    if shutil.which("zpool") is None:
        return "no ZFS is installed (zfs-fuse)"
    if not _answers() and shutil.which("zfs-fuse") is None:
        return "the kernel has no ZFS, and zfs-fuse is not installed"
    return ""


@contextmanager
def running() -> Iterator[None]:
    """ZFS answers; a daemon that was started for it is ended after."""
    if _answers():
        yield
        return
    process = subprocess.Popen(
        ["zfs-fuse", "--no-daemon", "--no-kstat-mount"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + START
        while not _answers():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("zfs-fuse does not answer")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)


@dataclass(frozen=True)
class Pool:
    """A pool in a file."""

    name: str
    mountpoint: Path


@contextmanager
def pool(folder: Path, size: int = 1 << 30) -> Iterator[Pool]:
    """A pool with a file in `folder`; both go in the end."""
    made = Pool(f"fractal{uuid.uuid4().hex[:8]}", folder / "mounted")
    file = folder / "pool"
    with file.open("wb") as opened:
        opened.truncate(size)
    # Not remembered: a pool whose file is gone would be looked for at every start.
    zpool("create", "-f", "-o", "cachefile=none", "-m", str(made.mountpoint), made.name, str(file))
    try:
        yield made
    finally:
        _destroy(made)
        file.unlink()


def zpool(*words: str) -> None:
    """Run `zpool`."""
    subprocess.run(["zpool", *words], check=True, timeout=120)


def _destroy(made: Pool) -> None:
    """It may say busy for seconds; zfs-fuse says it for ever after some killed streams, and then goes with its daemon."""
    for _ in range(10):
        done = subprocess.run(
            ["zpool", "destroy", "-f", made.name], check=False, timeout=120, capture_output=True
        )
        if done.returncode == 0:
            return
        time.sleep(0.3)
    lines = Path("/proc/self/mounts").read_text().splitlines()
    for target in sorted((line.split(" ")[1] for line in lines), reverse=True):
        if Path(target).is_relative_to(made.mountpoint):
            subprocess.run(["umount", "--lazy", target], check=True, timeout=60)


def _answers() -> bool:
    done = subprocess.run(
        ["zpool", "list", "-H"], check=False, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return done.returncode == 0
