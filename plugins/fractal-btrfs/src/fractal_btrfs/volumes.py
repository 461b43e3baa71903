"""The subvolumes of the `btrfs` snapshotter. Runs in worker threads; raises OSError or BackendError.

    <path>/volumes/<volume>/root               the writable root, a subvolume
    <path>/volumes/<volume>/<number>-<name>    snapshots, read-only subvolumes, numbered in the order they came
    <path>/volumes/<volume>/.new-<token>       being made; deleted at open

Whatever has its final name is whole. One thing may have to be finished at open: a root that was set aside is renamed first and
made read-only after, as the kernel moves no read-only subvolume out of its folder.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from contextlib import closing, suppress
from pathlib import Path

from fractal.api.errors import BackendError, Conflict, NotFound
from fractal.streams.replay import Places
from fractal_btrfs import ioctls
from fractal_btrfs.blocking import opened

_NUMBERED = re.compile(r"(\d{12})-(.+)")
_NEW = ".new-"


class Volumes:
    """All volumes below one folder."""

    def __init__(self, path: Path, logger: logging.Logger) -> None:
        self.path = path
        self.logger = logger
        self.folder = path / "volumes"

    def lock(self) -> int:
        """Make the folders and hold them for this process: the descriptor to close in the end."""
        for folder in (self.path, self.folder):
            make_folder(folder)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise BackendError(
                f"snapshot btrfs: {self.path} is in use by another process: stop that agent, or choose another path"
            ) from error
        return lock

    def sweep(self) -> None:
        """Delete what a killed process left half-made, and finish what it left half-done."""
        for volume in self._all():
            for path in sorted(volume.folder.iterdir()):
                if path.name.startswith(_NEW) and ioctls.is_subvolume(path):
                    self.logger.info("snapshot btrfs: deleting the leftover %s", path)
                    delete_subvolume(path)
            for path in volume.snapshots().values():
                with opened(path) as snapshot:
                    if not ioctls.is_read_only(snapshot):
                        ioctls.set_read_only(snapshot, True)

    def names(self) -> list[str]:
        """Volumes that have a root or a snapshot."""
        return [volume.name for volume in self._all() if volume.has_root() or volume.snapshots()]

    def _all(self) -> list[Volume]:
        return [Volume(self, path.name) for path in sorted(self.folder.iterdir())]


class Volume:
    """One volume's folder."""

    def __init__(self, volumes: Volumes, name: str) -> None:
        self.name = name
        self.folder = volumes.folder / name
        self.root = self.folder / "root"
        self._logger = volumes.logger

    def has_root(self) -> bool:
        """Whether there is a writable root."""
        return ioctls.is_subvolume(self.root)

    def snapshots(self) -> dict[str, Path]:
        """Snapshots by name, oldest first."""
        try:
            paths = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return {}
        matches = [(path, _NUMBERED.fullmatch(path.name)) for path in paths]
        return {match[2]: path for path, match in matches if match and ioctls.is_subvolume(path)}

    def path_of(self, name: str) -> Path:
        """A snapshot's path. Raises NotFound."""
        try:
            return self.snapshots()[name]
        except KeyError:
            raise NotFound(f"snapshot btrfs: volume {self.name} has no snapshot {name}") from None

    def refuse_existing(self, name: str) -> None:
        """Raises Conflict if the snapshot exists."""
        if name in self.snapshots():
            raise Conflict(f"snapshot btrfs: volume {self.name} has a snapshot {name} already")

    def create_root(self, token: str) -> Path:
        """An empty root unless there is one."""
        if not self.has_root():
            scratch = self.scratch(token)
            with opened(self.folder) as folder:
                ioctls.create(folder, scratch.name)
            scratch.chmod(0o700)
            scratch.rename(self.root)
            sync_folder(self.folder)
        return self.root

    def delete_root(self) -> None:
        """Gone at once; the kernel frees its blocks after."""
        if self.has_root():
            delete_subvolume(self.root)

    def set_aside(self, name: str) -> None:
        """Rename the root to a snapshot and make it read-only."""
        if not self.has_root():
            return
        path = self._next(name)
        with opened(self.root) as root:
            ioctls.sync_file_system(root)
            self.root.rename(path)
            ioctls.set_read_only(root, True)

    def snapshot(self, name: str) -> Path:
        """One call of the kernel; it holds everything that was written before."""
        if not self.has_root():
            raise NotFound(f"snapshot btrfs: volume {self.name} has no root")
        path = self._next(name)
        with opened(self.folder) as folder, opened(self.root) as root:
            for inner in ioctls.nested(root):
                self._logger.warning(
                    "snapshot btrfs: %s/%s is a subvolume of its own and not in snapshot %s: keep it outside of the app's data",
                    self.root,
                    os.fsdecode(inner),
                    name,
                )
            ioctls.snapshot(folder, path.name, root, read_only=True)
        return path

    def checkout(self, source: Path) -> Path:
        """A writable snapshot of a snapshot becomes the root; the snapshot itself is never made writable."""
        if self.has_root():
            raise Conflict(f"snapshot btrfs: volume {self.name} has a root already: set it aside first")
        make_folder(self.folder)
        with opened(self.folder) as folder, opened(source) as snapshot:
            ioctls.snapshot(folder, self.root.name, snapshot, read_only=False)
        return self.root

    def scratch(self, token: str) -> Path:
        """Where something may be made."""
        make_folder(self.folder)
        return self.folder / f"{_NEW}{token}"

    def publish(self, scratch: Path, name: str, uuid: bytes, transaction: int) -> Path:
        """Bring a received tree to disk, note whose equal it is, and give it a snapshot's name."""
        path = self._next(name)
        with opened(scratch) as made:
            ioctls.sync_file_system(made)
            ioctls.set_received(made, uuid, transaction)
            ioctls.set_read_only(made, True)
        scratch.rename(path)
        sync_folder(self.folder)
        return path

    def delete(self, name: str) -> None:
        """Delete a snapshot."""
        path = self.snapshots().get(name)
        if path is not None:
            delete_subvolume(path)

    def unchanged(self, name: str) -> bool:
        """Whether the root certainly equals the snapshot."""
        path = self.snapshots().get(name)
        if path is None or not self.has_root():
            return False
        with opened(path) as descriptor, opened(self.root) as root:
            snapshot = ioctls.describe(descriptor)
            if _changed(ioctls.describe(root), snapshot):
                return False
            # What lies in memory only, such as stores into a mapping, has not touched the tree yet. Now it has.
            ioctls.sync_file_system(root)
            return not _changed(ioctls.describe(root), snapshot)

    def _next(self, name: str) -> Path:
        self.refuse_existing(name)
        numbers = [int(path.name[:12]) for path in self.snapshots().values()]
        return self.folder / f"{max(numbers, default=0) + 1:012d}-{name}"


