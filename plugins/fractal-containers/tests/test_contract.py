"""Every engine's runtime passes the runtimes' contract, on the real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar

import pytest
from fractal_containers.testing import TestEngine, again, opened
from fractal_containers.testing_images import PYTHON

from fractal.api.app import Port, ServiceSpec
from fractal.api.runtime import Runtime
from fractal.testing.runtime import RuntimeContract


@pytest.mark.usefixtures("inside")
class TestContainers(RuntimeContract):
    capabilities: ClassVar = frozenset({"SupportsImages"})
    engine: TestEngine

    @pytest.fixture
    async def backend(self, tmp_path: Path, engine: TestEngine, inside: None) -> AsyncIterator[Runtime]:
        self.engine = engine
        async with opened(engine, tmp_path) as runtime:
            yield runtime

    def service(self, name: str, program: str) -> ServiceSpec:
        """Python in a container, on the suite's volume at /data."""
        return ServiceSpec(
            name=name,
            image=PYTHON,
            argv=("python3", "-S", "-c", program),
            ports=(Port(name="web", container=8080),),
            env={"DATA": "/data", "HOST": "0.0.0.0", "PORT": "8080"},
        )

    def reopen(self, tmp_path: Path) -> AbstractAsyncContextManager[Runtime]:
        return again(self.engine, tmp_path)
