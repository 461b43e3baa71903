"""Container engines, one per machine."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.stack.real.machine import Machine, Part

READY = 60.0
PODMAN_LIMITS = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"""


class Engine(Protocol):
    """What a device's runtime talks to."""

    machine: Machine

    def start(self) -> None:
        """Start it and wait until it answers."""

    def configuration(self) -> str:
        """The device's `[runtime]`."""

    def load(self, archive: Path, name: str, settings: list[str]) -> None:
        """Bring in a root file system as an image, with Dockerfile words such as `CMD ["x"]`."""

    @property
    def part(self) -> Part:
        """Its process."""


@dataclass
class Docker:
    """dockerd with a data folder of its own."""

    machine: Machine
    started: Part | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """What it keeps over a restart."""
        return self.machine.folder / "docker"

    @property
    def socket(self) -> Path:
        """Where it listens; also reachable from outside the machine."""
        return self.machine.folder / "docker.sock"

    @property
    def part(self) -> Part:
        """Its process."""
        assert self.started is not None
        return self.started

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        options = [f"--data-root={self.folder}", "--exec-root=/run/docker", "--pidfile=/run/docker.pid"]
        options += [f"--host=unix://{self.socket}", "--exec-opt=native.cgroupdriver=cgroupfs"]
        self.started = self.machine.start("dockerd", "dockerd", *options)
        _until_it_answers(self.started, self.machine, [*self.command, "version"])

    @property
    def command(self) -> list[str]:
        """Its command line."""
        return ["docker", "--host", f"unix://{self.socket}"]

    def configuration(self) -> str:
        """The device's `[runtime]`."""
        return f'[runtime]\nbackend = "docker"\n[runtime.docker]\nsocket = {json.dumps(str(self.socket))}\n'

    def load(self, archive: Path, name: str, settings: list[str]) -> None:
        """Bring in a root file system as an image."""
        changes = [word for setting in settings for word in ("--change", setting)]
        self.machine.run(*self.command, "import", *changes, str(archive), name, timeout=300)


@dataclass
class Podman:
    """`podman system service` with storage of its own."""

    machine: Machine
    started: Part | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """What it keeps over a restart."""
        return self.machine.folder / "podman"

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.machine.folder / "podman.sock"

    @property
    def part(self) -> Part:
        """Its process."""
        assert self.started is not None
        return self.started

    @property
    def environment(self) -> dict[str, str]:
        """The quirks of machines without the right to raise limits, and with cgroups of both versions."""
        path = self.machine.folder / "containers.conf"
        path.write_text(PODMAN_LIMITS)
        return {"CONTAINERS_CONF": str(path)}

    @property
    def command(self) -> list[str]:
        """Its command line."""
        return ["podman", f"--root={self.folder}", "--runroot=/run/containers/storage"]

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        self.socket.unlink(missing_ok=True)
        words = [*self.command, "system", "service", "--time=0", f"unix://{self.socket}"]
        self.started = self.machine.start("podman", *words, env=self.environment)
        ask = ["podman", "--remote", f"--url=unix://{self.socket}", "version"]
        _until_it_answers(self.started, self.machine, ask)

    def configuration(self) -> str:
        """The device's `[runtime]`."""
        return f'[runtime]\nbackend = "podman"\n[runtime.podman]\nsocket = {json.dumps(str(self.socket))}\n'

    def load(self, archive: Path, name: str, settings: list[str]) -> None:
        """Bring in a root file system as an image."""
        changes = [word for setting in settings for word in ("--change", setting)]
        words = [*self.command, "import", "--quiet", *changes, str(archive), name]
        self.machine.run(*words, timeout=300, env=self.environment)


def _until_it_answers(part: Part, machine: Machine, words: list[str]) -> None:
    deadline = time.monotonic() + READY
    while True:
        if not part.alive:
            raise RuntimeError(f"{machine.name}: {part.name} ended: {part.last_words()}")
        try:
            machine.run(*words, timeout=10)
            return
        except (RuntimeError, TimeoutError, OSError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{machine.name}: {part.name}: {error}: {part.last_words()}") from error
        time.sleep(0.1)
