"""Answers to an authority's TLS-ALPN-01 (RFC 8737), at a port of its own to which gateways lead such clients."""

from __future__ import annotations

import asyncio
import os
import ssl

from fractal.api.errors import BackendError, InvalidInput
from fractal.api.names import normal_host
from fractal.api.transport import Certificate
from fractal_wireguard.addresses import CHALLENGE_PORT

PROTOCOL = "acme-tls/1"
_LIMIT = 5.0
"""Seconds for a handshake."""


class Challenges:
    """One listener for each app that is being challenged."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[str, ssl.SSLContext]] = {}
        self._servers: dict[str, asyncio.Server] = {}
        self._chooser = _context()
        self._chooser.sni_callback = self._choose

    @property
    def addresses(self) -> frozenset[str]:
        """Of the apps that are being challenged."""
        return frozenset(address for address, _ in self._answers.values())

    def set(self, address: str, name: str, certificate: Certificate | None) -> None:
        """Answer for a name at its app's address, or not any more. `listen` is to follow. Raises InvalidInput."""
        if certificate is None:
            self._answers.pop(name, None)
            return
        context = _context()
        try:
            _load(context, certificate)
        except (ssl.SSLError, ValueError, OSError) as error:
            raise InvalidInput(f"the challenge's certificate for {name} cannot be used: {error}") from error
        self._answers[name] = address, context

    async def listen(self) -> None:
        """Listen at exactly the addresses that are needed. Raises BackendError."""
        for address in self._servers.keys() - self.addresses:
            self._servers.pop(address).close()
        for address in self.addresses - self._servers.keys():
            try:
                self._servers[address] = await asyncio.start_server(
                    _hang_up, address, CHALLENGE_PORT, ssl=self._chooser, ssl_handshake_timeout=_LIMIT
                )
            except OSError as error:
                raise BackendError(f"transport wireguard: cannot answer challenges: {error}") from error

    def close(self) -> None:
        """Stop."""
        for server in self._servers.values():
            server.close()

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        try:
            answer = self._answers.get(normal_host(name or ""))
        except InvalidInput:
            answer = None
        if answer is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = answer[1]
        return None


async def _hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All was said in the handshake."""
    writer.close()


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([PROTOCOL])
    return context


def _load(context: ssl.SSLContext, certificate: Certificate) -> None:
    """By way of memory only: `ssl` takes no bytes."""
    descriptor = os.memfd_create("challenge", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(certificate.key.rstrip() + b"\n" + certificate.chain)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    finally:
        os.close(descriptor)
