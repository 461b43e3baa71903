"""What is in a snapshot, by path: the basis of both ends of an incremental stream."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass

from fractal.builtin.copy.tree import Meta, walk


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a snapshot."""

    kind: str
    """`D`, `F` or `L`."""
    meta: Meta
    inode: int
    size: int = 0
    first: bytes = b""
    """For a file: the first path, in walking order, that is a hard link to it; its own path if it has no other."""
    target: bytes = b""
    """Of a symbolic link."""


Survey = dict[bytes, Item]


def survey(top: int, stop: threading.Event) -> Survey:
    """Everything in a snapshot, folders before what is in them."""
    items: Survey = {}
    firsts: dict[int, bytes] = {}
    for entry in walk(top, stop):
        found = entry.found
        match entry.kind:
            case "F":
                first = firsts.setdefault(found.st_ino, entry.path)
                items[entry.path] = Item("F", Meta.of(found), found.st_ino, found.st_size, first=first)
            case "L":
                target = os.readlink(os.fsencode(entry.name), dir_fd=entry.folder)
                items[entry.path] = Item("L", Meta.of(found), found.st_ino, target=target)
            case "D":
                items[entry.path] = Item("D", Meta.of(found), found.st_ino)
    return items


def fingerprint(items: Survey) -> bytes:
    """A hash by which the receiver sees that it has the snapshot that a stream was made against.

    Only what every device keeps: no owners or set-id bits, no fractions of seconds, no folder times. Contents are not read; that they
    fit is what the archive's chain of hashes is for.
    """
    digest = hashlib.blake2b(digest_size=32, person=b"fhs-portable-1")
    for path, item in sorted(items.items()):
        seconds = item.meta.mtime_ns // 10**9 if item.kind == "F" else 0
        mode = item.meta.mode & 0o777 if item.kind != "L" else 0
        for part in (path, f"{item.kind} {mode} {item.size} {seconds}".encode("ascii"), item.target):
            digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()
