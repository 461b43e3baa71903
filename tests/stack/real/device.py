"""A device of the real stack: an agent on a machine, with an engine and a btrfs pool of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fractal.client import Client
from fractal.demo.devices import command
from fractal.demo.watch import RUNNING, state_of
from tests.stack.real.cgroups import ROOT
from tests.stack.real.engines import Engine
from tests.stack.real.machine import Machine, Part
from tests.stack.real.network import Home

GROUP = "Group 1"
UP = 60.0


class Failed(Exception):
    """A command failed, with all that it said."""


@dataclass
class Device:
    """One device. `parts` are the tables of its configuration beside `[device]` and `[runtime]`."""

    name: str
    machine: Machine
    parts: list[str]
    home: Home | None = None
    engine: Engine | None = None
    roles: tuple[str, ...] = ("host",)
    agent: Part | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """What it keeps."""
        return self.machine.folder

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.folder / "config.toml"

    @property
    def state(self) -> Path:
        """Its state folder."""
        return self.folder / "state"

    def configure(self) -> None:
        """Write the configuration."""
        tables = [
            f"""schema = 1
[device]
name = {json.dumps(self.name)}
state_dir = {json.dumps(str(self.state))}
runtime_dir = {json.dumps(str(self.folder / "run"))}
roles = {json.dumps(list(self.roles))}
""",
            *([self.engine.configuration()] if self.engine is not None else []),
            *self.parts,
        ]
        self.config.write_text("\n".join(tables))
        self.config.chmod(0o600)

    # --- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine if there is one and it does not run, and the agent."""
        if self.engine is not None:
            self.engine.start()
        self.start_agent()

    def start_agent(self, env: dict[str, str] | None = None) -> None:
        """Start the agent alone, and wait until it answers."""
        words = [*command(), "--config", str(self.config), "agent", "run"]
        self.agent = self.machine.start("agent", *words, env=env)
        deadline = time.monotonic() + UP
        while True:
            if not self.agent.alive:
                raise Failed(f"the agent of {self.name} ended: {self.agent.last_words()}")
            try:
                self.call("agent.status")
                return
            except Exception as error:
                if time.monotonic() > deadline:
                    raise Failed(f"{self.name}: no answer ({error}): {self.agent.last_words()}") from error
            time.sleep(0.1)

    def power_off(self) -> None:
        """Pull the plug."""
        self.machine.power_off()
        self.agent = None

    def power_on(self) -> None:
        """Switch it on again: engine and agent start, as an init system would have it."""
        self.machine.boot()
        self.start()

    def pull(self) -> None:
        """Pull its network cable."""
        assert self.home is not None
        self.home.pull()

    def put_back(self) -> None:
        """Plug it in again."""
        assert self.home is not None
        self.home.put_back()

    def log(self) -> str:
        """What the agent has logged so far."""
        path = self.folder / "agent.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # --- talking to it -------------------------------------------------------------------------------------------------

    def run(self, *words: str, timeout: float = 180.0, stdin: bytes | None = None) -> str:
        """Run `homeserver WORDS` on it; its output. Raises Failed."""
        try:
            argv = [*command(), "--config", str(self.config), *words]
            return self.machine.run(*argv, timeout=timeout, stdin=stdin)
        except RuntimeError as error:
            raise Failed(f"{error}\n--- agent of {self.name}:\n{self.log()[-3000:]}") from error

    def fails(self, *words: str) -> str:
        """What a command says that must fail."""
        try:
            output = self.run(*words)
        except Failed as error:
            return str(error)
        raise Failed(f"{self.name}: {' '.join(words)} should have failed: {output}")

    def ask(self, *words: str) -> dict[str, Any]:
        """Run a command with `--json`; its document."""
        found: dict[str, Any] = json.loads(self.run(*words, "--json"))
        return found

    def call(self, name: str, **params: object) -> dict[str, Any]:
        """A command of the control API. Raises FractalError."""
        return Client(self.folder / "run" / "control.sock").call(name, params)

    def status(self, group: str = GROUP) -> dict[str, Any]:
        """The group as this device sees it."""
        found: dict[str, Any] = self.call("status.show", group=group)["groups"][0]
        return found

    def app(self, name: str, group: str = GROUP) -> dict[str, Any]:
        """An app as this device sees it."""
        found: dict[str, Any] = next(a for a in self.status(group)["apps"] if a["name"] == name)
        return found

    def runs(self, name: str, group: str = GROUP) -> bool:
        """Whether it owns the app and calls it healthy."""
        app = self.app(name, group)
        return bool(app["device"] == self.name and app["health"] == "healthy")

    def moments(self, app: str, group: str = GROUP, *, branches: bool = False) -> list[str]:
        """Kept moments that it lists, oldest first."""
        found = self.call("snapshot.list", app=app, group=group)["snapshots"]
        return [s["moment"] for s in found if s["branch"] == branches]

    def save(self, app: str, group: str = GROUP) -> str:
        """Take a snapshot now; its moment, which was reported as committed."""
        done = self.call("snapshot.create", app=app, group=group, wait_s=120)
        assert done["done"], done
        return str(done["moment"])

    # --- what really runs ------------------------------------------------------------------------------------------------

    def runs_of_apps(self) -> dict[str, list[int]]:
        """Cgroups of runs with living processes that are not frozen -> those processes."""
        found: dict[str, list[int]] = {}
        for top in self.machine.cgroup.folders():
            for run in (top / "fractal-homeserver").glob("*"):
                alive = [pid for pid in _processes(run) if _goes_on(pid)]
                if alive:
                    found[run.name] = sorted({*found.get(run.name, []), *alive})
        return found

    def app_processes(self) -> list[int]:
        """Every process of a run, also what is stopped or frozen."""
        tops = [top / "fractal-homeserver" for top in self.machine.cgroup.folders()]
        return sorted({pid for top in tops for pid in _processes(top)})

    def signal_engine(self, number: signal.Signals) -> None:
        """Signal the engine."""
        assert self.engine is not None
        self.engine.part.send(number)

    def signal_agent(self, number: signal.Signals) -> None:
        """Signal the agent alone."""
        assert self.agent is not None
        self.agent.send(number)


def _processes(cgroup: Path) -> list[int]:
    found = []
    for path, _, _ in os.walk(cgroup):
        if Path(path).name == "conmon":
            continue  # Podman's own, which only holds on to the container's output
        try:
            found += [int(pid) for pid in (Path(path) / "cgroup.procs").read_text().split()]
        except OSError:
            continue  # removed under our hands
    return found


def _goes_on(pid: int) -> bool:
    """Whether a process may run: neither dead nor frozen."""
    if state_of(pid) not in RUNNING:
        return False
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        _, controllers, path = line.split(":", 2)
        freezer = ROOT / "freezer" / path.lstrip("/") / "freezer.state"
        if controllers == "freezer" and freezer.exists():
            return freezer.read_text().strip() == "THAWED"
        events = ROOT / path.lstrip("/") / "cgroup.events"
        if controllers == "" and events.exists():
            return "frozen 1" not in events.read_text()
    return True
