"""How fast the store's folder grows, by its files: not by what any agent says."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

PAUSE = 2.0
"""Seconds between looks. Objects are created whole and never overwritten; what lives for less is not counted."""


@dataclass(slots=True)
class Shelf:
    """Counts every byte of every object that comes into a folder from now on, also of those that go again."""

    folder: Path
    _began: float = field(default_factory=time.monotonic)
    _sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    """(inode, time of change) -> bytes."""
    _before: int = 0
    _end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._look()
        self._before = sum(self._sizes.values())
        threading.Thread(target=self._run, name="shelf", daemon=True).start()

    def growth(self) -> tuple[int, float]:
        """Bytes that came, and the seconds in which they did."""
        self._end.set()
        self._look()
        return sum(self._sizes.values()) - self._before, time.monotonic() - self._began

    def _run(self) -> None:
        while not self._end.wait(PAUSE):
            self._look()

    def _look(self) -> None:
        for path in list(self.folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                if path.is_file():
                    self._sizes[found.st_ino, found.st_mtime_ns] = found.st_size
