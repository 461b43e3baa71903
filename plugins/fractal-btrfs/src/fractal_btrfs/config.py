"""Configuration of the `btrfs` snapshotter."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from fractal.api.errors import Misconfigured

MIN_SIZE = 128 << 20
_UNITS = {"M": 20, "G": 30, "T": 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class BtrfsConfig:
    """A folder of a btrfs file system that is there, or a pool: a file that holds one."""

    path: Path | None = field(
        default=None,
        metadata={"help": "Folder on a btrfs file system; made if it is absent. Excludes a pool."},
    )
    pool: Path | None = field(
        default=None,
        metadata={
            "help": "File for a pool, made and mounted by the agent; by default inside its state folder."
        },
    )
    size: str = field(
        default="10G",
        metadata={"help": "Size of a new pool, such as 500M or 10G. The disk gives only what is used."},
    )
    limit: str = field(
        default="",
        metadata={"help": "Size that a pool may grow to; by default all but a tenth of the disk below it."},
    )

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if self.path is not None and self.pool is not None:
            raise Misconfigured("pool", "there is a path already: name one of them")
        for key, value in (("path", self.path), ("pool", self.pool)):
            if value is not None and not value.is_absolute():
                raise Misconfigured(key, f"{value} must be absolute")
        if self.size_bytes > self.limit_bytes > 0:
            raise Misconfigured("limit", f"{self.limit} is less than the pool's first size, {self.size}")

    @property
    def size_bytes(self) -> int:
        """Size of a new pool."""
        return _bytes("size", self.size)

    @property
    def limit_bytes(self) -> int:
        """Size that a pool may grow to; 0: as far as the disk goes."""
        return _bytes("limit", self.limit) if self.limit else 0


def _bytes(key: str, text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6})([MGT])", text)
    if match is None:
        raise Misconfigured(key, f"{text!r} is no size: write a whole number and M, G or T")
    size = int(match[1]) << _UNITS[match[2]]
    if size < MIN_SIZE:
        raise Misconfigured(key, f"{text} is too small for btrfs: at least {MIN_SIZE >> 20}M")
    return size
