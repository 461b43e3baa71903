"""What a manifest brings along from beside it that somebody has to say by name: it could take keys out of a home it was saved in."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fractal.api.building import ImageBuild

CREDENTIALS = (
    *(
        ".ssh",
        ".gnupg",
        ".aws",
        ".azure",
        ".kube",
        ".netrc",
        ".pgpass",
        ".git-credentials",
        ".password-store",
    ),
    *(".docker/config.json", ".config/gcloud"),
)
"""What no folder that is built of has, but homes have."""
REASON = "hidden files and folders are read only where they are named so: keys are kept in such"


def unasked(
    manifest: Path, files: Iterable[str], builds: Iterable[ImageBuild], read: Sequence[str]
) -> list[str]:
    """What of a manifest's files and contexts nobody has named by `read`, itself or a folder above it, and is hidden, by its name
    or where a link leads to; and contexts that hold what homes hold."""
    folder = manifest.parent.resolve()
    found = [path for path in files if _hidden(path) or _hidden(_real(folder, path))]
    for build in builds:
        holds = any((folder / build.context / name).exists() for name in CREDENTIALS)
        if holds or _hidden(f"{posixpath.normpath(build.context)}/"):
            found.append(posixpath.normpath(build.context))
    named = [posixpath.normpath(path) for path in read]
    return [path for path in dict.fromkeys(found) if not any(_covers(name, path) for name in named)]


def refuse_unasked(manifest: Path, paths: Sequence[str]) -> None:
    """Raises click's usage error if there are any."""
    if paths:
        words = " ".join(f"--read {path}" for path in paths)
        raise click.UsageError(
            f"{manifest} would take along {', '.join(paths)}: {REASON}. If it may: {words}"
        )


def needed(paths: Iterable[str]) -> Mapping[str, str]:
    """The same as options that somebody has to give, and why."""
    return {f"--read {path}": REASON for path in paths}


def _real(folder: Path, path: str) -> str:
    at = (folder / path).resolve()
    return str(at.relative_to(folder)) if at.is_relative_to(folder) else path


def _hidden(path: str) -> bool:
    """`.env` and the like are what Compose files have beside them."""
    *above, last = path.split("/")
    return any(name.startswith(".") and name not in (".", "..") for name in above) or (
        last.startswith(".") and not last.startswith(".env")
    )


def _covers(name: str, path: str) -> bool:
    return name in (".", path) or path.startswith(f"{name}/")
