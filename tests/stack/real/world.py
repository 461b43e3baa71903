"""The bed of the real stack: everything that a test starts, and the end of it all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fractal.core.lease import PROFILES, seconds
from fractal.demo.devices import command
from fractal.testing.leftovers import all_pids, mentions
from tests.stack.bed import until
from tests.stack.real.cgroups import Subtree
from tests.stack.real.device import GROUP, Device
from tests.stack.real.engines import Engine
from tests.stack.real.machine import Machine
from tests.stack.real.network import Network
from tests.stack.real.watch import Watch

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
NEEDED = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "podman": "podman",
    "haproxy": "haproxy",
    "wireguard-go": "wireguard-go",
    "wg": "wireguard-tools",
    "sshd": "openssh-server",
    "caddy": "caddy",
    "mmdebstrap": "mmdebstrap",
    "busybox": "busybox-static",
    "mkfs.btrfs": "btrfs-progs",
    "nft": "nftables",
    "ip": "iproute2",
    "unshare": "util-linux",
}
PREFIX = "fractal-stack-"
ROOM = 5 << 30
"""Bytes that the largest test takes, and as much again."""
BTRFS = """[snapshot]
backend = "btrfs"
[snapshot.btrfs]
size = "2G"
limit = "6G"
"""


def missing() -> str:
    """Why there can be no real stack here, or ""."""
    if os.geteuid() != 0:
        return "machines of their own need root"
    if not Path("/etc/debian_version").exists():
        return "the images are made from Debian's packages"
    gone = sorted({package for tool, package in NEEDED.items() if shutil.which(tool, path=PATH) is None})
    if gone:
        return f"{', '.join(gone)}: not installed"
    if "btrfs" not in Path("/proc/filesystems").read_text().split():
        return "the kernel has no btrfs"
    return ""


@dataclass
class World:
    """Machines, devices on some of them, and what was measured."""

    folder: Path
    network: Network = field(init=False)
    devices: list[Device] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    figures: list[tuple[str, str, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    at_end: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = Network(self.folder)

    def say(self, text: str) -> None:
        """A line of progress, shown when the test fails or with -s."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def figure(self, what: str, value: str, bound: str = "") -> None:
        """A line of the table."""
        self.figures.append((what, value, bound))

    def table(self) -> str:
        """What was measured."""
        width = max((len(what) for what, _, _ in self.figures), default=0)
        return "\n".join(f"  {what:<{width}}  {value:<24} {bound}" for what, value, bound in self.figures)

    # --- devices -----------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> Path:
        """What all machines see as one folder: for parts that are no servers."""
        path = self.folder / "shared"
        path.mkdir(exist_ok=True)
        return path

    def host(
        self,
        name: str,
        engine: Callable[[Machine], Engine],
        *parts: str,
        pool: str = BTRFS,
    ) -> Device:
        """A host at home: its machine and its engine run, its agent does not yet."""
        home = self.network.at_home(name)
        made = engine(home.machine)
        device = Device(name, home.machine, [pool, *parts], home, made)
        device.configure()
        made.start()
        self.devices.append(device)
        return device

    def gateway(self, name: str, *parts: str, host: str) -> Device:
        """A gateway with a public address and a name for it; its agent does not run yet."""
        machine = self.network.public(name, host)
        device = Device(name, machine, list(parts), roles=("gateway",))
        device.configure()
        self.devices.append(device)
        return device

    def found(self, founder: Device, store: list[str], timers: str = "standard", group: str = GROUP) -> None:
        """Create a group and its store."""
        founder.run("group", "create", group, "--timers", timers)
        founder.run("store", "add", "Shelf", "--group", group, *store)

    def join(self, host: Device, device: Device, *options: str, group: str = GROUP, member: str = "") -> None:
        """Let a device in by a code. `options` go to `group invite`; `member` is what a new one is called."""
        code = json.loads(host.run("group", "invite", "--group", group, "--json", *options))["code"]
        words = ["--config", str(device.config), "group", "join", code, "--timeout", "60"]
        words += ["--member", member] if member else []
        joining = subprocess.Popen(
            device.machine.words([*command(), *words]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=device.machine.environment(),
            text=True,
        )
        try:
            until(lambda: self._asks(host, device.name, group), 60, f"{device.name} asks to join")
            host.run("device", "approve", device.name, "--group", group)
            output, _ = joining.communicate(timeout=90)
        finally:
            if joining.poll() is None:
                joining.kill()
                joining.communicate()
        assert joining.returncode == 0, output

    @staticmethod
    def _asks(host: Device, name: str, group: str) -> bool:
        return any(p["name"] == name for p in host.call("device.list", group=group)["pending"])

    def watch(self, *devices: Device) -> Watch:
        """Watch who runs apps."""
        watch = Watch(list(devices))
        watch.start()
        self.watches.append(watch)
        return watch

    # --- the end -----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Switch everything off, and see that nothing is left. One part that does not end keeps no other from it."""
        left: list[str] = []
        acts: list[Callable[[], None]] = [*reversed(self.at_end), *(watch.stop for watch in self.watches)]
        acts += [machine.power_off for machine in reversed(self.network.machines)]
        for act in acts:
            try:
                act()
            except Exception as error:
                left.append(f"{getattr(act, '__qualname__', act)}: {error!r}")
        left += self.leftovers()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            left.append(f"folder {self.folder}")
        assert not left, f"left behind: {left}"

    def leftovers(self) -> list[str]:
        """What is still there of it: processes, namespaces, mounts, loop devices, cgroups."""
        marker = str(self.folder)
        left = [f"cgroup {path}" for machine in self.network.machines for path in machine.cgroup.remove()]
        left += [f"process {p} of {m.name}" for m in self.network.machines for p in m.stuck]
        left += [f"process {pid}" for pid in all_pids() if mentions(pid, marker)]
        left += [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if marker in line]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                if marker in backing.read_text():
                    left.append(f"loop device {backing.parent.parent.name}")
            except OSError:
                continue  # detached meanwhile
        return left


def takeover_bound(timers: str) -> float:
    """Seconds from death to start that a profile's timers give at most, by docs/explanation/failover.md."""
    t = PROFILES[timers]
    parts = (t.beat, t.patience, t.answer_window, t.rank_step, t.poll, t.read_timeout, t.proof, t.margin)
    return seconds(sum(parts))


def place() -> Path | None:
    """Where everything lies: in memory if there is plenty, as engines unpack and delete a hundred thousand files."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < ROOM:
        return None
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    return memory if available > 2 * ROOM else None


def sweep() -> None:
    """Remove the files and cgroups of runs that were killed. All else of theirs went with them."""
    for base in {Path("/dev/shm"), Path(tempfile.gettempdir())}:
        for folder in base.glob(f"{PREFIX}*"):
            owner = folder.name.removeprefix(PREFIX).partition("-")[0]
            mounted = any(str(folder) in line for line in Path("/proc/mounts").read_text().splitlines())
            if owner.isdecimal() and not Path("/proc", owner).exists() and not mounted:
                for machine in folder.iterdir():
                    Subtree(f"{folder.name}/{machine.name}").remove(0.0)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def world() -> Iterator[World]:
    """A world, and its end, also after a failure."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place()))
    made = World(folder)
    try:
        yield made
    finally:
        made.end()
