"""Trees of files for the snapshot suite: planted, altered, and described as plain values. Needs no root."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from hashlib import blake2b
from pathlib import Path

Tree = dict[str, tuple[object, ...]]


def tree(top: Path) -> Tree:
    """Everything below `top`: kind, permissions, modification time and content by path. No link is followed."""
    found: Tree = {}
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = Path(folder, name)
            found[str(path.relative_to(top))] = describe(path)
    return found


def describe(path: Path) -> tuple[object, ...]:
    """Kind, permissions, and what else counts of one thing."""
    info = path.lstat()
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        return "link", str(path.readlink())
    if stat.S_ISDIR(info.st_mode):
        return "folder", mode
    # A digest, as a comparison that fails lays all that differs side by side, which takes minutes for MiB.
    return "file", mode, info.st_mtime_ns, blake2b(path.read_bytes(), digest_size=16).hexdigest()


def plant(root: Path) -> None:
    """A small tree with one of everything."""
    (root / "data").mkdir()
    (root / "data" / "notes.txt").write_bytes(b"first line\n")
    (root / "data" / "empty").touch()
    (root / "data" / "nothing").mkdir()
    (root / "data" / "big.db").write_bytes(bytes(range(256)) * 1024)
    (root / "data" / "script").write_bytes(b"#!/bin/sh\n")
    (root / "data" / "script").chmod(0o750)
    (root / "data" / "latest").symlink_to("notes.txt")
    (root / "data" / "nowhere").symlink_to("/no/such/place")
    (root / "a name with spaces\nand lines").write_bytes(b"odd")
    (root / "-rf").write_bytes(b"dash")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_bytes(b"not utf-8")
    with (root / "sparse").open("wb") as file:
        file.truncate(4 << 20)
        file.seek(3 << 20)
        file.write(b"an island")
    os.utime(root / "data" / "notes.txt", ns=(10**18 + 7, 10**18 + 123456789))


def nothing(_: Path) -> None:
    """Change nothing."""


def alter(root: Path) -> None:
    """Change one of everything in `plant`'s tree."""
    (root / "data" / "notes.txt").write_bytes(b"FIRST line\n")
    with (root / "data" / "big.db").open("r+b") as file:
        file.seek(100_000)
        file.write(b"changed")
    (root / "data" / "empty").unlink()
    (root / "data" / "empty").mkdir()
    (root / "data" / "nothing").rmdir()
    (root / "data" / "nothing").write_bytes(b"something")
    (root / "data" / "script").chmod(0o700)
    (root / "data" / "latest").unlink()
    (root / "data" / "latest").symlink_to("script")
    (root / "-rf").rename(root / "data" / "renamed")
    (root / "new" / "deep" / "er").mkdir(parents=True)
    (root / "new" / "deep" / "er" / "file").write_bytes(b"n" * 5000)
    with (root / "sparse").open("r+b") as file:
        file.truncate(2 << 20)


async def again(*chunks: bytes) -> AsyncIterator[bytes]:
    """A kept stream, once more."""
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


def undo(root: Path) -> None:
    """Some of what `alter` did, back again."""
    (root / "data" / "empty").rmdir()
    (root / "data" / "empty").touch()
    (root / "data" / "nothing").unlink()
    (root / "data" / "nothing").mkdir()
    (root / "data" / "renamed").rename(root / "-rf")
    with (root / "sparse").open("r+b") as file:
        file.truncate(5 << 20)
