"""Copies a tree, hard-linking what certainly did not change from the snapshot before."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from fractal.builtin.copy.tree import (
    CREATE,
    READ,
    Entry,
    Meta,
    Places,
    copy_content,
    dress,
    make_link,
    opened,
    read_attributes,
    walk,
    write_attributes,
)

Folders = dict[bytes, tuple[Meta, dict[bytes, bytes]]]
"""What each folder is to look like once nothing more is put into it."""


@dataclass(slots=True)
class Copied:
    """The outcome of `copy_tree`."""

    folders: Folders = field(default_factory=dict)
    steady: dict[bytes, os.stat_result] = field(default_factory=dict)
    """What did not change while it was copied."""


def copy_tree(
    source: int,
    target: int,
    stop: threading.Event,
    *,
    basis: int | None = None,
    same: Callable[[Entry], bool] = lambda _: False,
) -> Copied:
    """Copy `source` into the empty folder `target`; folders get their metadata by `dress_folders` afterwards.

    A file for which `same` is true is hard-linked from the same path below `basis`, a snapshot: never from a live root,
    whose files the app goes on writing. Sockets, pipes and devices are left out.
    """
    result = Copied()
    first_names: dict[int, bytes] = {}
    with closing(Places(target)) as places, closing(Places(source if basis is None else basis)) as old:
        for entry in walk(source, stop):
            folder, name = places.at(entry.path)
            steady = True
            if entry.kind == "D":
                if entry.path:
                    os.mkdir(name, 0o700, dir_fd=folder)
                with opened(entry.name, below=entry.folder) as descriptor:
                    result.folders[entry.path] = Meta.of(entry.found), read_attributes(descriptor)
            elif entry.kind == "L":
                make_link(folder, name, os.readlink(entry.name, dir_fd=entry.folder), Meta.of(entry.found))
            elif entry.kind == "F":
                first = first_names.setdefault(entry.found.st_ino, entry.path)
                if first != entry.path:
                    _link(target, first, folder, name)
                elif not (same(entry) and _reuse(old, entry.path, folder, name)):
                    steady = _copy_file(entry, folder, name, stop)
            else:
                continue
            if steady:
                result.steady[entry.path] = entry.found
    return result


def dress_folders(target: int, folders: Folders) -> None:
    """Give folders their metadata, the deepest first: a folder may become one that cannot be entered any more."""
    with closing(Places(target)) as places:
        for path in sorted(folders, key=lambda path: (path.count(b"/") + bool(path), path), reverse=True):
            meta, attributes = folders[path]
            descriptor = places.folder(tuple(path.split(b"/")) if path else ())
            write_attributes(descriptor, attributes)
            dress(descriptor, meta)


def _link(top: int, first: bytes, folder: int, name: bytes) -> None:
    with closing(Places(top)) as places:
        source, first_name = places.at(first)
        os.link(first_name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)


def _reuse(old: Places, path: bytes, folder: int, name: bytes) -> bool:
    try:
        source, old_name = old.at(path)
        os.link(old_name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        # Too many links, or somebody removed it from the snapshot by hand: a copy is always right.
        if error.errno in {errno.EMLINK, errno.ENOENT, errno.ENOTDIR}:
            return False
        raise
    return True


def _copy_file(entry: Entry, folder: int, name: bytes, stop: threading.Event) -> bool:
    """Copy one file; False if it changed meanwhile, so that the next snapshot copies it again."""
    with opened(entry.name, READ, below=entry.folder) as source, opened(name, CREATE, below=folder) as target:
        copy_content(source, target, stop)
        write_attributes(target, read_attributes(source))
        dress(target, Meta.of(entry.found))
        after = os.fstat(source)
    return footprint(after) == footprint(entry.found)


def footprint(found: os.stat_result) -> tuple[int, int, int, int]:
    """What changes whenever a file's content or metadata do (but see `index.py` on time stamps)."""
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
