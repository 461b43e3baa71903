"""What the plugin offers. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.runtime import Runtime, RuntimeBackend, RuntimeOffer
from fractal.hookspecs import hookimpl
from fractal_podman.config import PodmanConfig


@hookimpl
def fractal_runtimes() -> Iterable[RuntimeOffer]:
    """`podman`."""
    yield RuntimeBackend(
        name="podman",
        summary="Apps as containers of a Podman engine on this device.",
        config=PodmanConfig,
        open=_open,
        probe=_probe,
        capabilities=frozenset({"SupportsBuild", "SupportsImages", "SupportsNews", "SupportsTerminal"}),
        contract=_contract,
    )


def _open(context: Context, config: PodmanConfig) -> AbstractAsyncContextManager[Runtime]:
    from fractal_containers.runtime import open_runtime

    from fractal_podman.engine import PodmanEngine

    return open_runtime(context, config, PodmanEngine(config))


async def _probe(config: PodmanConfig) -> Probe:
    from fractal_podman.engine import probe

    return await probe(config)


def _contract(config: PodmanConfig) -> type[Any]:
    from fractal_containers.contract import contract

    from fractal_podman.engine import PodmanEngine

    return contract(config, PodmanEngine)
