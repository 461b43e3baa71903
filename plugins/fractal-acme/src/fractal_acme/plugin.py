"""What the plugin offers. Imports nothing heavy: it is read whenever the plugin is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

from fractal.api.authority import Authority, AuthorityBackend, AuthorityOffer
from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.hookspecs import hookimpl
from fractal_acme.config import AcmeConfig


@hookimpl
def fractal_authorities() -> Iterable[AuthorityOffer]:
    """`acme`."""
    yield AuthorityBackend(
        name="acme",
        summary="Certificates from Let's Encrypt or any other ACME authority, through gateways that cannot read.",
        config=AcmeConfig,
        open=_open,
        probe=_probe,
    )


def _open(context: Context, config: AcmeConfig) -> AbstractAsyncContextManager[Authority]:
    from fractal_acme.authority import open_acme

    return open_acme(context, config)


async def _probe(config: AcmeConfig) -> Probe:
    return Probe(ready=True, detail=f"acme {version('acme')}, {config.directory}")
