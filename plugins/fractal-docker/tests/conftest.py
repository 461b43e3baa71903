"""One real engine for all tests of this plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from fractal_docker.testing import TestEngine, busybox_image, missing, python_image, running_engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEngine]:
    if reason := missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with running_engine(tmp_path_factory.mktemp("engine", numbered=True)) as started:
        client = started.api()
        try:
            busybox_image(client)
            python_image(client)
        finally:
            client.close()
        yield started


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
