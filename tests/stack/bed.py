"""A group of whole agents on this machine, and a tiny app whose file tells what happened to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fractal.client import Client
from fractal.core.lease import PROFILES, seconds
from fractal.demo.devices import DemoDevice, DemoFailed, command, kill
from fractal.demo.watch import RUNNING, Watch, run_of, state_of

GROUP = "Group 1"
LEDGER = Path(__file__).with_name("ledger.py")
GUARD, UNDERTAKER, KEEPER = "fractal-guard", "fractal-undertk", "fractal-keeper"
"""Names of the guard's processes, as the kernel has them."""


def takeover_bound(profile: str) -> float:
    """Seconds from death to running that a profile's timers give, and slack for a machine that does several devices' work."""
    t = PROFILES[profile]
    timers = (
        t.beat + t.patience + t.answer_window + t.rank_step + t.poll + t.read_timeout + t.proof + t.margin
    )
    return seconds(timers) + 20


class Device(DemoDevice):
    """A device that is talked to over its control socket: quicker than a command line for each look."""

    def call(self, command: str, **params: object) -> dict[str, Any]:
        """A command of the control API. Raises FractalError."""
        return Client(self.folder / "run" / "control.sock").call(command, params)

    def status(self, group: str = GROUP) -> dict[str, Any]:
        """The group as this device sees it."""
        found = self.call("status.show", group=group)["groups"]
        status: dict[str, Any] = found[0]
        return status

    def app(self, name: str = "ledger", group: str = GROUP) -> dict[str, Any]:
        """An app as this device sees it."""
        found: dict[str, Any] = next(a for a in self.status(group)["apps"] if a["name"] == name)
        return found

    def entries(self, group: str = GROUP) -> list[dict[str, Any]]:
        """The group's log as this device can read it."""
        found: list[dict[str, Any]] = self.call("log.show", group=group, tail=0)["entries"]
        return found

    def log(self) -> str:
        """What the agent has logged so far."""
        path = self.folder / "agent.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def named(self, comm: str) -> list[int]:
        """This device's processes of that name."""
        return [pid for pid in self.processes() if comm_of(pid) == comm]

    def app_pids(self, app: str) -> list[int]:
        """Living processes of an app (by id) on this device."""
        return [pid for pid in self.processes() if app in run_of(pid) and state_of(pid) not in ("", "X", "Z")]

    def kill_agent(self) -> None:
        """SIGKILL to the agent alone."""
        self.signal_agent(signal.SIGKILL)
        self.reap()

    def end_agent(self, timeout: float = 60.0) -> int:
        """SIGTERM to the agent, and its exit code."""
        assert self.agent is not None
        self.agent.send_signal(signal.SIGTERM)
        code = self.agent.wait(timeout=timeout)
        self.agent = None
        return code


