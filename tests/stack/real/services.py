"""Machines that a group's people do not own: a certificate authority, a store's server, a homeserver."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.stack.real.machine import CA_BUNDLE, Machine, Part
from tests.stack.real.network import Network

START = 60.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A part that may be hit, and how it comes back after SIGKILL, as an init system would bring it."""

    name: str
    part: Callable[[], Part]
    again: Callable[[], None]


def until_listening(machine: Machine, part: Part, port: int) -> None:
    """Until somebody listens on a TCP port of a machine."""

    def listens() -> bool:
        wanted = f":{port:04X}"
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/{machine.init}/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(wanted) and fields[3] == "0A":
                    return True
        return False

    until_true(listens, part)


def until_true(condition: Callable[[], bool], part: Part) -> None:
    """Until a part that has been started is ready."""
    deadline = time.monotonic() + START
    while not condition():
        if not part.alive or time.monotonic() > deadline:
            raise RuntimeError(f"{part.name} does not start: {part.last_words()}")
        time.sleep(0.1)


@dataclass
class Authority:
    """An ACME certificate authority (Caddy's), which the whole internet trusts: start it before the other machines."""

    network: Network
    host: str = "ca.test"

    def start(self) -> None:
        """Start it, and make a bundle with its root for every machine that is made from now on."""
        self.machine = self.network.public("Authority", self.host)
        config = self.machine.folder / "Caddyfile"
        config.write_text(
            f"""{{
  admin off
  auto_https disable_redirects
  skip_install_trust
  storage file_system {self.machine.folder / "data"}
}}
{self.host} {{
  tls internal
  acme_server
}}
"""
        )
        env = {"HOME": str(self.machine.folder), "XDG_CONFIG_HOME": str(self.machine.folder)}
        self.part = self.machine.start(
            "caddy", "caddy", "run", "--adapter", "caddyfile", "--config", str(config), env=env
        )
        until_listening(self.machine, self.part, 443)
        until_true(self.path.exists, self.part)
        bundle = self.network.folder / "authorities.pem"
        bundle.write_text(CA_BUNDLE.read_text() + self.root)
        self.network.authorities = bundle

    @property
    def path(self) -> Path:
        """Where its certificate is."""
        return self.machine.folder / "data" / "pki" / "authorities" / "local" / "root.crt"

    @property
    def root(self) -> str:
        """Its certificate, PEM."""
        return self.path.read_text()

    @property
    def directory(self) -> str:
        """Where ACME begins."""
        return f"https://{self.host}/acme/local/directory"


@dataclass
class Shelf:
    """A store's server: OpenSSH that serves SFTP and nothing else, as docs/how-to/store-by-sftp.md sets it up."""

    network: Network
    host: str = "shelf.test"
    name: str = "Shelf"

    def start(self) -> None:
        """Start it."""
        self.machine = self.network.public(self.name, self.host)
        folder = self.machine.folder
        self.root.mkdir()
        self.keys.touch(mode=0o600)
        self.machine.run("ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(folder / "host_key"))
        config = folder / "sshd_config"
        config.write_text(
            f"""HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {self.keys}
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
ForceCommand internal-sftp -d {self.root}
"""
        )
        self.part = self.machine.start("sshd", "/usr/sbin/sshd", "-D", "-e", "-f", str(config))
        until_listening(self.machine, self.part, 22)

    @property
    def root(self) -> Path:
        """Where the store's files are."""
        return self.machine.folder / "disk"

    @property
    def keys(self) -> Path:
        """Who may log in."""
        return self.machine.folder / "authorized_keys"

    @property
    def settings(self) -> list[str]:
        """What `store add` is told, but the fingerprint."""
        return ["sftp", f"host={self.host}", "user=root", f"path={self.root / 'store'}"]

    def let_in(self, answer: str) -> None:
        """Add the key that a device has shown."""
        match = re.search(r"ssh-ed25519 AAAA[A-Za-z0-9+/=]+", answer)
        assert match, f"no key in: {answer}"
        with self.keys.open("a") as file:
            file.write(match[0] + "\n")

    def fingerprint(self, answer: str) -> str:
        """The fingerprint that a device has been shown, after a look at what it really is."""
        match = re.search(r"SHA256:[A-Za-z0-9+/]{43}", answer)
        assert match, f"no fingerprint in: {answer}"
        assert match[0] in self.machine.run("ssh-keygen", "-lf", str(self.machine.folder / "host_key.pub"))
        return match[0]
