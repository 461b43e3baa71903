"""Which entries were sent with which token, so that one that is sent again is in the log once.

A homeserver knows a transaction id for a day (Synapse: 24 hours), and only from the same login. What was tried before that,
or by another login, is looked for in the log before it is sent again: from the place that was noted before the first try.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from fractal.api.errors import BackendError

FILE = "outgoing.sqlite"
KEPT = 10_000
"""Entries that are remembered."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An entry on its way, or there."""

    login: str
    """Of the first attempt: user and device."""
    began_ms: int
    """Wall clock at the first attempt."""
    after: str
    """Cursor before it; "" for the beginning."""
    done: bool


class Outgoing:
    """A file of attempts: blocking, called on a worker thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def begin(self, room: str, token: str, attempt: Attempt) -> Attempt:
        """Note an attempt durably; the first one with that token if there was any. Raises BackendError."""
        with self._lock, self._file() as file:
            file.execute(
                "INSERT OR IGNORE INTO attempts (room, token, login, began_ms, after, done) VALUES (?, ?, ?, ?, ?, 0)",
                (room, token, attempt.login, attempt.began_ms, attempt.after),
            )
            row = file.execute(
                "SELECT login, began_ms, after, done FROM attempts WHERE room = ? AND token = ?",
                (room, token),
            ).fetchone()
            file.execute(
                "DELETE FROM attempts WHERE id <= (SELECT max(id) FROM attempts) - ? AND done", (KEPT,)
            )
        return Attempt(row[0], row[1], row[2], bool(row[3]))

    def done(self, room: str, token: str) -> None:
        """It is in the log."""
        with self._lock, self._file() as file:
            file.execute("UPDATE attempts SET done = 1 WHERE room = ? AND token = ?", (room, token))

    def forget(self, room: str) -> None:
        """Drop what was noted of a log."""
        with self._lock, self._file() as file:
            file.execute("DELETE FROM attempts WHERE room = ?", (room,))

    def _file(self) -> sqlite3.Connection:
        """The connection, as a context that commits."""
        try:
            if self._connection is None:
                made = sqlite3.connect(self.path, check_same_thread=False, timeout=5)
                made.executescript(
                    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                    "CREATE TABLE IF NOT EXISTS attempts (id INTEGER PRIMARY KEY AUTOINCREMENT, room TEXT NOT NULL,"
                    " token TEXT NOT NULL, login TEXT NOT NULL, began_ms INTEGER NOT NULL, after TEXT NOT NULL,"
                    " done INTEGER NOT NULL, UNIQUE (room, token));"
                )
                self._connection = made
        except sqlite3.Error as error:
            raise BackendError(f"{self.path}: {error}") from error
        return self._connection
