"""Writing a snapshot: send -> seal into the spool -> upload what is missing -> create the record."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from fractal.api.context import Clock, Entropy, Workers
from fractal.api.errors import Ambiguous, BackendError, Corrupt, FractalError, NotFound
from fractal.api.plain import to_plain
from fractal.api.snapshot import Snapshotter
from fractal.api.store import Store
from fractal.archive import layout, spool
from fractal.archive.keyring import AppKeyring
from fractal.archive.progress import Progress
from fractal.archive.reading import Records
from fractal.archive.records import KIND, ObjectRef, Record, RecordBody, Segment, make_record, object_header
from fractal.archive.sealed import GroupKey, create, seal_statement
from fractal.archive.timeline import Timeline
from fractal.archive.uploading import Uploader
from fractal.core.model import Point
from fractal.crypto.keys import DeviceKeys, seal_to
from fractal.crypto.stream import FRAME, KEY_SIZE, MAGIC, ObjectSeal, Raw, RawHash

IN_FLIGHT = 2
"""Frames sealed at once."""
WAITING = 3
"""Frames being sealed, or sealed and waiting for an earlier one."""
RECHECK = 3600.0
"""Seconds after which uploaded segments are looked at again before a record names them: a collector may have been there."""
MOST_BURNT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is to be written."""

    epoch: int
    snapshotter: Snapshotter
    volume: str
    name: str
    parent: Record | None
    parent_name: str | None
    wall_ms: int
    level: int
    manifest_hash: bytes
    there: Timeline | None = None
    """What the store holds, if it may not lead any more to what an earlier call sent this against: that is sent anew then."""

    def good(self, body: RecordBody) -> bool:
        """Whether what an earlier call made of the snapshot can be restored."""
        return self.there is None or self.there.leads_to(body)


class Unreadable(BackendError):
    """A snapshot on this device cannot be read: the store has no part in it."""

    code = "unreadable"


@dataclass(kw_only=True)
class Backup:
    """Writes snapshots of one app into one store, one at a time."""

    group: str
    app: str
    store: Store
    keys: DeviceKeys
    group_key: GroupKey
    clock: Clock
    entropy: Entropy
    workers: Workers
    records: Records
    folder: Path
    _next: dict[int, tuple[int, Record | None]] = field(default_factory=dict)

    @cached_property
    def uploader(self) -> Uploader:
        """Where its objects go."""
        return Uploader(
            group=self.group, app=self.app, store=self.store, clock=self.clock, workers=self.workers
        )

    async def write(self, source: Source, app_keys: AppKeyring, progress: Progress | None) -> Record:
        """The record of the snapshot. What is in the spool already is neither sent nor uploaded again; what is there of
        another snapshot is given up.
        """
        called = f"{source.epoch}-{source.name}"
        folder = self.folder / called
        await self.workers.run(spool.keep_only, self.folder, {called})
        stored = await self._done(source.epoch, folder)
        if stored is not None and source.good(stored.body):
            return stored
        plan = await self.workers.run(spool.load_plan, folder)
        if stored is not None or (plan is not None and not source.good(plan)):
            await spool.to_its_end(self.workers, spool.discard, folder)
            plan = None
        resumed = plan is not None and plan.object.generation == app_keys.generation
        ahead: set[int] = set()
        held: list[bytes] | None = None
        started = self.clock.boottime()
        if plan is None or not resumed:
            if (standing := await self._standing(source)) is not None:
                return standing
            plan, held = await self._seal(source, folder, app_keys, ahead)
        await self.uploader.upload(folder, plan.object, progress, check=resumed, ahead=ahead, held=held)
        while self.clock.boottime() - started > RECHECK:
            started = self.clock.boottime()
            await self.uploader.upload(folder, plan.object, progress, check=True, held=held)
        record = await self._commit(source, plan)
        if held is None:
            await spool.to_its_end(self.workers, spool.mark_done, folder, record.number)
        return record

    async def _standing(self, source: Source) -> Record | None:
        """This very snapshot's record, if an earlier call wrote it, whose caller did not note that, or asks again."""
        if source.epoch not in self._next:
            number, known = await self.records.end_of(source.epoch)
            self._next[source.epoch] = number, known.newest(source.epoch)
        newest = self._next[source.epoch][1]
        if newest is None or (newest.device, newest.body.name) != (self.keys.id, source.name):
            return None
        return newest if source.good(newest.body) else None

    async def _done(self, epoch: int, folder: Path) -> Record | None:
        """The record, if an earlier call wrote it and its caller died before it could note that."""
        number = await self.workers.run(spool.done_as, folder)
        if number is None:
            return None
        try:
            return await self.records.read(Point(epoch=epoch, number=number))
        except NotFound:
            return None

    # --- sealing -------------------------------------------------------------------------------------------------

    async def _seal(
        self, source: Source, folder: Path, app_keys: AppKeyring, ahead: set[int]
    ) -> tuple[RecordBody, list[bytes] | None]:
        """Seal the stream, into the spool if it is large: its plan, and the object itself if it stayed in memory.

        It is uploaded meanwhile; segments that are complete in the store are noted in `ahead`.
        """
        object_key = self.entropy.bytes(KEY_SIZE)
        ref = ObjectRef(
            id=self.entropy.bytes(16).hex(),
            segments=(),
            sealed_key=seal_to(app_keys.public, object_key, self.entropy),
            generation=app_keys.generation,
        )
        parent = source.parent
        body = RecordBody(
            format=source.snapshotter.format,
            object=ref,
            parent=parent.point if parent else None,
            parent_hash=parent.identity if parent else b"",
            wall_ms=source.wall_ms,
            level=source.level,
            manifest_hash=source.manifest_hash,
            name=source.name,
        )

        def described(segments: tuple[Segment, ...]) -> RecordBody:
            return replace(body, object=replace(ref, segments=segments))

        seal = ObjectSeal.of(object_key, object_header(self.group, self.app, source.epoch, body))
        writer = self._writer(folder)
        chunks = self._readable(source)
        uploading = asyncio.create_task(self.uploader.ahead(ref.id, writer, ahead))
        try:
            async with aclosing(frames_of(chunks)) as frames:
                await seal_frames(frames, seal, writer, self.workers, large=parent is None)
            # Before the last segment can be complete in the store: from here on a crash costs nothing.
            plan = await spool.to_its_end(self.workers, writer.finish, described)
            writer.end()
            await uploading
        finally:
            uploading.cancel()
            await asyncio.wait([uploading])
        return plan, writer.held

    async def _readable(self, source: Source) -> AsyncGenerator[bytes, None]:
        """The stream that is sealed. Raises Unreadable."""
        chunks = self._chunks(source)
        try:
            async for chunk in chunks:
                yield chunk
        except FractalError as error:
            raise Unreadable(f"snapshot {source.name} cannot be read: {error}", retryable=True) from error
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    def _chunks(self, source: Source) -> AsyncIterator[bytes]:
        """The stream as the snapshotter gives it."""
        return source.snapshotter.send(source.volume, source.name, source.parent_name)

    def _writer(self, folder: Path) -> spool.ObjectWriter:
        """Where the sealed object goes."""
        return spool.ObjectWriter(folder)

    # --- committing ----------------------------------------------------------------------------------------------

    async def _commit(self, source: Source, plan: RecordBody) -> Record:
        """Create the record under the next free number of the epoch."""
        epoch = source.epoch
        if epoch not in self._next:
            number, known = await self.records.end_of(epoch)
            self._next[epoch] = number, known.newest(epoch)
            for record in known.records.values():
                if record.body.object.id == plan.object.id:
                    return record
        for _ in range(MOST_BURNT):
            number, last = self._next[epoch]
            point = Point(epoch=epoch, number=number)
            body = replace(plan, previous_hash=last.hash if last else plan.parent_hash)
            record = make_record(point, self.keys.id, body, layout.record_key(self.group, self.app, point))
            standing = await self._put(record)
            if standing is not None:
                self.records.remember(standing)
            self._next[epoch] = number + 1, standing or last
            if standing is not None and standing.body.object.id == plan.object.id:
                return standing
        raise Corrupt(
            f"{MOST_BURNT} record names of epoch {epoch} of app {self.app} are taken by garbage: check the store"
        )

    async def _put(self, record: Record) -> Record | None:
        """What stands under the record's name afterwards; None if that is no record."""
        key = layout.record_key(self.group, self.app, record.point)
        data = seal_statement(
            KIND, key, to_plain(record.body), keys=self.keys, group_key=self.group_key, entropy=self.entropy
        )
        if await create(self.store, key, lambda: data, self.clock):
            return record
        try:
            return await self.records.read(record.point)
        except NotFound as error:
            raise Ambiguous(f"{key} exists in the store and cannot be read yet") from error


