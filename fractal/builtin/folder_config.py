"""Configuration of the `folder` catalog. Light: read by the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderConfig:
    """Which manifests are on offer."""

    path: Path | None = field(
        default=None,
        metadata={
            "help": "Folder of manifests, or checkout of a repository of them: NAME.yml, or NAME/compose.yaml."
            " Default: those that come with this version."
        },
    )
