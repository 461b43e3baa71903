"""A real Docker engine for tests. Needs root, and Debian's `docker.io` and `busybox-static`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fractal_containers.config import EngineConfig
from fractal_containers.engine import Engine, split
from fractal_containers.testing import TestEngine, absent

from fractal_docker.config import DockerConfig
from fractal_docker.engine import DockerEngine


def missing() -> str:
    """Why no engine can be started here, or ""."""
    return absent("docker.io", "dockerd")


class DockerTestEngine(TestEngine):
    """dockerd with folders of its own."""

    __test__ = False
    name = "docker"
    program = "dockerd"

    def config(self, **settings: Any) -> DockerConfig:
        """As `TestEngine.config`."""
        return DockerConfig(socket=str(self.socket), **settings)

    def engine(self, config: EngineConfig) -> Engine:
        """As `TestEngine.engine`."""
        assert isinstance(config, DockerConfig)
        return DockerEngine(config)

    def argv(self) -> Sequence[str]:
        """As `TestEngine.argv`."""
        folders = [f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec"]
        places = [f"--pidfile={self.folder}/pid", f"--host=unix://{self.socket}"]
        return ["dockerd", *folders, *places, "--exec-opt=native.cgroupdriver=cgroupfs"]

    def import_image(self, data: bytes, name: str, changes: Sequence[str]) -> None:
        """As `TestEngine.import_image`."""
        client = self.api()
        try:
            repository, tag = split(name)
            client.import_image_from_data(data, repository=repository, tag=tag, changes=list(changes))
        finally:
            client.close()


@contextlib.contextmanager
def running_engine(folder: Path, *, netns: Path | None = None) -> Iterator[DockerTestEngine]:
    """Start an engine below `folder`, in the network namespace `netns` or one of its own; end it with all that is in it."""
    engine = DockerTestEngine(folder, netns=netns)
    with engine.running():
        yield engine
