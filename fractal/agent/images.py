"""An app's container images on this device: its owner seals them in the store, others load them from there.

So a takeover, a move and a restore need no registry, and every device runs the very same image. What a name was found to be
by the first owner stays (`core.fold_images`); another image comes with another name, by `homeserver app update`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from fractal.agent.journal import Stale
from fractal.api.errors import BackendError, Corrupt, FractalError, NotFound
from fractal.api.runtime import SupportsImages
from fractal.archive.images import Images, ref_of
from fractal.core.entries import AppImages
from fractal.core.model import ArchivedImage
from fractal.core.placement import images_of, standbys
from fractal.core.retention import last
from fractal.crypto.keys import seal_to

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob

LOOK = 2.0
"""Seconds between two looks whether there is something to do; a look costs no request."""
AGAIN = 30.0
"""Seconds before something that failed is tried again."""
STANDS = 24 * 3600.0
"""Seconds between two looks whether what was archived is still in the store."""
MOST_KEPT = 20
"""Images of an app at most, with those that it ran earlier."""


class ImageCare:
    """Belongs to one app's job. `run` archives and loads beside the app's steps; `bring` is what a start waits for."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self._wanted: tuple[object, tuple[str, ...]] | None = None
        """A specification, and the names of the images that it needs: asked for at every look at the app."""
        self._stood: dict[str, float] = {}
        """When an object was last seen to be in the store, by its id."""
        self._here: set[str] = set()
        """Digests known to be on this device."""
        self._made: dict[str, ArchivedImage] = {}
        """Stored by this process, by digest: if the log cannot be told, they are not stored once more for the next try."""
        self._bringing = asyncio.Lock()
        self.trouble = ""

    # --- what others read ---------------------------------------------------------------------------------------

    @property
    def _runtime(self) -> SupportsImages | None:
        agent = self._job.group.agent
        return cast("SupportsImages", agent.runtime) if agent.has_images else None

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the images that the app's manifest needs."""
        spec = self._job.app.spec
        if self._wanted is None or self._wanted[0] is not spec:
            self._wanted = (spec, images_of(spec))
        return self._wanted[1]

    def digests(self) -> dict[str, str]:
        """For `AppRun.images`: which image a name means, as far as the group knows."""
        return {name: image.digest for name, (image, _) in self._known().items()}

    def _known(self) -> dict[str, tuple[ArchivedImage, AppJob]]:
        """By name: an archived image, and the app whose key opens it. A fork begins with what its origin runs."""
        job = self._job
        origin = job.group.jobs.get(job.app.source.app) if job.app.source is not None else None
        known: dict[str, tuple[ArchivedImage, AppJob]] = {}
        for name in self.wanted:
            for owner in (job, origin):
                if owner is not None and (image := owner.app.pinned_images.get(name)) is not None:
                    known.setdefault(name, (image, owner))
        return known

    @property
    def unarchived(self) -> list[str]:
        """Names of images that another device would have to get from a registry."""
        return [name for name in self.wanted if name not in self._job.app.pinned_images]

    @property
    def problem(self) -> str:
        """Why the images are not safe; "" if nothing is known to be wrong."""
        return f"its images: {self.trouble}" if self.trouble else ""

    # --- having them here ---------------------------------------------------------------------------------------

    async def bring(self) -> None:
        """Have every image that the group knows on this device. Raises BackendError naming the one that cannot be had."""
        runtime = self._runtime
        if runtime is None:
            return
        async with self._bringing:  # the start may want what is on its way already
            for image, owner in self._known().values():
                if not await self._is_here(runtime, image.digest):
                    await self._load(runtime, image, owner)

    async def _is_here(self, runtime: SupportsImages, digest: str) -> bool:
        try:
            return await runtime.image_digest(digest) == digest
        except NotFound:
            return False

    async def _load(self, runtime: SupportsImages, image: ArchivedImage, owner: AppJob) -> None:
        job = self._job
        job.logger.info("%s: loading image %s, %d bytes", job.app.name, image.name, image.stored)
        archive = await job.group.images(owner.app.store)
        async with aclosing(archive.read(image, owner.data.keyring(), owner.mirrors.places)) as chunks:
            found = await runtime.load_image(image.name, chunks)
        if found != image.digest:
            raise Corrupt(
                f"image {image.name} in the store is {found}, and the group's log says {image.digest}; "
                f"`homeserver app update {job.app.name!r}` with another version of it helps"
            )

    async def _archive(self) -> Images:
        return await self._job.group.images(self._job.app.store)

    # --- looking after them -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look for ever, where the runtime knows images at all. A failure is told and tried again; the app runs on."""
        clock, logger = self._job.group.agent.clock, self._job.logger
        if self._runtime is None:
            return  # a device keeps its runtime for as long as its agent runs
        while True:
            pause = LOOK
            try:
                await self._look()
                self.trouble = ""
            except Stale:
                pass  # the app changed hands or manifests meanwhile
            except FractalError as error:
                if str(error) != self.trouble:
                    logger.warning("%s: its images: %s", self._job.app.name, error)
                self.trouble, pause = str(error), AGAIN
            await clock.sleep(pause)

    async def _look(self) -> None:
        job, group = self._job, self._job.group
        runtime = self._runtime
        if runtime is None or group.blind or job.app.removed or not self.wanted:
            return
        if job.owns:
            if job.app.serving == job.app.epoch and job.app.release is None and job.health() is not None:
                await self._keep_archived(runtime)
            elif job.facts.now.waited != job.app.epoch:
                await self.bring()  # while the wait goes on: the start finds them here
            return
        missing = set(self.digests().values()) - self._here
        if missing and group.me in standbys(group.state, job.app):
            await self.bring()
            self._here |= missing

    async def _keep_archived(self, runtime: SupportsImages) -> None:
        """The owner's part: each image in the store once, its key sealed to the app's newest."""
        job = self._job
        app, keys = job.app, job.data.keyring()
        pinned, changed = dict(app.pinned_images), False
        for name in self.wanted:
            known = pinned.get(name)
            if known is None or not await self._stands(known):
                pinned[name] = await self._archived(runtime, name, known)
            elif known.generation != keys.generation:
                pinned[name] = self._sealed_again(known)
            changed = changed or pinned[name] != known
        gone = [i for name, i in app.pinned_images.items() if name not in self.wanted]
        if not changed and not gone:
            return
        now = job.group.agent.clock.wall_ms()
        past = [i for i in app.images if i.replaced_ms] + [replace(i, replaced_ms=now) for i in gone]
        current = [pinned[name] for name in self.wanted]
        kept = await self._still_needed(past)
        room = max(0, MOST_KEPT - len(current))
        images = (*last(kept, room), *current)
        await job.group.journal.append(
            AppImages(app=app.id, images=images),
            wanted=lambda state: (
                state.apps[app.id].images == app.images
                and state.apps[app.id].owner == job.group.me
                and not state.apps[app.id].removed
            ),
        )

    async def _stands(self, image: ArchivedImage) -> bool:
        clock = self._job.group.agent.clock
        seen = self._stood.get(image.object)
        if seen is not None and clock.boottime() - seen < STANDS:
            return True
        if stands := await (await self._archive()).stands(image):
            self._stood[image.object] = clock.boottime()
        return stands

    async def _archived(
        self, runtime: SupportsImages, name: str, known: ArchivedImage | None
    ) -> ArchivedImage:
        """The image in the store: another app's of the same content, or sealed now."""
        job, archive = self._job, await self._archive()
        wanted = known.digest if known is not None else self.digests().get(name, name)
        digest, arch = await runtime.image_digest(wanted), await runtime.image_architecture(wanted)
        for other in self._same(digest):
            if await self._stands(other):
                return replace(other, name=name)
        keys = job.data.keyring()
        made = self._made.get(digest)
        if made is not None and made.generation == keys.generation and await self._stands(made):
            return replace(made, name=name)
        job.logger.info("%s: archiving image %s", job.app.name, name)
        image = ArchivedImage(
            name=name, digest=digest, arch=arch, object="", segments=(), sealed_key=b"", generation=0
        )
        stored = await archive.write(image, lambda: runtime.save_image(digest), keys)
        self._made[digest] = stored
        self._stood[stored.object] = job.group.agent.clock.boottime()
        return stored

    def _same(self, digest: str) -> list[ArchivedImage]:
        """The same image, archived in the same store for another app, its key sealed to ours."""
        job = self._job
        others = [
            other
            for other in job.group.jobs.values()
            if other.app.store == job.app.store and not other.app.removed
        ]
        return [
            other.images.sealed_for(image, job)
            for other in others
            for image in other.app.images
            if image.digest == digest and image.generation in other.data.keyring().secrets
        ]

    def sealed_for(self, image: ArchivedImage, job: AppJob) -> ArchivedImage:
        """An image of this app with its key sealed to another's, or to this one's newest. Raises Denied, Corrupt."""
        key = self._job.data.keyring().object_key(ref_of(image))
        keys = job.data.keyring()
        sealed = seal_to(keys.public, key, job.group.agent.entropy)
        return replace(image, sealed_key=sealed, generation=keys.generation, replaced_ms=0)

    def _sealed_again(self, image: ArchivedImage) -> ArchivedImage:
        if image.generation not in self._job.data.keyring().secrets:
            raise BackendError(f"image {image.name} is sealed to a key that this device does not hold")
        return self.sealed_for(image, self._job)

    async def _still_needed(self, past: list[ArchivedImage]) -> list[ArchivedImage]:
        """Those that the app ran at a moment that is still kept."""
        if not past:
            return []
        timeline = await (await self._job.data.archive()).timeline(strict=False)
        oldest = min((r.wall_ms for r in timeline.records.values()), default=0)
        return sorted((i for i in past if i.replaced_ms >= oldest), key=lambda i: i.replaced_ms)
