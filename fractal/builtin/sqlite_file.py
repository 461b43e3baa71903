"""The file behind the `sqlite` coordination backend: blocking, called on a worker thread, safe from several threads.

SQLite's write-ahead log gives what a group's log needs: one writer at a time (so row ids rise in commit order and a reader
never sees a later entry without the earlier ones), readers that do not wait for writers, and a committed entry that
survives SIGKILL and power loss (`synchronous=FULL`). Signals are committed without waiting for the disk.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from fractal.api.coordination import Page, Signal
from fractal.api.errors import Ambiguous, BackendError, InvalidInput, NotFound

APPLICATION_ID = 0x46485331  # "FHS1" in the file's header, so that `file` and we know whose it is
VERSION = 1
BUSY_MS = 50
"""How long SQLite itself waits for a lock: short, as it occupies a worker thread; the caller repeats."""
PAGE_BYTES = 4 << 20
"""Bytes of entries in one page at most (at least one entry), so that a reader's memory is bounded."""
KEPT_MESSAGES = 256
"""Signals addressed to one device that are kept for it."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (token TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log (
    id INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, token TEXT NOT NULL, entry BLOB NOT NULL, UNIQUE (grp, token));
CREATE INDEX IF NOT EXISTS log_order ON log (grp, id);
CREATE TABLE IF NOT EXISTS signals (
    id INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, sender TEXT NOT NULL, payload BLOB NOT NULL, UNIQUE (grp, sender));
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, recipient TEXT NOT NULL, sender TEXT NOT NULL, payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS messages_order ON messages (grp, recipient, id);
"""


class BusyError(BackendError):
    """Another process holds the file; the caller repeats until its time-out."""

    code = "busy"


