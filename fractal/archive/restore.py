"""Bringing a snapshot back: plan the chain, fetch whole objects, check them, and only then let them act."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from fractal.api.canonical import Value
from fractal.api.context import Workers
from fractal.api.errors import BackendError, Corrupt, NotFound, NotSupported
from fractal.api.snapshot import Snapshot, Snapshotter
from fractal.api.store import Store, SupportsLinks
from fractal.archive import layout, spool
from fractal.archive.keyring import AppKeyring
from fractal.archive.places import Places, nowhere
from fractal.archive.progress import Progress
from fractal.archive.records import ObjectRef, Record, Segment, object_header
from fractal.core.model import Point
from fractal.crypto.stream import ObjectReader

IN_FLIGHT = 2
"""Frames opened at once."""
OPEN_LIMIT = 30.0
"""Seconds that a mirror may take to be opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """A segment that the store did not give as its record has it, and that came from elsewhere."""

    ref: ObjectRef
    index: int
    why: str
    """What was wrong; names store and object."""
    source: str
    """Name of the store that had it."""
    certain: bool
    """It is missing there or damaged; else the store only did not answer, which says nothing of what it has."""
    standing: bool
    """Something is there under its name, as far as is known."""


@dataclass(kw_only=True)
class Fetcher:
    """Brings sealed objects into the spool and opens them there.

    What the store does not give, or not as its record names it, is taken from a mirror, by the same hash.
    """

    group: str
    app: str
    store: Store
    workers: Workers
    folder: Path
    where: str = "the store"
    """What the store is called in errors."""
    mirrors: Places = nowhere
    lacks: dict[str, Lack] = field(default_factory=dict)
    """What came from a mirror since somebody looked, by key."""

    async def fetch(self, ref: ObjectRef) -> None:
        """Have every segment of an object here, as it was signed. Raises Corrupt, NotFound, BackendError."""
        folder = self.folder / ref.id
        for index, segment in enumerate(ref.segments):
            if not await self.workers.run(spool.holds, folder, index, segment):
                await self._bring(ref, index, segment)

    async def segment(self, ref: ObjectRef, index: int) -> Path:
        """The file of one segment, brought anew and checked. Raises Corrupt, BackendError."""
        await self._bring(ref, index, ref.segments[index])
        return self.folder / ref.id / str(index)

    async def stands(self, ref: ObjectRef, index: int) -> bool:
        """Whether the store itself has a segment, byte for byte. Raises BackendError."""
        try:
            await self._take(self.store, self.where, ref, index, ref.segments[index])
        except Corrupt:
            return False
        finally:
            await self.discard(ref.id)
        return True

    async def _bring(self, ref: ObjectRef, index: int, segment: Segment) -> None:
        try:
            await self._take(self.store, self.where, ref, index, segment)
            return
        except (Corrupt, BackendError) as error:
            if not self.mirrors():
                raise
            why = error
        tried = [str(why)]
        for place in self.mirrors():
            try:
                async with asyncio.timeout(OPEN_LIMIT):
                    store = await place.open()
                await self._take(store, f"store {place.name}", ref, index, segment)
            except TimeoutError:
                tried.append(f"store {place.name} could not be opened within {OPEN_LIMIT:g} s")
            except (Corrupt, BackendError) as error:
                tried.append(str(error))
            else:
                key = layout.segment_key(self.group, self.app, ref.id, index)
                self.lacks[key] = Lack(
                    ref=ref,
                    index=index,
                    why=str(why),
                    source=place.name,
                    certain=isinstance(why, Corrupt),
                    standing=not isinstance(why.__cause__, NotFound),
                )
                return
        if isinstance(why, Corrupt):
            raise Corrupt("; ".join(tried)) from why
        raise BackendError("; ".join(tried), retryable=True) from why

    async def _take(self, store: Store, where: str, ref: ObjectRef, index: int, segment: Segment) -> None:
        """One segment from one store. Raises Corrupt if it is missing there or another, BackendError."""
        key, folder = layout.segment_key(self.group, self.app, ref.id, index), self.folder / ref.id
        path = await spool.to_its_end(self.workers, spool.room_for, folder, index)
        try:
            lent = isinstance(store, SupportsLinks) and await store.lend(key, path)
            if lent and not await self.workers.run(spool.holds, folder, index, segment):
                raise Corrupt(f"{key}: not the bytes that its record names, in {where}")
            if not lent:
                await self._download(store, where, key, path, segment)
        except NotFound as error:
            raise Corrupt(f"{key} is missing in {where}") from error

    async def open(self, ref: ObjectRef, key: bytes, header: Value, what: str) -> AsyncGenerator[bytes, None]:
        """The raw stream of a fetched object, some frames ahead of its reader; `what` names it in errors. Raises Corrupt."""
        segments = spool.SegmentsReader(self.folder / ref.id, len(ref.segments))
        reader, run = ObjectReader(key, header, segments.read), self.workers.run
        opening: deque[asyncio.Task[tuple[bytes, bytes]]] = deque()
        try:
            sealed = await run(reader.next_sealed)
            while sealed is not None or opening:
                while sealed is not None and len(opening) < IN_FLIGHT:
                    opening.append(asyncio.create_task(run(reader.open, *sealed)))
                    sealed = await run(reader.next_sealed)
                view = memoryview(reader.add(*await opening.popleft()))
                for start in range(0, len(view), spool.CHUNK):
                    yield bytes(view[start : start + spool.CHUNK])
            reader.finish()
        except Corrupt as error:
            raise Corrupt(f"object {ref.id} of {what}: {error}") from error
        finally:
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)

    def open_record(self, record: Record, app_keys: AppKeyring) -> AsyncGenerator[bytes, None]:
        """The raw stream of a record's object, which was fetched. Raises Corrupt, Denied."""
        header = object_header(self.group, self.app, record.epoch, record.body)
        ref = record.body.object
        return self.open(ref, app_keys.object_key(ref), header, f"snapshot {record.epoch}.{record.number}")

    async def keep_only(self, objects: Iterable[str]) -> None:
        """Forget what earlier calls fetched, except for these objects: a restore that was broken off goes on there."""
        await self.workers.run(spool.keep_only, self.folder, set(objects))

    async def discard(self, object_id: str) -> None:
        """Forget what was fetched."""
        await self.workers.run(spool.discard, self.folder / object_id)

    async def _download(self, store: Store, where: str, key: str, path: Path, segment: Segment) -> None:
        size, digest = 0, hashlib.sha256()
        async for chunk in store.get(key):
            if size + len(chunk) > segment.size:
                raise Corrupt(f"{key}: longer than its record says, in {where}")
            digest.update(chunk)
            await spool.to_its_end(self.workers, spool.append, path, chunk, size)
            size += len(chunk)
        if size != segment.size or digest.digest() != segment.hash:
            raise Corrupt(f"{key}: not the bytes that its record names, in {where}")


