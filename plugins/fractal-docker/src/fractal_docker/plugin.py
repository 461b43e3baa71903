"""What the plugin offers. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.runtime import Runtime, RuntimeBackend, RuntimeOffer
from fractal.hookspecs import hookimpl
from fractal_docker.config import DockerConfig


@hookimpl
def fractal_runtimes() -> Iterable[RuntimeOffer]:
    """`docker`."""
    yield RuntimeBackend(
        name="docker",
        summary="Apps as containers of a Docker engine on this device.",
        config=DockerConfig,
        open=_open,
        probe=_probe,
        capabilities=frozenset({"SupportsBuild", "SupportsImages", "SupportsNews", "SupportsTerminal"}),
        contract=_contract,
    )


def _open(context: Context, config: DockerConfig) -> AbstractAsyncContextManager[Runtime]:
    from fractal_containers.runtime import open_runtime

    from fractal_docker.engine import DockerEngine

    return open_runtime(context, config, DockerEngine(config))


async def _probe(config: DockerConfig) -> Probe:
    from fractal_docker.engine import probe

    return await probe(config)


def _contract(config: DockerConfig) -> type[Any]:
    from fractal_containers.contract import contract

    from fractal_docker.engine import DockerEngine

    return contract(config, DockerEngine)
