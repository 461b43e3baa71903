"""The agent's durable memory: small values by key, changed several at once or not at all.

What a crash must not forget (keys, the journal, the outbox, "the wait for epoch n is over") is written here *before* the
agent acts on it. Bulk data has no place here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Notes(Protocol):
    """Synchronous: a write takes the time of one flush to disk. Keys are paths in words, e.g. `group/<id>/cursor`."""

    def get(self, key: str) -> bytes | None:
        """The value, None if there is none. Raises BackendError if the disk fails, Corrupt if the file is damaged."""

    def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        """Every key that begins with `prefix`, with its value, sorted by key. Raises like `get`."""

    def write(self, changes: Mapping[str, bytes | None]) -> None:
        """Set, or delete where the value is None, all of `changes`: atomic, and durable when this returns.

        Raises BackendError with nothing changed.
        """


class MemoryNotes:
    """Notes that live as long as the object: for tests, and for the simulator to keep across a simulated crash."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """As `Notes.get`."""
        return self._values.get(key)

    def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        """As `Notes.scan`."""
        return sorted((key, value) for key, value in self._values.items() if key.startswith(prefix))

    def write(self, changes: Mapping[str, bytes | None]) -> None:
        """As `Notes.write`."""
        for key, value in changes.items():
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = bytes(value)
