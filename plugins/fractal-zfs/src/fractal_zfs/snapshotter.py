"""The `zfs` snapshotter: datasets by the `zfs` command."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from fractal.api.context import Context
from fractal.api.errors import BackendError, Corrupt, NotFound, NotSupported
from fractal.api.names import check_name
from fractal.api.snapshot import Snapshot, Snapshotter, Usage
from fractal.streams.btrfs_send import FORMAT as BTRFS
from fractal_zfs.command import Zfs
from fractal_zfs.config import ZfsConfig
from fractal_zfs.lines import Lines
from fractal_zfs.place import find_place, lock
from fractal_zfs.replaying import begun, refuse_other, replayed
from fractal_zfs.streaming import FORMAT, RECORD, Head, read_head, received, sent
from fractal_zfs.volumes import ASIDE, IDENTITY, NAME, Kept, Volume, name_options


class ZfsSnapshotter(Snapshotter):
    """A `Snapshotter` over datasets. Open it by `open_zfs`."""

    def __init__(self, context: Context, zfs: Zfs, dataset: str, lines: Lines) -> None:
        self._context = context
        self._zfs = zfs
        self._dataset = dataset
        self._lines = lines
        # Sends plan, and may promote, beside other calls on their volume.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def format(self) -> str:
        """`zfs-send/1`."""
        return FORMAT

    @property
    def receives(self) -> frozenset[str]:
        """`zfs-send/1`, and `btrfs-send/1` by replaying it."""
        return frozenset({FORMAT, BTRFS})

    async def create_root(self, volume: str) -> Path:
        """An empty dataset, or the one that is there."""
        async with self._held(volume):
            found = await self._lines.load(volume)
            if found.root is not None:
                return await self._lines.root_path(found.root)
            return await self._lines.create_root(found)

    async def root(self, volume: str) -> Path | None:
        """The writable root, None if there is none."""
        async with self._held(volume):
            found = await self._lines.load(volume)
            return None if found.root is None else await self._lines.root_path(found.root)

    async def delete_root(self, volume: str) -> None:
        """Delete the root; the dataset stays while it has snapshots."""
        async with self._held(volume):
            found = await self._lines.load(volume)
            if found.root is not None:
                await self._lines.retire(found, found.root)

    async def set_aside(self, volume: str, name: str) -> None:
        """Make a last snapshot of the root."""
        check_name(name, "snapshot")
        async with self._held(volume):
            found = await self._lines.load(volume)
            if found.root is None:
                return
            found.refuse_existing(name)
            await self._lines.snapshot(found, found.root, name, "-o", f"{ASIDE}=on")
            await self._lines.retire(found, found.root)

    async def snapshot(self, volume: str, name: str) -> Snapshot:
        """One `zfs snapshot`: atomic while the app writes."""
        check_name(name, "snapshot")
        async with self._held(volume):
            found = await self._lines.load(volume)
            found.refuse_existing(name)
            kept = await self._lines.snapshot(found, found.need_root(), name)
            return await self._lines.shown(found, kept)

    async def snapshots(self, volume: str) -> Sequence[Snapshot]:
        """Complete snapshots, oldest first."""
        async with self._held(volume):
            found = await self._lines.load(volume)
            return [await self._lines.shown(found, kept) for kept in found.live()]

    async def volumes(self) -> Sequence[str]:
        """Every volume that has a root or a snapshot."""
        found = [await self._lines.load(name) for name in await self._lines.names()]
        return [volume.name for volume in found if volume.root is not None or volume.live()]

    async def delete(self, volume: str, name: str) -> None:
        """Delete a snapshot."""
        check_name(name, "snapshot")
        async with self._held(volume):
            found = await self._lines.load(volume)
            try:
                kept = found.find(name)
            except NotFound:
                return
            await self._lines.delete(found, kept)

    async def send(self, volume: str, name: str, parent: str | None = None) -> AsyncGenerator[bytes, None]:
        """What `zfs send` gives; all of it if the parent is of another history, which ZFS cannot send against."""
        check_name(name, "snapshot")
        if parent is not None:
            check_name(parent, "snapshot")
        async with self._held(volume):
            found = await self._lines.load(volume)
            kept = found.find(name)
            words = [kept.path]
            if parent is not None and found.descends(kept, base := found.find(parent)):
                kept, base = await self._lines.reunite(found, kept, base)
                words = ["-i", f"@{base.tag}", kept.path]
        async with aclosing(sent(*words)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        """Into a line of its own or after the parent: by `zfs receive`, or replayed there."""
        check_name(name, "snapshot")
        if stream_format not in self.receives:
            raise NotSupported(
                f"snapshot zfs: cannot receive {stream_format!r}, only {', '.join(sorted(self.receives))}"
            )
        async with self._held(volume):
            found = await self._lines.load(volume)
            found.refuse_existing(name)
            base = None if parent is None else found.find(parent)
        if stream_format == BTRFS:
            return await self._replayed(volume, name, chunks, base)
        head, data = await _begun(chunks)
        async with self._held(volume):
            found = await self._lines.load(volume)
            target = await self._target(found, head, base)
        path = f"{target}@{found.next_tag(name)}"
        try:
            await received(path, head, data)
            if options := name_options(NAME, name):
                await self._zfs("set", options[1], path)
        except BaseException:
            async with self._held(volume):
                await self._lines.take_back(volume, path)
            raise
        async with self._held(volume):
            return await self._arrived(volume, name, target)

    async def checkout(self, volume: str, name: str) -> Path:
        """A clone of a snapshot, which takes over its history."""
        return await self.clone(volume, name, volume)

    async def clone(self, volume: str, name: str, target: str) -> Path:
        """A clone of a snapshot, as the root of another volume."""
        check_name(name, "snapshot")
        async with self._held(volume):
            kept = (await self._lines.load(volume)).find(name)
            if target == volume:
                return await self._lines.clone(kept, await self._lines.load(target))
            async with self._held(target):
                return await self._lines.clone(kept, await self._lines.load(target))

    async def unchanged(self, volume: str, name: str) -> bool:
        """Whether a difference from the snapshot to now would hold nothing. Costs a snapshot, which goes at once."""
        check_name(name, "snapshot")
        async with self._held(volume):
            found = await self._lines.load(volume)
            try:
                kept = found.find(name)
            except NotFound:
                return False
            root = found.root
            if root is None or (kept.path != root.origin and kept.dataset != root.dataset):
                return False
            return await self._lines.equals(root, kept, self._context.entropy.bytes(8).hex())

    async def usage(self) -> Usage:
        """Room of the dataset."""
        rows = await self._zfs.rows("get", "-Hp", "-o", "value", "used,available", self._dataset)
        used, available = (int(row[0]) for row in rows)
        return Usage(total=used + available, free=available)

    @asynccontextmanager
    async def _held(self, volume: str) -> AsyncIterator[None]:
        check_name(volume, "volume")
        async with self._locks[volume]:
            yield

    async def _replayed(
        self, volume: str, name: str, chunks: AsyncIterator[bytes], base: Kept | None
    ) -> Snapshot:
        """Replay a stream of btrfs in a line, and make a snapshot of what came of it."""
        begin, data = await begun(chunks)
        async with self._held(volume):
            found = await self._lines.load(volume)
            former = None
            if begin is not None and base is not None:
                base = found.find(base.name)
                former = (await self._lines.shown(found, base)).path
            line = await self._lines.open_line(found, refuse_other(begin, base))
        try:
            identity = await replayed(self._context.workers, line.mountpoint, former, data)
            async with self._held(volume):
                found = await self._lines.load(volume)
                line = found.lines[line.dataset]
                kept = await self._lines.snapshot(found, line, name, "-o", f"{IDENTITY}={identity}")
                await self._lines.hide(line)
                return await self._lines.shown(found, kept)
        except BaseException:
            async with self._held(volume):
                await self._lines.hide(line)
                await self._lines.collect(volume)
            raise

    async def _target(self, volume: Volume, head: Head, base: Kept | None) -> str:
        """The dataset to receive into."""
        if head.parent == 0:
            await self._lines.make_volume(volume)
            return self._lines.fresh(volume)
        if base is None:
            raise Corrupt(f"{FORMAT} stream: it is incremental: name the snapshot that it was made against")
        base = volume.find(base.name)
        ((guid,),) = await self._zfs.rows("get", "-Hp", "-o", "value", "guid", base.path)
        if int(guid) != head.parent:
            raise Corrupt(
                f"{FORMAT} stream: it was made against another snapshot than the one given as parent"
            )
        return await self._lines.line_after(volume, base)

    async def _arrived(self, volume: str, name: str, target: str) -> Snapshot:
        found = await self._lines.load(volume)
        await self._lines.hide(found.lines[target])
        return await self._lines.shown(found, found.find(name))


async def _begun(chunks: AsyncIterator[bytes]) -> tuple[Head, AsyncIterator[bytes]]:
    """The stream's head, and the whole stream again."""
    start = bytearray()
    async for chunk in chunks:
        start += chunk
        if len(start) >= RECORD:
            break

    async def whole() -> AsyncIterator[bytes]:
        yield bytes(start)
        async for chunk in chunks:
            yield chunk

    return read_head(bytes(start)), whole()


@asynccontextmanager
async def open_zfs(context: Context, config: ZfsConfig) -> AsyncIterator[ZfsSnapshotter]:
    """Open the dataset for this process alone, making it if it is absent, and clear up after a killed one."""
    zfs = Zfs(context)
    place = await find_place(context, zfs, config)
    try:
        held = await context.workers.run(lock, place)
    except OSError as error:
        raise BackendError(f"snapshot zfs: {place}: {error.strerror}") from error
    try:
        lines = Lines(context, zfs, config.dataset, place)
        await lines.sweep()
        yield ZfsSnapshotter(context, zfs, config.dataset, lines)
    finally:
        os.close(held)
