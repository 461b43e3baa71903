"""Every engine's runtime passes the runtimes' contract, on the real engine; a device's own engine is checked in the same way."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import pytest
from fractal_containers.contract import ContainerContract
from fractal_containers.testing import TestEngine, opened
from fractal_containers.testing_images import BUSYBOX, PYTHON

from fractal.api.runtime import Runtime
from fractal.plugins import Plugins
from fractal.testing.check import contract_of
from fractal.testing.runtime import RuntimeContract
from fractal.testing.suite import run_suites

ONE = "test_a_started_app_is_observed_with_its_labels"


@pytest.mark.usefixtures("inside")
class TestContainers(ContainerContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path, engine: TestEngine, inside: None) -> AsyncIterator[Runtime]:
        self.engine = engine
        async with opened(engine, tmp_path) as runtime:
            yield runtime


def test_plugin_check_runs_the_suite_on_the_configured_engine_and_leaves_nothing(
    engine: TestEngine, api: docker.APIClient, inside: None
) -> None:
    """As `homeserver plugin check` does; the engine has no image for it yet, and may hold other people's containers."""
    api.remove_image(PYTHON, force=True)
    other = api.create_container(BUSYBOX, name="other")["Id"]
    try:
        record = Plugins.discover().runtime(engine.name)
        suite = contract_of("runtime", record, engine.config())
        assert suite is not None and issubclass(suite, RuntimeContract)
        # One test stands for all, which run above: the way to the engine is what differs.
        found = run_suites({"check": suite}, only={"check": ONE})["check"]
        assert [(o.test, o.result) for o in found] == [(ONE, "passed")], found
        assert [c["Id"] for c in api.containers(all=True)] == [other]
        assert not [n["Name"] for n in api.networks() if n["Name"].startswith("fhs")]
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
        assert "fhs" not in tables.stdout
    finally:
        api.remove_container(other, force=True)
