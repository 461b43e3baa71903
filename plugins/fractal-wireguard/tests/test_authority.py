"""A certificate by a real authority on "the internet", which looks through gateway, tunnel and NAT."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fractal_acme.authority import open_acme
from fractal_acme.config import AcmeConfig
from fractal_acme.testing import missing, pebble
from fractal_wireguard.testing import GATEWAY, WireguardBed

from fractal.api.transport import Certificate
from fractal.testing.context import real_context
from fractal.testing.transport_parts import GROUP, Town


@pytest.fixture
async def tls_roots(
    town: Town, bed: WireguardBed, tmp_path: Path
) -> AsyncIterator[tuple[Certificate, bytes]]:
    if reason := missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    name = town.names[0]
    await town.serve(0, [])  # it has no certificate yet

    async def answer(shown: Certificate | None) -> None:
        await bed.remotes["homea"].challenge(GROUP, "app0", name, shown)

    with pebble(tmp_path / "ca", names_at=GATEWAY) as ca:
        config = AcmeConfig(directory=ca.directory, ca_file=ca.ca_file, accept_terms=True)
        async with real_context(tmp_path / "agent") as context, open_acme(context, config) as authority:
            issued = await authority.issue(name, b"", answer)
            yield issued.certificate, ca.roots()


async def test_certificate_comes_through_the_gateway_and_serves(
    town: Town, bed: WireguardBed, tls_roots: tuple[Certificate, bytes]
) -> None:
    certificate, roots = tls_roots
    await town.serve(0, [town.web_route(0, town.apps[0].port, certificate)])
    trust = ssl.create_default_context(cadata=roots.decode())
    async with asyncio.timeout(bed.hold + bed.patience):
        reader, writer = await asyncio.open_connection(*bed.https, ssl=trust, server_hostname=town.names[0])
        writer.write(f"GET / HTTP/1.1\r\nHost: {town.names[0]}\r\nConnection: close\r\n\r\n".encode())
        assert b'"app": "first"' in await reader.read()
    writer.close()
