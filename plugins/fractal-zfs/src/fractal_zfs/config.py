"""Configuration of the `zfs` snapshotter."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fractal.api.errors import Misconfigured

LONGEST = 80
"""Characters of the dataset; names below it take the rest of the 255 that ZFS allows."""
_DATASET = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:-]+)*")
_RECORD_SIZE = re.compile(r"(4|8|16|32|64|128)K")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZfsConfig:
    """A dataset that belongs to the agent."""

    dataset: str = field(
        metadata={
            "help": "Dataset for the apps' volumes, such as tank/homeserver; made if the one above it exists."
        }
    )
    recordsize: str = field(
        default="16K",
        metadata={
            "help": "Largest block of new files: small ones keep ticks of databases small. A power of 2 from 4K to 128K."
        },
    )

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if len(self.dataset) > LONGEST or not _DATASET.fullmatch(self.dataset):
            raise Misconfigured("dataset", f"{self.dataset!r} is no dataset of at most {LONGEST} characters")
        if not _RECORD_SIZE.fullmatch(self.recordsize):
            raise Misconfigured("recordsize", f"{self.recordsize!r} is not 4K, 8K, 16K, 32K, 64K or 128K")
