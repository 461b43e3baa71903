"""A Matrix homeserver on the internet: Synapse with its own rate limits, behind TLS of the test's authority."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fractal_matrix.testing import Synapse, environment

from tests.stack.real.device import Device
from tests.stack.real.machine import Part
from tests.stack.real.network import Network
from tests.stack.real.services import Authority, Fault, until_listening

PORT = 8008
REQUIREMENTS = Path(__file__).parents[3] / "plugins" / "fractal-matrix" / "tests" / "synapse-requirements.txt"


@dataclass
class Homeserver:
    """Started by `start`; accounts are made by its operator."""

    network: Network
    authority: Authority
    host: str = "matrix.test"

    @property
    def url(self) -> str:
        """What people log in to."""
        return f"https://{self.host}"

    @property
    def database(self) -> Path:
        """Its SQLite file; beside it lies its log of changes."""
        return self.machine.folder / "synapse" / "homeserver.db"

    def start(self) -> None:
        """Start it, and the server in front of it."""
        self.machine = self.network.public("Homeserver", self.host)
        self.server = Synapse(
            self.machine.folder / "synapse",
            environment(REQUIREMENTS),
            "127.0.0.1",
            PORT,
            name=self.host,
            limits={"public_baseurl": f"{self.url}/"},  # and no other: Synapse's own rate limits
            prefix=self.machine.words([]),
        )
        self.server.configure()
        self.again()
        config = self.machine.folder / "Caddyfile"
        config.write_text(
            f"""{{
  admin off
  auto_https disable_redirects
  skip_install_trust
  storage file_system {self.machine.folder / "data"}
  acme_ca {self.authority.directory}
  acme_ca_root {self.authority.path}
}}
{self.host} {{
  reverse_proxy 127.0.0.1:{PORT}
}}
"""
        )
        env = {"HOME": str(self.machine.folder), "XDG_CONFIG_HOME": str(self.machine.folder)}
        words = ["run", "--adapter", "caddyfile", "--config", str(config)]
        self.door = self.machine.start("caddy", "caddy", *words, env=env)
        until_listening(self.machine, self.door, 443)

    def again(self) -> None:
        """Start Synapse alone, as after it was killed."""
        config = self.machine.folder / "synapse" / "homeserver.yaml"
        words = [str(self.server.python), "-m", "synapse.app.homeserver", "-c", str(config)]
        self.part: Part = self.machine.start("synapse", *words)
        until_listening(self.machine, self.part, PORT)

    def log_in(self, device: Device, name: str) -> str:
        """Make an account and log a device in to it, as its person would; the Matrix ID."""
        password = device.folder / "password"
        password.write_text(os.urandom(12).hex() + "\n")
        password.chmod(0o600)
        self.server.account(name, password.read_text().strip())
        token = device.folder / "registration"
        token.write_text(self.server.registration_token() + "\n")
        token.chmod(0o600)
        files = ["--password-file", str(password), "--registration-token-file", str(token)]
        device.run("login", "--server", self.url, "--user", name, *files)
        return f"@{name}:{self.host}"

    def faults(self) -> list[Fault]:
        """What may be hit."""
        return [Fault("Synapse", lambda: self.part, self.again)]
