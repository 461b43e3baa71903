"""Process trees as /proc shows them: who descends from whom, who is stopped, who carries our mark."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fractal.guard.linux import boottime

RUN_MARK = "FRACTAL_RUN"
"""Environment variable in every process of a run: the run's key."""
GUARD_MARK = "FRACTAL_GUARD"
"""Environment variable in every process of a run: the folder of its guard, so that two guards never meet."""

STOPPED = frozenset("TtZXx")
"""States of /proc/PID/stat in which a process cannot do anything: stopped, traced, dead."""
DEAD = frozenset("ZXx")
_MAX_LISTINGS = 100


@dataclass(frozen=True, slots=True)
class Process:
    """One process at the moment of a scan."""

    pid: int
    parent: int
    state: str
    started: int
    """Clock ticks since boot; with `pid` it names a process for ever (within one boot)."""


def read_process(pid: int) -> Process | None:
    """The process now, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - hot path, ten times a second
            raw = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # gone, or another user's on a machine that hides those
    # The command name stands in parentheses and may itself hold parentheses and spaces.
    fields = raw[raw.rindex(b")") + 2 :].split()
    return Process(pid, int(fields[1]), fields[0].decode("ascii"), int(fields[19]))


class Table(dict[int, Process]):
    """Processes by pid at the time of a scan."""

    complete = False
    """Whether the scan came to an end: only then does absence prove anything."""


def scan() -> Table:
    """Every process of the machine that we can see, without a gap: the listing is repeated until it names nothing new.

    So whoever is absent was born after the last listing, of a parent that was alive then and is in the table, running.
    A table in which all of a tree is stopped therefore proves that all of the tree is stopped, which one pass over /proc
    does not: a program that forks and exits faster than we read hides between the listing and the reads.
    """
    table = Table()
    seen: set[int] = set()
    for _ in range(_MAX_LISTINGS):
        with os.scandir("/proc") as entries:
            listed = {int(entry.name) for entry in entries if entry.name.isdigit()}
        # A parent that ended between two reads has handed its children over: ask them again.
        orphans = {p.pid for p in table.values() if p.parent and p.parent not in table}
        fresh = (listed - seen) | orphans
        if not fresh:
            table.complete = True
            break
        for pid in sorted(fresh):
            process = read_process(pid)
            if process is None:
                table.pop(pid, None)
            else:
                table[pid] = process
        seen |= fresh
    return table


def descendants(table: Mapping[int, Process], root: int) -> list[Process]:
    """Everything below `root`, without `root` itself; parents before their children."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [root]
    for pid in queue:
        below = children.get(pid, ())
        found.extend(below)
        queue.extend(p.pid for p in below)
    return found


def send(process: Process, signum: int) -> bool:
    """Signal this very process; False if it is gone, also when its number already belongs to another one."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        now = read_process(process.pid)
        if now is None or now.started != process.started:
            return False
        signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def marked(table: Mapping[int, Process], guard: str) -> list[Process]:
    """Processes whose environment says that a guard of folder `guard` started them."""
    mark = f"{GUARD_MARK}={guard}".encode()
    found = []
    for process in table.values():
        try:
            with open(f"/proc/{process.pid}/environ", "rb") as file:  # noqa: PTH123 - as above
                environment = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone, or somebody else's
        if mark in environment.split(b"\0"):
            found.append(process)
    return found


def bury(find: Callable[[Mapping[int, Process]], Iterable[Process]], *, limit: float = 10.0) -> int:
    """SIGKILL whatever `find` finds, again and again until it finds nothing alive. Returns how many were signalled.

    Gives up after `limit` seconds (a process in an uninterruptible wait dies when that ends: the signal is pending).
    """
    killed: set[tuple[int, int]] = set()
    end = boottime() + limit
    while boottime() < end:
        table = scan()
        alive = [p for p in find(table) if p.state not in DEAD and p.pid != os.getpid()]
        for process in alive:
            # Nobody may fork away between the scan and the signal: each round catches what the last one missed.
            if send(process, signal.SIGKILL):
                killed.add((process.pid, process.started))
        reap()
        if not alive and table.complete:
            break
        time.sleep(0.005)
    return len(killed)


def reap() -> list[tuple[int, int]]:
    """(pid, exit code) of every child that has ended; the code is negative for a signal."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended
