"""What the plugin offers. Imports nothing heavy: it is read whenever the plugin is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.store import Store, StoreBackend, StoreOffer
from fractal.hookspecs import hookimpl
from fractal_s3.config import S3Config


@hookimpl
def fractal_stores() -> Iterable[StoreOffer]:
    """`s3`."""
    yield StoreBackend(
        name="s3",
        summary="A bucket of any S3-compatible server; fences where the server refuses a second create.",
        config=S3Config,
        open=_open,
        probe=_probe,
    )


def _open(context: Context, config: S3Config) -> AbstractAsyncContextManager[Store]:
    from fractal_s3.store import open_s3

    return open_s3(context, config)


async def _probe(config: S3Config) -> Probe:
    return Probe(ready=True, detail=f"botocore {version('botocore')}, {config.where}")
