"""One real Synapse for all tests, with raised rate limits; tests that stop, starve or limit one start their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fractal_matrix.testing import Devices, Synapse, environment, synapse

REQUIREMENTS = Path(__file__).parent / "synapse-requirements.txt"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install Synapse before any test's time runs."""
    if not session.config.option.collectonly:
        with suppress(RuntimeError, subprocess.SubprocessError, OSError):
            environment(REQUIREMENTS)


@pytest.fixture(scope="session")
def python() -> Path:
    """Python of Synapse's own environment."""
    try:
        return environment(REQUIREMENTS)
    except (RuntimeError, subprocess.SubprocessError, OSError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"Synapse cannot be installed here: {error}")


@pytest.fixture(scope="session")
def server(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synapse]:
    """The homeserver that all may use at once."""
    with synapse(tmp_path_factory.mktemp("synapse"), python) as running:
        yield running


@pytest.fixture(scope="session")
def registration(server: Synapse) -> str:
    """A registration token of that homeserver."""
    return server.registration_token()


@pytest.fixture(scope="session")
def anna(server: Synapse) -> str:
    """A member of that homeserver."""
    server.account("anna")
    return "anna"


@pytest.fixture
def own_server(python: Path, tmp_path: Path) -> Iterator[Synapse]:
    """A homeserver of one test's own, to be stopped and hung."""
    with synapse(tmp_path / "synapse", python) as running:
        yield running


@pytest.fixture
def devices(server: Synapse, registration: str, tmp_path: Path) -> Devices:
    """On the homeserver that all share."""
    return Devices(server, tmp_path / "devices", token=registration)
