"""The blocking half of the `directory` store. Everything here runs in a worker thread and raises OSError or BackendError."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fractal.api.errors import (
    Ambiguous,
    BackendError,
    Conflict,
    Misconfigured,
    NotFound,
    NotSupported,
)
from fractal.api.store import ObjectInfo
from fractal.api.store_files import (
    KNOWN,
    MARK,
    MARK_TEXT,
    OBJECTS,
    TEMPORARY,
    first_folders,
    may_hold,
    object_key,
    object_names,
)

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 16
"""How often a create goes on after somebody's delete pruned the folder that it was about to link into."""


@contextmanager
def opened(path: Path | str, *, below: int | None = None) -> Iterator[int]:
    """Descriptor of a folder; `below` another one, without following a link."""
    # The store's own path may lead over links (a mounted disk often does): only what lies inside is not trusted.
    flags = _FOLDER if below is not None else _FOLDER & ~os.O_NOFOLLOW
    descriptor = os.open(path, flags, dir_fd=below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _chain(path: Path, folders: Sequence[str], *, create: bool = False) -> Iterator[list[int]]:
    """Descriptors from the store's folder over `objects` down to the last of `folders`."""
    descriptors: list[int] = []
    try:
        descriptors.append(os.open(path, _FOLDER & ~os.O_NOFOLLOW))
        descriptors.append(os.open(OBJECTS, _FOLDER, dir_fd=descriptors[-1]))
        for name in folders:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=descriptors[-1])
            descriptors.append(os.open(name, _FOLDER, dir_fd=descriptors[-1]))
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)
"""A second name is impossible here: another file system, another owner, too many names already, none at all."""


def _linked(
    source: Path | str, target: Path | str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
) -> bool:
    try:
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


