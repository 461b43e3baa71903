"""The spool: one large sealed object on this device's disk, so that a broken upload goes on where it was.

A sender can neither resume nor repeat itself byte for byte. `plan.json` is written last: a spool without it is half-made
and worthless. An object of a few megabytes, as most ticks are, never touches it: after a failure it is sent anew.

    <spool>/out/<epoch>-<snapshot>/plan.json, 0, 1, ...     the object on its way to the store; `done` once its record stands
    <spool>/in/<object id>/0, 1, ...                        objects on their way from the store
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from fractal.api.canonical import decode, encode
from fractal.api.context import Workers
from fractal.api.errors import BackendError, InvalidInput
from fractal.api.plain import from_plain, to_plain
from fractal.archive.records import RecordBody, Segment
from fractal.crypto.stream import SEGMENT

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

CHUNK = 1 << 20
RECENT = 4 << 20
"""Bytes of what was spooled last that stay in memory: an upload that keeps up takes them from there."""
HOLD = 14 << 20
"""Bytes of an object that stay in memory; a larger one goes to the disk from its first byte on."""
_PLAN = "plan.json"
_DONE = "done"
_PLAN_LIMIT = 4 << 20
AHEAD = 64 << 10
"""Bytes that are read of a file at a time at least: what stands in it is small parts, and each costs an opening."""
LAG = 3 * SEGMENT
"""Bytes that an upload may lag behind and still keep up: a store may flush a whole segment at a time."""


class ObjectWriter:
    """Writes an object's bytes as segments. `write` and `finish` block; one call at a time; opens its file anew for each call, so that a call
    that outlives its caller's cancellation harms nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: list[int] = []
        self._hashes: list[hashlib._Hash] = []
        self.written = 0
        self.held: list[bytes] | None = []
        """The whole object, while it is small: what is cheaper to send again than to write twice needs no spool."""
        self._fresh: list[bytes] = []
        """Written, not told yet."""
        self._recent: deque[tuple[int, bytes]] = deque()
        """Where in the object they begin, and the parts that were told last."""
        self._told = 0
        """Bytes of the object that whoever uploads may know of."""
        self._taken = 0
        """Bytes of the object that whoever uploads has asked for."""
        self._news = asyncio.Event()
        self._ended = False

    def write(self, parts: Iterable[bytes]) -> None:
        """The next bytes of the object. Raises BackendError if the disk is full or fails."""
        if self.held is not None:
            self.held.extend(parts)
            if sum(map(len, self.held)) <= HOLD:
                self.written = sum(map(len, self.held))
                return
            parts, self.held, self.written = self.held, None, 0
            begin(self._folder)
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[self._write(view) :]
            self._fresh.append(part)

    def _write(self, view: memoryview) -> int:
        if not self._sizes or self._sizes[-1] == SEGMENT:
            self._sizes.append(0)
            self._hashes.append(hashlib.sha256())
        part = view[: SEGMENT - self._sizes[-1]]
        with _disk_errors(self._folder), self._segment(len(self._sizes) - 1).open("ab", buffering=0) as file:
            written = file.write(part)
        self._hashes[-1].update(part[:written])
        self._sizes[-1] += written
        self.written += written
        return written

    def finish(self, body: Callable[[tuple[Segment, ...]], RecordBody]) -> RecordBody:
        """Write the plan: what the record is going to say.

        Nothing is flushed to the disk: a spool is only believed after every segment's hash was checked (`load_plan`), so
        after a power cut it is either whole or made again.
        """
        if self.held is not None:
            whole = hashlib.sha256()
            for part in self.held:
                whole.update(part)
            return body((Segment(size=self.written, hash=whole.digest()),))
        segments = tuple(
            Segment(size=size, hash=sha.digest()) for size, sha in zip(self._sizes, self._hashes, strict=True)
        )
        plan = body(segments)
        with _disk_errors(self._folder):
            partial = self._folder / "plan.partial"
            partial.write_bytes(encode(to_plain(plan)))
            partial.replace(self._folder / _PLAN)
        return plan

    def tell(self) -> None:
        """From the event loop, between calls of `write`: whoever uploads may have what was written."""
        for part in self._fresh:
            self._recent.append((self._told, part))
            self._told += len(part)
        self._fresh = []
        while self._recent and self._told - self._recent[0][0] > RECENT:
            self._recent.popleft()
        self._news.set()

    def end(self) -> None:
        """From the event loop: nothing more is going to be written."""
        self._ended = True
        self.tell()

    @property
    def kept_up_with(self) -> bool:
        """Whether who uploads lags little behind: the store takes bytes as fast as the processor makes them."""
        return self._told - self._taken <= LAG

    async def begun(self, index: int) -> bool:
        """Wait until there are bytes of segment `index`; False if there are none going to be."""
        return await self._beyond(index * SEGMENT)

    async def complete(self, index: int) -> Path | None:
        """Wait until nothing more is written to segment `index`; its file, None if the object stays in memory.

        The last one is complete only after `end`.
        """
        self._taken = index * SEGMENT
        await self._beyond((index + 1) * SEGMENT - 1)
        return None if self.held is not None else self._segment(index)

    async def segment(self, index: int, workers: Workers) -> AsyncIterator[bytes]:
        """The bytes of a segment as they are written: out of memory, or from the disk for whoever lags behind.

        The last segment ends only after `end`.
        """
        offset, end = index * SEGMENT, (index + 1) * SEGMENT
        while offset < end and await self._beyond(offset):
            part = self._remembered(offset)
            if part is None:
                part = await workers.run(read_at, self._segment(index), offset - index * SEGMENT)
            self._taken = offset
            yield part
            offset += len(part)

    async def _beyond(self, offset: int) -> bool:
        while self._told <= offset:
            if self._ended:
                return False
            self._news.clear()
            await self._news.wait()
        return True

    def _remembered(self, offset: int) -> bytes | None:
        """What follows `offset` up to the end of its part or segment, if it is still in memory."""
        end = (offset // SEGMENT + 1) * SEGMENT
        for start, part in self._recent:
            if start <= offset < start + len(part):
                return part[offset - start : end - start]
        return None

    def _segment(self, index: int) -> Path:
        return self._folder / str(index)


class SegmentsReader:
    """Reads spooled segments as one run of bytes; opens each only while it is read, and reads somewhat ahead. Blocking."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._index = 0
        self._offset = 0
        self._ahead = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes, b"" at the end."""
        while not self._ahead and self._index < self._count:
            wanted = max(size, AHEAD)
            with _disk_errors(self._folder), (self._folder / str(self._index)).open("rb") as file:
                file.seek(self._offset)
                self._ahead = file.read(wanted)
            self._offset += len(self._ahead)
            if len(self._ahead) < wanted:  # that was its end
                self._index, self._offset = self._index + 1, 0
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data


def begin(folder: Path) -> None:
    """An empty folder for a new object."""
    with _disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)


