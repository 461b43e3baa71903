"""Ground truth about who runs an app: sampled from cgroups and /proc, not from what an agent says."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from tests.stack.real.device import Device

SAMPLE = 0.1
TAKE = 2
"""Samples in a row that show two runners: one look alone sees one device before the other has been looked at again."""


@dataclass
class Watch:
    """Watches the apps of several devices; with one app in the group, two devices that run anything are too many."""

    devices: list[Device]
    samples: int = 0
    overlaps: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    starts: list[tuple[float, str]] = field(default_factory=list)
    """(instant, device) at which processes were first seen after none were."""
    ends: list[tuple[float, str]] = field(default_factory=list)
    _now: set[str] = field(default_factory=set)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(10)

    def look(self) -> set[str]:
        """Devices that run something now."""
        return {d.name for d in self.devices if d.machine.leader is not None and d.runs_of_apps()}

    def started(self, device: str, since: float) -> float | None:
        """When the app was first seen on the device after `since`."""
        return next((at for at, name in self.starts if name == device and at >= since), None)

    def _run(self) -> None:
        twice = 0
        while not self._end.wait(SAMPLE):
            now, found = time.monotonic(), self.look()
            self.samples += 1
            self.starts += [(now, name) for name in sorted(found - self._now)]
            self.ends += [(now, name) for name in sorted(self._now - found)]
            self._now = found
            twice = twice + 1 if len(found) > 1 else 0
            if twice >= TAKE:
                self.overlaps.append((now, tuple(sorted(found))))

    def never_twice(self) -> None:
        """Fails if two devices ever ran it at once."""
        assert self.samples, "nobody watched"
        assert not self.overlaps, self.overlaps[:5]
