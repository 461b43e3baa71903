"""The folders of the `copy` snapshotter on disk. Runs in worker threads; raises OSError or BackendError."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

from fractal.api.errors import BackendError, Conflict, NotFound
from fractal.api.names import check_name
from fractal.builtin.copy.copying import copy_tree, dress_folders, footprint
from fractal.builtin.copy.index import Index, read_index, write_index
from fractal.builtin.copy.tree import opened, remove, walk

_NUMBERED = re.compile(r"(\d{12})-(.+)")
INDEX = "index"


class Volumes:
    """All volumes below one folder."""

    def __init__(self, path: Path, logger: logging.Logger) -> None:
        self.path = path
        self._logger = logger

    @property
    def temporary(self) -> Path:
        """Where things are made and unmade."""
        return self.path / "tmp"

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.path, self.temporary, self.path / "volumes"):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        sync_folder(self.path)

    def lock(self) -> int:
        """Make the folders and hold them for this process: the descriptor to close in the end."""
        self.prepare()
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise BackendError(
                f"snapshot copy: {self.path} is in use by another process: stop that agent, or choose another path"
            ) from error
        return lock

    def sweep(self) -> None:
        """Remove what a killed process left."""
        for leftover in sorted(self.temporary.iterdir()):
            self._logger.info("snapshot copy: removing the leftover %s", leftover)
            self.discard(leftover)

    def names(self) -> list[str]:
        """Volumes that have a root or a snapshot."""
        found = [Volume(self, path.name) for path in sorted((self.path / "volumes").iterdir())]
        return [volume.name for volume in found if volume.has_root() or volume.snapshots()]

    def discard(self, path: Path) -> None:
        """Remove something below `temporary`."""
        with opened(self.temporary) as folder:
            remove(folder, path.name)

    def touch(self) -> int:
        """The file system's time now: the stamp that it gives to a file."""
        probe = self.temporary / f"clock-{threading.get_ident()}"
        probe.write_bytes(b"")
        stamp = probe.stat().st_ctime_ns
        probe.unlink()
        return stamp

    def copy(self, source: Path, target: Path, stop: threading.Event) -> None:
        """Copy a snapshot into an empty folder."""
        with opened(source) as old, opened(target) as new:
            dress_folders(new, copy_tree(old, new, stop).folders)


