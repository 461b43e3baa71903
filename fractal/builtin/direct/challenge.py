"""Answering an authority that looks whether a name leads here: TLS-ALPN-01 (RFC 8737).

Who gets the answer is decided before the handshake, by a look at the ClientHello that leaves it in the socket: `ssl` gives a
server no say in the certificate by what protocols a client offers.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from fractal.api.errors import InvalidInput
from fractal.api.transport import Certificate
from fractal.builtin.direct.hello import MAX_HELLO, HelloReader, protocols, server_name
from fractal.builtin.direct.sockets import Session
from fractal.builtin.direct.tls import load_certificate
from fractal.builtin.direct.wire import tls_wire

PROTOCOL = "acme-tls/1"
_AGAIN = 0.05
"""Seconds between two looks at a hello that is not complete yet."""


def challenge_context(certificate: Certificate) -> ssl.SSLContext:
    """What the handshake with the authority uses. Raises InvalidInput for a certificate that cannot be used."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols([PROTOCOL])
    load_certificate(tls, certificate, "a challenge's certificate")
    return tls


async def asks_for(sock: socket.socket, timeout: float) -> str | None:
    """The name for which a client offers `acme-tls/1` and nothing else; None for any other client. Reads nothing.

    Raises TimeoutError, InvalidInput for what is no ClientHello.
    """
    async with asyncio.timeout(timeout):
        while True:
            reader = HelloReader()
            data = _peek(sock)
            body = reader.feed(data) if data else None
            if body is not None:
                return server_name(body) if protocols(body) == (PROTOCOL.encode(),) else None
            await asyncio.sleep(_AGAIN)


def _peek(sock: socket.socket) -> bytes:
    try:
        data = sock.recv(MAX_HELLO + 1, socket.MSG_PEEK)
    except BlockingIOError:
        return b""
    if not data:
        raise InvalidInput("the client hung up before it said anything")
    return data


async def prove(session: Session, tls: ssl.SSLContext, greeting: float) -> None:
    """Shake hands, and close: the authority wants nothing more."""
    sock = socket.socket(fileno=session.sock.detach())
    wire, _ = await tls_wire(sock, tls, greeting, greeting)
    await wire.close()
