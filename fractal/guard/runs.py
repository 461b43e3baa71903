"""What the guard knows of each run, and one pass of making the world agree with it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fractal.guard.cgroups import Cgroup
from fractal.guard.processes import DEAD, STOPPED, Process, Table, descendants, read_process, send
from fractal.guard.wire import Lines, Message

TRANSIENT = "~"
"""First character of the name of a service that is only a command run beside the others."""

RESCAN = 1.0
"""Seconds between full scans for a frozen tree. In between the known processes are looked at: only one of them that runs
could have made a new one, and then a full scan follows at once."""


@dataclass(slots=True)
class ServiceState:
    """One service of a tree run."""

    pid: int
    started: float
    """CLOCK_BOOTTIME."""
    code: int | None = None
    """Exit code, None while it runs."""
    ended: float | None = None
    """CLOCK_BOOTTIME."""


@dataclass(slots=True)
class Run:
    """A run as the guard holds it. Comes up frozen; only `grant` makes it run."""

    key: str
    cgroup: Cgroup | None = None
    deadline: float = 0.0
    """CLOCK_BOOTTIME until which it may run."""
    frozen: bool = True
    paused: bool = False
    """Stopped by the runtime for a snapshot; independent of `frozen`."""
    final: bool = False
    """Frozen for good: replaced by a higher epoch. No grant thaws it."""
    killing: bool = False
    keeper: int = 0
    """Pid of the tree's keeper, 0 while nothing was started."""
    lines: Lines | None = None
    services: dict[str, ServiceState] = field(default_factory=dict)
    tickets: dict[int, Callable[[Message], None]] = field(default_factory=dict)
    members: dict[int, Process] = field(default_factory=dict)
    settled: bool = False
    """Whether everything in it really stands still."""
    last_scan: float = 0.0

    @property
    def halted(self) -> bool:
        """Whether its processes must stand still."""
        return self.frozen or self.paused

    def drop_passed(self, before: float) -> None:
        """Forget transient services that ended before `before`."""
        for name, state in list(self.services.items()):
            if name.startswith(TRANSIENT) and state.ended is not None and state.ended < before:
                del self.services[name]

    def unsettle(self) -> None:
        """Something may have changed: look again before believing anything."""
        self.settled = False

    def needs_scan(self, now: float) -> bool:
        """Whether this pass must look at every process of the machine for this run."""
        if self.cgroup is not None or not self.keeper:
            return False
        return self.killing or (self.halted and (not self.settled or now - self.last_scan >= RESCAN))


def halt(run: Run, table: Table | None, now: float) -> None:
    """One pass of stopping. `table` is a fresh scan, or None to look only at the known processes."""
    if run.cgroup is not None:
        run.settled = run.cgroup.freeze()
    elif not run.keeper:
        run.settled = True
    elif table is None:
        if any(p is not None and p.state not in STOPPED for p in map(read_process, list(run.members))):
            run.unsettle()
    else:
        _halt_tree(run, table, now)


def _halt_tree(run: Run, table: Table, now: float) -> None:
    tree = {p.pid: p for p in descendants(table, run.keeper) if p.state not in DEAD}
    moving = [p for p in tree.values() if p.state not in STOPPED]
    for process in moving:
        send(process, signal.SIGSTOP)
    # Waiting in the kernel (state D) with SIGSTOP pending counts as stopped: it stops before it computes again.
    run.settled = table.complete and all(p.state == "D" and p.pid in run.members for p in moving)
    run.members = tree
    run.last_scan = now


def release(run: Run, table: Mapping[int, Process]) -> None:
    """Let a run go on."""
    run.unsettle()
    if run.cgroup is not None:
        run.cgroup.thaw()
    elif run.keeper:
        for process in descendants(table, run.keeper):
            if process.state not in DEAD:
                send(process, signal.SIGCONT)


def kill(run: Run, table: Table) -> bool:
    """One pass of killing, without thawing; True once nothing is left."""
    if run.cgroup is not None:
        return run.cgroup.kill()
    alive = [p for p in descendants(table, run.keeper) if p.state not in DEAD] if run.keeper else []
    for process in alive:
        send(process, signal.SIGKILL)
    return not alive and (table.complete or not run.keeper)


def population(run: Run, table: Mapping[int, Process]) -> list[int]:
    """Living processes of the run."""
    if run.cgroup is not None:
        return run.cgroup.pids()
    if not run.keeper:
        return []
    return sorted(p.pid for p in descendants(table, run.keeper) if p.state not in DEAD)