def load_plan(folder: Path) -> RecordBody | None:
    """The plan of an object that is whole here; None if there is none, or if anything about it is not right."""
    try:
        plan = from_plain(RecordBody, decode((folder / _PLAN).read_bytes(), limit=_PLAN_LIMIT))
    except (FileNotFoundError, InvalidInput):
        return None
    except OSError as error:
        raise _failed(folder, error) from error
    return plan if all(holds(folder, i, s) for i, s in enumerate(plan.object.segments)) else None


def mark_done(folder: Path, number: int) -> None:
    """The object's record stands under `number`: its bytes may go, the fact stays until another snapshot is written."""
    with _disk_errors(folder):
        partial = folder / "done.partial"
        partial.write_text(str(number))
        _sync(partial)
        partial.replace(folder / _DONE)
        _sync(folder)
        for path in folder.iterdir():
            if path.name != _DONE:
                path.unlink()


def done_as(folder: Path) -> int | None:
    """The number under which the object's record stands; None if it is not known to."""
    try:
        text = (folder / _DONE).read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(folder, error) from error
    return int(text) if text.isdecimal() else None


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Delete every object in `folder` but those: the others are done with, or were given up."""
    try:
        with os.scandir(folder) as found:
            others = [entry.name for entry in found if entry.name not in names]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _failed(folder, error) from error
    for name in others:
        discard(folder / name)


def holds(folder: Path, index: int, segment: Segment) -> bool:
    """Whether a segment is here, whole and undamaged."""
    path = folder / str(index)
    try:
        if path.stat().st_size != segment.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == segment.hash
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _failed(path, error) from error


def room_for(folder: Path, index: int) -> Path:
    """Where segment `index` goes: nothing is there, and nothing is written through a name that was given to another file."""
    path = folder / str(index)
    with _disk_errors(path):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    return path


def read_at(path: Path, offset: int) -> bytes:
    """At most `CHUNK` bytes."""
    with _disk_errors(path), path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK)


def append(path: Path, data: bytes, at: int) -> None:
    """Write `data` at the end of a file that has `at` bytes; 0 makes it anew, in a folder that there is (`room_for`)."""
    with _disk_errors(path), path.open("ab" if at else "wb") as file:
        file.write(data)


async def to_its_end(workers: Workers, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
    """Run a function that writes; when cancelled, wait until its thread is done with the file before giving way."""
    task = asyncio.create_task(workers.run(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def discard(folder: Path) -> None:
    """Delete an object's folder; nothing if it is absent."""
    shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failed(path, error) from error


def _failed(path: Path, error: OSError) -> BackendError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "free some space on the device" if full else "check the disk and the folder's permissions"
    return BackendError(f"spool {path}: {error.strerror or error}: {advice}", retryable=True)
