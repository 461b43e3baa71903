"""A client's way to a public name, by this machine's resolver and network. See `fractal.agent.outside.Outside`."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl

from fractal.agent.outside import Visit
from fractal.api.errors import BackendError

LIMIT = 8.0
"""Seconds for each step: looking a name up, connecting, an answer."""
LOOPBACK = frozenset({"127.0.0.1"})
_LINE = 1024


class SystemOutside:
    """As the machine sees it."""

    async def addresses(self, name: str) -> frozenset[str]:
        """Names below `localhost` are this machine (RFC 6761), whatever its resolver thinks."""
        if name == "localhost" or name.endswith(".localhost"):
            return LOOPBACK
        try:
            return frozenset({str(ipaddress.ip_address(name))})
        except ValueError:
            pass  # a name
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LIMIT):
                found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise BackendError(f"no answer within {LIMIT:g} s", retryable=True) from error
        except (OSError, UnicodeError) as error:
            raise BackendError(str(getattr(error, "strerror", "") or error), retryable=True) from error
        return frozenset(str(item[4][0]) for item in found)

    async def visit(self, name: str, address: str, port: int) -> Visit:
        """Connect, shake hands, ask."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        where = f"{address} port {port}"
        try:
            async with asyncio.timeout(LIMIT):
                await _reach(address, port)
        except TimeoutError as error:
            raise BackendError(f"{where} does not answer", retryable=True) from error
        except OSError as error:
            raise BackendError(f"{where}: {error.strerror or error}", retryable=True) from error
        try:
            async with asyncio.timeout(LIMIT):
                reader, writer = await asyncio.open_connection(
                    address, port, ssl=context, server_hostname=name
                )
        except TimeoutError as error:
            raise BackendError(
                f"{where} takes the connection and then says nothing", retryable=True
            ) from error
        except (OSError, EOFError) as error:
            raise BackendError(
                f"{where} closes the connection without TLS: {error}", retryable=True
            ) from error
        try:
            async with asyncio.timeout(LIMIT):
                return await _ask(reader, writer, name, where)
        except TimeoutError as error:
            raise BackendError(f"{where} speaks TLS and does not answer", retryable=True) from error
        except asyncio.LimitOverrunError as error:
            raise BackendError(f"{where} does not answer in HTTP") from error
        except (OSError, EOFError) as error:
            raise BackendError(f"{where} hangs up instead of answering: {error}", retryable=True) from error
        finally:
            writer.transport.abort()


async def _reach(address: str, port: int) -> None:
    """Tells a port that nobody listens at from one that closes during the handshake."""
    _, writer = await asyncio.open_connection(address, port)
    writer.transport.abort()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, where: str) -> Visit:
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    writer.write(
        f"GET / HTTP/1.1\r\nHost: {name}\r\nUser-Agent: homeserver-doctor\r\nConnection: close\r\n\r\n".encode()
    )
    await writer.drain()
    line = await reader.readuntil(b"\n")
    parts = line[:_LINE].split()
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/") or not parts[1].isdigit():
        raise BackendError(f"{where} does not answer in HTTP")
    return Visit(certificate=shown, status=int(parts[1]))
