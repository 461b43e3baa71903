"""Building images: by the engine's own builder, from a context that is sent to it as a tar archive.

Docker Engine API, `POST /build`, which Podman answers too. What comes is a line of JSON for each thing that the builder
says: `{"stream": "Step 1/2 : FROM scratch\\n"}`, `{"aux": {"ID": "sha256:..."}}`, `{"error": "..."}`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from fractal.api.building import BUILT, ImageBuild
from fractal.api.errors import BackendError
from fractal_containers.advice import advised
from fractal_containers.engine import Engine
from fractal_containers.images import Images

STEP = re.compile(r"(?:\[\d+/\d+\] )?(?:STEP|Step) (\d+/\d+) ?: (.*)")
LAST = 12
"""Lines that the builder said last, for an error."""
MAX_LINE = 300
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_BUILDKIT = re.compile(r"requires? BuildKit|buildkit", re.IGNORECASE)


async def built(
    engine: Engine,
    images: Images,
    build: ImageBuild,
    size: int,
    context: AsyncIterator[bytes],
    said: Callable[[str], None],
) -> str:
    """As `SupportsBuild.build_image`."""
    what = f"building {build.name}"
    digest = await _carried_out(engine, build, size, context, what, said)
    found = await images.digest(digest)
    name = f"{BUILT}/{_slug(build.name)}:{found.removeprefix('sha256:')}"
    await engine.tag(found, name)
    return name


async def _carried_out(
    engine: Engine,
    build: ImageBuild,
    size: int,
    context: AsyncIterator[bytes],
    what: str,
    said: Callable[[str], None],
) -> str:
    """Identity of what was built. Raises BackendError with the step that failed and what was said last."""
    where, step, digest, last = engine.wire.where(what), "", "", deque[str](maxlen=LAST)
    await engine.about()  # told as such if it cannot be used at all
    async with aclosing(engine.build(build, size, context, what)) as messages:
        async for message in messages:
            if error := str(message.get("error") or ""):
                raise BackendError(_failed(engine, where, step, error, last, build))
            for line in str(message.get("stream") or "").splitlines():
                if match := STEP.match(line):
                    step = f"step {match[1]}, {_hidden(match[2], build)[:MAX_LINE]!r}"
                    said(f"{build.name}: {step}")
                    last.clear()
                elif line.strip():
                    last.append(_hidden(line.strip(), build)[:MAX_LINE])
            aux = message.get("aux")
            if isinstance(aux, dict) and (found := _ID.fullmatch(str(aux.get("ID", "")))):
                digest = f"sha256:{found[1]}"
    if not digest:
        raise BackendError(_failed(engine, where, step, "ended without an image", last, build))
    return digest


def _failed(engine: Engine, where: str, step: str, error: str, last: deque[str], build: ImageBuild) -> str:
    text = f"{where}: {step + ': ' if step else ''}{_hidden(' '.join(error.split()), build)[: 3 * MAX_LINE]}"
    if last:
        text += "\n" + "\n".join(f"  {line}" for line in last)
    text = advised(text, engine.name, engine.oldest)
    if _BUILDKIT.search(error):
        text += (
            "\n  Docker's API builds without BuildKit: leave its syntax out (`RUN --mount`, `COPY --link`, `<<EOF`), "
            "install it on a device with Podman, or build it elsewhere and name it by --image"
        )
    return text


def _hidden(text: str, build: ImageBuild) -> str:
    """Without the values of arguments: whoever wrote them may have thought that nobody sees them."""
    for value in sorted((v for v in build.args.values() if len(v) >= 8), key=len, reverse=True):
        text = text.replace(value, "***")
    return "".join(c if c.isprintable() else " " for c in text)


def _slug(name: str) -> str:
    """A part of an image's name: of `ghcr.io/ada/Notes:2`, `notes`."""
    last = name.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:60] or "image"