@dataclass
class Bed:
    """One folder, one log file, one store, any number of devices."""

    folder: Path
    profile: str = "fast"
    devices: list[Device] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    mounts: list[Path] = field(default_factory=list)

    @property
    def shared(self) -> Path:
        """Where log and store are."""
        return self.folder / "shared"

    @property
    def store(self) -> Path:
        """The store's folder."""
        return self.shared / "store"

    @property
    def log(self) -> Path:
        """The log's folder."""
        return self.shared / "log"

    # --- devices ---------------------------------------------------------------------------------------------------

    def device(
        self,
        name: str,
        roles: tuple[str, ...] = ("host",),
        *,
        start: bool = True,
        env: dict[str, str] | None = None,
    ) -> Device:
        """A device with its configuration, and its agent."""
        for folder in (self.store, self.log, self.shared / "envs"):
            folder.mkdir(parents=True, exist_ok=True)
        device = Device(name, self.folder / name.lower().replace(" ", "-"), roles, self.shared, env=env or {})
        self.devices.append(device)
        device.configure()
        if start:
            device.start()
        return device

    def group(self, *names: str, group: str = GROUP) -> list[Device]:
        """Devices in a group with a store; the first one founded it."""
        devices = [self.device(name) for name in names]
        self.found(devices[0], group)
        for device in devices[1:]:
            self.join(devices[0], device, group)
        return devices

    def found(self, founder: Device, group: str = GROUP, store: Path | None = None) -> None:
        """Create a group and its store."""
        founder.run("group", "create", group, "--timers", self.profile)
        path = store or self.store
        path.mkdir(parents=True, exist_ok=True)
        founder.run("store", "add", "Shelf", "--group", group, "directory", f"path={path}")

    def join(self, host: Device, device: Device, group: str = GROUP, *, member: str = "") -> None:
        """Let a device in."""
        new = ["--new-member", "--role", "owner"] if member else []
        code = json.loads(host.run("group", "invite", "--group", group, "--json", *new))["code"]
        words = ["group", "join", code, "--timeout", "60", *(["--member", member] if member else [])]
        joining = subprocess.Popen(
            [*command(), "--config", str(device.config), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            until(lambda: self._asks(host, device.name, group), 40, f"{device.name} asks to join")
            host.run("device", "approve", device.name, "--group", group)
            output, _ = joining.communicate(timeout=60)
        finally:
            if joining.poll() is None:
                joining.kill()
                joining.communicate()
        assert joining.returncode == 0, output

    def _asks(self, host: Device, name: str, group: str) -> bool:
        return any(p["name"] == name for p in host.call("device.list", group=group)["pending"])

    # --- apps ------------------------------------------------------------------------------------------------------

    def manifest(self, *modes: str, name: str = "ledger") -> Path:
        """A manifest of the ledger app."""
        patience = 1 if "ill" in modes else 30
        words = ["{python}", "-I", "{file.ledger}", "{port.web}", "{data.data}", *modes]
        text = f"""\
name: {name}
services:
  ledger:
    stop_grace_period: 2s
    restart: always
    x-homeserver:
      process:
        argv: {json.dumps(words)}
        ports: [web]
        data: [data]
        files:
          ledger: |
{textwrap.indent(LEDGER.read_text(), " " * 12)}
      health: {{http: /health, port: web, interval: 500ms, timeout: 1s, retries: 3, start_period: {patience}s}}
x-homeserver:
  web: {{service: ledger, port: web}}
"""
        path = self.folder / f"{name}.yml"
        path.write_text(text)
        return path

    def install(
        self,
        on: Device,
        *modes: str,
        name: str = "ledger",
        group: str = GROUP,
        interval: int = 10,
        wait: int = 60,
    ) -> Ledger:
        """Install the app on a device and wait until it is healthy there."""
        manifest = self.manifest(*modes, name=name)
        on.run(
            *("app", "install", str(manifest), "--group", group, "--device", on.name),
            *("--interval", str(interval), "--wait", str(wait)),
        )
        ledger = Ledger(self, on.app(name, group)["id"], name, group)
        watch = Watch(list(self.devices), ledger.id)
        watch.start()
        self.watches.append(watch)
        ledger.watch = watch
        return ledger

    def mount(self, folder: Path, size: str, options: str) -> None:
        """A small disk of its own; as root only."""
        folder.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(folder)]
        subprocess.run(words, check=True)
        self.mounts.append(folder)

    # --- the end -----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Kill all that was started, by process id."""
        for watch in self.watches:
            watch.stop()
        for device in self.devices:
            device.kill_everything()
            if device.agent is not None:
                device.reap()
        left = [pid for device in self.devices for pid in device.processes()]
        for folder in reversed(self.mounts):
            subprocess.run(["umount", str(folder)], check=True)
        assert not left, f"left behind: {left}"


@dataclass
class Ledger:
    """An installed ledger, wherever it runs."""

    bed: Bed
    id: str
    name: str
    group: str
    watch: Watch = field(init=False)

    def port(self, device: Device) -> int:
        """The port of the copy on a device, by its command line. Raises LookupError."""
        for pid in device.app_pids(self.id):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if len(words) > 5 and words[2].endswith(b"ledger"):
                    return int(words[3])
        raise LookupError(f"no copy of {self.name} on {device.name}")

    def ask(self, device: Device, method: str, path: str) -> tuple[int, bytes]:
        """One request to the copy on a device. Raises OSError, LookupError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port(device), timeout=3)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def add(self, device: Device) -> int:
        """Write a line; its number."""
        status, body = self.ask(device, "POST", "/")
        assert status == 201
        return int(body)

    def lines(self, device: Device) -> list[int]:
        """All lines that the copy on a device has; a gap, a tear or a line of a second writer fails."""
        _, body = self.ask(device, "GET", "/")
        found = [int(line) for line in body.split(b"\n")[:-1]]
        assert found == list(range(len(found))), f"the ledger is damaged: {found[:50]}"
        return found

    def answers(self, device: Device) -> bool:
        """Whether the copy on a device answers."""
        try:
            return self.ask(device, "GET", "/health")[0] == 200
        except (OSError, LookupError):
            return False

    def runs_on(self, device: Device, seen_by: Device | None = None) -> bool:
        """Whether it answers there, and the group knows it."""
        app = (seen_by or device).app(self.name, self.group)
        return app["device"] == device.name and app["health"] == "healthy" and self.answers(device)

    def wait_for(self, device: Device, limit: float | None = None) -> None:
        """Until it runs on a device, as a takeover must bring it."""
        limit = takeover_bound(self.bed.profile) if limit is None else limit
        until(lambda: self.runs_on(device), limit, f"{self.name} runs on {device.name}")

    def moments(self, device: Device, *, branches: bool = False) -> list[str]:
        """Kept moments that a device lists, oldest first."""
        found = device.call("snapshot.list", app=self.name, group=self.group)["snapshots"]
        return [s["moment"] for s in found if s["branch"] == branches]

    def save(self, device: Device) -> str:
        """Take a snapshot now; its moment, which was reported as committed."""
        done = device.call("snapshot.create", app=self.name, group=self.group, wait_s=60)
        assert done["done"], done
        return str(done["moment"])

    def verify(self, device: Device) -> None:
        """Every byte of the archive authenticates."""
        report = device.call("snapshot.verify", app=self.name, group=self.group, deep=True)
        assert not report["problems"], report

    def at(self, device: Device, moment: str) -> int:
        """How many lines a moment holds, by restoring it into a fork for real."""
        name = f"fork {moment}"
        device.run(
            "app", "fork", self.name, name, "--group", self.group, "--at", moment, "--device", device.name
        )
        fork = Ledger(self.bed, device.app(name, self.group)["id"], name, self.group)
        until(lambda: fork.answers(device), 30, f"{name} answers")
        count = len(fork.lines(device))
        device.run("app", "remove", name, "--group", self.group, "--yes")
        return count

    def never_twice(self) -> None:
        """Fails if two devices ever ran it at once."""
        assert self.watch.samples, "nobody watched"
        assert not self.watch.overlaps, self.watch.overlaps[:5]

    def frozen(self, device: Device) -> bool:
        """Whether its copy on a device exists and none of its processes runs."""
        pids = device.app_pids(self.id)
        return bool(pids) and not any(state_of(pid) in RUNNING for pid in pids)


def comm_of(pid: int) -> str:
    """A process's name; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def nothing(found: Callable[[], object], limit: float, what: str) -> None:
    """Until nothing is found; what was found last is told."""
    last: list[object] = []

    def empty() -> bool:
        last[:] = [found()]
        return not last[0]

    try:
        until(empty, limit, what)
    except AssertionError as error:
        raise AssertionError(f"{error}; still: {last}") from error


def until(condition: Callable[[], bool], limit: float, what: str) -> float:
    """Wait for a condition; an agent that does not answer at the moment does not count. Seconds that it took."""
    begin = time.monotonic()
    last = ""
    while True:
        try:
            if condition():
                return time.monotonic() - begin
            last = ""
        except Exception as error:
            last = f"; last: {error!r}"
        if time.monotonic() - begin > limit:
            raise AssertionError(f"{what}: not within {limit:.0f} s{last}")
        time.sleep(0.1)


__all__ = [
    "GROUP",
    "GUARD",
    "KEEPER",
    "UNDERTAKER",
    "Bed",
    "DemoFailed",
    "Device",
    "Ledger",
    "comm_of",
    "command",
    "kill",
    "nothing",
    "state_of",
    "takeover_bound",
    "until",
]