@dataclass(kw_only=True)
class Restore:
    """Applies a chain of records to what a snapshotter already has."""

    fetcher: Fetcher
    snapshotter: Snapshotter
    volume: str
    name_of: Callable[[Point], str]
    progress: Progress | None = None

    async def run(self, chain: Sequence[Record], app_keys: AppKeyring) -> Snapshot:
        """The snapshot of the last record of `chain`. A snapshot that is here already is not fetched again."""
        held = {s.name: s for s in await self.snapshotter.snapshots(self.volume)}
        missing = list(chain)
        for index in range(len(chain) - 1, -1, -1):
            if (name := self.name_of(chain[index].point)) in held:
                missing = list(chain[index + 1 :])
                if not missing:
                    return held[name]
                break
        self._refuse_formats(missing)
        await self.fetcher.keep_only(r.body.object.id for r in missing)
        return await self._apply(missing, app_keys)

    def _refuse_formats(self, missing: Sequence[Record]) -> None:
        known = self.snapshotter.receives | {self.snapshotter.format}
        for record in missing:
            if record.format not in known:
                raise NotSupported(
                    f"snapshot {record.epoch}.{record.number} is a {record.format} stream; this device takes {sorted(known)}"
                )

    async def _apply(self, missing: Sequence[Record], app_keys: AppKeyring) -> Snapshot:
        done, total = 0, sum(r.stored for r in missing)
        ahead = asyncio.create_task(self.fetcher.fetch(missing[0].body.object))
        snapshot: Snapshot | None = None
        try:
            for index, record in enumerate(missing):
                await ahead
                if index + 1 < len(missing):
                    ahead = asyncio.create_task(self.fetcher.fetch(missing[index + 1].body.object))
                snapshot = await self._receive(record, app_keys)
                await self.fetcher.discard(record.body.object.id)
                done += record.stored
                if self.progress is not None:
                    self.progress(done, total)
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
        if snapshot is None:
            raise BackendError("nothing to restore")
        return snapshot

    async def _receive(self, record: Record, app_keys: AppKeyring) -> Snapshot:
        parent = self.name_of(record.parent) if record.parent else None
        async with aclosing(self.fetcher.open_record(record, app_keys)) as chunks:
            return await self.snapshotter.receive(
                self.volume,
                self.name_of(record.point),
                chunks,
                stream_format=record.format,
                parent=parent,
            )
