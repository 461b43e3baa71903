"""Settings of the `example` store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleConfig:
    """One folder."""

    path: Path = field(metadata={"help": "Folder for the objects."})
