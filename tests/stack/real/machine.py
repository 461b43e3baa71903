"""A machine: processes in namespaces of their own, all of which end with the first of them.

Its network, mounts, process ids and cgroups are its own; the file system is this machine's, with a `/run` of its own. It
needs no name in /run/netns and nothing that somebody would have to remember to remove: the first process dies with the
test's process, and the kernel clears up after it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fractal.demo.devices import kill
from tests.stack.real.cgroups import Subtree

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
BOOT = 15.0


@dataclass
class Part:
    """A process that was started on a machine."""

    name: str
    process: subprocess.Popen[bytes]
    """`nsenter`, which waits for it."""
    log: Path

    @property
    def pid(self) -> int:
        """Of the process itself; 0 if it has ended."""
        return next(iter(children(self.process.pid)), 0)

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it lives. What stops is stopped together with its `nsenter`, which has to go on with it."""
        if pid := self.pid:
            kill(pid, number)
        if number == signal.SIGCONT:
            kill(self.process.pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Signal it and wait; SIGKILL if it takes too long. Its exit code."""
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            return self.process.wait(timeout)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else "no log"


@dataclass
class Machine:
    """One computer."""

    name: str
    folder: Path
    hosts: Path
    """Names that it knows: bound over its /etc/hosts."""
    authorities: Path | None = None
    """Certificates that it trusts beside the system's: a whole bundle, bound over the system's."""
    on_boot: list[Callable[[], None]] = field(default_factory=list)
    """What its surroundings do when it comes up: cables, addresses."""
    leader: subprocess.Popen[bytes] | None = None
    stuck: list[int] = field(default_factory=list)
    """Processes that did not end when it was switched off."""
    network: int = -1
    """Its network namespace, held open: the number of one that is gone is soon another's."""
    boots: int = 0
    parts: list[Part] = field(default_factory=list)
    """What was started since the last boot."""

    @property
    def cgroup(self) -> Subtree:
        """Its part of the cgroup tree."""
        return Subtree(f"{self.folder.parent.name}/{self.folder.name}")

    @property
    def init(self) -> int:
        """Pid of its first process, as seen from outside."""
        assert self.leader is not None, f"{self.name} is off"
        return next(iter(children(self.leader.pid)), 0)

    # --- power -------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on. Its first process is started from the main thread only: it dies with the thread that made it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cgroup.make()
        self.boots += 1
        ready = self.folder / f"ready-{self.boots}"
        bundle = f"mount --bind {self.authorities} {CA_BUNDLE}" if self.authorities else ""
        first = f"""set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/sshd /run/wireguard
mount --bind {self.hosts} /etc/hosts
echo 'nameserver 127.0.0.1' > /run/resolv.conf
mount --bind /run/resolv.conf /etc/resolv.conf
{bundle}
{Subtree.inside()}
ip link set lo up
hostname {self.folder.name}
touch {ready}
sleep infinity & wait
"""
        options = ["--net", "--mount", "--propagation=slave", "--pid", "--uts", "--ipc", "--cgroup"]
        options += ["--fork", "--kill-child", "--mount-proc"]
        script = f'set -e\n{self.cgroup.script()}\nexec unshare {" ".join(options)} -- sh -c "$0"'
        with (self.folder / "boot.log").open("ab") as log:
            self.leader = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "sh", "-c", script, first],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT
        while not ready.exists():
            if self.leader.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.name} does not boot: {(self.folder / 'boot.log').read_text()[-2000:]}"
                )
            time.sleep(0.02)
        self.network = os.open(f"/proc/{self.init}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        for act in self.on_boot:
            act()

    def power_off(self) -> None:
        """Pull the plug: everything on it ends at once, and what is in memory is gone."""
        if self.leader is None:
            return
        self.cgroup.thaw()
        if first := self.init:
            kill(first, signal.SIGKILL)
        try:
            self.leader.wait(10)
        except subprocess.TimeoutExpired:
            self.leader.kill()
            self.leader.wait(10)
        self.cgroup.thaw()
        deadline = time.monotonic() + 20
        while self.left() and time.monotonic() < deadline:
            self.cgroup.thaw()
            time.sleep(0.05)
        for part in self.parts:
            part.send(signal.SIGCONT)
            part.process.wait(10)
        self.parts.clear()
        self.stuck += self.left()
        if self.network >= 0:
            os.close(self.network)
        self.network, self.leader = -1, None

    def left(self) -> list[int]:
        """Processes in its network: everything but what containers hold."""
        number = os.fstat(self.network).st_ino if self.network >= 0 else -1
        return [pid for pid in pids() if network_of(pid) == number]

    # --- processes ---------------------------------------------------------------------------------------------------

    def words(self, argv: Sequence[str]) -> list[str]:
        """A command line that runs another one on this machine."""
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--cgroup"]
        enter = f'{self.cgroup.script()}\nexec "$@"'
        return ["sh", "-c", enter, "sh", "nsenter", f"--target={self.init}", *spaces, "--", *argv]

    def environment(self, env: dict[str, str] | None = None) -> dict[str, str]:
        """What its processes are given."""
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        return {**kept, "SSL_CERT_FILE": str(CA_BUNDLE), "REQUESTS_CA_BUNDLE": str(CA_BUNDLE), **(env or {})}

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60.0,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
    ) -> str:
        """Run a command; what it printed. Raises CalledProcessError with both outputs in its text."""
        done = subprocess.run(
            self.words(argv),
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout,
            check=False,
            env=self.environment(env),
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{self.name}: {' '.join(argv)[:300]}: exit {done.returncode}: "
                f"{(done.stderr or done.stdout).decode(errors='replace').strip()[-2000:]}"
            )
        return done.stdout.decode(errors="replace")

    def start(self, name: str, *argv: str, env: dict[str, str] | None = None) -> Part:
        """Start a process that stays, in a session of its own."""
        path = self.folder / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                self.words(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(env),
                start_new_session=True,
            )
        part = Part(name, process, path)
        self.parts.append(part)
        return part

    def __hash__(self) -> int:
        return id(self)


def children(pid: int) -> list[int]:
    """Child processes; none if it is gone."""
    with contextlib.suppress(OSError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def pids() -> list[int]:
    """Every process."""
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()]


def network_of(pid: int) -> int:
    """Number of a process's network namespace; 0 if it is gone."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0
