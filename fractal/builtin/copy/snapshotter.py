"""The `copy` snapshotter: works on any file system with hard links, without root, at the cost of reading what changed.

    <path>/volumes/<volume>/root/                        the writable root
    <path>/volumes/<volume>/snapshots/<number>-<name>/   snapshots, numbered in the order they were made
    <path>/volumes/<volume>/index                        see index.py
    <path>/tmp/                                          being made or removed; emptied at open

Whatever has its final name is whole: it was made below `tmp`, brought to disk and renamed. A file that did not change since
the snapshot before is one file with two names; a file that did is shared block by block where the file system can
(reflink), else copied. The agent pauses the app meanwhile (`SnapshotBackend.instant` is False).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.errors import Conflict, Misconfigured, NotFound, NotSupported
from fractal.api.names import check_name
from fractal.api.snapshot import Snapshot, Snapshotter, Usage
from fractal.builtin.blocking import explain, finish
from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.copy.portable import FORMAT
from fractal.builtin.copy.receive import Receiver
from fractal.builtin.copy.send import stream
from fractal.builtin.copy.volumes import Volume, Volumes, fill, note, unchanged

T = TypeVar("T")

_TICKS = 20
_TICK = 0.004
"""Seconds; the kernel stamps files by a clock of 1 to 10 ms."""


class CopySnapshotter(Snapshotter):
    """A `Snapshotter` over plain folders. Open it by `open_copy`."""

    def __init__(self, context: Context, volumes: Volumes) -> None:
        self._context = context
        self._volumes = volumes

    @property
    def format(self) -> str:
        """`portable/1`."""
        return FORMAT

    @property
    def receives(self) -> frozenset[str]:
        """Only `portable/1`."""
        return frozenset({FORMAT})

    async def create_root(self, volume: str) -> Path:
        """An empty writable root, or the one that is there."""
        return await self._do(volume, self._volume(volume).create_root)

    async def root(self, volume: str) -> Path | None:
        """The writable root, None if there is none."""
        place = self._volume(volume)
        return place.root if place.has_root() else None

    async def delete_root(self, volume: str) -> None:
        """Delete the root; gone at once, its blocks are freed after."""
        await self._do(volume, self._volume(volume).delete_root)

    async def set_aside(self, volume: str, name: str) -> None:
        """Rename the root to a snapshot."""
        check_name(name, "snapshot")
        await self._do(volume, self._volume(volume).set_aside, name)

    async def snapshot(self, volume: str, name: str) -> Snapshot:
        """Copy what changed since the last snapshot, link the rest. The app must not write meanwhile."""
        place = self._volume(volume)
        place.refuse_existing(name)
        if not place.has_root():
            raise NotFound(f"snapshot copy: volume {volume} has no root")
        stamp = await self._stamp()
        stop = threading.Event()
        async with self._scratch() as scratch:
            index = await self._do(volume, fill, place, scratch, stamp, stop, stop=stop)
            path = await self._do(volume, place.publish, scratch, name)
            await self._do(volume, note, place, index, path)
        return Snapshot(volume=volume, name=name, path=path)

    async def snapshots(self, volume: str) -> Sequence[Snapshot]:
        """Complete snapshots, oldest first."""
        place = self._volume(volume)
        return [Snapshot(volume=volume, name=name, path=path) for name, path in place.snapshots().items()]

    async def volumes(self) -> Sequence[str]:
        """Every volume that has a root or a snapshot."""
        return await self._do("(all)", self._volumes.names)

    async def delete(self, volume: str, name: str) -> None:
        """Delete a snapshot; files that others share stay theirs."""
        check_name(name, "snapshot")
        await self._do(volume, self._volume(volume).delete, name)

    async def send(self, volume: str, name: str, parent: str | None = None) -> AsyncIterator[bytes]:
        """The snapshot as `portable/1`. Of a large file with a parent only blocks of 64 KiB that differ are sent."""
        place = self._volume(volume)
        stop = threading.Event()
        chunks = stream(place.path_of(name), None if parent is None else place.path_of(parent), stop)
        try:
            while (chunk := await self._do(volume, next, chunks, b"", stop=stop)) != b"":
                yield chunk
        finally:
            chunks.close()

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        """Make a snapshot out of a stream, in a scratch folder until it is whole and on disk."""
        if stream_format != FORMAT:
            raise NotSupported(f"snapshot copy: cannot receive {stream_format!r}, only {FORMAT}")
        place = self._volume(volume)
        place.refuse_existing(name)
        base = None if parent is None else place.path_of(parent)
        stop = threading.Event()
        async with self._scratch() as scratch:
            with Receiver.over(scratch, base, stop) as receiver:
                async for chunk in chunks:
                    await self._do(volume, receiver.feed, chunk, stop=stop)
                await self._do(volume, receiver.finish, stop=stop)
            path = await self._do(volume, place.publish, scratch, name)
        return Snapshot(volume=volume, name=name, path=path)

    async def checkout(self, volume: str, name: str) -> Path:
        """Copy a snapshot to be the root; O(1) per file where the file system shares blocks."""
        return await self.clone(volume, name, volume)

    async def clone(self, volume: str, name: str, target: str) -> Path:
        """Copy a snapshot to be the root of another volume, sharing blocks where the file system can."""
        source, place = self._volume(volume).path_of(name), self._volume(target)
        if place.has_root():
            raise Conflict(f"snapshot copy: volume {target} has a root already: set it aside first")
        stop = threading.Event()
        async with self._scratch() as scratch:
            await self._do(target, self._volumes.copy, source, scratch, stop, stop=stop)
            root = await self._do(target, place.publish_root, scratch)
        if target == volume:
            # Nobody writes before this returns, so a stamp taken now covers everything in the new root.
            await self._do(target, place.note_root, source.name, await self._stamp(), stop, stop=stop)
        return root

    async def unchanged(self, volume: str, name: str) -> bool:
        """Compare the root's time stamps with those at the snapshot; reads no contents."""
        check_name(name, "snapshot")
        stop = threading.Event()
        return await self._do(volume, unchanged, self._volume(volume), name, stop, stop=stop)

    async def usage(self) -> Usage:
        """Room on the file system below."""
        usage = await self._do("(usage)", shutil.disk_usage, self._volumes.path)
        return Usage(total=usage.total, free=usage.free)

    async def sweep(self) -> None:
        """Remove what a killed process left half-made."""
        await self._do("leftovers", self._volumes.sweep)

    def _volume(self, volume: str) -> Volume:
        check_name(volume, "volume")
        return Volume(self._volumes, volume)

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        """An empty folder; removed in the end unless it was published."""
        path = self._volumes.temporary / self._context.entropy.bytes(12).hex()
        try:
            await self._do("scratch", path.mkdir, 0o700)
            yield path
        finally:
            await self._do("scratch", self._volumes.discard, path)

    async def _stamp(self) -> int:
        """The file system's time, later than the stamp of any write that has ended. 0, trusting nothing, if it stands."""
        before = await self._do("(clock)", self._volumes.touch)
        for _ in range(_TICKS):
            await self._context.clock.sleep(_TICK)
            now = await self._do("(clock)", self._volumes.touch)
            if now > before:
                return now
        return 0

    async def _do(
        self,
        what: str,
        function: Callable[..., T],
        /,
        *arguments: object,
        stop: threading.Event | None = None,
    ) -> T:
        try:
            return await finish(self._context.workers, function, *arguments, stop=stop)
        except OSError as error:
            name = error.filename if isinstance(error.filename, str | bytes) else ""
            where = f"{what}: {os.fsdecode(name)}" if name else what
            raise explain(f"snapshot copy: {where}", error) from error


@asynccontextmanager
async def open_copy(context: Context, config: CopyConfig) -> AsyncIterator[CopySnapshotter]:
    """Open the folder for this process alone, and remove what a killed one left half-made."""
    path = config.path or context.state_dir / "copy"
    if not path.is_absolute():
        raise Misconfigured("path", f"{path} must be absolute")
    volumes = Volumes(path, context.logger)
    try:
        lock = await finish(context.workers, volumes.lock)
    except OSError as error:
        raise explain(f"snapshot copy: {path}", error) from error
    try:
        snapshotter = CopySnapshotter(context, volumes)
        await snapshotter.sweep()
        yield snapshotter
    finally:
        os.close(lock)


async def probe_copy(config: CopyConfig) -> Probe:
    """Whether the folder can be used, without touching it."""
    await asyncio.sleep(0)
    if config.path is None:
        return Probe(ready=True, detail="copies in the agent's state folder")
    path = config.path if config.path.exists() else config.path.parent
    if not (path.is_dir() and os.access(path, os.R_OK | os.W_OK | os.X_OK)):
        return Probe(
            ready=False, detail=f"{path} is no writable folder: make it, or check its owner and mode"
        )
    return Probe(ready=True, detail=f"copies in {config.path}")
