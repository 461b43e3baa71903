"""A real Podman service for tests. Needs root, and Debian's `podman`, `runc`, `catatonit` and `busybox-static`.

Where cgroups are hybrid, or limits cannot be raised (as in many containers and test machines), Podman's defaults do not
work: crun refuses hybrid cgroups, and a limit above the hard one cannot be set. So the engine here has settings of its
own. They are the test machine's, not the plugin's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fractal_containers.config import EngineConfig
from fractal_containers.engine import Engine
from fractal_containers.testing import TestEngine, absent
from podman.api.client import APIClient

from fractal_podman.config import PodmanConfig
from fractal_podman.engine import PodmanEngine
from fractal_podman.words import LIBPOD

SETTINGS = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""

# As Docker does with the loopback. No other registry is known, nor any short name.
REGISTRIES = """
unqualified-search-registries = []
[[registry]]
location = "127.0.0.1:5000"
insecure = true
"""


def missing() -> str:
    """Why no engine can be started here, or ""."""
    return absent("podman runc catatonit", "podman", "runc")


class PodmanTestEngine(TestEngine):
    """`podman system service` with folders of its own."""

    __test__ = False
    name = "podman"
    program = "podman"

    def config(self, **settings: Any) -> PodmanConfig:
        """As `TestEngine.config`."""
        return PodmanConfig(socket=str(self.socket), **settings)

    def engine(self, config: EngineConfig) -> Engine:
        """As `TestEngine.engine`."""
        assert isinstance(config, PodmanConfig)
        return PodmanEngine(config)

    def argv(self) -> Sequence[str]:
        """As `TestEngine.argv`."""
        settings = self.folder / "containers.conf"
        (self.folder / "registries.conf").write_text(REGISTRIES)
        settings.write_text(SETTINGS.format(folder=self.folder))
        folders = [
            f"--root={self.folder}/root",
            f"--runroot={self.folder}/runroot",
            f"--tmpdir={self.folder}/tmp",
        ]
        serve = ["system", "service", "--time=0", f"unix://{self.socket}"]
        return ["podman", *folders, "--storage-driver=overlay", *serve]

    def env(self) -> Mapping[str, str]:
        """As `TestEngine.env`."""
        return {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf"),
        }

    def private(self) -> Sequence[str]:
        """Networks, their namespaces, and what the OCI runtime keeps of containers."""
        return ("/run/containers", "/run/netns", "/run/runc", "/run/libpod")

    def import_image(self, data: bytes, name: str, changes: Sequence[str]) -> None:
        """As `TestEngine.import_image`."""
        with APIClient(base_url=f"unix://{self.socket}", version=LIBPOD, timeout=60) as client:
            query = {"reference": name, "changes": list(changes)}
            headers = {"Content-Type": "application/x-tar"}
            client.post("/images/import", params=query, data=data, headers=headers).raise_for_status()


@contextlib.contextmanager
def running_engine(folder: Path, *, netns: Path | None = None) -> Iterator[PodmanTestEngine]:
    """Start an engine below `folder`, in the network namespace `netns` or one of its own; end it with all that is in it."""
    engine = PodmanTestEngine(folder, netns=netns)
    with engine.running():
        yield engine