def _changed(root: ioctls.Subvolume, snapshot: ioctls.Subvolume) -> bool:
    """A snapshot is made at the end of its transaction: what changed in that one is in it, what comes after has a higher number."""
    if snapshot.parent_uuid == root.uuid:
        return root.changed > snapshot.made
    if root.parent_uuid == snapshot.uuid:
        return root.changed > root.made
    return True


def delete_subvolume(path: Path) -> None:
    """Delete a subvolume and those inside of it."""
    with opened(path.parent) as folder:
        _delete(folder, path.name)


def _delete(folder: int, name: str) -> None:
    try:
        ioctls.destroy(folder, name)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        with closing(Places(folder)) as places:
            subvolume, _ = places.at(os.fsencode(name) + b"/.")
            if ioctls.is_read_only(subvolume):
                ioctls.set_read_only(subvolume, False)  # for its end only: nothing is deleted inside one
            for inner in list(ioctls.nested(subvolume)):
                with closing(Places(subvolume)) as below:
                    parent, last = below.at(inner)
                    _delete(parent, os.fsdecode(last))
        ioctls.destroy(folder, name)


def make_folder(path: Path) -> None:
    """Make a folder, durably, unless it is there."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring a folder's names to disk."""
    with opened(path) as folder:
        os.fsync(folder)
