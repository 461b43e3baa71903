"""Does what a `btrfs-send/1` stream says, inside one folder and nowhere else: a subvolume on btrfs, a dataset elsewhere.

`btrfs receive` opens the stream's paths as they come, so a stream that makes a symbolic link and writes through it reaches any
file of the machine. Here every folder is opened from the one above without following links, only regular files are opened, and
device nodes arrive without their numbers. Runs in worker threads.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fractal.api.errors import Corrupt
from fractal.streams.btrfs_send import FORMAT, Command, Decoder, Field, Kind

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_STREAMS_FAULT = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.EINVAL,
        errno.ENAMETOOLONG,
        errno.EFBIG,
        errno.EXDEV,
        errno.EBUSY,
        errno.ENODATA,
        errno.EOPNOTSUPP,
        errno.ERANGE,
        errno.E2BIG,
        errno.EPERM,
        errno.EMLINK,
        errno.EOVERFLOW,
    }
)
"""What the kernel says to names and numbers that do not fit the tree; all else is the disk's fault."""


Share = Callable[[int, int, int, int, int], None]
_COPIED = 1 << 20


class Receiver:
    """`feed` any number of chunks, then `finish`; `close` in any case. The tree counts only after `finish`.

    `begin` is called once, with the parent's identity or None, and gives the descriptor of a writable folder: an empty one, or
    a copy of the parent. `parent` is a descriptor of the parent itself. `share` puts a range of a file into another one:
    (source, start, length, target, offset), by copying where the file system cannot let two files have the same blocks.
    """

    def __init__(
        self, begin: Callable[[bytes | None], int], parent: int | None, share: Share | None = None
    ) -> None:
        self._begin = begin
        self._share = copy_range if share is None else share
        self._parent = parent
        self._decoder = Decoder()
        self._places: Places | None = None
        self._open: tuple[bytes, int] | None = None
        self._uuid = b""
        self._parent_uuid: bytes | None = None
        self._transaction = 0

    def feed(self, chunk: bytes) -> None:
        """Act on what is complete. Raises Corrupt, OSError."""
        for command in self._decoder.feed(chunk):
            with _blaming(command):
                self._apply(command)

    def finish(self) -> tuple[bytes, int]:
        """The identity and transaction of the sender's snapshot. Raises Corrupt unless the stream came to its end."""
        self._decoder.finish()
        if self._places is None:
            raise Corrupt(f"{FORMAT} stream: it holds no snapshot")
        self._close_file()
        return self._uuid, self._transaction

    def close(self) -> None:
        """Close all descriptors, but not what `begin` gave."""
        self._close_file()
        if self._places is not None:
            self._places.close()

    def _apply(self, command: Command) -> None:
        if command.kind in {Kind.SUBVOLUME, Kind.SNAPSHOT}:
            self._start(command)
            return
        if self._places is None:
            raise Corrupt(f"{FORMAT} stream: {command.kind.name} before any snapshot")
        if command.kind is Kind.WRITE:
            descriptor = self._file(command.path(), self._places)
            _write(descriptor, command.data(Field.DATA), command.offset(Field.OFFSET))
            return
        self._close_file()
        act = _ACTIONS.get(command.kind)
        if act is not None:
            act(self._places, command)
        elif command.kind is Kind.CLONE:
            self._clone(command, self._places)

    def _start(self, command: Command) -> None:
        if self._places is not None:
            raise Corrupt(f"{FORMAT} stream: it holds two snapshots")
        self._uuid = command.uuid(Field.UUID)
        self._transaction = command.number(Field.TRANSACTION)
        if command.kind is Kind.SNAPSHOT:
            self._parent_uuid = command.uuid(Field.CLONE_UUID)
            if self._parent is None:
                raise Corrupt(
                    f"{FORMAT} stream: it is incremental: name the snapshot that it was made against"
                )
        self._places = Places(self._begin(self._parent_uuid))

    def _clone(self, command: Command, places: Places) -> None:
        """A range shared with another place of this snapshot, or with the parent."""
        uuid, target = command.uuid(Field.CLONE_UUID), self._file(command.path(), places)
        if uuid == self._uuid:
            sources = Places(places.top)
        elif uuid == self._parent_uuid and self._parent is not None:
            sources = Places(self._parent)
        else:
            raise Corrupt(f"{FORMAT} stream: it takes data from a snapshot that was not named")
        try:
            source = sources.file(command.path(Field.CLONE_PATH), _READ)
        finally:
            sources.close()
        try:
            start, length = command.offset(Field.CLONE_OFFSET), command.offset(Field.CLONE_LENGTH)
            self._share(source, start, length, target, command.offset(Field.OFFSET))
        finally:
            os.close(source)

    def _file(self, path: bytes, places: Places) -> int:
        """The file's descriptor; it stays open for the next write."""
        if self._open is None or self._open[0] != path:
            self._close_file()
            self._open = path, places.file(path, _FILE)
        return self._open[1]

    def _close_file(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


class Places:
    """Folders below one, each opened from the one above; the last chain stays open for the next use."""

    def __init__(self, top: int) -> None:
        self.top = top
        self._chain: list[tuple[bytes, int]] = []

    def at(self, path: bytes) -> tuple[int, bytes]:
        """(descriptor of the folder, name in it), valid until the next call. The top's own name is `.`."""
        *parts, name = path.split(b"/")
        shared = 0
        while shared < min(len(parts), len(self._chain)) and self._chain[shared][0] == parts[shared]:
            shared += 1
        self._cut(shared)
        for part in parts[shared:]:
            self._chain.append((part, os.open(part, FOLDER, dir_fd=self._deepest)))
        return self._deepest, name or b"."

    def file(self, path: bytes, flags: int) -> int:
        """Open a regular file, and nothing else: opening a device or a pipe acts."""
        folder, name = self.at(path)
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise Corrupt(f"{FORMAT} stream: {path[:80]!r} is no file")
        return os.open(name, flags, dir_fd=folder)

    def close(self) -> None:
        """Close all that was opened; must be done before a folder is moved or removed."""
        self._cut(0)

    @property
    def _deepest(self) -> int:
        return self._chain[-1][1] if self._chain else self.top

    def _cut(self, length: int) -> None:
        while len(self._chain) > length:
            os.close(self._chain.pop()[1])


def _make_file(places: Places, command: Command) -> None:
    folder, name = places.at(command.path())
    os.close(os.open(name, _CREATE, 0o600, dir_fd=folder))


def _make_folder(places: Places, command: Command) -> None:
    folder, name = places.at(command.path())
    os.mkdir(name, 0o700, dir_fd=folder)


def _make_node(places: Places, command: Command) -> None:
    """Character device 0:0 is how overlays mark what was deleted. Any other device becomes it, too: it could be a disk."""
    kind = {Kind.MAKE_FIFO: stat.S_IFIFO, Kind.MAKE_SOCKET: stat.S_IFSOCK}.get(command.kind, stat.S_IFCHR)
    folder, name = places.at(command.path())
    os.mknod(name, kind | 0o600, 0, dir_fd=folder)


def _make_link(places: Places, command: Command) -> None:
    target = command.data(Field.PATH_LINK)
    if not target or b"\0" in target:
        raise Corrupt(f"{FORMAT} stream: a symbolic link to {target[:80]!r}")
    folder, name = places.at(command.path())
    os.symlink(target, name, dir_fd=folder)


def _rename(places: Places, command: Command) -> None:
    with _elsewhere(places, command.path(Field.PATH_TO)) as (target, target_name):
        folder, name = places.at(command.path())
        os.rename(name, target_name, src_dir_fd=folder, dst_dir_fd=target)
    places.close()


def _link(places: Places, command: Command) -> None:
    with _elsewhere(places, command.path(Field.PATH_LINK)) as (source, source_name):
        folder, name = places.at(command.path())
        os.link(source_name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)


def _unlink(places: Places, command: Command) -> None:
    folder, name = places.at(command.path())
    os.unlink(name, dir_fd=folder)


def _remove_folder(places: Places, command: Command) -> None:
    folder, name = places.at(command.path())
    os.rmdir(name, dir_fd=folder)
    places.close()


def _set_attribute(places: Places, command: Command) -> None:
    name = command.data(Field.NAME)
    os.setxattr(_own_name(places, command), name, command.data(Field.VALUE), follow_symlinks=False)


def _remove_attribute(places: Places, command: Command) -> None:
    name = command.data(Field.NAME)
    try:
        os.removexattr(_own_name(places, command), name, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENODATA:  # a change of owner drops capabilities by itself
            raise


def _own_name(places: Places, command: Command) -> bytes:
    """A path to the thing itself; there is no call that takes a folder's descriptor and an attribute."""
    if b"\0" in command.data(Field.NAME):
        raise Corrupt(f"{FORMAT} stream: an attribute's name with a zero in it")
    folder, name = places.at(command.path())
    return b"/proc/self/fd/%d/%s" % (folder, name)


def _truncate(places: Places, command: Command) -> None:
    descriptor = places.file(command.path(), _FILE)
    try:
        os.ftruncate(descriptor, command.offset(Field.SIZE))
    finally:
        os.close(descriptor)


def _mode(places: Places, command: Command) -> None:
    folder, name = places.at(command.path())
    if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise Corrupt(f"{FORMAT} stream: permissions for a symbolic link")
    os.chmod(name, command.number(Field.MODE) & 0o7777, dir_fd=folder)


def _owner(places: Places, command: Command) -> None:
    uid, gid = command.number(Field.UID), command.number(Field.GID)
    if max(uid, gid) >= (1 << 32) - 1:
        raise Corrupt(f"{FORMAT} stream: owner {uid}:{gid}")
    folder, name = places.at(command.path())
    os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)


def _times(places: Places, command: Command) -> None:
    times = command.time_ns(Field.ACCESSED), command.time_ns(Field.MODIFIED)
    folder, name = places.at(command.path())
    os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)


