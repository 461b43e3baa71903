"""Notes in one SQLite file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fractal.agent.notes import Notes
from fractal.api.errors import BackendError, Corrupt

if TYPE_CHECKING:
    import sqlite3

_VERSION = 1
_LAST = "\U0010ffff"


class SqliteNotes(Notes):
    """Write-ahead log with a flush at every commit (`synchronous = FULL`): what was written survives a power cut.

    Usable from any thread. Raises BackendError when the disk refuses, Corrupt when the file is no notes file.
    """

    def __init__(self, path: Path) -> None:
        import sqlite3

        self._path = path
        self._lock = threading.Lock()
        try:
            # Made by us, so that neither it nor the files that SQLite makes after its pattern can be read by others.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise BackendError(f"{path}: cannot be opened: {error.strerror}") from error
        with self._translated():
            self._base = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        try:
            with self._translated():
                self._prepare(self._base)
        except BaseException:
            self._base.close()
            raise

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            self._base.close()

    def get(self, key: str) -> bytes | None:
        """As `Notes.get`."""
        with self._lock, self._translated():
            row = self._base.execute("SELECT value FROM notes WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        """As `Notes.scan`."""
        query = "SELECT key, value FROM notes WHERE key >= ? AND key < ? ORDER BY key"
        with self._lock, self._translated():
            rows = self._base.execute(query, (prefix, prefix + _LAST)).fetchall()
        return [(str(key), bytes(value)) for key, value in rows]

    def write(self, changes: Mapping[str, bytes | None]) -> None:
        """As `Notes.write`."""
        with self._lock, self._translated():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                for key, value in changes.items():
                    if value is None:
                        self._base.execute("DELETE FROM notes WHERE key = ?", (key,))
                    else:
                        self._base.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, value))
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:  # SQLite itself rolls back when the disk is full
                    self._base.execute("ROLLBACK")
                raise

    def _prepare(self, base: sqlite3.Connection) -> None:
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise BackendError(
                f"{self._path}: written by a newer agent (format {version}, this one knows {_VERSION}); upgrade"
            )
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = FULL")
        base.execute(
            "CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
        )
        base.execute(f"PRAGMA user_version = {_VERSION}")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise  # our own mistake, not the disk's
        except sqlite3.OperationalError as error:
            raise BackendError(
                f"{self._path}: {error}; look for room and rights there", retryable=True
            ) from error
        except sqlite3.DatabaseError as error:
            raise Corrupt(
                f"{self._path}: {error}; restore this file, or join again as a new device"
            ) from error
