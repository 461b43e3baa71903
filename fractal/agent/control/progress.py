"""How a handler tells its caller what it is doing, while it does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Where a handler reports to. `say` and `step` never wait; a slow reader misses some of them."""

    def say(self, text: str) -> None:
        """One line in plain words."""

    def step(self, done: int, total: int, unit: str = "") -> None:
        """How far the present work is; `total` 0 means not known."""

    async def output(self, record: Mapping[str, object]) -> None:
        """One record of a streamed result (a log line). Waits for a slow reader; nothing is dropped."""


class Silent:
    """Nobody listens."""

    def say(self, text: str) -> None:
        """Ignored."""

    def step(self, done: int, total: int, unit: str = "") -> None:
        """Ignored."""

    async def output(self, record: Mapping[str, object]) -> None:
        """Ignored."""
