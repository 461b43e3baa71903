"""The index of a live root: what it looked like when it last equalled a snapshot, so that the rest need not be read again.

A file is taken as unchanged if inode, size, mtime and ctime are those of the index, *and* its ctime lies before the
index's `stamp`, the file system's own time when the snapshot began. Without the second rule a write in the same clock tick
as the copy would go unseen for ever (git's "racy" entries). A page of a shared mapping that stays dirty can be
written without a new time stamp; the snapshotter therefore brings the file system to disk before the app goes on, after which the
next write takes a fault and stamps the file. (A tmpfs never stamps such writes; nothing durable lives there.)

The index only saves work: without it, or where it does not fit, everything is copied.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass

from fractal.builtin.copy.copying import footprint
from fractal.builtin.copy.tree import Entry, opened, walk

Footprint = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Index:
    """The live root as of a snapshot."""

    basis: str
    """Folder name of the snapshot that the root equalled."""
    stamp: int
    """Nanoseconds of the file system's clock."""
    entries: dict[bytes, Footprint]

    def same(self, entry: Entry) -> bool:
        """Whether the entry is certainly what the basis holds at its path."""
        return self.entries.get(entry.path) == footprint(entry.found) and entry.found.st_ctime_ns < self.stamp

    def covers(self, root: int, stop: threading.Event) -> bool:
        """Whether the whole root is certainly what the basis holds."""
        seen = 0
        for entry in walk(root, stop):
            if entry.kind != "-":
                if not self.same(entry):
                    return False
                seen += 1
        return seen == len(self.entries)


def write_index(folder: int, name: str, index: Index) -> None:
    """Replace the index file in one step."""
    entries = {os.fsdecode(path): value for path, value in index.entries.items()}
    data = json.dumps({"basis": index.basis, "stamp": index.stamp, "entries": entries}).encode("ascii")
    temporary = f"{name}.new"
    with opened(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, below=folder
    ) as file:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write(data)
        os.fsync(file)
    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


def read_index(folder: int, name: str) -> Index | None:
    """The index, None if there is none or it is damaged."""
    try:
        with (
            opened(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, below=folder) as file,
            os.fdopen(os.dup(file), "rb") as reader,
        ):
            plain = json.loads(reader.read())
        entries = {os.fsencode(path): _footprint(value) for path, value in plain["entries"].items()}
        return Index(str(plain["basis"]), int(plain["stamp"]), entries)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _footprint(value: list[int]) -> Footprint:
    inode, size, mtime, ctime = value
    return inode, size, mtime, ctime
