"""The runtimes' contract on a container engine: for the plugins' own tests, and for `homeserver plugin check` on a device's engine.

On a device's engine everything that the suite makes belongs to a device that does not exist, under names that nobody else has,
and is removed after each test. One image stays, of this machine's own Python: `localhost/fractal-test/python:1`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fractal.api.app import Port, ServiceSpec
from fractal.api.errors import NotFound
from fractal.api.runtime import Runtime
from fractal.testing.runtime import RuntimeContract
from fractal_containers.config import EngineConfig
from fractal_containers.engine import Engine
from fractal_containers.runtime import ContainerRuntime
from fractal_containers.testing import AtHand, again, opened
from fractal_containers.testing_images import PYTHON, python_archive


class ContainerContract(RuntimeContract):
    """How the suite's programs become containers."""

    capabilities: ClassVar = frozenset(
        {"SupportsBuild", "SupportsImages", "SupportsNews", "SupportsTerminal"}
    )
    engine: AtHand

    def service(self, name: str, program: str) -> ServiceSpec:
        """Python in a container, on the suite's volume at /data."""
        return ServiceSpec(
            name=name,
            image=PYTHON,
            argv=("python3", "-S", "-c", program),
            ports=(Port(name="web", container=8080),),
            env={"DATA": "/data", "HOST": "0.0.0.0", "PORT": "8080"},  # noqa: S104 - inside the container
        )

    def reopen(self, tmp_path: Path) -> AbstractAsyncContextManager[Runtime]:
        """Another runtime on the same engine."""
        return again(self.engine, tmp_path)


class Configured:
    """An engine that a device is configured to use. Satisfies `AtHand`."""

    def __init__(self, config: EngineConfig, make: Callable[[Any], Engine]) -> None:
        self._config = config
        self._make = make
        self.runs: set[str] = set()

    def config(self, **settings: Any) -> EngineConfig:
        """The device's settings, some of them replaced."""
        return replace(self._config, **settings)

    def engine(self, config: EngineConfig) -> Engine:
        """The plugin's way to it."""
        return self._make(config)


def contract(config: EngineConfig, make: Callable[[Any], Engine]) -> type[RuntimeContract]:
    """The finished suite for an engine by a device's settings; `make` is the plugin's way to it."""

    class TestConfigured(ContainerContract):
        engine = Configured(config, make)

        @pytest.fixture
        async def backend(self, tmp_path: Path) -> AsyncIterator[Runtime]:
            async with opened(self.engine, tmp_path) as runtime:
                await _have_image(runtime)
                yield runtime

    return TestConfigured


async def _have_image(runtime: ContainerRuntime) -> None:
    with contextlib.suppress(NotFound):
        await runtime.image_digest(PYTHON)
        return

    async def chunks() -> AsyncIterator[bytes]:
        yield python_archive()

    await runtime.load_image(PYTHON, chunks())
