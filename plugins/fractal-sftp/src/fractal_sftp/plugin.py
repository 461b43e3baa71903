"""What the plugin offers. Imports nothing heavy: it is read whenever the plugin is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.store import Store, StoreBackend, StoreOffer
from fractal.hookspecs import hookimpl
from fractal_sftp.config import SftpConfig


@hookimpl
def fractal_stores() -> Iterable[StoreOffer]:
    """`sftp`."""
    yield StoreBackend(
        name="sftp",
        summary="A folder on any machine that one can log in to by SSH; fences on OpenSSH.",
        config=SftpConfig,
        open=_open,
        probe=_probe,
    )


def _open(context: Context, config: SftpConfig) -> AbstractAsyncContextManager[Store]:
    from fractal_sftp.store import open_sftp

    return open_sftp(context, config)


async def _probe(config: SftpConfig) -> Probe:
    return Probe(ready=True, detail=f"asyncssh {version('asyncssh')}, {config.where}")
