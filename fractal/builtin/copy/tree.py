"""Trees of files by descriptor: walked, copied and removed without ever following a link.

A volume root belongs to an app, which may have put anything into it; a stream comes from outside. So every name is used
relative to the descriptor of its own folder, with O_NOFOLLOW. Runs in worker threads; raises OSError or BackendError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fractal.api.errors import BackendError

MAX_DEPTH = 200
"""Folders below each other. Each level costs a descriptor; no real app comes near."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_FICLONE = 0x40049409
_PIECE = 1 << 20
_NO_CLONE = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})


class StoppedError(Exception):
    """The work was cancelled; whoever cancelled is not interested in more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a tree."""

    path: bytes
    """Relative, parts joined by `/`; empty for the tree's own folder."""
    folder: int
    """Descriptor of the folder that holds it, valid while the walk stands here."""
    name: bytes
    found: os.stat_result

    @property
    def kind(self) -> str:
        """`D` folder, `F` file, `L` symbolic link, `-` anything else (sockets, pipes, devices: never copied)."""
        mode = self.found.st_mode
        return (
            "D" if stat.S_ISDIR(mode) else "F" if stat.S_ISREG(mode) else "L" if stat.S_ISLNK(mode) else "-"
        )


@contextmanager
def opened(
    name: bytes | str | os.PathLike[str], flags: int = FOLDER, *, below: int | None = None
) -> Iterator[int]:
    """A descriptor for the length of a block."""
    descriptor = os.open(name, flags, 0o600, dir_fd=below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def walk(top: int, stop: threading.Event) -> Iterator[Entry]:
    """Everything in the tree, folders before what is in them, siblings in the order of their names' bytes."""
    found = os.fstat(top)
    yield Entry(b"", top, b".", found)
    yield from _walk(top, b"", found.st_dev, 1, stop)


def _walk(folder: int, before: bytes, device: int, depth: int, stop: threading.Event) -> Iterator[Entry]:
    if depth > MAX_DEPTH:
        raise BackendError(f"{os.fsdecode(before)[:200]}...: folders more than {MAX_DEPTH} deep are not kept")
    with os.scandir(folder) as entries:
        names = sorted(os.fsencode(entry.name) for entry in entries)
    for name in names:
        if stop.is_set():
            raise StoppedError
        try:
            entry = Entry(before + name, folder, name, os.stat(name, dir_fd=folder, follow_symlinks=False))
        except FileNotFoundError:
            continue  # an app that is not paused removed it
        if entry.found.st_dev != device:
            raise BackendError(f"{os.fsdecode(entry.path)}: another file system is mounted here: unmount it")
        yield entry
        if entry.kind == "D":
            with opened(name, below=folder) as below:
                yield from _walk(below, entry.path + b"/", device, depth + 1, stop)


def remove(folder: int, name: bytes | str) -> None:
    """Remove whatever has this name, nothing if there is nothing."""
    waiting = [os.fsencode(name)]
    while waiting:
        _remove(folder, waiting[-1], folder, 0, waiting, len(waiting))


def _remove(folder: int, name: bytes, top: int, depth: int, waiting: list[bytes], turn: int) -> None:
    """Remove one tree. What lies too deep to recurse is first moved up, beside the tree, to wait for its own turn."""
    try:
        with _writable(name, folder) as below:
            with os.scandir(below) as entries:
                inner = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
            for child, is_folder in inner:
                if not is_folder:
                    os.unlink(child, dir_fd=below)
                elif depth < MAX_DEPTH:
                    _remove(below, child, top, depth + 1, waiting, turn)
                else:
                    aside = waiting[0] + b".deep%d" % len(waiting)
                    os.rename(child, aside, src_dir_fd=below, dst_dir_fd=top)
                    waiting.append(aside)
        os.rmdir(name, dir_fd=folder)
    except NotADirectoryError:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    if depth == 0:
        del waiting[turn - 1]


@contextmanager
def _writable(name: bytes | str, folder: int) -> Iterator[int]:
    """A folder that its app may have made unreadable for its owner: us."""
    try:
        descriptor = os.open(name, FOLDER, dir_fd=folder)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=folder)
        descriptor = os.open(name, FOLDER, dir_fd=folder)
    try:
        if os.fstat(descriptor).st_mode & 0o700 != 0o700:
            os.fchmod(descriptor, 0o700)
        yield descriptor
    finally:
        os.close(descriptor)


