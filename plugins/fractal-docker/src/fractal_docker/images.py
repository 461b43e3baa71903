"""Images: pulled when they are absent, saved and loaded as streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from fractal.api.errors import BackendError, NotFound
from fractal_docker.config import DockerConfig
from fractal_docker.engine import Engine
from fractal_docker.streams import CHUNK, request

PINNED = "fractal-homeserver-pinned"
"""Local repository of images that are named by digest and came as an archive: the engine keeps no digest for those."""
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

    def __init__(self, engine: Engine, config: DockerConfig) -> None:
        self._engine = engine
        self._config = config

    async def digest(self, image: str) -> str:
        """Digest of the image's configuration, the same on every engine and through save and load. Raises NotFound."""
        digest = str((await self._inspect(image))["Id"])
        if not _ID.fullmatch(digest):
            raise BackendError(f"docker: image {image}: the engine gives {digest[:80]!r} as its digest")
        return digest

    async def architecture(self, image: str) -> str:
        """The machine that it was built for, as the kernel names it. Raises NotFound."""
        found = await self._inspect(image)
        name, variant = str(found.get("Architecture", "")), str(found.get("Variant") or "")
        return MACHINES.get(f"{name}/{variant}", MACHINES.get(name, name))

    async def _inspect(self, image: str) -> dict[str, Any]:
        for name in (image, _local(image)):
            with contextlib.suppress(NotFound):
                found: dict[str, Any] = await self._engine(
                    f"image {image}", self._engine.api.inspect_image, name
                )
                return found
        raise NotFound(f"docker: no image {image} on this device")

    async def bring(self, image: str) -> None:
        """Pull the image unless it is here."""
        try:
            await self.digest(image)
        except NotFound:
            await self._pull(image)

    async def _pull(self, image: str) -> None:
        name, at, digest = image.partition("@")
        tag = digest
        if not at:
            head, slash, last = name.rpartition("/")
            last, _, tag = last.partition(":")
            name, tag = head + slash + last, tag or "latest"
        path = f"/images/create?fromImage={quote(name, safe='')}&tag={quote(tag, safe='')}"
        await self._tell(f"pulling {image}", path, None)
        await self.digest(image)

    async def save(self, image: str) -> AsyncIterator[bytes]:
        """The image as a docker archive, by its digest: loading it moves no tag of anybody else's."""
        digest = await self.digest(image)
        patience = self._config.pull_timeout
        what = f"saving {image}"
        async with request(self._engine.socket, what, "GET", f"/images/{digest}/get", patience=patience) as (
            reader,
            _,
        ):
            while chunk := await reader.read(CHUNK):
                yield chunk

    async def load(self, image: str, chunks: AsyncIterator[bytes]) -> str:
        """Load an archive that holds one image, and tag it."""
        said = await self._tell(f"loading {image}", "/images/load?quiet=1", chunks)
        loaded = list(dict.fromkeys(_LOADED.findall(said)))
        if len(loaded) != 1:
            raise BackendError(
                f"docker: loading {image}: expected one image in the archive, got {len(loaded)}"
            )
        digest = await self.digest(loaded[0])
        repository, _, tag = _local(image).rpartition(":")
        await self._engine(f"tagging {image}", self._engine.api.tag, digest, repository, tag)
        return digest

    async def _tell(self, what: str, path: str, chunks: AsyncIterator[bytes] | None) -> str:
        """POST and read the engine's progress; what it said. Raises BackendError for an error among it."""
        said = []
        where = f"docker at {self._engine.socket}: {what}"
        limit = self._config.pull_timeout
        try:
            async with (
                asyncio.timeout(limit),
                request(self._engine.socket, what, "POST", path, chunks=chunks, patience=limit) as (
                    reader,
                    _,
                ),
            ):
                while line := await reader.readline():
                    message = _message(line)
                    if error := message.get("error"):
                        raise BackendError(f"{where}: {error}", retryable=True)
                    said.append(str(message.get("stream", "")))
        except TimeoutError as error:
            raise BackendError(f"{where}: not done after {limit:g} s", retryable=True) from error
        except ValueError as error:
            raise BackendError(f"{where}: {error}") from error
        return "".join(said)


def _message(line: bytes) -> dict[str, object]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}  # the size of a chunk, where the answer comes in chunks
    return found if isinstance(found, dict) else {}


def _local(image: str) -> str:
    """The name under which an image can be tagged: one pinned by digest cannot be tagged as such."""
    if "@" in image:
        return f"{PINNED}:{image.rpartition(':')[2][:64]}"
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"
