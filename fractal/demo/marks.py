"""What belongs to the demo: its folder, by a marker file, and its processes, by a word that nobody else can know.

A process is ours if it carries the run's word in its environment, if it is the guard of a folder whose name holds the
word, or one of its apps (the guard gives each its folder), or if it descends from such a process. Nothing else is ever
signalled, whatever it has open and wherever it stands.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fractal.guard.processes import (
    DEAD,
    Process,
    Table,
    descendants,
    marked,
    scan,
    send,
)

WORD = "FRACTAL_DEMO"
"""Environment variable of every process that the demo starts: the run's word and, behind a colon, the device."""
MARKER = ".fractal-demo"
"""File that says that a folder is the demo's; holds the word of the run that used it."""
_WORD = re.compile(r"[0-9a-f]{32}")


class NotOurs(Exception):  # reads as what happened
    """The folder is not the demo's, or another demo uses it."""


class Ended(NamedTuple):
    """What `end` did."""

    processes: int
    """How many there were."""
    struck: float
    """Instant on the monotonic clock at which all that were found first had their signal."""


def new_word() -> str:
    """A word for one run."""
    return os.urandom(16).hex()


def guard_folder(state: Path) -> Path:
    """The folder of the guard of the agent whose state folder this is."""
    return Path(os.path.realpath(state)) / "guard"


def carries(pid: int, name: str, value: str) -> bool:
    """Whether a process has exactly this variable in its environment."""
    try:
        return f"{name}={value}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def guards(pid: int, folder: Path) -> bool:
    """Whether a process is a guard (or undertaker, or keeper) of a folder, by its exact arguments."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    wanted = [b"-m", b"fractal.guard", b"--dir", os.fsencode(folder)]
    return any(words[at : at + 4] == wanted for at in range(1, len(words) - 3))


def ours(table: Mapping[int, Process], word: str, device: str, state: Path) -> list[Process]:
    """Every living process of one device."""
    folder = guard_folder(state)
    roots = [p for p in table.values() if carries(p.pid, WORD, f"{word}:{device}") or guards(p.pid, folder)]
    roots += marked(table, str(folder))
    found = {p.pid: p for root in roots for p in [root, *descendants(table, root.pid)]}
    found.pop(os.getpid(), None)
    return [p for p in found.values() if p.state not in DEAD]


def end(word: str, states: Mapping[str, Path], *, limit: float = 10.0) -> Ended:
    """SIGKILL every process of these devices until none is left.

    What was once found below a process of ours stays ours when that one ends first: it is remembered by pid and start.
    """
    known: dict[int, Process] = {}
    struck = time.monotonic()
    until = time.monotonic() + limit
    while time.monotonic() < until:
        table = scan()
        alive = {pid: p for pid, p in known.items() if _lives(table, p)}
        for device, state in states.items():
            alive.update({p.pid: p for p in ours(table, word, device, state)})
        for process in list(alive.values()):
            alive.update({p.pid: p for p in descendants(table, process.pid) if p.state not in DEAD})
        if not alive:
            break
        for process in alive.values():
            send(process, signal.SIGKILL)
        if not known:
            struck = time.monotonic()
        known.update(alive)
        time.sleep(0.02)
    return Ended(len(known), struck)


def _lives(table: Table, process: Process) -> bool:
    now = table.get(process.pid)
    return now is not None and now.started == process.started and now.state not in DEAD


class Ground:
    """The demo's folder: taken for one run, empty, locked against a second one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.word = new_word()
        self.ended = 0
        """Processes of an earlier run that were ended."""
        self._lock = -1

    def take(self) -> None:
        """Make the folder, or empty the one of an earlier demo, ending what that left running.

        Raises NotOurs for a folder that holds anything and is not a demo's; nothing of it was touched then.
        """
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise NotOurs(f"{self.folder} is not a folder; name another one by --folder")
        if self.folder.exists() and any(self.folder.iterdir()):
            self._lock = self._claim()
            self._clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock < 0:
            self._lock = os.open(
                self.folder / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600
            )
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps({"word": self.word}).encode(), 0)

    def _claim(self) -> int:
        try:
            lock = os.open(self.folder / MARKER, os.O_RDWR | os.O_NOFOLLOW)
        except OSError as error:
            raise NotOurs(
                f"{self.folder} holds files and is not a demo's folder (it has no {MARKER}): "
                "nothing was touched; name a new or empty folder by --folder"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise NotOurs(
                f"another demo runs in {self.folder}: wait for it, or name another folder"
            ) from error
        return lock

    def _clear(self) -> None:
        try:
            word = str(json.loads(os.pread(self._lock, 4096, 0))["word"])
        except (ValueError, KeyError, TypeError):
            word = ""  # ended while it wrote: nothing was started yet
        if _WORD.fullmatch(word):
            states = {p.parent.name: p for p in self.folder.glob(f"*/state-{word}")}
            self.ended = end(word, states).processes
        for path in self.folder.iterdir():
            if path.name != MARKER:
                _remove(path)

    def leave(self, *, keep: bool) -> None:
        """Give the folder up; without `keep` it is removed."""
        if self._lock < 0:
            return
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
