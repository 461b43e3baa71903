"""Turns a snapshot into a `portable/1` stream; with a parent, into what changed since."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Generator, Iterator
from contextlib import closing

from fractal.builtin.copy.portable import DATA, MAGIC, NO_PARENT, Record, encode
from fractal.builtin.copy.survey import Item, Survey, fingerprint, survey
from fractal.builtin.copy.tree import FOLDER, READ, Places, StoppedError, extents, opened, read_attributes

BLOCK = 64 << 10
"""Bytes by which files are compared; a smaller file is sent whole."""
_WINDOW = 1 << 20
_BATCH = 512 << 10


def stream(
    snapshot: os.PathLike[str], parent: os.PathLike[str] | None, stop: threading.Event
) -> Generator[bytes, None, None]:
    """The stream in chunks of at most 1 MiB. Both snapshots must stay while this runs."""
    digest = hashlib.blake2b(MAGIC, digest_size=32)
    pending = bytearray(MAGIC)
    count = 0
    for record in _records(snapshot, parent, stop):
        if stop.is_set():
            raise StoppedError
        data = encode(record)
        digest.update(data)
        count += 1
        pending += data
        if len(pending) >= _BATCH:
            yield bytes(pending)
            pending.clear()
    yield bytes(pending) + encode(Record("E", number=count, data=digest.digest()))


def _records(
    snapshot: os.PathLike[str], parent: os.PathLike[str] | None, stop: threading.Event
) -> Iterator[Record]:
    with opened(snapshot) as top:
        if parent is None:
            yield Record("S", data=NO_PARENT)
            yield from _Difference(top, top, {}, stop).records()
            return
        with opened(parent, FOLDER) as below:
            before = survey(below, stop)
            yield Record("S", number=1, data=fingerprint(before))
            yield from _Difference(top, below, before, stop).records()


class _Difference:
    """The records that lead from one surveyed snapshot to another."""

    def __init__(self, top: int, parent: int, before: Survey, stop: threading.Event) -> None:
        self._new = survey(top, stop)
        self._old = before
        self._top = top
        self._parent = parent
        self._stop = stop
        self._rewritten: set[bytes] = set()

    def records(self) -> Iterator[Record]:
        yield from self._removals()
        with closing(Places(self._top)) as new, closing(Places(self._parent)) as old:
            for path, item in self._new.items():
                if self._stop.is_set():
                    raise StoppedError
                match item.kind:
                    case "D":
                        yield from self._folder(path, item, new, old)
                    case "L":
                        yield from self._link(path, item)
                    case _:
                        yield from self._file(path, item, new, old)

    def _removals(self) -> Iterator[Record]:
        """One X for the topmost of what is gone or has become something else; it is then as if it had never been."""
        gone: bytes | None = None
        kept: Survey = {}
        for path, item in self._old.items():
            if gone is not None and path.startswith(gone + b"/"):
                continue
            if path in self._new and self._new[path].kind == item.kind:
                kept[path] = item
            else:
                gone = path
                yield Record("X", path)
        self._old = kept

    def _folder(self, path: bytes, item: Item, new: Places, old: Places) -> Iterator[Record]:
        attributes = _folder_attributes(new, path)
        known = self._old.get(path)
        if known is None or known.meta != item.meta or _folder_attributes(old, path) != attributes:
            yield Record("D", path, item.meta)
            yield from _attributes(attributes)

    def _link(self, path: bytes, item: Item) -> Iterator[Record]:
        known = self._old.get(path)
        if known is None or (known.target, known.meta) != (item.target, item.meta):
            yield Record("L", path, item.meta, data=item.target)

    def _file(self, path: bytes, item: Item, new: Places, old: Places) -> Iterator[Record]:
        known = self._old.get(path)
        if item.first != path:
            # The receiver's name still leads to the parent's file if the first name was rewritten or is another now.
            if known is None or known.first != item.first or item.first in self._rewritten:
                yield Record("H", path, data=item.first)
            return
        if known is not None and known.first == path and known.inode == item.inode:
            return
        changed = False
        for record in self._content(path, item, known, new, old):
            changed = True
            yield record
        if changed:
            self._rewritten.add(path)

    def _content(
        self, path: bytes, item: Item, known: Item | None, new: Places, old: Places
    ) -> Iterator[Record]:
        """Records for a file of another inode than the parent's; none if it differs in nothing."""
        folder, name = new.at(path)
        with opened(name, READ, below=folder) as file:
            attributes = read_attributes(file)
            if known is None or min(item.size, known.size) < BLOCK:
                if known is not None and _equal_small(file, item, attributes, known, old, path):
                    return
                yield Record("F", path, item.meta, item.size)
                yield from _attributes(attributes)
                yield from _data(file)
                return
            folder, name = old.at(path)
            with opened(name, READ, below=folder) as former:
                blocks = _changed_blocks(file, former)
                first = next(blocks, None)
                same_meta = (known.meta, known.first) == (item.meta, path) and read_attributes(
                    former
                ) == attributes
                if first is None and item.size == known.size:
                    if not same_meta:
                        yield Record("M", path, item.meta)
                        yield from _attributes(attributes)
                    return
                yield Record("P", path, item.meta, item.size)
                yield from _attributes(attributes)
                if first is not None:
                    yield first
                yield from blocks


def _equal_small(
    file: int, item: Item, attributes: dict[bytes, bytes], known: Item, old: Places, path: bytes
) -> bool:
    if (known.meta, known.size, known.first) != (item.meta, item.size, path):
        return False
    folder, name = old.at(path)
    with opened(name, READ, below=folder) as former:
        return read_attributes(former) == attributes and os.pread(file, BLOCK, 0) == os.pread(
            former, BLOCK, 0
        )


def _attributes(attributes: dict[bytes, bytes]) -> Iterator[Record]:
    for name, value in attributes.items():
        yield Record("A", name, data=value)


def _folder_attributes(places: Places, path: bytes) -> dict[bytes, bytes]:
    return read_attributes(places.folder(tuple(path.split(b"/")) if path else ()))


def _data(file: int) -> Iterator[Record]:
    """All that is not a hole."""
    for start, end in extents(file):
        while start < end:
            data = os.pread(file, min(DATA, end - start), start)
            if not data:
                break
            yield Record("W", number=start, data=data)
            start += len(data)


def _changed_blocks(file: int, former: int) -> Iterator[Record]:
    """The blocks in which `file` differs from `former`, beyond whose end are zeros. Neighbours go together."""
    offset = 0
    while window := os.pread(file, _WINDOW, offset):
        other = os.pread(former, len(window), offset).ljust(len(window), b"\0")
        if window != other:
            yield from _changed_in(window, other, offset)
        offset += len(window)


def _changed_in(window: bytes, other: bytes, offset: int) -> Iterator[Record]:
    start = end = 0
    for at in range(0, len(window), BLOCK):
        if window[at : at + BLOCK] == other[at : at + BLOCK]:
            continue
        if at != end or at - start >= DATA:
            if end > start:
                yield Record("W", number=offset + start, data=window[start:end])
            start = at
        end = min(at + BLOCK, len(window))
    if end > start:
        yield Record("W", number=offset + start, data=window[start:end])