class LogFile:
    """One file with the logs and signals of any number of groups."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._wal = Path(f"{path}-wal")
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._closed = False
        self._identity: tuple[int, ...] | None = None
        self._writer: sqlite3.Connection
        self._reader: sqlite3.Connection
        self._connections: list[sqlite3.Connection] = []

    def open(self) -> None:
        """Open or create the file. Raises BusyError, BackendError."""
        with self._writing, self._reading:
            if self._closed:
                raise BackendError(f"sqlite log {self.path} was closed while it was being opened")
            try:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _create(self.path)
            except OSError as error:
                raise BackendError(
                    f"sqlite log {self.path} cannot be opened for writing: {error.strerror}"
                ) from error
            with self._errors("opening"):
                self._writer = self._connect()
                self._prepare()
                self._reader = self._connect()
                self._reader.execute(
                    "SELECT 1 FROM groups"
                ).fetchone()  # makes the side files, if not there yet
            self._identity = _identity(self.path)

    def close(self) -> None:
        """Close the connections, after calls that still run on a worker; later calls fail."""
        with self._writing, self._reading:
            self._closed = True
            for connection in self._connections:
                connection.close()

    def mark(self) -> tuple[int, ...]:
        """Changes with (nearly) every commit of any process; costs two `stat` calls and no lock."""
        return (*_stamp(self.path), *_stamp(self._wal))

    def create(self, group: str) -> None:
        """Make an empty log; nothing if it exists."""
        with self._write("creating a log"):
            self._writer.execute("INSERT OR IGNORE INTO groups VALUES (?)", (group,))

    def require(self, group: str) -> None:
        """Raises NotFound if there is no such log."""
        with self._read("looking for a log"):
            self._require(self._reader, group)

    def append(self, group: str, token: str, entry: bytes) -> None:
        """Append unless `token` was appended before."""
        with self._write("appending", ambiguous=True):
            self._require(self._writer, group)
            self._writer.execute(
                "INSERT OR IGNORE INTO log (grp, token, entry) VALUES (?, ?, ?)", (group, token, entry)
            )

    def read(self, group: str, after: str | None, limit: int) -> Page:
        """Up to `limit` entries after the cursor."""
        with self._read("reading"):
            self._require(self._reader, group)
            last = self._position(group, after)
            # One row more than asked for tells whether the page ends at the head.
            rows = self._reader.execute(
                "SELECT id, token, entry FROM log WHERE grp = ? AND id > ? ORDER BY id LIMIT ?",
                (group, last, limit + 1),
            )
            entries: list[bytes] = []
            size, cursor = 0, after if after is not None else "0"
            for number, token, entry in rows:
                if len(entries) == limit or (entries and size + len(entry) > PAGE_BYTES):
                    rows.close()
                    return Page(tuple(entries), cursor, head=False)
                entries.append(entry)
                size, cursor = size + len(entry), _cursor(number, token)
        return Page(tuple(entries), cursor, head=True)

    def signal(self, group: str, sender: str, payload: bytes, to: str | None) -> None:
        """Keep a signal: the last one of its sender, or one more for `to`."""
        with self._write("signalling", durable=False):
            self._require(self._writer, group)
            if to is None:
                self._writer.execute(
                    "INSERT OR REPLACE INTO signals (grp, sender, payload) VALUES (?, ?, ?)",
                    (group, sender, payload),
                )
                return
            self._writer.execute(
                "INSERT INTO messages (grp, recipient, sender, payload) VALUES (?, ?, ?, ?)",
                (group, to, sender, payload),
            )
            self._writer.execute(
                "DELETE FROM messages WHERE grp = ? AND recipient = ? AND id NOT IN"
                " (SELECT id FROM messages WHERE grp = ? AND recipient = ? ORDER BY id DESC LIMIT ?)",
                (group, to, group, to, KEPT_MESSAGES),
            )

    def signals(self, group: str, device: str, seen: int) -> tuple[list[Signal], int]:
        """Broadcasts numbered above `seen` and messages to `device`, which are deleted; and the new `seen`."""
        with self._read("reading signals"):
            self._require(self._reader, group)
            found = self._reader.execute(
                "SELECT id, sender, payload FROM signals WHERE grp = ? AND id > ? ORDER BY id", (group, seen)
            ).fetchall()
            mine = self._reader.execute(
                "SELECT id, sender, payload FROM messages WHERE grp = ? AND recipient = ? ORDER BY id",
                (group, device),
            ).fetchall()
        if mine:
            with self._write("taking signals", durable=False):
                self._writer.execute(
                    "DELETE FROM messages WHERE grp = ? AND recipient = ? AND id <= ?",
                    (group, device, mine[-1][0]),
                )
        signals = [Signal(sender, payload) for _, sender, payload in found if sender != device]
        signals += [Signal(sender, payload) for _, sender, payload in mine]
        return signals, found[-1][0] if found else seen

    def forget(self, group: str, device: str) -> None:
        """Drop what is kept of and for a device beside the log."""
        with self._write("leaving", durable=False):
            self._writer.execute("DELETE FROM signals WHERE grp = ? AND sender = ?", (group, device))
            self._writer.execute("DELETE FROM messages WHERE grp = ? AND recipient = ?", (group, device))

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False
        )
        self._connections.append(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> None:
        (owner,) = self._writer.execute("PRAGMA application_id").fetchone()
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if (owner, version) == (APPLICATION_ID, VERSION):
            return
        tables = self._writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if owner == APPLICATION_ID and version > VERSION:
            raise BackendError(
                f"sqlite log {self.path} has format {version}, newer than the {VERSION} known here: update this agent"
            )
        if owner != APPLICATION_ID and tables:
            raise BackendError(f"{self.path} is a database of some other program: choose another path")
        self._writer.executescript(
            f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT;"
        )
        _sync_directory(self.path.parent)

    def _require(self, connection: sqlite3.Connection, group: str) -> None:
        if connection.execute("SELECT 1 FROM groups WHERE token = ?", (group,)).fetchone() is None:
            raise NotFound(f"sqlite log {self.path} has no group {group}: was it created with another file?")

    def _position(self, group: str, cursor: str | None) -> int:
        """Row id of a cursor, which names that row's token too: a file put back from a copy is found out."""
        if cursor is None or cursor == "0":
            return 0
        number, _, check = cursor.partition(".")
        if not (number.isascii() and number.isdigit() and len(number) < 19 and len(check) == 8):
            raise InvalidInput(f"{cursor[:40]!r} is not a cursor of the sqlite coordination backend")
        row = self._reader.execute(
            "SELECT token FROM log WHERE id = ? AND grp = ?", (int(number), group)
        ).fetchone()
        if row is None or _cursor(int(number), row[0]) != cursor:
            raise BackendError(
                f"sqlite log {self.path} no longer holds entry {number} that this device has read: the file was"
                " replaced by an older or another one; put the right one back"
            )
        return int(number)

    @contextmanager
    def _read(self, doing: str) -> Iterator[None]:
        with self._reading, self._errors(doing), _transaction(self._reader, "BEGIN"):
            yield
        self._check_identity(doing, BackendError)

    @contextmanager
    def _write(self, doing: str, *, durable: bool = True, ambiguous: bool = False) -> Iterator[None]:
        with self._writing, self._errors(doing, ambiguous=ambiguous):
            self._writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with _transaction(self._writer, "BEGIN IMMEDIATE"):
                yield
        self._check_identity(doing, Ambiguous if ambiguous else BackendError)

    def _check_identity(self, doing: str, kind: Callable[[str], BackendError]) -> None:
        # After the fact: what went through an unlinked file was seen by nobody, and its silence proves nothing.
        if _identity(self.path) != self._identity:
            raise kind(
                f"sqlite log {self.path} was moved or replaced while open ({doing}): put it back, restart this agent"
            )

    @contextmanager
    def _errors(self, doing: str, *, ambiguous: bool = False) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(self.path, doing, error, ambiguous=ambiguous) from error


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _translated(path: Path, doing: str, error: sqlite3.Error, *, ambiguous: bool) -> BackendError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    where = f"sqlite log {path}, {doing}: {error}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BusyError(where, retryable=True)
    if code == sqlite3.SQLITE_FULL:
        return BackendError(f"{where}: free some space on its file system")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return BackendError(f"{where}: the file is damaged; restore it from a copy or make a new log")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return BackendError(f"{where}: this agent must be able to write the file and its folder")
    if code == sqlite3.SQLITE_IOERR and ambiguous:
        return Ambiguous(f"{where}: the disk below failed, the entry may or may not be there")
    return BackendError(where, retryable=code == sqlite3.SQLITE_IOERR)


def _cursor(number: int, token: str) -> str:
    return f"{number}.{blake2b(token.encode('ascii'), digest_size=4).hexdigest()}"


def _create(path: Path) -> None:
    """Make the file with mode 0600 (SQLite gives its side files the same) unless it exists.

    An existing file is never opened here: closing it again would drop the POSIX locks that SQLite holds on it for other
    connections of this process; another process would then take the log for unused, remove the write-ahead log, and
    those connections would read an old state for ever.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if not os.access(path, os.W_OK):  # SQLite would open it all the same, and fail at the first entry
            raise PermissionError(errno.EACCES, "it is read-only for this user") from None


def _identity(path: Path) -> tuple[int, ...] | None:
    """Which files these are: all three stay the same as long as anybody has the log open. None if one is gone."""
    try:
        found = [Path(f"{path}{suffix}").stat() for suffix in ("", "-wal", "-shm")]
    except OSError:
        return None
    return tuple(number for status in found for number in (status.st_dev, status.st_ino))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise BackendError(f"{path} cannot be made durable: {error.strerror}") from error
    finally:
        os.close(descriptor)
