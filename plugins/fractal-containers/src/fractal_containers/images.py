"""Images: pulled when they are absent, saved and loaded as streams."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator

from fractal.api.building import BUILT
from fractal.api.errors import BackendError, NotFound
from fractal_containers.engine import Engine
from fractal_containers.found import Image

PINNED = "localhost/fractal-homeserver-pinned"
"""Local repository of images that are named by digest and came as an archive: an engine keeps no digest for those."""
MACHINES = {
    "386": "i686",
    "amd64": "x86_64",
    "arm": "armv7l",
    "arm/v5": "armv5tel",
    "arm/v6": "armv6l",
    "arm64": "aarch64",
    "loong64": "loongarch64",
}
"""Go's names of architectures, where the kernel has another one."""
_LOADED = re.compile(r"Loaded image(?: ID)?: (\S+)")
_ID = re.compile(r"sha256:[0-9a-f]{64}")


class Images:
    """As `SupportsImages`, and what `prepare` needs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def digest(self, image: str) -> str:
        """As `SupportsImages.image_digest`."""
        return (await self._look(image)).digest

    async def architecture(self, image: str) -> str:
        """As `SupportsImages.image_architecture`."""
        name = (await self._look(image)).architecture
        return MACHINES.get(name, MACHINES.get(name.partition("/")[0], name.partition("/")[0]))

    async def _look(self, image: str) -> Image:
        for name in (image, _local(image)):
            with contextlib.suppress(NotFound):
                found = await self._engine.image(name)
                if not _ID.fullmatch(found.digest):
                    raise BackendError(
                        f"{self._engine.name}: image {image}: the engine gives {found.digest[:80]!r} as its digest"
                    )
                return found
        raise NotFound(f"{self._engine.name}: no image {image} on this device")

    async def bring(self, image: str, platform: str = "") -> None:
        """Pull the image unless it is here, for this machine unless `platform` says otherwise.

        Raises BackendError for one that was built and is not here, or is another one under its name: no registry is asked.
        """
        try:
            found = await self.digest(image)
            if image.startswith(f"{BUILT}/") and found != f"sha256:{image.rpartition(':')[2]}":
                raise BackendError(
                    f"{self._engine.name}: {image} is {found} here; remove it from the engine, and build it again "
                    "by `homeserver app update APP --manifest FILE`"
                )
        except NotFound as error:
            if image.startswith(f"{BUILT}/"):
                raise NotFound(
                    f"{error}; it was built, so that no registry has it: until the device that built it has stored it, "
                    "no other one can start it. `homeserver app update APP --manifest FILE` builds it again"
                ) from error
            await self._engine.pull(image, platform)
            await self.digest(image)

    async def save(self, image: str) -> AsyncIterator[bytes]:
        """As `SupportsImages.save_image`."""
        digest = await self.digest(image)
        async for chunk in self._engine.save(digest, f"saving {image}"):
            yield chunk

    async def load(self, image: str, chunks: AsyncIterator[bytes]) -> str:
        """As `SupportsImages.load_image`."""
        said = await self._engine.load(chunks, f"loading {image}")
        loaded = list(dict.fromkeys(_LOADED.findall(said)))
        if len(loaded) != 1:
            raise BackendError(
                f"{self._engine.name}: loading {image}: expected one image in the archive, got {len(loaded)}"
            )
        digest = await self.digest(loaded[0])
        await self._engine.tag(digest, _local(image))
        return digest


def _local(image: str) -> str:
    """The name under which an image can be tagged: one pinned by digest cannot be tagged as such."""
    if "@" in image:
        return f"{PINNED}:{image.rpartition(':')[2][:64]}"
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"
