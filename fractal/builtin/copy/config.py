"""Configuration of the `copy` snapshotter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyConfig:
    """Where volumes and their snapshots are kept."""

    path: Path | None = field(
        default=None,
        metadata={
            "help": "Folder for volumes and snapshots, on one file system; by default inside the agent's state folder."
        },
    )
