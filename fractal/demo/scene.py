"""The demo's scene: three devices, one group, a store, a gateway, an app and its client; and the end of it all."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fractal.demo.client import Attempt, Calendar, Writer
from fractal.demo.devices import DemoDevice, DemoFailed, command
from fractal.demo.race import ROUNDS, race
from fractal.demo.shelf import Shelf
from fractal.demo.tap import Tap
from fractal.demo.watch import Watch

GROUP = "Group 1"
APP = "radicale"
INTERVAL = 10
"""Seconds between snapshots in the demo; all other timers are those of the profile `standard`."""


@dataclass(slots=True)
class Scene:
    """What the acts share."""

    folder: Path
    word: str
    """What the processes of this run are told by."""
    began: float
    broken: list[str] = field(default_factory=list)
    figures: list[tuple[str, str, str]] = field(default_factory=list)
    attic: DemoDevice = field(init=False)
    kitchen: DemoDevice = field(init=False)
    door: DemoDevice = field(init=False)
    tap: Tap = field(init=False)
    shelf: Shelf = field(init=False)
    writer: Writer = field(init=False)
    watch: Watch = field(init=False)
    calendar: Calendar = field(init=False)
    app: str = ""
    early: str = ""
    """A moment of which entries are known to be stored, long before the end."""
    canary: str = field(default_factory=lambda: os.urandom(30).hex())
    _started: bool = False
    lost: list[Attempt] = field(default_factory=list)
    """Entries that the last takeover left in a branch."""
    gone: set[str] = field(default_factory=set)
    """Uids of all such entries."""

    # --- telling -------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """One line of progress."""
        tell(f"[{time.monotonic() - self.began:6.1f} s] {text}")

    def head(self, text: str) -> None:
        """The beginning of a part."""
        tell(f"\n=== {text}")

    def break_promise(self, text: str) -> None:
        """A promise does not hold: said at once, and the demo will exit non-zero."""
        self.broken.append(text)
        self.say(f"BROKEN: {text}")

    def promise(self, held: bool, text: str) -> None:
        """Check a promise."""
        if held:
            self.say(f"ok: {text}")
        else:
            self.break_promise(f"not so: {text}")

    def figure(self, what: str, value: str, bound: str = "") -> None:
        """A line of the table."""
        self.figures.append((what, value, bound))

    def wait(self, what: str, condition: Callable[[], bool], limit: float) -> float:
        """Wait for a condition; seconds that it took. Raises DemoFailed."""
        begin = time.monotonic()
        while not condition():
            if time.monotonic() - begin > limit:
                raise DemoFailed(f"{what}: not within {limit:.0f} s")
            time.sleep(0.2)
        return time.monotonic() - begin

    # --- the scene -------------------------------------------------------------------------------------------------

    def set_scene(self) -> None:
        """Three agents, one group, one store, one gateway, one app."""
        self.head("The scene: three devices on this machine, each with its own agent, state and processes")
        shared = self.folder / "shared"
        for name in ("log", "store", "envs"):
            (shared / name).mkdir(parents=True)
        self.kitchen = self.device("Kitchen", "host")
        self.attic = self.device("Attic", "host")
        self.door = self.device("Front door", "gateway", free_port())
        self._started = True
        for device in self.devices:
            device.configure()
            device.start()
        self.say("agents run: Kitchen and Attic as hosts, Front door as gateway")
        self.kitchen.run("group", "create", GROUP)
        for device in (self.attic, self.door):
            self.join(device)
        self.race()
        self.kitchen.run(
            "store",
            "add",
            "Shelf",
            "--group",
            GROUP,
            "directory",
            f"path={shared / 'store'}",
        )
        self.kitchen.run("gateway", "add", "Front door", "--group", GROUP, "--address", "demo.localhost")
        self.say(f"{GROUP}: three devices, store Shelf, gateway Front door")
        self.install()

    def device(self, name: str, role: str, https_port: int = 0) -> DemoDevice:
        """A device of this run."""
        folder = self.folder / name.lower().replace(" ", "-")
        return DemoDevice(name, folder, (role,), self.folder / "shared", https_port, self.word)

    @property
    def devices(self) -> tuple[DemoDevice, DemoDevice, DemoDevice]:
        """All of them."""
        return (self.kitchen, self.attic, self.door)

    def join(self, device: DemoDevice) -> None:
        """Let a device in: a code from one device, a request from the other, an approval."""

        code = self.kitchen.ask("group", "invite", "--group", GROUP)
        assert code is not None
        joining = subprocess.Popen(
            [*command(), "--config", str(device.config), "group", "join", code["code"], "--timeout", "60"],
            env=device.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self.wait(f"{device.name} asks to join", lambda: self.asks(device.name), 30)
            self.kitchen.run("device", "approve", device.name, "--group", GROUP)
            output, _ = joining.communicate(timeout=60)
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(f"{device.name} was approved and has not joined in 60 s") from error
        finally:
            if joining.poll() is None:
                joining.kill()
                joining.communicate()
        if joining.returncode:
            raise DemoFailed(f"{device.name} could not join: {output.strip()}")
        self.say(f"{device.name} joined {GROUP}")

    def race(self) -> None:
        """Whether creating is a lock, by what stands in the folder after two processes raced for every name."""
        faults = race(self.folder / "shared" / "store", self.kitchen.environment)
        self.promise(
            not faults,
            f"the store can fence: of two processes that raced for {ROUNDS} names one got each, and its bytes stand"
            + "".join(f"; {fault}" for fault in faults[:3]),
        )

    def asks(self, name: str) -> bool:
        """Whether a device's request to join is shown on Kitchen."""
        found = self.kitchen.ask("device", "list", "--group", GROUP, check=False)
        return bool(found) and any(p["name"] == name for p in (found or {}).get("pending", []))

    def install(self) -> None:
        """Install the app with the very command, and open its route to the client."""
        words = ["app", "install", APP, "--group", GROUP, "--device", "Kitchen"]
        self.say('$ homeserver app install radicale --group "Group 1" --device "Kitchen"')
        self.kitchen.run(*words, timeout=400)
        self.kitchen.run("app", "policy", APP, "--group", GROUP, "--interval", str(INTERVAL))
        self.app = self.status(self.kitchen)["id"]
        self.watch = Watch([self.kitchen, self.attic], self.app)
        self.watch.start()
        self.tap = Tap(self.door.https_port)
        self.calendar = self.open_calendar(f"{APP}.demo.localhost")
        self.wait("the calendar answers through the gateway", self.calendar_answers, 40)
        status, _ = replace(self.calendar, password="").request("GET", self.calendar.path)
        self.promise(status == 401, "without the password that was made for it nobody gets in (401)")
        self.writer = Writer(self.calendar, self.canary)
        before = len(self.snapshots(self.attic))
        self.writer.start()
        self.say("a client puts an entry every quarter of a second through https://radicale.demo.localhost")
        self.wait("two more snapshots are stored", lambda: len(self.snapshots(self.attic)) >= before + 2, 60)
        self.early = self.moment(self.attic, -1)
        self.shelf = Shelf(self.folder / "shared" / "store")

    def open_calendar(self, name: str) -> Calendar:
        """A client of a route, which trusts the certificate that a device of the group shows for it."""

        def chain() -> str:
            found = self.kitchen.ask("route", "list", "--group", GROUP)
            routes = (found or {}).get("routes", [])
            return next((r["certificate"] for r in routes if r["name"] == name), "")

        self.wait(f"a certificate for {name}", lambda: bool(chain()), 30)
        secret = self.kitchen.ask("app", "secret", name.partition(".")[0], "PASSWORD", "--group", GROUP)
        return Calendar(self.tap.port, name, chain(), str((secret or {})["value"]))

    def calendar_answers(self) -> bool:
        """Whether the calendar could be made."""
        try:
            self.calendar.make()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def status(self, device: DemoDevice, name: str = APP) -> dict[str, Any]:
        """The app as a device's `status` shows it."""
        document = device.ask("status", "--group", GROUP)
        assert document is not None
        for app in document["groups"][0]["apps"]:
            if app["name"] == name:
                found: dict[str, Any] = app
                return found
        raise DemoFailed(f"{device.name} does not show app {name}")

    # --- questions to the devices ----------------------------------------------------------------------------------

    def owner(self) -> DemoDevice:
        """The app's owner, as the gateway's log says."""
        name = self.status(self.door)["device"]
        for device in self.devices:
            if device.name == name:
                return device
        raise DemoFailed(f"the app has no owner now: the gateway's log says {name!r}")

    def behind(self, device: DemoDevice) -> float | None:
        """Seconds by which a device's warm copy is behind."""
        for standby in self.status(self.door)["standby"]:
            if standby["device"] == device.name:
                behind: float | None = standby["behind_s"]
                return behind
        return None

    def snapshots(self, device: DemoDevice) -> list[dict[str, Any]]:
        """The app's kept moments, oldest first."""
        document = device.ask("snapshot", "list", APP, "--group", GROUP)
        found: list[dict[str, Any]] = (document or {}).get("snapshots", [])
        return found

    def moment(self, device: DemoDevice, at: int) -> str:
        """The number of one of the app's own kept moments, by its place. Raises DemoFailed if there are too few."""
        kept = [s["moment"] for s in self.snapshots(device) if not s["branch"]]
        if not -len(kept) <= at < len(kept):
            raise DemoFailed(f"{device.name} lists {len(kept)} kept moments, too few to travel in time")
        return str(kept[at])

    def app_start(self, device: DemoDevice, since: float) -> float:
        """Seconds from the app's first process on a device to the first answer that the client got of it."""
        began = self.watch.started(device.name, since)
        if began is None:
            raise DemoFailed(f"no process of the app was seen on {device.name}")
        answers = [a.done for a in self.writer.acknowledged() if a.done >= began]
        return min(answers) - began if answers else 0.0

    def entries_soon(self, calendar: Calendar) -> set[str]:
        """Entries of a calendar, as soon as it answers."""
        found: set[str] = set()

        def answers() -> bool:
            nonlocal found
            try:
                found = calendar.entries()
            except (OSError, http.client.HTTPException):
                return False
            return True

        self.wait(f"{calendar.name} answers", answers, 40)
        return found

    # --- the end -----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Stop everything by process id."""
        if not self._started:
            return
        self.say("everything is ended")
        if hasattr(self, "writer"):
            self.writer.stop()
        for device in self.devices:
            try:
                device.stop()
            except DemoFailed as error:
                self.break_promise(str(error))
        for part in ("watch", "tap"):
            if hasattr(self, part):
                thing = getattr(self, part)
                (thing.stop if part == "watch" else thing.close)()
        left = [pid for device in self.devices for pid in device.processes()]
        if left:
            self.break_promise(f"processes are left behind: {left}")

    def report(self) -> None:
        """The table."""
        self.head("Measured, from the client's journal, the files of apps and store, and /proc")
        width = max((len(w) for w, _, _ in self.figures), default=10)
        for what, value, bound in self.figures:
            tell(f"  {what:<{width}}  {value:<28} {bound}")
        if hasattr(self, "writer"):
            acked = len(self.writer.acknowledged())
            tell(f"  {'entries tried / acknowledged':<{width}}  {len(self.writer.journal)} / {acked}")
        tell(f"\nIt took {time.monotonic() - self.began:.0f} s.")
        if self.broken:
            print("\nBROKEN PROMISES:", *self.broken, sep="\n  - ", file=sys.stderr)
        else:
            tell("Every promise held.")


def tell(text: str) -> None:
    """Print a line. That nobody reads any more (`make demo | head`) must not keep the demo from ending what it started."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of this process


def free_port() -> int:
    """A port on loopback that nobody uses now, and that the kernel gives to nobody who does not ask for it by number."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = 10_000 + secrets.randbelow(max(first - 10_000, 1))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise DemoFailed(f"none of 100 ports from 10000 to {first} is free")
