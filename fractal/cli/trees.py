"""Looking into the folder of a moment and copying out of it. What is in there is an app's, so it may be anything.

No symbolic link of it is ever followed, neither on the way to a path nor below it; what is copied gets no owner, no set-id
bits and no device nodes; names are shown with nothing in them that a terminal obeys.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fractal.api.errors import Conflict, Denied, InvalidInput, NotFound

CHUNK = 1 << 20
DEEPEST = 200
"""Folders inside each other that are walked."""


@dataclass(frozen=True, slots=True)
class Item:
    """One name in a moment."""

    path: str
    """Below the folder that was asked for."""
    kind: str
    """`file`, `folder`, `link` or `special`."""
    size: int
    mtime_ns: int
    mode: int
    target: str = ""
    """Of a link, as it stands there."""


def entries(root: Path, path: str) -> list[Item]:
    """What a folder of a moment holds, or the one file that `path` names, by name. Raises NotFound, Denied, InvalidInput."""
    with _parent(root, path) as (parent, name):
        if name and _item(parent, name, name).kind != "folder":
            return [_item(parent, name, name)]
        with _folder(parent, name) as folder:
            return [_item(folder, n, n) for n in _names(folder)]


def walk(root: Path, path: str = "") -> Iterator[Item]:
    """Everything below a folder of a moment, folders before what is in them, by name."""
    with _parent(root, path) as (parent, name), _folder(parent, name) as folder:
        yield from _walk(folder, "", DEEPEST)


def copy_out(root: Path, path: str, target: Path) -> tuple[int, list[str]]:
    """Copy a file, link or folder to `target`, which must not exist: how many files, and what could not be copied.

    Into it, if `target` is a folder. Raises NotFound, Denied, Conflict, InvalidInput.
    """
    with _parent(root, path) as (parent, name):
        if target.is_dir():
            target = target / (name or "snapshot")
        if os.path.lexists(target):
            raise Conflict(f"{target} exists: name another place, nothing is overwritten")
        left: list[str] = []
        try:
            count = _copy(parent, name, target, left, DEEPEST)
        except OSError as error:
            raise _said(error, target) from error
        return count, left


def differences(before: Path, after: Path, path: str = "") -> Iterator[tuple[str, Item]]:
    """What was `added`, `removed` or `changed` between two moments. A file of the same size and time counts as the same."""
    old, new = ({i.path: i for i in _walk_or_nothing(root, path)} for root in (before, after))
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield "added", new[name]
        elif name not in new:
            yield "removed", old[name]
        elif _differs(old[name], new[name]):
            yield "changed", new[name]


# --- details ----------------------------------------------------------------------------------------------------------


def _walk_or_nothing(root: Path, path: str) -> Iterator[Item]:
    try:
        yield from walk(root, path)
    except NotFound:
        return


def _differs(old: Item, new: Item) -> bool:
    if old.kind == new.kind == "folder":
        return old.mode != new.mode
    return (old.kind, old.size, old.mtime_ns, old.mode, old.target) != (
        new.kind,
        new.size,
        new.mtime_ns,
        new.mode,
        new.target,
    )


def _walk(folder: int, above: str, deep: int) -> Iterator[Item]:
    if not deep:
        raise InvalidInput(f"{above}: more than {DEEPEST} folders inside each other")
    for name in _names(folder):
        item = _item(folder, name, f"{above}{name}")
        yield item
        if item.kind == "folder":
            with _folder(folder, name) as inner:
                yield from _walk(inner, f"{above}{name}/", deep - 1)


@contextmanager
def _parent(root: Path, path: str) -> Iterator[tuple[int, str]]:
    """The folder that holds what `path` names, opened link by link, and its last name; "" for the root itself."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise InvalidInput(f"{path!r} is no path inside the app's data")
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _said(error, root) from error
    try:
        for part in parts[:-1]:
            inner = _open_folder(folder, part, path)
            os.close(folder)
            folder = inner
        yield folder, parts[-1] if parts else ""
    finally:
        os.close(folder)


@contextmanager
def _folder(parent: int, name: str) -> Iterator[int]:
    folder = _open_folder(parent, name, name) if name else os.dup(parent)
    try:
        yield folder
    finally:
        os.close(folder)


def _open_folder(parent: int, name: str, path: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        raise _said(error, path) from error


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as found:
        return sorted(entry.name for entry in found)


def _item(folder: int, name: str, path: str) -> Item:
    try:
        found = os.lstat(name, dir_fd=folder)
        kind = _kind(found.st_mode)
        target = os.readlink(name, dir_fd=folder) if kind == "link" else ""
    except OSError as error:
        raise _said(error, path) from error
    size = found.st_size if kind == "file" else 0
    return Item(path, kind, size, found.st_mtime_ns, stat.S_IMODE(found.st_mode), target)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "special"


def _copy(parent: int, name: str, target: Path, left: list[str], deep: int) -> int:
    """Copy one thing to a place that does not exist; its folders are made here, so nothing in them leads elsewhere."""
    if not deep:
        raise InvalidInput(f"{target}: more than {DEEPEST} folders inside each other")
    item = _item(parent, name, name) if name else None
    if item is None or item.kind == "folder":
        target.mkdir()
        with _folder(parent, name) as folder:
            count = sum(_copy(folder, n, target / n, left, deep - 1) for n in _names(folder))
        if item is not None:
            os.utime(target, ns=(item.mtime_ns, item.mtime_ns))
        return count
    if item.kind == "link":
        target.symlink_to(item.target)
    elif item.kind == "file":
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
        with os.fdopen(source, "rb") as reading, target.open("xb") as writing:
            shutil.copyfileobj(reading, writing, CHUNK)
        target.chmod(item.mode & 0o777)
        os.utime(target, ns=(item.mtime_ns, item.mtime_ns))
    else:
        left.append(str(target))
        return 0
    return 1


def _said(error: OSError, path: object) -> Exception:
    if isinstance(error, PermissionError):
        return Denied(f"{path}: only the user of the agent may read it: run the command as that user")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{path}: there is no such file in this moment")
    return InvalidInput(f"{path}: {error.strerror or error}")