class Volume:
    """One volume's folder."""

    def __init__(self, volumes: Volumes, name: str) -> None:
        self.name = name
        self._volumes = volumes
        self.folder = volumes.path / "volumes" / name
        self.root = self.folder / "root"

    def has_root(self) -> bool:
        """Whether there is a writable root."""
        return self.root.is_dir() and not self.root.is_symlink()

    def snapshots(self) -> dict[str, Path]:
        """Snapshots by name, oldest first."""
        try:
            paths = sorted((self.folder / "snapshots").iterdir())
        except FileNotFoundError:
            return {}
        matches = [(path, _NUMBERED.fullmatch(path.name)) for path in paths]
        return {match[2]: path for path, match in matches if match}

    def path_of(self, name: str) -> Path:
        """Raises NotFound."""
        check_name(name, "snapshot")
        try:
            return self.snapshots()[name]
        except KeyError as error:
            raise NotFound(f"snapshot copy: volume {self.name} has no snapshot {name}") from error

    def refuse_existing(self, name: str) -> None:
        """Raises Conflict."""
        check_name(name, "snapshot")
        if name in self.snapshots():
            raise Conflict(f"snapshot copy: volume {self.name} has a snapshot {name} already")

    def create_root(self) -> Path:
        """An empty root unless there is one."""
        if not self.has_root():
            self._prepare()
            self.forget()
            self.root.mkdir(mode=0o700)
            sync_folder(self.folder)
        return self.root

    def delete_root(self) -> None:
        """Gone at once; its content is removed after."""
        if self.has_root():
            self.forget()
            self._unmake(self.root)

    def set_aside(self, name: str) -> None:
        """The root becomes a snapshot in one rename."""
        if self.has_root():
            self.refuse_existing(name)
            self.forget()
            self.publish(self.root, name)

    def publish(self, made: Path, name: str) -> Path:
        """Bring a finished tree to disk and give it a snapshot's name, durably."""
        self._prepare()
        with opened(made) as tree:
            sync_file_system(tree)
        numbers = [int(path.name[:12]) for path in self.snapshots().values()]
        path = self.folder / "snapshots" / f"{max(numbers, default=0) + 1:012d}-{name}"
        move(made, path)
        sync_folder(path.parent)
        return path

    def publish_root(self, made: Path) -> Path:
        """Bring a finished tree to disk and make it the root, durably."""
        self._prepare()
        self.forget()
        with opened(made) as tree:
            sync_file_system(tree)
        move(made, self.root)
        sync_folder(self.folder)
        return self.root

    def note_root(self, basis: str, stamp: int, stop: threading.Event) -> None:
        """Write the index of a root that was just made from the snapshot in folder `basis`."""
        with opened(self.root) as root:
            entries = {entry.path: footprint(entry.found) for entry in walk(root, stop) if entry.kind != "-"}
        with opened(self.folder) as folder:
            write_index(folder, INDEX, Index(basis, stamp, entries))

    def delete(self, name: str) -> None:
        """Delete a snapshot; the index first, if it stands on it: its number may be given to another one."""
        path = self.snapshots().get(name)
        if path is not None:
            index = self.index()
            if index is not None and index.basis == path.name:
                self.forget()
            self._unmake(path)

    def index(self) -> Index | None:
        """The live root's index, if there is one."""
        with suppress(FileNotFoundError), opened(self.folder) as folder:
            return read_index(folder, INDEX)
        return None

    def forget(self) -> None:
        """Remove the index, durably."""
        with suppress(FileNotFoundError):
            (self.folder / INDEX).unlink()
            sync_folder(self.folder)

    def _prepare(self) -> None:
        for folder in (self.folder, self.folder / "snapshots"):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            sync_folder(folder.parent)

    def _unmake(self, path: Path) -> None:
        aside = self._volumes.temporary / f"gone-{self.name}-{path.name}"
        move(path, aside)
        sync_folder(path.parent)
        self._volumes.discard(aside)


def fill(place: Volume, scratch: Path, stamp: int, stop: threading.Event) -> Index:
    """Copy the live root into `scratch`; the root's index, still without its basis."""
    index = place.index()
    basis = None if index is None else place.folder / "snapshots" / index.basis
    if basis not in place.snapshots().values():
        basis = None
    with opened(place.root) as root, opened(scratch) as target:
        if index is None or basis is None:
            copied = copy_tree(root, target, stop)
        else:
            with opened(basis) as old:
                copied = copy_tree(root, target, stop, basis=old, same=index.same)
        dress_folders(target, copied.folders)
    return Index("", stamp, {path: footprint(found) for path, found in copied.steady.items()})


def note(place: Volume, index: Index, path: Path) -> None:
    """Write the index that `fill` gave, now that the snapshot has its name."""
    with opened(place.folder) as folder:
        write_index(folder, INDEX, Index(path.name, index.stamp, index.entries))


def unchanged(place: Volume, name: str, stop: threading.Event) -> bool:
    """Whether the root certainly equals the snapshot."""
    path, index = place.snapshots().get(name), place.index()
    if path is None or index is None or index.basis != path.name or not place.has_root():
        return False
    with opened(place.root) as root:
        return index.covers(root, stop)


def move(path: Path, target: Path) -> None:
    """Rename a folder. Without being root that needs write permission on itself, which its app may have taken away."""
    try:
        path.rename(target)
    except PermissionError:
        mode = path.stat().st_mode
        path.chmod(0o700)
        path.rename(target)
        target.chmod(mode & 0o7777)


def sync_folder(path: Path) -> None:
    """Bring a folder's names to disk."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as folder:
        os.fsync(folder)


_libc = ctypes.CDLL(None, use_errno=True)


def sync_file_system(descriptor: int) -> None:
    """Bring the whole file system to disk: one barrier instead of one per file, and live mappings become clean (index.py)."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
