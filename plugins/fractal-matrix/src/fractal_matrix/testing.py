"""A real Synapse for tests: in a virtual environment of its own, with SQLite, on an address or in a network namespace.

    with synapse(folder, environment(requirements)) as server:
        owner = server.account("owner")
        token = server.registration_token()

Synapse's environment is made once, from the pinned requirement file beside the plugin's tests, and kept in the user's cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fractal.testing.context import real_context
from fractal_matrix.accounts import Account, Accounts, with_login
from fractal_matrix.config import MatrixConfig
from fractal_matrix.coordinator import MatrixCoordinator, open_coordinator

READY = 120.0
"""Seconds in which Synapse has to answer; it takes 6 to 12 on an idle machine."""
_QUICK = {"per_second": 1000, "burst_count": 1000}
RAISED: Mapping[str, Any] = {
    "rc_message": _QUICK,
    "rc_registration": _QUICK,
    "rc_login": {"address": _QUICK, "account": _QUICK, "failed_attempts": _QUICK},
    "rc_joins": {"local": _QUICK, "remote": _QUICK},
    "rc_joins_per_room": _QUICK,
    "rc_invites": {"per_room": _QUICK, "per_user": _QUICK, "per_issuer": _QUICK},
    "rc_room_creation": _QUICK,
    "rc_admin_redaction": _QUICK,
    "rc_reports": _QUICK,
}
"""Rate limits that no test meets; without them Synapse's defaults count."""


def environment(requirements: Path) -> Path:
    """Python of an environment with exactly these requirements, made if need be (minutes); one for all test runs.

    Raises RuntimeError if it cannot be made.
    """
    name = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "fractal-homeserver"
    base.mkdir(parents=True, exist_ok=True)
    folder = base / f"synapse-{name}"
    python = folder / "bin" / "python"
    with (base / f"synapse-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            _run([sys.executable, "-m", "venv", "--clear", str(folder)], 120)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run([*pip, "--requirement", str(requirements)], 900)
            (folder / "ready").touch()
    return python


@dataclass(slots=True)
class Synapse:
    """A homeserver that the test made. `start`, `stop`, `kill` and signals act on its one process."""

    folder: Path
    python: Path
    address: str
    port: int
    name: str = "hs.test"
    limits: Mapping[str, Any] | None = field(default_factory=lambda: dict(RAISED))
    """Added to the configuration; None keeps Synapse's own rate limits."""
    prefix: Sequence[str] = ()
    """Before its command line: ("nsenter", "--net=/run/netns/NAME") puts it into a namespace."""
    process: subprocess.Popen[bytes] | None = None
    _secret: str = ""
    _admin: str = ""

    @property
    def url(self) -> str:
        """Base of the client-server API."""
        return f"http://{self.address}:{self.port}"

    @property
    def database(self) -> Path:
        """Its SQLite file."""
        return self.folder / "homeserver.db"

    def configure(self) -> None:
        """Write configuration and keys into the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._secret = os.urandom(16).hex()
        log = {
            "version": 1,
            "formatters": {"line": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
            "handlers": {
                "file": {
                    "class": "logging.FileHandler",
                    "formatter": "line",
                    "filename": str(self.folder / "homeserver.log"),
                }
            },
            "root": {"level": "WARNING", "handlers": ["file"]},
            "disable_existing_loggers": False,
        }
        config = {
            "server_name": self.name,
            "pid_file": str(self.folder / "homeserver.pid"),
            "public_baseurl": f"{self.url}/",
            "listeners": [
                {
                    "port": self.port,
                    "type": "http",
                    "tls": False,
                    "bind_addresses": [self.address],
                    "resources": [{"names": ["client"], "compress": False}],
                }
            ],
            "database": {"name": "sqlite3", "args": {"database": str(self.database)}},
            "log_config": str(self.folder / "log.yaml"),
            "media_store_path": str(self.folder / "media"),
            "signing_key_path": str(self.folder / "signing.key"),
            "macaroon_secret_key": os.urandom(16).hex(),
            "bcrypt_rounds": 4,
            "form_secret": os.urandom(16).hex(),
            "registration_shared_secret": self._secret,
            "enable_registration": True,
            "registration_requires_token": True,
            "report_stats": False,
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            **(self.limits or {}),
        }
        # JSON is YAML.
        (self.folder / "log.yaml").write_text(json.dumps(log))
        (self.folder / "homeserver.yaml").write_text(json.dumps(config))
        _run(self._command("--generate-keys"), 120)

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with the end of its log."""
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                self._command(),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        end = time.monotonic() + READY
        while time.monotonic() < end and self.process.poll() is None:
            if self.process.poll() is None and self._answers():
                return
            time.sleep(0.1)
        said = (self.folder / "output").read_text(errors="replace")[-2000:]
        self.stop()
        raise RuntimeError(f"Synapse does not start:\n{said}")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it, by force if it does not go in 20 s. Nothing if it does not run."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)

    def pause(self) -> None:
        """Hang it (SIGSTOP)."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    # --- accounts ----------------------------------------------------------------------------------------------------

    def account(self, name: str, password: str = "a password", *, admin: bool = False) -> str:
        """Make an account by the shared secret; its access token."""
        nonce = self.call("GET", "/_synapse/admin/v1/register")["nonce"]
        said = "\0".join((nonce, name, password, "admin" if admin else "notadmin"))
        mac = hmac.new(self._secret.encode(), said.encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": name, "password": password, "admin": admin, "mac": mac}
        return str(self.call("POST", "/_synapse/admin/v1/register", body)["access_token"])

    def registration_token(self, uses: int | None = None) -> str:
        """A token with which accounts can be made, as the homeserver's operator hands it out."""
        self._admin = self._admin or self.account("operator", os.urandom(8).hex(), admin=True)
        body = {} if uses is None else {"uses_allowed": uses}
        said = self.call("POST", "/_synapse/admin/v1/registration_tokens/new", body, self._admin)
        return str(said["token"])

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        token: str = "",
        *,
        timeout: float = 30.0,
    ) -> Any:
        """One request; its JSON answer. Raises urllib.error.HTTPError. In a namespace it is made from there."""
        if self.prefix:
            return self._call_inside(method, path, body, token)
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def _call_inside(self, method: str, path: str, body: Mapping[str, Any] | None, token: str) -> Any:
        script = (
            "import json, sys, urllib.request\n"
            "method, url, body, token = json.load(sys.stdin)\n"
            "headers = {'Authorization': 'Bearer ' + token} if token else {}\n"
            "data = None if body is None else json.dumps(body).encode()\n"
            "request = urllib.request.Request(url, method=method, data=data, headers=headers)\n"
            "sys.stdout.write(urllib.request.urlopen(request, timeout=30).read().decode())\n"
        )
        asked = json.dumps([method, self.url + path, body, token])
        done = subprocess.run(
            [*self.prefix, sys.executable, "-c", script],
            input=asked,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{method} {path}: {done.stderr[-500:]}")
        return json.loads(done.stdout)

    def _answers(self) -> bool:
        try:
            self.call("GET", "/_matrix/client/versions", timeout=2)
        except (OSError, RuntimeError, ValueError):
            return False
        return True

    def _command(self, *more: str) -> list[str]:
        config = str(self.folder / "homeserver.yaml")
        return [*self.prefix, str(self.python), "-m", "synapse.app.homeserver", "-c", config, *more]


def _run(argv: Sequence[str], timeout: float) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv[:4])}: {done.stdout[-1000:]} {done.stderr[-1000:]}")


