"""Ground truth about who runs the app: sampled from /proc, not from what any agent says."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from fractal.demo import marks
from fractal.demo.devices import DemoDevice
from fractal.guard.processes import GUARD_MARK, RUN_MARK

SAMPLE = 0.03
"""Seconds between two samples."""
RESCAN = 0.15
"""Seconds between two searches for new processes."""
RUNNING = frozenset("RSDI")
"""States of a process that may run: everything but stopped, traced, zombie and dead."""


@dataclass(slots=True)
class Watch:
    """Watches one app's processes on several devices."""

    devices: list[DemoDevice]
    marker: str
    """What the run's environment variable contains: the app's id."""
    samples: int = 0
    overlaps: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    """(instant, devices that ran the app at once)."""
    starts: list[tuple[float, str]] = field(default_factory=list)
    """(instant, device) at which a process of the app was first seen."""
    last_seen: dict[str, float] = field(default_factory=dict)
    """Device -> last instant at which the app ran there, not frozen."""
    _known: dict[int, str] = field(default_factory=dict)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin sampling."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End sampling."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(10)

    def running(self) -> set[str]:
        """Devices on which the app runs now, not frozen."""
        found = set()
        for pid, device in list(self._known.items()):
            state = state_of(pid)
            if state in RUNNING:
                found.add(device)
            elif not state:
                self._known.pop(pid, None)
        return found

    def started(self, device: str, since: float) -> float | None:
        """When a process of the app was first seen on the device after `since`."""
        return next((at for at, name in self.starts if name == device and at >= since), None)

    def last(self, device: str) -> float:
        """The last instant at which the app ran on a device, not frozen; 0 if it never did."""
        return self.last_seen.get(device, 0.0)

    def _run(self) -> None:
        scanned = 0.0
        while not self._end.wait(SAMPLE):
            now = time.monotonic()
            if now - scanned > RESCAN:
                self._scan()
                scanned = now
            running = self.running()
            self.samples += 1
            for device in running:
                self.last_seen[device] = now
            if len(running) > 1:
                self.overlaps.append((now, tuple(sorted(running))))

    def _scan(self) -> None:
        for pid in [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()]:
            if pid in self._known or self.marker not in run_of(pid):
                continue
            for device in self.devices:
                if marks.carries(pid, GUARD_MARK, str(marks.guard_folder(device.state))):
                    self._known[pid] = device.name
                    self.starts.append((time.monotonic(), device.name))


def run_of(pid: int) -> str:
    """The run that a process belongs to, from its environment; "" for none."""
    try:
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = variable.partition(b"=")
            if name == RUN_MARK.encode():
                return value.decode("utf-8", "replace")
    except OSError:
        pass
    return ""


def state_of(pid: int) -> str:
    """A process's state letter; "" if it is gone, X if it was killed and only has to disappear.

    A stopped process that gets SIGKILL is runnable for a moment, but runs nothing of its own any more: it has the signal
    pending, or flags that say that it exits (PF_EXITING 0x4, PF_SIGNALED 0x400 of the kernel's sched.h).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in RUNNING and (int(fields[6]) & 0x404 or _killed(pid)):
            return "X"
        return fields[0]
    except (OSError, IndexError):
        return ""


def _killed(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    pending = [line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(int(mask, 16) & (1 << 8) for mask in pending)
