"""Configuration of the `directory` store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryConfig:
    """A folder on a local disk or on one network file system that all devices mount."""

    path: Path = field(metadata={"help": "Folder that holds the store; made if its parent exists."})
    staleness: float = field(
        default=0.0,
        metadata={
            "help": "Seconds by which a listing may lag behind: 0 on a local disk, the attribute cache (acdirmax) on NFS."
        },
    )
