"""Leaving out of an incremental send stream what the receiver has: pages that equal the parent's.

Between snapshots far apart the kernel sends whole extents, up to 128 MiB, for one page that changed or for a hole that follows, once
it has given up looking for who shares them. The receiver begins with a copy of the parent, so a write of what is there already
does nothing. After each command of the lean stream the receiver's files hold what they would hold after that command of the full one.

That a page equals the parent's is worth something only while the receiver's page is still the parent's. Of each of the
parent's files it is known up to where the stream has changed it (the kernel goes through a file from its start to its end, so a
bound is enough) and how short it was cut. What is not known for certain is sent as it is.

Runs in a worker thread. Only what the kernel itself made goes through here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fractal.api.errors import Corrupt
from fractal.streams.btrfs_send import START, Command, Decoder, Field, Kind, encode
from fractal.streams.replay import Places
from fractal_btrfs.origins import ROOM, Origins

PAGE = 4096
MOST_FILES = 100_000
"""Files of the parent that are kept in mind; those that are changed after so many others are sent as they are."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_MAKING = frozenset(
    {Kind.MAKE_FILE, Kind.MAKE_FOLDER, Kind.MAKE_NODE, Kind.MAKE_FIFO, Kind.MAKE_SOCKET, Kind.MAKE_LINK}
)
_NAMING = _MAKING | {Kind.RENAME, Kind.LINK}


@dataclass(slots=True)
class _Copy:
    """What the receiver has of one of the parent's files: its bytes from `changed` to `end`."""

    changed: int
    end: int


class Lean:
    """`feed` chunks, each of which gives what is left of it, then `finish`; `close` in any case. `parent` is a folder's descriptor."""

    def __init__(self, parent: int, warn: Callable[[str], None], room: int = ROOM) -> None:
        self._decoder = Decoder()
        self._places = Places(parent)
        self._origins = Origins(self._exists, room)
        self._copies: dict[int, _Copy] = {}
        """By inode number in the parent."""
        self._open: tuple[bytes, int, _Copy] | None = None
        """The file that was acted on last: path in the stream, descriptor of the parent's."""
        self._begun = False
        self._warn = warn

    def feed(self, chunk: bytes) -> bytes:
        """What is left of the commands that are complete now. Raises Corrupt."""
        left: list[bytes | memoryview] = [] if self._begun else [START]
        self._begun = True
        for command in self._decoder.feed(chunk):
            left.extend(self._lean(command))
        return b"".join(left)

    def finish(self) -> None:
        """Raises Corrupt unless the stream came to its end."""
        self._decoder.finish()

    def close(self) -> None:
        """Close what was opened."""
        self._close_file()
        self._places.close()

    def _lean(self, command: Command) -> Iterable[bytes | memoryview]:
        kind = command.kind
        if kind is Kind.WRITE:
            return self._written(command)
        if kind is Kind.CLONE:
            self._changed(command.path(), command.offset(Field.OFFSET) + command.offset(Field.CLONE_LENGTH))
        elif kind is Kind.TRUNCATE:
            self._cut(command.path(), command.offset(Field.SIZE))
        elif kind in _NAMING:
            self._close_file()
            self._named(command)
        return (command.raw,)

    def _named(self, command: Command) -> None:
        if command.kind is Kind.RENAME:
            self._origins.led(command.path(), command.path(Field.PATH_TO))
        elif command.kind is Kind.LINK:
            self._origins.led(command.path(Field.PATH_LINK), command.path())
        else:
            self._origins.made(command.path())

    def _changed(self, path: bytes, end: int) -> None:
        if (found := self._file(path)) is not None:
            found[1].changed = max(found[1].changed, end)

    def _cut(self, path: bytes, size: int) -> None:
        if (found := self._file(path)) is not None:
            found[1].end = min(found[1].end, size)

    def _written(self, command: Command) -> Iterable[bytes | memoryview]:
        path, offset, data = command.path(), command.offset(Field.OFFSET), command.data(Field.DATA)
        found = self._file(path)
        if found is None:
            return (command.raw,)
        descriptor, copy = found
        known = copy.changed <= offset < copy.end
        there = self._read(path, descriptor, copy, offset, len(data)) if known else b""
        copy.changed = max(copy.changed, offset + len(data))
        if data == there:
            return ()
        left = [_write(path, offset + start, data[start:end]) for start, end in _differing(data, there)]
        return left if sum(map(len, left)) < len(command.raw) else (command.raw,)

    def _read(self, path: bytes, descriptor: int, copy: _Copy, offset: int, length: int) -> bytes:
        try:
            return os.pread(descriptor, min(length, copy.end - offset), offset)
        except OSError as error:
            self._warn(f"{os.fsdecode(path)!r} is sent without being compared: {error.strerror}")
            copy.end = 0
            return b""

    def _file(self, path: bytes) -> tuple[int, _Copy] | None:
        """The parent's file that the receiver's was a copy of; it stays open for the next command."""
        if self._open is None or self._open[0] != path:
            self._close_file()
            self._open = self._opened(path)
        return None if self._open is None else self._open[1:]

    def _opened(self, path: bytes) -> tuple[bytes, int, _Copy] | None:
        origin = self._origins.of(path)
        if origin is None:
            return None
        try:
            descriptor = self._places.file(origin, _READ)
        except Corrupt:
            return None  # it is no file there
        except OSError as error:
            if error.errno not in _ABSENT:
                # Which file it is stays unknown, and so does what happens to it: it must not be taken for unchanged later, by any name.
                self._origins.forget()
                self._warn(
                    f"from {os.fsdecode(path)!r} on all is sent without being compared: {error.strerror}"
                )
            return None
        info = os.fstat(descriptor)
        copy = self._copies.get(info.st_ino)
        if copy is None and len(self._copies) < MOST_FILES:
            copy = self._copies[info.st_ino] = _Copy(0, info.st_size)
        if copy is None:
            os.close(descriptor)
            return None
        return path, descriptor, copy

    def _close_file(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _exists(self, path: bytes) -> bool:
        """Whether the parent has something there; yes if in doubt."""
        try:
            folder, name = self._places.at(path)
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            return error.errno not in _ABSENT
        return True


def _differing(data: bytes, there: bytes) -> Iterator[tuple[int, int]]:
    """Ranges of pages that are not the same in both, the last page as long as it is."""
    start = -1
    for at in range(0, len(data), PAGE):
        same = data[at : at + PAGE] == there[at : at + PAGE]
        if same and start >= 0:
            yield start, at
            start = -1
        elif not same and start < 0:
            start = at
    if start >= 0:
        yield start, len(data)


def _write(path: bytes, offset: int, data: bytes) -> bytes:
    return encode(
        Kind.WRITE, {Field.PATH: path, Field.OFFSET: offset.to_bytes(8, "little"), Field.DATA: data}
    )
