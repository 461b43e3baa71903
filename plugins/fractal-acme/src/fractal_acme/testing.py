"""A real ACME authority for tests: Pebble, with a name server that gives every name one address."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fractal.api.certificates import make_certificate
from fractal.shell.entropy import SystemEntropy

READY = 30.0


def missing() -> str:
    """Why no authority can be started here, or ""."""
    gone = [t for t in ("pebble", "pebble-challtestsrv") if shutil.which(t) is None]
    return f"{', '.join(gone)}: not installed (Debian: pebble)" if gone else ""


@dataclass(frozen=True, slots=True)
class Pebble:
    """A running authority."""

    folder: Path
    port: int
    management: int
    host: str = "localhost"

    @property
    def directory(self) -> str:
        """For the configuration."""
        return f"https://{self.host}:{self.port}/dir"

    @property
    def ca_file(self) -> Path:
        """By which its own server is trusted."""
        return self.folder / "pebble.pem"

    def roots(self) -> bytes:
        """PEM of the certificate that what it issues is trusted by; new at every start."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        url = f"https://{self.host}:{self.management}/roots/0"
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            found: bytes = answer.read()
            return found


@contextmanager
def pebble(
    folder: Path,
    *,
    tls_port: int = 443,
    address: str = "127.0.0.1",
    host: str = "localhost",
    names_at: str = "127.0.0.1",
    prefix: Sequence[str] = (),
) -> Iterator[Pebble]:
    """Start it; it looks for every name at `names_at`, port `tls_port`.

    `prefix` is put before its command lines (`nsenter --net=...`); `address` and `host` are its own, in that network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = make_certificate(host, SystemEntropy(), int(time.time() * 1000))
    certificate, key = folder / "pebble.pem", folder / "pebble.key"
    certificate.write_bytes(made.chain)
    key.touch(0o600)
    key.write_bytes(made.key)
    port, management, names, control = (_free(address if not prefix else "127.0.0.1") for _ in range(4))
    config = folder / "pebble.json"
    settings = {
        "listenAddress": f"{address}:{port}",
        "managementListenAddress": f"{address}:{management}",
        "certificate": str(certificate),
        "privateKey": str(key),
        "httpPort": 80,
        "tlsPort": tls_port,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
    }
    config.write_text(json.dumps({"pebble": settings}))
    resolver = f"{address}:{names}"
    unused = [part for kind in ("http01", "https01", "tlsalpn01") for part in (f"-{kind}", "")]
    answers = ["-defaultIPv4", names_at, "-defaultIPv6", "", "-dns01", resolver]
    commands = [
        ["pebble-challtestsrv", *answers, *unused, "-management", f"{address}:{control}"],
        ["pebble", "-config", str(config), "-dnsserver", resolver, "-strict"],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "pebble.log").open("ab") as log:
            for command in commands:
                started.append(_start([*prefix, *command], log))  # noqa: PERF401 - what did start must be ended
        _until_ready(folder, started)
        yield Pebble(folder, port, management, host)
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PEBBLE_VA_NOSLEEP": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=env
    )


def _until_ready(folder: Path, started: Sequence[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + READY
    log = folder / "pebble.log"
    while "ACME directory available at" not in log.read_text(errors="replace"):
        if time.monotonic() > end or any(p.poll() is not None for p in started):
            raise RuntimeError(f"pebble does not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _free(address: str) -> int:
    with socket.socket() as sock:
        sock.bind((address, 0))
        port: int = sock.getsockname()[1]
        return port