class Upload:
    """One object being created: `begin`, `write` any number of times, `commit`; always `discard` in the end."""

    def __init__(self, path: Path, parts: tuple[str, ...], name: str) -> None:
        self._path = path
        self._key = "/".join(parts)
        self._folders, self._file = object_names(parts)
        self._name = name
        self._temporary: int | None = None
        self._folder: int | None = None

    def begin(self) -> None:
        """Make the temporary file, locked: a sweep in another process leaves it alone however old it gets."""
        self._refuse_existing()
        self._folder = os.open(self._path / TEMPORARY, _FOLDER)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._temporary = os.open(self._name, flags, 0o600, dir_fd=self._folder)
        fcntl.flock(self._temporary, fcntl.LOCK_EX)

    def adopt(self, source: Path) -> bool:
        """`begin` with a file that is whole already and gets its second name here; False where that cannot be."""
        self._refuse_existing()
        self._folder = os.open(self._path / TEMPORARY, _FOLDER)
        # Locked before it has a name here: it may be old, and a sweep sees nothing that is not locked.
        self._temporary = os.open(source, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(self._temporary, fcntl.LOCK_EX)
        if not _linked(source, self._name, dst_dir_fd=self._folder):
            return False
        found, ours = (
            os.stat(self._name, dir_fd=self._folder, follow_symlinks=False),
            os.fstat(self._temporary),
        )
        if (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino):
            raise BackendError(f"{self._where}: {source} was replaced meanwhile", retryable=True)
        os.fchmod(self._temporary, 0o600)
        return True

    def write(self, data: bytes) -> None:
        """Append `data`."""
        assert self._temporary is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._temporary, view) :]

    def commit(self) -> None:
        """Give the object its name, durably. Raises Conflict, Ambiguous."""
        assert self._temporary is not None
        os.fsync(self._temporary)
        for _ in range(_ATTEMPTS):
            try:
                with _chain(self._path, self._folders, create=True) as chain:
                    self._link(chain[-1])
                    self._settle(chain)
                    return
            except FileNotFoundError:
                self._refuse_lost_temporary()
        raise BackendError(f"{self._where}: its folder is being deleted over and over", retryable=True)

    def discard(self) -> None:
        """Remove the temporary name; the object stays if it was committed."""
        if self._temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._folder)
            os.close(self._temporary)
            self._temporary = None
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    @property
    def _where(self) -> str:
        return f"store directory {self._path}: {self._key}"

    def _refuse_existing(self) -> None:
        with suppress(FileNotFoundError), _chain(self._path, self._folders) as chain:
            os.stat(self._file, dir_fd=chain[-1], follow_symlinks=False)
            raise Conflict(f"{self._where}: exists already")

    def _refuse_lost_temporary(self) -> None:
        assert self._temporary is not None
        if os.fstat(self._temporary).st_nlink == 0:
            raise BackendError(f"{self._where}: somebody removed the unfinished upload", retryable=True)

    def _link(self, folder: int) -> None:
        try:
            os.link(self._name, self._file, src_dir_fd=self._folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            assert self._temporary is not None
            found, ours = os.stat(self._file, dir_fd=folder, follow_symlinks=False), os.fstat(self._temporary)
            # A network file system may repeat a request whose answer was lost: then the name is our own.
            if (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino):
                raise Conflict(f"{self._where}: exists already") from None

    def _settle(self, chain: Sequence[int]) -> None:
        """Bring the name to disk, with every folder above: another process may have made one and not synced it yet."""
        try:
            for descriptor in reversed(chain[1:]):
                os.fsync(descriptor)
        except OSError as error:
            raise Ambiguous(
                f"{self._where}: created, but perhaps not on disk yet: {error.strerror}"
            ) from error


class Reader:
    """One object being read: `open`, `read`, always `close` in the end."""

    def __init__(self, path: Path, parts: tuple[str, ...]) -> None:
        self._path = path
        self._key = "/".join(parts)
        self._folders, self._file = object_names(parts)
        self._descriptor: int | None = None
        self.size = 0
        """Bytes, known once open."""

    def open(self) -> None:
        """Raises NotFound, or BackendError for what is not a plain file."""
        try:
            # O_NONBLOCK: a planted FIFO must not hang the reader.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with _chain(self._path, self._folders) as chain:
                self._descriptor = os.open(self._file, flags, dir_fd=chain[-1])
        except FileNotFoundError as error:
            _refuse_unmounted(self._path)
            raise NotFound(f"store directory {self._path}: no object {self._key}") from error
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BackendError(f"store directory {self._path}: {self._key} is not a plain file: remove it")
        self.size = found.st_size

    def lend(self, target: Path) -> bool:
        """Give the object's file another name; False where that cannot be. Raises NotFound. Needs no `open`."""
        try:
            with _chain(self._path, self._folders) as chain:
                return _linked(self._file, target, src_dir_fd=chain[-1])
        except FileNotFoundError as error:
            _refuse_unmounted(self._path)
            raise NotFound(f"store directory {self._path}: no object {self._key}") from error

    def read(self, offset: int, count: int) -> bytes:
        """1 to `count` bytes from `offset`."""
        assert self._descriptor is not None
        data = os.pread(self._descriptor, count, offset)
        if not data:
            raise BackendError(f"store directory {self._path}: {self._key} was cut short: verify the store")
        return data

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def scan(path: Path, prefix: str) -> list[ObjectInfo]:
    """Every object whose key begins with `prefix`, sorted by key."""
    start = first_folders(prefix)
    found: list[ObjectInfo] = []
    if start is not None:
        try:
            with _chain(path, start) as chain:
                _collect(chain[-1], start, prefix, found)
        except FileNotFoundError:
            _refuse_unmounted(path)
    return sorted(found)


def _collect(folder: int, folders: list[str], prefix: str, found: list[ObjectInfo]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            # A file or folder that was deleted meanwhile is simply not listed.
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    key = object_key(folders, entry.name)
                    if key is not None and key.startswith(prefix):
                        found.append(ObjectInfo(key, entry.stat(follow_symlinks=False).st_size))
                elif entry.is_dir(follow_symlinks=False) and may_hold([*folders, entry.name], prefix):
                    with opened(entry.name, below=folder) as below:
                        _collect(below, [*folders, entry.name], prefix, found)


def delete_object(path: Path, parts: tuple[str, ...]) -> None:
    """Unlink the object durably, then the folders that it leaves empty."""
    folders, file = object_names(parts)
    try:
        with _chain(path, folders) as chain:
            os.unlink(file, dir_fd=chain[-1])
            os.fsync(chain[-1])
            for above, name in zip(reversed(chain[1:-1]), reversed(folders), strict=True):
                os.rmdir(name, dir_fd=above)
    except FileNotFoundError:
        _refuse_unmounted(path)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def prepare(path: Path, name: str) -> None:
    """Make sure that `path` is a store of our version, on a file system that can do what a store needs."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    mark = path / MARK
    if not mark.exists():
        foreign = sorted({entry.name for entry in path.iterdir()} - KNOWN)
        if foreign:
            raise Misconfigured(
                "path", f"{path} is not a store and not empty ({foreign[0]}): choose an empty folder"
            )
        for folder in (OBJECTS, TEMPORARY):
            with suppress(FileExistsError):
                (path / folder).mkdir(mode=0o700)
    _probe(path, name, mark)
    if mark.read_bytes() != MARK_TEXT:
        raise Misconfigured("path", f"{mark} is of another version of the store: upgrade this device")


def _probe(path: Path, name: str, mark: Path) -> None:
    """Write, link, and link again (which must fail), before anybody relies on it."""
    file = path / TEMPORARY / name
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, MARK_TEXT)
        os.fsync(descriptor)
        second = file.with_name(name + "-second")
        try:
            os.link(file, second)
        except OSError as error:
            if error.errno in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                raise NotSupported(
                    f"store directory {path}: the file system has no hard links: use ext4, btrfs, xfs, zfs or NFS"
                ) from error
            raise
        try:
            os.link(file, second)
        except FileExistsError:
            pass
        else:
            raise NotSupported(
                f"store directory {path}: creating a file twice succeeds there: use another file system"
            )
        finally:
            second.unlink()
        with suppress(FileExistsError):
            os.link(file, mark)
        with opened(path) as folder:
            os.fsync(folder)
    finally:
        os.close(descriptor)
        file.unlink()


def sweep(path: Path, before: int) -> list[str]:
    """Remove temporary files last written before `before` (seconds since 1970) whose writer is gone; their names."""
    removed = []
    with opened(path) as root, opened(TEMPORARY, below=root) as folder:
        for name in _names(folder):
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and found.st_mtime < before:
                    with _abandoned(name, folder) as free:
                        if free:
                            os.unlink(name, dir_fd=folder)
                            removed.append(name)
    return removed


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


@contextmanager
def _abandoned(name: str, folder: int) -> Iterator[bool]:
    """Whether nobody writes it; nobody begins to while this lasts."""
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


def _refuse_unmounted(path: Path) -> None:
    """An absent object is no news; an absent store must never look like an empty one."""
    if not (path / MARK).is_file():
        raise BackendError(
            f"store directory {path}: there is no store here: is the disk mounted?", retryable=True
        )
