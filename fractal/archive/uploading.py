"""Putting a sealed object's segments into a store: those of an app's snapshots, or of a group's images."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fractal.api.context import Clock, Workers
from fractal.api.errors import Ambiguous, BackendError, Conflict, NotFound
from fractal.api.store import Store, SupportsLinks
from fractal.archive import layout, spool
from fractal.archive.progress import Progress
from fractal.archive.records import ObjectRef, Segment
from fractal.archive.sealed import create


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploader:
    """Uploads objects of one app, or images, into one store."""

    group: str
    app: str
    store: Store
    clock: Clock
    workers: Workers

    async def ahead(self, object_id: str, writer: spool.ObjectWriter, done: set[int]) -> None:
        """Upload segments while they are being sealed, and note them in `done`. What fails here is left to `upload`, which says so."""
        index = 0
        while await writer.begun(index):
            key = self._key(object_id, index)
            try:
                adopted = isinstance(self.store, SupportsLinks) and await self._adopt(
                    key, await writer.complete(index)
                )
                stream = partial(writer.segment, index, self.workers)
                if adopted or await create(self.store, key, stream, self.clock):
                    done.add(index)
            except BackendError:
                return
            index += 1

    async def upload(
        self,
        folder: Path,
        ref: ObjectRef,
        progress: Progress | None,
        *,
        check: bool,
        ahead: Collection[int] = (),
        held: Sequence[bytes] | None = None,
    ) -> None:
        """Have every segment in the store: out of `held`, or of the spool's `folder`. With `check`, not again what is there.

        Raises BackendError, also if something else has a segment's name; Ambiguous (call again).
        """
        done, total = 0, ref.stored
        for index, segment in enumerate(ref.segments):
            key = self._key(ref.id, index)
            if index not in ahead and not (check and await self._stands(key, segment)):
                path = folder / str(index) if held is None else None
                data = partial(self._read, path) if path is not None else partial(_each, held or ())
                if not (await self._adopt(key, path) or await create(self.store, key, data, self.clock)):
                    await self._require(key, segment)
            done += segment.size
            if progress is not None:
                progress(done, total)

    async def stands(self, ref: ObjectRef) -> bool:
        """Whether every segment is in the store, as far as sizes tell. Raises BackendError."""
        for index, segment in enumerate(ref.segments):
            if not await self._stands(self._key(ref.id, index), segment):
                return False
        return True

    def _key(self, object_id: str, index: int) -> str:
        return layout.segment_key(self.group, self.app, object_id, index)

    async def _adopt(self, key: str, path: Path | None) -> bool:
        """Whether the store took the spool's very file for the object: then it is written once, not twice."""
        if path is None or not isinstance(self.store, SupportsLinks):
            return False
        try:
            return await self.store.adopt(key, path)
        except (Ambiguous, Conflict):
            return False  # `create` finds out what stands there

    async def _read(self, path: Path) -> AsyncIterator[bytes]:
        offset = 0
        while chunk := await self.workers.run(spool.read_at, path, offset):
            offset += len(chunk)
            yield chunk

    async def _stands(self, key: str, segment: Segment) -> bool:
        try:
            return (await self.store.head(key)).size == segment.size
        except NotFound:
            return False

    async def _require(self, key: str, segment: Segment) -> None:
        """The name, which is random, was taken: by an earlier attempt of ours, or by a store that lies."""
        if not await self._stands(key, segment):
            raise BackendError(f"{key} exists in the store and is not what was uploaded: check the store")


async def _each(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