@contextmanager
def synapse(
    folder: Path,
    python: Path,
    *,
    address: str = "127.0.0.1",
    port: int = 0,
    limits: Mapping[str, Any] | None = RAISED,
    netns: str = "",
) -> Iterator[Synapse]:
    """A running homeserver, ended and gone afterwards; `port` 0 takes a free one, `limits` None keeps the default limits.

    `netns` names a network namespace to run it in.
    """
    prefix = ("nsenter", f"--net=/run/netns/{netns}") if netns else ()
    port = port or (8008 if netns else _free_port(address))
    server = Synapse(folder, python, address, port, limits=limits, prefix=prefix)
    server.configure()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@dataclass(slots=True)
class Devices:
    """Devices on one homeserver: each with a folder of its own, that survives its restarts."""

    server: Synapse
    folder: Path
    config: MatrixConfig = field(default_factory=MatrixConfig)
    token: str = ""
    """Registration token that those who log in bring along; made when first needed."""

    def log_in(self, device: str, *, registration: bool = True, user: str = "") -> str:
        """Log a member in on that device, as `homeserver login` does; their Matrix id. Made for it unless named."""
        name = user or f"member-{os.urandom(6).hex()}"
        if not user:
            self.server.account(name)
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": name},
            "password": "a password",
        }
        said = self.server.call("POST", "/_matrix/client/v3/login", body)
        account = Account(
            url=self.server.url, user=said["user_id"], device=said["device_id"], token=said["access_token"]
        )
        file = self.accounts(device)
        if registration and not self.token:
            self.token = self.server.registration_token()
        token = self.token if registration else ""
        file.write(with_login(file.known(), account, token))
        return account.user

    def accounts(self, device: str) -> Accounts:
        """That device's file of accounts."""
        folder = self.folder / device / "state"
        folder.mkdir(parents=True, exist_ok=True)
        return Accounts(folder)

    @asynccontextmanager
    async def open(self, device: str) -> AsyncIterator[MatrixCoordinator]:
        """That device's coordinator."""
        async with (
            real_context(self.folder / device, device=device) as context,
            open_coordinator(context, self.config) as opened,
        ):
            yield opened


def _free_port(address: str) -> int:
    with socket.socket() as one:
        one.bind((address, 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    sys.stdout.write(f"{environment(Path(sys.argv[1]))}\n")
