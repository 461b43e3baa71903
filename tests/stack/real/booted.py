"""A machine that Debian's systemd boots, in a container of its own with nothing but cgroup v2, and our packages in it.

What the machine's user runs is Debian's Python; the packages are those of this environment, seen read-only.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fractal.testing.leftovers import all_pids, mentions
from tests.stack.bed import comm_of, until
from tests.stack.real.cgroups import Subtree
from tests.stack.real.images import Recipe

CHECKOUT = Path(__file__).resolve().parents[3]
PLAIN = Recipe("fractal-test-systemd:1", ("systemd", "systemd-sysv", "dbus", "python3"))
NEEDED = {"systemd-nspawn": "systemd-container", "nsenter": "util-linux", "mmdebstrap": "mmdebstrap"}
SEEN, PACKAGES = "/opt/checkout", "/opt/packages"
"""Where the machine sees this checkout, and what else this environment's Python has installed."""
VENV = "/opt/homeserver"
PROGRAM = f"{VENV}/bin/homeserver"
PATH = "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"
REBOOTED = 133
"""With which systemd-nspawn asks whoever started it to start the machine again."""
UP = 60.0
"""Seconds that a boot or an end may take: systemd's own limits are far below on an idle machine."""


def missing() -> str:
    """Why no machine can be booted here, or ""."""
    if os.geteuid() != 0:
        return "booting a machine needs root"
    if not Path("/etc/debian_version").exists():
        return "the machine is made from Debian's packages"
    gone = sorted(package for tool, package in NEEDED.items() if shutil.which(tool) is None)
    if gone:
        return f"{', '.join(gone)}: not installed"
    if "cgroup2" not in Path("/proc/filesystems").read_text().split():
        return "the kernel has no cgroup v2"
    return ""


@dataclass
class Booted:
    """One machine. Its files are below `root`, which is where it sees `/`."""

    folder: Path
    recipe: Recipe = PLAIN
    cgroup: Subtree = field(default_factory=lambda: Subtree(f"fractal-booted-{uuid.uuid4().hex[:12]}"))
    _supervisor: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        """Its file system."""
        return self.folder / "root"

    def unpack(self) -> None:
        """Make its file system, with our packages as if a person had installed them."""
        self.root.mkdir(mode=0o755)
        subprocess.run(
            ["tar", "-xf", str(self.recipe.archive()), "-C", str(self.root)], check=True, timeout=120
        )
        python = (self.root / "usr/bin/python3").readlink().name
        here = f"python{sys.version_info.major}.{sys.version_info.minor}"
        if python != here:
            raise RuntimeError(f"this environment is of {here}, the machine has {python}")
        (self.root / "usr/local/bin/homeserver").symlink_to(PROGRAM)

    def install(self) -> None:
        """Put our packages into a virtual environment of its own, as a person does with `pip`."""
        venv = self.root / VENV.lstrip("/")
        self.run("python3", "-m", "venv", "--without-pip", VENV)
        sources = [SEEN, *(f"{SEEN}/{path.relative_to(CHECKOUT)}" for path in CHECKOUT.glob("plugins/*/src"))]
        (found,) = venv.glob("lib/python3*/site-packages")
        (found / "ours.pth").write_text("\n".join([*sources, PACKAGES]) + "\n")
        program = venv / "bin/homeserver"
        program.write_text(
            f"#!{VENV}/bin/python3\nimport sys\nfrom fractal.cli.main import main\nsys.exit(main())\n"
        )
        program.chmod(0o755)

    def boot(self) -> None:
        """Switch it on; returns when systemd says that all units are up."""
        self.cgroup.make()
        words = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--boot"]
        words += ["--console=pipe", f"--directory={self.root}", f"--bind-ro={CHECKOUT}:{SEEN}"]
        if self.recipe != PLAIN:  # for engines of containers: keys of their own, and filters of devices
            words += ["--capability=all", "--system-call-filter=@keyring bpf"]
        words += [f"--bind-ro={site.getsitepackages()[0]}:{PACKAGES}"]
        # In spaces that end with the test run, however that ends: process 1 of the machine outlives a killed
        # systemd-nspawn, and what that keeps below /run stays.
        spaces = "unshare --mount --propagation=slave --pid --fork --kill-child --mount-proc"
        inside = """sh -ec 'mount -t tmpfs tmpfs /run; exec "$@"' sh"""
        script = f'{self.cgroup.script()}\nexec setpriv --pdeathsig=KILL -- {spaces} -- {inside} "$@"'
        with (self.folder / "console").open("ab") as console:
            self._supervisor = subprocess.Popen(
                ["sh", "-ec", script, "sh", *words],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(lambda: self.first() != 0, UP, "systemd starts")
        until(lambda: self.run("systemctl", "is-system-running", check=False) == "running", UP, "it is up")

    def reboot(self) -> None:
        """Boot it again, in order; returns when it is up."""
        assert self._supervisor is not None
        self.run("systemctl", "reboot", check=False)
        assert self._supervisor.wait(3 * UP) == REBOOTED
        self.boot()

    def first(self) -> int:
        """Its process 1, by the id that it has outside; 0 if there is none (yet)."""
        assert self._supervisor is not None
        if self._supervisor.poll() is not None:
            raise RuntimeError(f"systemd-nspawn ended: {(self.folder / 'console').read_text()[-2000:]}")
        for pid in all_pids():
            if comm_of(pid) == "systemd" and _parent(_parent(pid)) == self._supervisor.pid:
                return pid
        return 0

    def run(self, *words: str, check: bool = True, timeout: float = 120.0, cwd: str = "/root") -> str:
        """Run a command on it as root; its output. Raises AssertionError with what it said if it fails."""
        spaces = [f"--{kind}" for kind in ("mount", "pid", "net", "uts", "ipc", "cgroup")]
        clean = ["env", f"--chdir={cwd}", "-i", "HOME=/root", "LANG=C.UTF-8", f"PATH={PATH}"]
        done = subprocess.run(
            ["nsenter", f"--target={self.first()}", *spaces, "--", *clean, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def pids(self, text: str = "") -> list[int]:
        """Its processes, by the ids that they have outside; those with `text` in their arguments or names."""
        space = Path(f"/proc/{self.first()}/ns/pid").readlink()
        found = []
        for pid in all_pids():
            try:
                if Path(f"/proc/{pid}/ns/pid").readlink() != space:
                    continue
                words = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue  # ended meanwhile
            if text in words or text == comm_of(pid):
                found.append(pid)
        return found

    def end(self) -> list[str]:
        """Switch it off and remove it; what could not be removed."""
        if self._supervisor is not None:
            self.cgroup.thaw()
            self._supervisor.kill()
            self._supervisor.wait(30)
        left = [f"cgroup {path}" for path in self.cgroup.remove()]
        marker = str(self.folder)
        left += [f"process {pid}" for pid in all_pids() if mentions(pid, marker)]
        left += [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if marker in line]
        shutil.rmtree(self.folder, ignore_errors=True)
        return [*left, *([f"folder {marker}"] if self.folder.exists() else [])]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@contextmanager
def booted(recipe: Recipe = PLAIN) -> Iterator[Booted]:
    """A machine that is up, and the end of it."""
    machine = Booted(Path(tempfile.mkdtemp(prefix="fractal-booted-")), recipe)
    try:
        machine.unpack()
        machine.boot()
        machine.install()
        yield machine
    except BaseException:
        console = machine.folder / "console"
        print(console.read_text(errors="replace")[-3000:] if console.exists() else "never booted")
        raise
    finally:
        left = machine.end()
        assert not left, f"left behind: {left}"
