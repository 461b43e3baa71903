"""A real OpenSSH server for tests, in namespaces if told how to enter them. Needs root and Debian's `openssh-server`.

enter = ["nsenter", "--net=/run/netns/store"]
with SshServer(folder / "sshd", root=folder / "disk", address="10.1.2.2", enter=enter) as server:
    server.let_in(public_line)
    ... SftpConfig(host=server.address, port=server.port, user="root", path=f"{server.root}/store",
                   fingerprint=server.fingerprint)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fractal.api.errors import BackendError
from fractal.testing.store import read
from fractal_sftp.config import SftpConfig
from fractal_sftp.identity import load_identity, public_line
from fractal_sftp.store import SftpStore

SSHD = "/usr/sbin/sshd"
TIMEOUT = 2.0
"""Seconds, for calls that are meant to fail."""
MIB = 1 << 20
START = 20.0
"""Seconds that the server may take to listen."""


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True, timeout=60)


@dataclass(frozen=True)
class Cable:
    """Leads to a namespace."""

    namespace: str
    near: str
    address: str
    """At its far end."""

    @property
    def enter(self) -> list[str]:
        """Before a command that is to run there."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]

    def pull(self) -> None:
        """No carrier on either end."""
        ip("link", "set", self.near, "down")

    def put_back(self) -> None:
        """As it was."""
        ip("link", "set", self.near, "up")


@contextmanager
def cable() -> Iterator[Cable]:
    """A namespace and a cable to it; both go in the end."""
    tag = uuid.uuid4().hex[:8]
    # Of the range for measuring networks (RFC 2544), which nobody has.
    net = f"198.{18 + int(tag[0], 16) % 2}.{int(tag[1:3], 16)}.{int(tag[3:5], 16) & 0xFC}".rsplit(".", 1)
    near, far, base = f"sf{tag}", f"sg{tag}", int(net[1])
    made = Cable(f"sftp-{tag}", near, f"{net[0]}.{base + 2}")
    try:
        ip("netns", "add", made.namespace)
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", made.namespace)
        ip("addr", "add", f"{net[0]}.{base + 1}/30", "dev", near)
        ip("-n", made.namespace, "addr", "add", f"{made.address}/30", "dev", far)
        ip("-n", made.namespace, "link", "set", far, "up")
        ip("-n", made.namespace, "link", "set", "lo", "up")
        made.put_back()
        yield made
    finally:
        # The cable goes with it.
        subprocess.run(["ip", "netns", "del", made.namespace], check=False, timeout=60)


def missing() -> str:
    """Why no server can be run here, or ""."""
    if os.geteuid() != 0:
        return "sshd needs root"
    if not Path(SSHD).exists() or shutil.which("ssh-keygen") is None:
        return "openssh-server is not installed"
    return ""


class SshServer:
    """One sshd with a configuration of its own, which serves SFTP only, from `root` on.

    `folder` holds its keys, configuration and log. `denied` are SFTP requests that it refuses, such as `hardlink`, as a
    server that does not have them. `enter` is put before its command. Use it as a context manager, or `start` and `stop` it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        root: Path,
        address: str = "127.0.0.1",
        port: int = 2222,
        enter: Sequence[str] = (),
        user: str = "root",
        denied: Sequence[str] = (),
        patience: float = 30.0,
    ) -> None:
        self.folder = folder
        self.root = root
        self.address = address
        self.port = port
        self.user = user
        self._enter = tuple(enter)
        self._denied = denied
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        for path in (folder, root):
            path.mkdir(parents=True, exist_ok=True)
        (folder / "authorized_keys").touch(mode=0o600)
        if not (folder / "host_key").exists():
            self.make_host_key()

    @property
    def fingerprint(self) -> str:
        """Of its host key, as `ssh-keygen -l` shows it."""
        done = subprocess.run(
            ["ssh-keygen", "-lf", self.folder / "host_key.pub"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.split()[1]

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text(errors="replace")

    def make_host_key(self) -> None:
        """A new host key, as after setting the machine up anew; used from the next start on."""
        key = self.folder / "host_key"
        key.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", key], check=True, timeout=60)

    def let_in(self, public_line: str) -> None:
        """Let the owner of a key log in."""
        with (self.folder / "authorized_keys").open("a") as file:
            file.write(public_line.strip() + "\n")

    def let_in_device(self, state_dir: Path, device: str) -> None:
        """Make a device's key in the store's state folder, as the store itself would, and let it in."""
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.let_in(public_line(load_identity(None, state_dir, os.urandom(32), device)))

    def settings(self, path: Path | str, **more: Any) -> SftpConfig:
        """What a device has to know of the server; time-outs are its `patience`, in seconds."""
        known: dict[str, Any] = {
            "host": self.address,
            "port": self.port,
            "user": self.user,
            "path": str(path),
            "fingerprint": self.fingerprint,
            "timeout": self._patience,
            "connect_timeout": self._patience,
        }
        return SftpConfig(**known | more)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        # sshd insists on this one, whatever its configuration says.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.folder / "sshd_config"
        config.write_text(self._config())
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._enter, SSHD, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._await_listening()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it together with its sessions, at once; their connections die without a word only if the cable is cut."""
        process, self._process = self._process, None
        if process is None:
            return
        # Sessions are in process groups of their own; they are children until sshd ends.
        for pid in [*_descendants(process.pid), process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait(timeout=30)

    def pids(self) -> list[int]:
        """The server and its sessions, to stop or kill some of them."""
        assert self._process is not None
        return [self._process.pid, *_descendants(self._process.pid)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _config(self) -> str:
        denied = f" -P {','.join(self._denied)}" if self._denied else ""
        return "\n".join(
            [
                f"ListenAddress {self.address}:{self.port}",
                f"HostKey {self.folder}/host_key",
                f"PidFile {self.folder}/pid",
                # Not by AuthorizedKeysFile, which an account that may not enter our folder could not read.
                "AuthorizedKeysFile none",
                f"AuthorizedKeysCommand /usr/bin/cat {self.folder}/authorized_keys",
                "AuthorizedKeysCommandUser root",
                "UsePAM no",
                "UseDNS no",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "PermitRootLogin prohibit-password",
                "MaxStartups 100",
                "LogLevel VERBOSE",
                f"Subsystem sftp internal-sftp -d {self.root}{denied}",
                f"ForceCommand internal-sftp -d {self.root}{denied}",
                "",
            ]
        )

    def _await_listening(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"sshd ended with {self._process.returncode}: {self.log}")
            if f"Server listening on {self.address} port {self.port}" in self.log:
                return
            time.sleep(0.02)
        raise TimeoutError(f"sshd does not listen after {START:g} s: {self.log}")


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _descendants(pid: int) -> list[int]:
    """Children of a process and theirs, the youngest first."""
    found: list[int] = []
    try:
        tasks = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []  # it ended meanwhile
    for children in tasks:
        for child in map(int, children.split()):
            found += [*_descendants(child), child]
    return found


def temporaries(path: Path) -> list[str]:
    """What is being written, or was left."""
    return sorted(file.name for file in (path / "tmp").iterdir())


async def eventually(store: SftpStore, key: str) -> bytes:
    """Read until it works, as a caller does with retryable errors."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await read(store, key)
            except BackendError as error:
                assert error.retryable
                await asyncio.sleep(0.1)