def copy_content(source: int, target: int, stop: threading.Event) -> None:
    """Make the empty file `target` equal to `source`: shared blocks where the file system can, holes kept."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
    for start, end in extents(source):
        copy_range(source, target, start, end, stop)
    os.ftruncate(target, os.fstat(source).st_size)


def copy_range(source: int, target: int, start: int, end: int, stop: threading.Event) -> None:
    """Copy the bytes from `start` to `end` to the same place."""
    while start < end:
        if stop.is_set():
            raise StoppedError
        data = os.pread(source, min(_PIECE, end - start), start)
        if not data:
            return  # shortened meanwhile; the caller compares
        write_all(target, data, start)
        start += len(data)


def write_all(target: int, data: bytes, offset: int) -> None:
    """All of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        view = view[written:]
        offset += written


def extents(source: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is not a hole."""
    size, end = os.fstat(source).st_size, 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            if error.errno != errno.EINVAL:  # EINVAL: the file system knows no holes
                raise
            start, end = end, size
        yield start, end


def read_attributes(target: int) -> dict[bytes, bytes]:
    """The `user.` extended attributes: all others belong to the machine, not to the app."""
    try:
        names = os.listxattr(target)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EPERM, errno.EACCES}:
            return {}
        raise
    return {
        os.fsencode(name): os.getxattr(target, name) for name in sorted(names) if name.startswith("user.")
    }


def write_attributes(target: int, attributes: dict[bytes, bytes]) -> None:
    """Set them; a file system that has none drops them, as it must when a group's devices differ."""
    for name, value in attributes.items():
        try:
            os.setxattr(target, name, value)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EPERM, errno.EACCES}:
                raise


@dataclass(frozen=True, slots=True)
class Meta:
    """What is kept of a thing beside its content."""

    mode: int
    """Permission bits, 0 to 0o7777."""
    mtime_ns: int
    uid: int
    gid: int

    @classmethod
    def of(cls, found: os.stat_result) -> Meta:
        """The metadata in a `stat` result."""
        return cls(stat.S_IMODE(found.st_mode), found.st_mtime_ns, found.st_uid, found.st_gid)


def dress(target: int, meta: Meta) -> None:
    """Give an open file or folder its owner (only root can), mode and time, in the order that keeps all three."""
    if os.geteuid() == 0:
        os.fchown(target, meta.uid, meta.gid)
    os.fchmod(target, meta.mode)
    os.utime(target, ns=(meta.mtime_ns, meta.mtime_ns))


def make_link(folder: int, name: bytes, target: bytes, meta: Meta) -> None:
    """A symbolic link: it is only ever stored, never followed."""
    os.symlink(target, name, dir_fd=folder)
    if os.geteuid() == 0:
        os.chown(name, meta.uid, meta.gid, dir_fd=folder, follow_symlinks=False)
    os.utime(name, ns=(meta.mtime_ns, meta.mtime_ns), dir_fd=folder, follow_symlinks=False)


class Places:
    """Descriptors of folders below one, each opened from the one above. The last chain stays open for the next use."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._chain: list[tuple[bytes, int]] = []

    def folder(self, parts: tuple[bytes, ...]) -> int:
        """The descriptor of a folder, valid until the next call. Raises OSError where a part is no folder."""
        shared = 0
        while shared < min(len(parts), len(self._chain)) and self._chain[shared][0] == parts[shared]:
            shared += 1
        self._cut(shared)
        for part in parts[shared:]:
            above = self._chain[-1][1] if self._chain else self._top
            self._chain.append((part, os.open(part, FOLDER, dir_fd=above)))
        return self._chain[-1][1] if self._chain else self._top

    def at(self, path: bytes) -> tuple[int, bytes]:
        """(descriptor of the folder, name in it) for a path of the kind `Entry` has."""
        *parts, name = path.split(b"/")
        return self.folder(tuple(parts)), name or b"."

    def close(self) -> None:
        """Close all that is open."""
        self._cut(0)

    def _cut(self, length: int) -> None:
        while len(self._chain) > length:
            os.close(self._chain.pop()[1])
