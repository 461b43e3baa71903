"""Whole agents: a certificate is got without anybody's doing, kept with the app, and there before the next device serves."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest
from fractal_acme.testing import missing, pebble

from fractal.testing.agents import Bed, bed
from fractal.testing.transport_parts import free_port

NAME = "test.demo.localhost"


def by(bed: Bed, name: str) -> str:
    return bed.job(name).data.secrets().get(f"tls.{NAME}.by", "")


async def fetch(port: int, root: bytes) -> bytes:
    """What a client that trusts the authority, and nobody else, gets."""
    trust = ssl.create_default_context(cadata=root.decode())
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=NAME)
    writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_certificate_is_got_and_follows_the_app(tmp_path: Path) -> None:
    if reason := missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    port = free_port()
    with pebble(tmp_path / "ca", tls_port=port) as ca:
        more = f"""[authority]
backend = "acme"
[authority.acme]
directory = "{ca.directory}"
ca_file = "{ca.ca_file}"
accept_terms = true
"""
        async with bed(tmp_path) as made:
            await made.start("Attic", "host", "gateway", https_port=port, more=more)
            await made.found("Attic")
            await made.start("Den")
            await made.join("Den", by="Attic")
            await made.call("Attic", "gateway.add", device="Attic", address="demo.localhost")
            await made.install("Attic")
            await made.until(lambda: by(made, "Attic") == ca.directory)
            assert b"one" in await fetch(port, ca.roots())

            # The next device has it before it serves, and does not put a worse one in its place.
            chain = made.at("Attic").certificate(NAME)
            await made.until(lambda: made.at("Den").certificate(NAME) == chain)
            await made.call("Attic", "app.move", app="test", device="Den", wait_s=40)
            await made.until(lambda: made.app("Attic").serving == made.app("Attic").epoch)
            assert b"one" in await fetch(port, ca.roots())
            assert made.at("Den").certificate(NAME) == chain and by(made, "Den") == ca.directory