async def frames_of(chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[bytes], None]:
    """The stream in pieces of a frame, each a list of chunks."""
    frame: list[bytes] = []
    room = FRAME
    try:
        async for chunk in chunks:
            while len(chunk) >= room:
                frame.append(chunk[:room])
                yield frame
                chunk, frame, room = chunk[room:], [], FRAME
            if chunk:
                frame.append(chunk)
                room -= len(chunk)
        if frame:
            yield frame
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


async def seal_frames(
    frames: AsyncIterator[list[bytes]],
    seal: ObjectSeal,
    writer: spool.ObjectWriter,
    workers: Workers,
    *,
    large: bool = False,
) -> Raw:
    """Compress and seal frames side by side, write them in order, end with the trailer.

    An object known or seen to be large is compressed less thoroughly as long as the store keeps up with the processor: it is
    done sooner. Where the store, or the line to it, is what takes the time, fewer bytes are.
    """
    pending: deque[asyncio.Task[tuple[list[bytes], bytes]]] = deque()
    hashes, length, count = RawHash(), 0, 0

    async def write_oldest() -> None:
        sealed, digest = await pending[0]
        pending.popleft()
        hashes.add(digest)
        await spool.to_its_end(workers, writer.write, sealed)
        writer.tell()

    await spool.to_its_end(workers, writer.write, [MAGIC])
    try:
        async for frame in frames:
            length += sum(map(len, frame))
            quick = (large or writer.held is None) and writer.kept_up_with
            pending.append(asyncio.create_task(workers.run(seal.frame, count, frame, quick)))
            count += 1
            # Frames take longer or shorter: one that is done early waits for its turn, and the next one is begun.
            while (
                len(running := [t for t in pending if not t.done()]) >= IN_FLIGHT or len(pending) >= WAITING
            ):
                if pending[0].done():
                    await write_oldest()
                else:
                    await asyncio.wait(
                        running if len(pending) < WAITING else [pending[0]],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
        while pending:
            await write_oldest()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    raw = Raw(length, hashes.digest())
    await spool.to_its_end(workers, writer.write, seal.trailer(count, raw, writer.written))
    return raw
