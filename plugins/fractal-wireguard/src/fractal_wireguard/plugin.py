"""What the plugin offers. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.transport import Transport, TransportBackend, TransportOffer
from fractal.hookspecs import hookimpl
from fractal_wireguard.config import WireguardConfig


@hookimpl
def fractal_transports() -> Iterable[TransportOffer]:
    """`wireguard`."""
    yield TransportBackend(
        name="wireguard",
        summary="Encrypted tunnels from devices behind NAT out to gateways, which pass TLS on unread. Needs root.",
        config=WireguardConfig,
        open=_open,
        probe=_probe,
        capabilities=frozenset({"SupportsChallenge", "SupportsProbe"}),
    )


def _open(context: Context, config: WireguardConfig) -> AbstractAsyncContextManager[Transport]:
    from fractal_wireguard.transport import open_wireguard

    return open_wireguard(context, config)


async def _probe(config: WireguardConfig) -> Probe:
    from fractal_wireguard.tools import probe

    return probe(config)
