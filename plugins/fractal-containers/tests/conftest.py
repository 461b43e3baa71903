"""One real engine of each kind for all tests of what they have in common; most tests run on both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import docker
import fractal_docker.testing
import fractal_podman.testing
import pytest
from fractal_containers.testing import TestEngine
from fractal_containers.testing_images import busybox_image, python_image

ENGINES = {"docker": fractal_docker.testing, "podman": fractal_podman.testing}


def started(name: str, factory: pytest.TempPathFactory) -> Iterator[TestEngine]:
    module = ENGINES[name]
    if reason := module.missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with module.running_engine(factory.mktemp(name, numbered=True)) as engine:
        busybox_image(engine)
        python_image(engine)
        yield engine


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEngine]:
    yield from started("docker", tmp_path_factory)


@pytest.fixture(scope="session")
def podman_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEngine]:
    yield from started("podman", tmp_path_factory)


@pytest.fixture(scope="session", params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> TestEngine:
    found: TestEngine = request.getfixturevalue(f"{request.param}_engine")
    return found


@pytest.fixture
def inside(engine: TestEngine) -> Iterator[None]:
    """Tests look from the engine's own loopback."""
    with engine.network():
        yield


@pytest.fixture
def api(engine: TestEngine) -> Iterator[docker.APIClient]:
    """The engine, seen from outside the plugin."""
    client = engine.api()
    yield client
    client.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