_ACTIONS: dict[Kind, Callable[[Places, Command], None]] = {
    Kind.MAKE_FILE: _make_file,
    Kind.MAKE_FOLDER: _make_folder,
    Kind.MAKE_NODE: _make_node,
    Kind.MAKE_FIFO: _make_node,
    Kind.MAKE_SOCKET: _make_node,
    Kind.MAKE_LINK: _make_link,
    Kind.RENAME: _rename,
    Kind.LINK: _link,
    Kind.UNLINK: _unlink,
    Kind.REMOVE_FOLDER: _remove_folder,
    Kind.SET_ATTRIBUTE: _set_attribute,
    Kind.REMOVE_ATTRIBUTE: _remove_attribute,
    Kind.TRUNCATE: _truncate,
    Kind.MODE: _mode,
    Kind.OWNER: _owner,
    Kind.TIMES: _times,
}


@contextmanager
def _elsewhere(places: Places, path: bytes) -> Iterator[tuple[int, bytes]]:
    other = Places(places.top)
    try:
        yield other.at(path)
    finally:
        other.close()


def _write(target: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        view = view[written:]
        offset += written


def copy_range(source: int, start: int, length: int, target: int, offset: int) -> None:
    """The range's bytes, holes as zeros. Raises Corrupt if the source ends before it."""
    while length > 0:
        data = os.pread(source, min(_COPIED, length), start)
        if not data:
            raise Corrupt(f"{FORMAT} stream: it takes data from beyond the end of a file")
        _write(target, data, offset)
        start, offset, length = start + len(data), offset + len(data), length - len(data)


@contextmanager
def _blaming(command: Command) -> Iterator[None]:
    """Tell a name that does not fit the tree from a disk that fails."""
    try:
        yield
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno not in _STREAMS_FAULT:
            raise
        path = os.fsdecode(command.fields.get(Field.PATH, b""))[:200]
        reason = error.strerror if isinstance(error, OSError) else error
        raise Corrupt(f"{FORMAT} stream: {command.kind.name} {path!r} cannot be: {reason}") from error
