"""Container images in a group's store, sealed like snapshots, so that a takeover or a restore needs no registry.

    <group>/image/object/<random>/<segment>

An object is the docker archive of one image, in the format of docs/reference/archive-format.md; its key is sealed to the key
of the app that brought it. Which image it is, and which segments it has, is said by the group's log (`app.images`): nothing
in the store tells names or digests. Apps of one store that run the same image share its object.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from fractal.api.canonical import Value
from fractal.api.context import Clock, Entropy, Workers
from fractal.api.errors import NotFound
from fractal.api.store import Store
from fractal.archive import layout, spool
from fractal.archive.backup import frames_of, seal_frames
from fractal.archive.epochs import Notes
from fractal.archive.keyring import AppKeyring
from fractal.archive.orphans import GRACE, Collector, Named, Orphan, Proof
from fractal.archive.places import Place, Places, nowhere, place
from fractal.archive.progress import Progress
from fractal.archive.records import ObjectRef, RecordBody, Segment
from fractal.archive.restore import Fetcher
from fractal.archive.uploading import Uploader
from fractal.core.model import ArchivedImage
from fractal.crypto.keys import seal_to
from fractal.crypto.stream import KEY_SIZE, ObjectSeal

PLACE = "image"
"""Stands where an app's id stands in the names of other objects; no app's id is like it."""
FORMAT = "docker-archive/1"


@dataclass(kw_only=True)
class Images:
    """Writes and reads images of one group in one store: one is written at a time, and each read by one at a time."""

    group: str
    store: Store
    clock: Clock
    entropy: Entropy
    workers: Workers
    notes: Notes
    named: Named
    """Objects that the group's log names in this store."""
    place: str
    """Id of the store."""
    folder: Path
    """The spool: a broken upload goes on where it was."""
    _uploader: Uploader = field(init=False)
    _fetcher: Fetcher = field(init=False)
    _collector: Collector = field(init=False)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _reading: dict[str, asyncio.Lock] = field(default_factory=dict)
    """By object."""

    def __post_init__(self) -> None:
        self._uploader = Uploader(
            group=self.group, app=PLACE, store=self.store, clock=self.clock, workers=self.workers
        )
        self._fetcher = Fetcher(
            group=self.group,
            app=PLACE,
            store=self.store,
            workers=self.workers,
            folder=self.folder / "in",
        )
        self._collector = Collector(
            group=self.group,
            app=PLACE,
            store=self.store,
            clock=self.clock,
            notes=self.notes,
            named=self.named,
            place=f".{self.place}",
        )

    async def write(
        self,
        image: ArchivedImage,
        save: Callable[[], AsyncIterator[bytes]],
        app_keys: AppKeyring,
        progress: Progress | None = None,
    ) -> ArchivedImage:
        """Store an image; `image` says which, the result also where. Raises BackendError, Ambiguous (call again).

        `save` gives the archive; what is sealed already is not saved again.
        """
        # Named by the app's key too: what is sealed to another app is of no use to this one.
        name = f"{image.digest.rpartition(':')[2]}-{app_keys.public.hex()[:16]}"
        async with self._writing:
            folder = self.folder / "out" / name
            await self.workers.run(spool.keep_only, folder.parent, {name})
            plan, held = await self.workers.run(spool.load_plan, folder), None
            if plan is None:
                plan, held = await self._seal(image.digest, folder, save(), app_keys)
            await self._uploader.upload(folder, plan.object, progress, check=True, held=held)
            await self.workers.run(spool.discard, folder)
            ref = plan.object
        return replace(
            image,
            object=ref.id,
            segments=ref.segments,
            sealed_key=ref.sealed_key,
            generation=ref.generation,
        )

    async def _seal(
        self, digest: str, folder: Path, chunks: AsyncIterator[bytes], app_keys: AppKeyring
    ) -> tuple[RecordBody, list[bytes] | None]:
        key = self.entropy.bytes(KEY_SIZE)
        ref = ObjectRef(
            id=self.entropy.bytes(16).hex(),
            segments=(),
            sealed_key=seal_to(app_keys.public, key, self.entropy),
            generation=app_keys.generation,
        )
        seal = ObjectSeal.of(key, _header(self.group, ref.id, digest))
        writer = spool.ObjectWriter(folder)
        async with aclosing(frames_of(chunks)) as frames:
            await seal_frames(frames, seal, writer, self.workers)

        def described(segments: tuple[Segment, ...]) -> RecordBody:
            return RecordBody(format=FORMAT, object=replace(ref, segments=segments), name=digest)

        return await spool.to_its_end(self.workers, writer.finish, described), writer.held

    async def stands(self, image: ArchivedImage) -> bool:
        """Whether every segment is in the store, as far as sizes tell. Raises BackendError."""
        return await self._uploader.stands(ref_of(image))

    async def orphans(self) -> list[Orphan]:
        """Objects that are no app's image, and for how long that was observed. Raises BackendError."""
        return await self._collector.look()

    async def collect_orphans(self, proof: Proof, *, grace: float = GRACE) -> list[Orphan]:
        """Delete what no app's image was for `grace` seconds; `proof` is asked before each. Raises BackendError."""
        return await self._collector.collect(proof, grace=grace)

    async def copy(self, image: ArchivedImage, target: Place) -> bool:
        """Have an image in a mirror as well, byte for byte; whether anything had to be sent. Raises Corrupt, BackendError."""
        ref, store = ref_of(image), await target.open()
        uploader = Uploader(group=self.group, app=PLACE, store=store, clock=self.clock, workers=self.workers)
        if await uploader.stands(ref):
            return False
        fetcher = replace(self._fetcher, folder=self.folder / f"to-{target.id}", lacks={})
        await fetcher.keep_only(())
        try:
            for index, segment in enumerate(ref.segments):
                key = layout.segment_key(self.group, PLACE, ref.id, index)
                try:
                    standing = (await store.head(key)).size
                except NotFound:
                    standing = -1
                if standing == segment.size:
                    continue
                path = await fetcher.segment(ref, index)
                await place(
                    store,
                    key,
                    path,
                    segment.size,
                    replace=standing >= 0,
                    clock=self.clock,
                    workers=self.workers,
                )
                await fetcher.discard(ref.id)
        finally:
            await fetcher.discard(ref.id)
        return True

    async def read(
        self, image: ArchivedImage, app_keys: AppKeyring, mirrors: Places = nowhere
    ) -> AsyncGenerator[bytes, None]:
        """The archive. It is fetched whole and checked before the first byte of it acts. What the store lacks, mirrors are asked for.

        Raises Corrupt, NotFound, Denied without the app's secret key, BackendError.
        """
        ref = ref_of(image)
        key = app_keys.object_key(ref)
        header = _header(self.group, ref.id, image.digest)
        async with self._reading.setdefault(ref.id, asyncio.Lock()):
            # A takeover must not wait for what a standby loads at its leisure: others go on beside it.
            await self._fetcher.keep_only([known for known, lock in self._reading.items() if lock.locked()])
            await replace(self._fetcher, mirrors=mirrors).fetch(ref)
            async with aclosing(self._fetcher.open(ref, key, header, f"image {image.name}")) as chunks:
                async for chunk in chunks:
                    yield chunk
            await self._fetcher.discard(ref.id)


def ref_of(image: ArchivedImage) -> ObjectRef:
    """Where an image is, as for any other object."""
    return ObjectRef(
        id=image.object,
        segments=image.segments,
        sealed_key=image.sealed_key,
        generation=image.generation,
    )


def _header(group: str, object_id: str, digest: str) -> Value:
    """What the sealed image is bound to."""
    return {"group": group, "object": object_id, "kind": "image", "format": FORMAT, "digest": digest}
