"""Makes a tree out of a `portable/1` stream whose bytes may be hostile.

Everything is made new, in an empty folder that nobody else uses yet: files by O_EXCL, every folder reached from the one above
without following links. What is kept from the parent snapshot is hard-linked and never opened for writing.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from fractal.api.errors import Corrupt
from fractal.builtin.copy.copying import Folders, copy_tree, dress_folders
from fractal.builtin.copy.portable import FORMAT, MAX_ATTRIBUTES, Decoder, Record
from fractal.builtin.copy.survey import fingerprint, survey
from fractal.builtin.copy.tree import (
    CREATE,
    READ,
    Meta,
    Places,
    StoppedError,
    copy_content,
    dress,
    make_link,
    opened,
    remove,
    write_all,
    write_attributes,
)

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
        errno.EILSEQ,
        errno.EOVERFLOW,
    }
)
"""What the kernel says to names and numbers that do not fit the tree; all else is the disk's fault."""


class Receiver:
    """`feed` any number of chunks, then `finish`; `close` in any case. The tree counts only after `finish`."""

    @classmethod
    @contextmanager
    def over(cls, top: Path, parent: Path | None, stop: threading.Event) -> Iterator[Receiver]:
        """A receiver into the empty folder `top`, closed in the end."""
        with ExitStack() as stack:
            folder = stack.enter_context(opened(top))
            former = None if parent is None else stack.enter_context(opened(parent))
            receiver = stack.enter_context(closing(cls(folder, former, stop)))
            yield receiver

    def __init__(self, top: int, parent: int | None, stop: threading.Event) -> None:
        self._top = top
        self._parent = parent
        self._stop = stop
        self._decoder = Decoder()
        self._places = Places(top)
        self._former = None if parent is None else Places(parent)
        self._folders: Folders = {}
        self._file: int | None = None
        self._last = Record("S")
        self._attributes: dict[bytes, bytes] = {}

    def feed(self, chunk: bytes) -> None:
        """Act on what is complete. Raises Corrupt, OSError."""
        for record in self._decoder.feed(chunk):
            if self._stop.is_set():
                raise StoppedError
            with _blaming(record):
                self._apply(record)

    def finish(self) -> None:
        """Raises Corrupt unless the stream came to its end."""
        self._decoder.finish()
        with _blaming(self._last):
            dress_folders(self._top, self._folders)

    def close(self) -> None:
        """Close all descriptors."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._places.close()
        if self._former is not None:
            self._former.close()

    def _apply(self, record: Record) -> None:
        if record.kind == "W":
            self._write(record)
            return
        if record.kind == "A":
            self._attribute(record)
            return
        self._end_entry()
        match record.kind:
            case "S":
                self._start(record)
            case "X":
                self._remove(record.path)
            case "D":
                self._folder(record)
            case "F":
                self._create(record)
                assert self._file is not None
                os.ftruncate(self._file, record.number)
            case "P" | "M":
                self._derive(record)
            case "L":
                folder, name = self._vacate(record.path)
                make_link(folder, name, record.data, _meta(record))
            case "H":
                self._hard_link(record)
        self._last = record

    def _start(self, record: Record) -> None:
        if not record.number:
            self._parent = self._former = None
            return
        if self._parent is None:
            raise Corrupt(f"{FORMAT} stream: it is incremental: name the snapshot that it was made against")
        if fingerprint(survey(self._parent, self._stop)) != record.data:
            raise Corrupt(
                f"{FORMAT} stream: it was made against another snapshot than the one given as parent"
            )
        copied = copy_tree(self._parent, self._top, self._stop, basis=self._parent, same=lambda _: True)
        self._folders = copied.folders

    def _write(self, record: Record) -> None:
        if self._file is None or self._last.kind not in {"F", "P"}:
            raise Corrupt(f"{FORMAT} stream: data without a file")
        if record.number + len(record.data) > self._last.number:
            raise Corrupt(f"{FORMAT} stream: data beyond the end of its file")
        write_all(self._file, record.data, record.number)

    def _attribute(self, record: Record) -> None:
        if self._last.kind not in {"D", "F", "P", "M"} or len(self._attributes) >= MAX_ATTRIBUTES:
            raise Corrupt(f"{FORMAT} stream: an attribute that belongs to nothing, or one too many")
        self._attributes[record.path] = record.data

    def _end_entry(self) -> None:
        if self._last.kind == "D":
            self._folders[self._last.path] = _meta(self._last), self._attributes
        elif self._file is not None:
            write_attributes(self._file, self._attributes)
            dress(self._file, _meta(self._last))
            os.close(self._file)
            self._file = None
        self._attributes = {}

    def _remove(self, path: bytes) -> None:
        folder, name = self._places.at(path)
        os.stat(name, dir_fd=folder, follow_symlinks=False)  # what is not there cannot have been the parent's
        remove(folder, name)
        self._places.close()
        for gone in [known for known in self._folders if known == path or known.startswith(path + b"/")]:
            del self._folders[gone]

    def _folder(self, record: Record) -> None:
        folder, name = self._places.at(record.path)
        if record.path and record.path not in self._folders:
            os.mkdir(name, 0o700, dir_fd=folder)

    def _vacate(self, path: bytes) -> tuple[int, bytes]:
        """Folder and name for a new thing, after removing the name of a file or link (never a folder) that was there."""
        folder, name = self._places.at(path)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        return folder, name

    def _create(self, record: Record) -> None:
        folder, name = self._vacate(record.path)
        self._file = os.open(name, CREATE, 0o600, dir_fd=folder)

    def _derive(self, record: Record) -> None:
        """A new file that begins as a copy of the parent's."""
        if self._former is None:
            raise Corrupt(f"{FORMAT} stream: it refers to a parent that it does not have")
        folder, name = self._former.at(record.path)
        with opened(name, READ, below=folder) as former:
            if not stat.S_ISREG(os.fstat(former).st_mode):
                raise Corrupt(f"{FORMAT} stream: {record.path[:80]!r} is no file in the parent")
            self._create(record)
            assert self._file is not None
            copy_content(former, self._file, self._stop)
        if record.kind == "P":
            os.ftruncate(self._file, record.number)

    def _hard_link(self, record: Record) -> None:
        if record.path == record.data:
            raise Corrupt(f"{FORMAT} stream: {record.path[:80]!r} is a link to itself")
        with _chain(self._top, record.data) as (source, source_name):
            if not stat.S_ISREG(os.stat(source_name, dir_fd=source, follow_symlinks=False).st_mode):
                raise Corrupt(
                    f"{FORMAT} stream: {record.data[:80]!r} is not a file, it cannot have a second name"
                )
            folder, name = self._vacate(record.path)
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)


@contextmanager
def _chain(top: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    places = Places(top)
    try:
        yield places.at(path)
    finally:
        places.close()


def _meta(record: Record) -> Meta:
    assert record.meta is not None
    return record.meta


@contextmanager
def _blaming(record: Record) -> Iterator[None]:
    """Tell a name that does not fit the tree from a disk that fails."""
    try:
        yield
    except OSError as error:
        if error.errno not in _STREAMS_FAULT:
            raise
        path = os.fsdecode(record.path)[:200]
        raise Corrupt(f"{FORMAT} stream: {record.kind} {path!r} cannot be: {error.strerror}") from error
