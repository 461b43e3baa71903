"""The undertaker: parent of the guard. When the guard ends, however it ends, nothing it held goes on running."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fractal.guard import book
from fractal.guard.cgroups import Cgroup
from fractal.guard.linux import (
    become_subreaper,
    boottime,
    die_with_parent,
    ignore_polite_signals,
    set_process_name,
    spare_from_oom,
)
from fractal.guard.processes import Process, bury, descendants, marked
from fractal.guard.server import Guard, say

LOCK_WAIT = 12.0
"""Seconds to wait for the last guard's undertaker to finish."""
BUSY = 3
"""Exit code of the launcher if another guard holds the folder."""


def launch(directory: Path) -> int:
    """Start undertaker and guard, detached. Returns once the guard serves (0), or cannot (BUSY, 1)."""
    ready, tell = os.pipe()
    if os.fork() == 0:
        status = 1
        try:
            os.close(ready)
            status = _detached(directory, tell)
        finally:
            os._exit(status)
    os.close(tell)
    answer = os.read(ready, 4096)
    os.close(ready)
    if answer == b"ready":
        return 0
    sys.stderr.write(
        (answer.decode("utf-8", "replace") or f"guard did not start; see {directory}/guard.log") + "\n"
    )
    return BUSY if answer.startswith(b"busy") else 1


def _detached(directory: Path, tell: int) -> int:
    os.setsid()
    os.umask(0o077)
    os.chdir("/")
    log = directory / "guard.log"
    if log.exists() and log.stat().st_size > 1 << 20:
        log.replace(directory / "guard.log.1")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    become_subreaper()
    spare_from_oom(spare=True)
    ignore_polite_signals()
    set_process_name("fractal-undertk")
    if not _take_lock(directory):
        os.write(tell, f"busy: another guard holds {directory}".encode())
        return BUSY
    _bury_leftovers(directory)
    undertaker = os.getpid()
    guard = os.fork()
    if guard == 0:
        status = 1
        try:
            _guard(directory, tell, undertaker)
            status = 0
        finally:
            os._exit(status)
    os.close(tell)
    _wait_for(guard)
    say("guard ended; killing what it kept")
    for path in book.read(directory).cgroups.values():
        try:
            Cgroup(path).freeze()
        except OSError as error:
            say(str(error))
    bury(lambda table: descendants(table, os.getpid()))
    return 0


def _take_lock(directory: Path) -> bool:
    """The lock is held as long as undertaker or guard lives, so a successor starts only when all is buried."""
    lock = os.open(directory / "guard.lock", os.O_RDWR | os.O_CREAT, 0o600)
    end = boottime() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if boottime() >= end or _served(directory):
                return False
            time.sleep(0.02)


def _bury_leftovers(directory: Path) -> None:
    """Kill what outlived a guard and an undertaker that were killed at once: by mark, and by the last guard's notes."""
    known = book.read(directory).members

    def leftovers(table: Mapping[int, Process]) -> list[Process]:
        noted = [p for p in table.values() if (p.pid, p.started) in known]
        return [*noted, *marked(table, str(directory))]

    if count := bury(leftovers):
        say(f"killed {count} processes that an earlier guard left")


def _guard(directory: Path, tell: int, undertaker: int) -> None:
    die_with_parent(signal.SIGTERM)
    become_subreaper()
    guard = Guard(directory)
    guard.adopt(dict(book.read(directory).cgroups))
    listener = _listen(directory)
    os.write(tell, b"ready")
    os.close(tell)
    say(f"guard serves, pid {os.getpid()}")
    guard.serve(listener, undertaker)
    say("guard ends")


def _served(directory: Path) -> bool:
    """Whether a living guard listens already; one that is dying no longer does."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(f"/proc/self/fd/{folder}/guard.sock")
            return True
    except OSError:
        return False
    finally:
        os.close(folder)


def _listen(directory: Path) -> socket.socket:
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    # Through the descriptor, because a socket's path may hold 107 bytes only.
    path = f"/proc/self/fd/{folder}/guard.sock"
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(path)
    Path(path).chmod(0o600)
    listener.listen(128)
    listener.setblocking(False)
    os.close(folder)
    return listener


def _wait_for(guard: int) -> None:
    while True:
        pid, _ = os.wait()
        if pid == guard:
            return
