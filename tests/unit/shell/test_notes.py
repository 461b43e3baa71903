"""Notes in memory and in SQLite: one contract, and what only a disk can do."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fractal.agent.notes import MemoryNotes, Notes
from fractal.api.errors import BackendError, Corrupt
from fractal.shell.notes import SqliteNotes

WRITES_UNTIL_KILLED = """
import pathlib, sys
from fractal.shell.notes import SqliteNotes
notes = SqliteNotes(pathlib.Path(sys.argv[1]))
for number in range(1_000_000):
    notes.write({"a": b"%d" % number, "b": b"%d" % number})
    print(number, flush=True)
"""


@pytest.fixture(params=["memory", "sqlite"])
def notes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Notes]:
    if request.param == "memory":
        yield MemoryNotes()
        return
    found = SqliteNotes(tmp_path / "notes")
    yield found
    found.close()


def test_what_was_written_is_read(notes: Notes) -> None:
    assert notes.get("a") is None
    notes.write({"a": b"1", "b": b""})
    notes.write({"a": b"2"})
    assert (notes.get("a"), notes.get("b")) == (b"2", b"")
    notes.write({"a": None, "never there": None})
    assert notes.get("a") is None


def test_scan_is_sorted_and_exact(notes: Notes) -> None:
    notes.write(
        {"group/b/x": b"2", "group/a/x": b"1", "group/a/%": b"0", "groups": b"", "g_oup/": b"", "é/x": b"3"}
    )
    assert notes.scan("group/") == [("group/a/%", b"0"), ("group/a/x", b"1"), ("group/b/x", b"2")]
    assert notes.scan("é") == [("é/x", b"3")]
    assert len(notes.scan("")) == 6


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    notes = SqliteNotes(tmp_path / "notes")
    notes.write({"a": b"old"})
    with pytest.raises((sqlite3.ProgrammingError, sqlite3.InterfaceError)):
        notes.write({"a": b"new", "b": object()})  # type: ignore[dict-item]  # what a bug would do
    assert notes.scan("") == [("a", b"old")]
    notes.write({"a": b"newer"})
    notes.close()


def test_files_can_be_read_by_nobody_else(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        notes = SqliteNotes(tmp_path / "notes")
        notes.write({"a": b"1"})
    finally:
        os.umask(old)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    notes.close()


def test_every_acknowledged_write_survives_sigkill_whole(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITES_UNTIL_KILLED, tmp_path / "notes"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        for _ in range(50):
            acknowledged = int(child.stdout.readline())
    finally:
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
    acknowledged = max([acknowledged, *(int(line) for line in rest.split(b"\n")[:-1])])
    notes = SqliteNotes(tmp_path / "notes")
    (_, a), (_, b) = notes.scan("")
    assert a == b
    assert int(a) in (acknowledged, acknowledged + 1)
    notes.close()


def test_a_full_disk_is_an_error_with_nothing_changed(tmp_path: Path) -> None:
    notes = SqliteNotes(tmp_path / "notes")
    notes.write({"a": b"old"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(BackendError, match=r"notes: .*look for room") as caught:
            notes.write({"a": b"new", "b": bytes(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.retryable
    assert notes.scan("") == [("a", b"old")]
    notes.write({"b": b"room again"})
    assert notes.get("b") == b"room again"
    notes.close()


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look at" * 50, b"SQLite format 3\0" + b"\xff" * 4096]
)
def test_a_damaged_file_is_corrupt_not_a_traceback(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises((Corrupt, BackendError), match="notes: "):
        SqliteNotes(tmp_path / "notes").scan("")


def test_a_newer_agents_file_is_left_alone(tmp_path: Path) -> None:
    base = sqlite3.connect(tmp_path / "notes")
    base.execute("PRAGMA user_version = 2")
    base.close()
    with pytest.raises(BackendError, match="newer agent"):
        SqliteNotes(tmp_path / "notes")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="absent/notes: cannot be opened"):
        SqliteNotes(tmp_path / "absent" / "notes")
