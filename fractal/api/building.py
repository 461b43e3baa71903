"""Images that are built of a Compose file's `build`: what to build, and how its context travels."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

BUILT = "localhost/fractal-homeserver-built"
"""Repository of images that were built here: `BUILT/NAME:HEX`, with the hex digits of the image's own digest. No registry has them."""
INLINE = ".fractal-homeserver.dockerfile"
"""Where a Dockerfile that stands in the manifest is put into the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBuild:
    """How an image is built, in the words of the Compose Build Specification."""

    name: str
    """What the image is for: a service's name, or the image's; a part of its name here."""
    context: str
    """Relative path of a folder beside the manifest; `.` is the manifest's own."""
    dockerfile: str = "Dockerfile"
    """Relative path in the context."""
    inline: str = ""
    """Text of the Dockerfile, if it stands in the manifest."""
    args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    """Name -> address, for what runs while it is built."""
    target: str = ""
    """The last stage to build; "" is all."""
    network: str = ""
    """`none`: what runs while it is built has no network; "": the engine's own."""
    platform: str = ""
    shm_size: int = 0
    """Bytes; 0: the engine's own."""
    fresh: bool = False
    """Whether nothing of an earlier build is taken."""
    pull: bool = False
    """Whether newer base images are looked for."""

    @property
    def file(self) -> str:
        """Path of the Dockerfile in the context as it is packed."""
        return INLINE if self.inline else posixpath.normpath(self.dockerfile)


@runtime_checkable
class SupportsBuild(Protocol):
    """Builds images by this device's engine."""

    async def build_image(
        self, build: ImageBuild, size: int, context: AsyncIterator[bytes], said: Callable[[str], None]
    ) -> str:
        """Build it from a context, a tar archive of `size` bytes; its name here, `BUILT/NAME:HEX`. `said` is told of each step.

        It takes the network that the engine gives, for base images too. Raises BackendError with the step that failed.
        """

    async def find_image(self, image: str, platform: str = "") -> bool:
        """Whether an image is on this device, or could be pulled now. Raises BackendError if the engine does not answer."""
