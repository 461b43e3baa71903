"""The `btrfs` snapshotter: subvolumes by the kernel's ioctls, streams by its own send and by `replay`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import TypeVar

from fractal.api.context import Context
from fractal.api.errors import Corrupt, NotSupported
from fractal.api.names import check_name
from fractal.api.snapshot import Snapshot, Snapshotter, Usage
from fractal.streams.btrfs_send import FORMAT
from fractal.streams.replay import FOLDER, Receiver
from fractal_btrfs import ioctls
from fractal_btrfs.blocking import explained, in_worker, opened
from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.lean import Lean
from fractal_btrfs.pool import Place, open_place
from fractal_btrfs.sending import sent
from fractal_btrfs.volumes import Volume, Volumes, delete_subvolume

T = TypeVar("T")
_LOOK_EVERY = 16 << 20
"""Bytes received between looks at the free space."""


class BtrfsSnapshotter(Snapshotter):
    """A `Snapshotter` over subvolumes. Open it by `open_btrfs`."""

    def __init__(self, context: Context, place: Place, volumes: Volumes) -> None:
        self._context = context
        self._place = place
        self._volumes = volumes

    @property
    def format(self) -> str:
        """`btrfs-send/1`."""
        return FORMAT

    @property
    def receives(self) -> frozenset[str]:
        """Only `btrfs-send/1`."""
        return frozenset({FORMAT})

    async def create_root(self, volume: str) -> Path:
        """An empty subvolume, or the one that is there."""
        return await self._do(volume, self._volume(volume).create_root, self._token())

    async def root(self, volume: str) -> Path | None:
        """The writable root, None if there is none."""
        place = self._volume(volume)
        return place.root if await self._do(volume, place.has_root) else None

    async def delete_root(self, volume: str) -> None:
        """Delete the root."""
        await self._do(volume, self._volume(volume).delete_root)

    async def set_aside(self, volume: str, name: str) -> None:
        """Make the root itself a snapshot."""
        check_name(name, "snapshot")
        await self._do(volume, self._volume(volume).set_aside, name)

    async def snapshot(self, volume: str, name: str) -> Snapshot:
        """A read-only snapshot by the kernel: atomic while the app writes."""
        check_name(name, "snapshot")
        path = await self._do(volume, self._volume(volume).snapshot, name)
        return Snapshot(volume=volume, name=name, path=path)

    async def snapshots(self, volume: str) -> Sequence[Snapshot]:
        """Complete snapshots, oldest first."""
        found = await self._do(volume, self._volume(volume).snapshots)
        return [Snapshot(volume=volume, name=name, path=path) for name, path in found.items()]

    async def volumes(self) -> Sequence[str]:
        """Every volume that has a root or a snapshot."""
        return await self._do("(all)", self._volumes.names)

    async def delete(self, volume: str, name: str) -> None:
        """Delete a snapshot."""
        check_name(name, "snapshot")
        await self._do(volume, self._volume(volume).delete, name)

    async def send(self, volume: str, name: str, parent: str | None = None) -> AsyncGenerator[bytes, None]:
        """What the kernel's `send` gives. Not repeatable byte for byte."""
        place = self._volume(volume)
        check_name(name, "snapshot")
        if parent is not None:
            check_name(parent, "snapshot")
        try:
            with opened(place.path_of(name)) as snapshot:
                number = None if parent is None else _id(place.path_of(parent))
                async with aclosing(sent(snapshot, number)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        except OSError as error:
            raise explained(f"{volume}: sending {name}", error) from error

    async def send_lean(self, volume: str, name: str, parent: str) -> AsyncGenerator[bytes, None]:
        """Without the pages that equal the parent's, of which the kernel's `send` has many when the two are far apart."""
        place = self._volume(volume)
        check_name(name, "snapshot")
        check_name(parent, "snapshot")
        what = f"{volume}: sending {name}"

        def warn(problem: str) -> None:
            self._context.logger.warning("snapshot btrfs: %s: %s", what, problem)

        try:
            with ExitStack() as stack:
                snapshot, before = (stack.enter_context(opened(place.path_of(n))) for n in (name, parent))
                lean = stack.enter_context(closing(Lean(before, warn)))
                async with aclosing(sent(snapshot, ioctls.describe(before).id, lean)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        except OSError as error:
            raise explained(what, error) from error

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        """Replay a stream in a subvolume of its own, which becomes a snapshot when it is whole and on disk."""
        check_name(name, "snapshot")
        place = self._volume(volume)
        if stream_format != FORMAT:
            raise NotSupported(f"snapshot btrfs: cannot receive {stream_format!r}, only {FORMAT}")
        place.refuse_existing(name)
        base = None if parent is None else place.path_of(parent)
        scratch = place.scratch(self._token())
        with ExitStack() as stack:
            former = None if base is None else stack.enter_context(opened(base))
            begin = _Beginning(scratch, former)
            stack.callback(begin.close)
            receiver = stack.enter_context(closing(Receiver(begin, former, ioctls.share)))
            try:
                await self._fed(volume, receiver, chunks)
                uuid, transaction = await self._do(volume, receiver.finish)
                path = await self._do(volume, place.publish, scratch, name, uuid, transaction)
            except BaseException:
                await self._discard(volume, scratch)
                raise
        return Snapshot(volume=volume, name=name, path=path)

    async def checkout(self, volume: str, name: str) -> Path:
        """A writable snapshot of a snapshot."""
        return await self.clone(volume, name, volume)

    async def clone(self, volume: str, name: str, target: str) -> Path:
        """A writable snapshot of a snapshot, as the root of another volume."""
        check_name(name, "snapshot")
        source, place = self._volume(volume), self._volume(target)
        return await self._do(target, lambda: place.checkout(source.path_of(name)))

    async def unchanged(self, volume: str, name: str) -> bool:
        """Compare the root's last transaction with the snapshot's. Reads no file."""
        check_name(name, "snapshot")
        return await self._do(volume, self._volume(volume).unchanged, name)

    async def usage(self) -> Usage:
        """Room on the file system, and what a pool may still grow by."""
        return await self._do("(usage)", self._place.usage)

    def _volume(self, volume: str) -> Volume:
        check_name(volume, "volume")
        return Volume(self._volumes, volume)

    def _token(self) -> str:
        return self._context.entropy.bytes(12).hex()

    async def _fed(self, volume: str, receiver: Receiver, chunks: AsyncIterator[bytes]) -> None:
        since = 0
        await self._place.make_room()
        async for chunk in chunks:
            await self._do(volume, receiver.feed, chunk)
            since += len(chunk)
            if since >= _LOOK_EVERY:
                since = 0
                await self._place.make_room()

    async def _discard(self, volume: str, scratch: Path) -> None:
        """A partial tree is never left to be taken for a snapshot: it has another name, and it is deleted."""
        await self._do(volume, _delete_if_there, scratch)

    async def _do(self, what: str, function: Callable[..., T], /, *arguments: object) -> T:
        return await in_worker(self._context.workers, what, function, *arguments)


class _Beginning:
    """Makes the subvolume that a stream is replayed in, when the stream has said what kind it is."""

    def __init__(self, scratch: Path, parent: int | None) -> None:
        self._scratch = scratch
        self._parent = parent
        self._made: int | None = None

    def __call__(self, identity: bytes | None) -> int:
        with opened(self._scratch.parent) as folder:
            if identity is None:
                ioctls.create(folder, self._scratch.name)
            else:
                assert self._parent is not None
                parent = ioctls.describe(self._parent)
                if identity not in {parent.uuid, parent.received_uuid}:
                    raise Corrupt(
                        f"{FORMAT} stream: it was made against another snapshot than the one given as parent"
                    )
                ioctls.snapshot(folder, self._scratch.name, self._parent, read_only=False)
        self._made = os.open(self._scratch, FOLDER)
        return self._made

    def close(self) -> None:
        """Close what was opened."""
        if self._made is not None:
            os.close(self._made)


def _id(snapshot: Path) -> int:
    with opened(snapshot) as descriptor:
        return ioctls.describe(descriptor).id


def _delete_if_there(path: Path) -> None:
    if ioctls.is_subvolume(path):
        delete_subvolume(path)


@asynccontextmanager
async def open_btrfs(context: Context, config: BtrfsConfig) -> AsyncIterator[BtrfsSnapshotter]:
    """Open the folder or pool for this process alone, and clear up after a killed one. A pool stays mounted afterwards."""
    place = await open_place(context, config)
    volumes = Volumes(place.path, context.logger)
    lock = await in_worker(context.workers, str(place.path), volumes.lock)
    watcher = asyncio.create_task(place.watch())
    try:
        await in_worker(context.workers, "leftovers", volumes.sweep)
        yield BtrfsSnapshotter(context, place, volumes)
    finally:
        watcher.cancel()
        await asyncio.wait([watcher])
        os.close(lock)
