"""A planned move under a constant stream of requests: what people wait for, and for whom."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.stack.bed import until
from tests.stack.real.browser import network_at
from tests.stack.real.device import Device
from tests.stack.real.scene import APP, GROUP, SITE, Scene

LIMIT = 120.0
"""Seconds within which a move must be over on a machine that does all of this at once."""
PORT = 80
LOOK = 0.02
"""Seconds between two looks at what is measured: both its begin and its end are seen late by half of that, on average."""


@dataclass
class Beside:
    """Somebody next to an app who asks it without the system's help, until it answers once: the app's own start."""

    device: Device
    began: float | None = None
    """When a process of the app was there; as `time.monotonic` has it."""
    answered: float | None = None
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, while the app is not there yet."""
        until(lambda: not self.device.app_processes(), LIMIT, f"nothing runs on {self.device.name}")
        self._thread = threading.Thread(target=self._run, name="beside", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(30)

    def _run(self) -> None:
        while not self._end.wait(LOOK):
            found = self.device.app_processes()
            if found and self.began is None:
                self.began = time.monotonic()
            if self._asked(found):
                self.answered = time.monotonic()
                return

    def _asked(self, processes: Sequence[int]) -> bool:
        """Whether one of these serves the front page."""
        networks = {}
        for pid in processes:
            with contextlib.suppress(OSError):
                path = Path(f"/proc/{pid}/ns/net")
                networks[path.stat().st_ino] = path
        return any(_serves(path) for path in networks.values())


def _serves(network: Path) -> bool:
    request = f"GET / HTTP/1.0\r\nHost: {SITE}\r\n\r\n".encode()
    try:
        with network_at(network):
            made = socket.create_connection(("127.0.0.1", PORT), timeout=5)
        with made:
            made.sendall(request)
            return b" 200 " in made.makefile("rb").readline()
    except OSError:
        return False


def move(scene: Scene, target: Device, threads: int, what: str) -> None:
    """Move the app to a device that has a copy. Fails if a request fails."""
    world, source = scene.world, scene.owner()
    beside = Beside(target)
    beside.start()
    stream = scene.stream(threads=threads, pause=0.1)
    try:
        time.sleep(2)
        begin = time.monotonic()
        scene.pi.run("app", "move", APP, target.name, "--group", GROUP)
        until(lambda: scene.serves(target), LIMIT, f"{target.name} serves")
        ended = time.monotonic()
        time.sleep(2)
    finally:
        stream.stop()
        beside.stop()
    asked = stream.between(begin, ended)
    failed = [one for one in asked if not one.good]
    began = beside.began
    assert began is not None and beside.answered is not None
    longest = max(asked, key=lambda one: one.done - one.sent)
    own = beside.answered - began
    first = min(one.done for one in asked if one.good and one.done > began)
    wait = longest.done - longest.sent
    world.say(f"{source.name} -> {target.name}: failed: {failed[:3]}")
    world.figure(f"{what}: longest wait of a request", f"{wait:.1f} s", "< 2 s + own start")
    world.figure("  of which the app's own start", f"{own:.1f} s")
    world.figure("  before its start", f"{began - longest.sent:.1f} s")
    world.figure("  after its start, until somebody had an answer", f"{first - beside.answered:.1f} s")
    world.figure("  requests failed", f"{len(failed)} of {len(asked)}")
    assert not failed, failed[:3]
