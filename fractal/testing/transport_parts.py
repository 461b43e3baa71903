"""Apps and clients, real ones on loopback, for the contract suite of transports."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractResolver

from fractal.api.transport import Certificate, LocalRoute, Peer, RouteKind, Target, Transport

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult

GROUP = "5" * 32
FLOOD = 96 << 20


@contextmanager
def _taken(host: str) -> Iterator[int]:
    with socket.socket() as other:
        other.bind((host, 0))
        other.listen()
        yield other.getsockname()[1]


@dataclass(kw_only=True)
class Bed:
    """What an author's fixture `backend` yields: a gateway and two devices that can reach each other, nothing applied."""

    gateway_id: str
    gateway: Transport
    devices: Mapping[str, Transport]
    """Exactly two, by device id."""
    https: tuple[str, int]
    """Where clients reach the gateway by TLS."""
    tcp_port: int
    """A port of the same host that is free for a TCP route."""
    udp_port: int
    hold: float
    """Seconds for which the gateway holds a connection; keep it between 1 and 5."""
    patience: float = 10.0
    """Seconds after which the suite takes for absent what has not happened."""
    client: str = "127.0.0.9"
    """Address from which clients come: not the gateway's own, so that the two cannot be confused."""
    names: tuple[str, str] = ("one.example", "two.example")
    app_host: str = "127.0.0.1"
    """Where the suite's apps listen: an address of this process's that the devices reach."""
    taken: Callable[[str], AbstractContextManager[int]] = _taken
    """Occupies a TCP port at the gateway's public address, for the length of a block; the port."""


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class App:
    """A small web app that tells what reached it."""

    label: str
    port: int = 0
    flooded: int = 0
    """Bytes of `/flood` that the app could get rid of."""
    paths: list[str] = field(default_factory=list)

    async def tell(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        if request.headers.get("Expect") == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.path == "/ws":
            return await self._websocket(request)
        if request.path == "/flood":
            return await self._flood(request)
        if request.path == "/echo":
            return await self._echo(request)
        digest, length = hashlib.sha256(), 0
        async for data in request.content.iter_any():
            digest.update(data)
            length += len(data)
        headers = [[name, value] for name, value in request.headers.items()]
        told = {
            "app": self.label,
            "method": request.method,
            "path": request.raw_path,
            "headers": headers,
            "sha256": digest.hexdigest(),
            "length": length,
        }
        return web.json_response(told)

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-App": self.label})
        await response.prepare(request)
        async for data in request.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str(f"{self.label}: {message.data}")
        return ws

    async def _flood(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = FLOOD
        await response.prepare(request)
        piece = bytes(1 << 18)
        while self.flooded < FLOOD:
            await response.write(piece)
            self.flooded += len(piece)
        return response


@asynccontextmanager
async def web_app(label: str, host: str = "127.0.0.1") -> AsyncIterator[App]:
    """An app that listens on a port of its own."""
    app = App(label)
    # Low-level, so that any method goes through, and bodies are not decompressed.
    server = web.Server(app.tell, access_log=None, auto_decompress=False)  # type: ignore[arg-type]
    listening = await asyncio.get_running_loop().create_server(server, host, 0)
    app.port = listening.sockets[0].getsockname()[1]
    try:
        yield app
    finally:
        listening.close()
        await server.shutdown(1)
        await listening.wait_closed()


@asynccontextmanager
async def echo_service(host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A TCP service that sends back what it got, in upper case, after the client has ended its side; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write((await reader.read(-1)).upper())
            await writer.drain()
        except OSError:
            pass  # the client is gone
        finally:
            writer.close()

    server = await asyncio.start_server(answer, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class _Upper(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data.upper(), addr)


@asynccontextmanager
async def datagram_service(host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A UDP service that sends each datagram back in upper case; its port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Upper, local_addr=(host, 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


class _Fixed(AbstractResolver):
    """Leads every name to the gateway, as the public DNS would."""

    def __init__(self, host: str) -> None:
        self._host = host

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            {
                "hostname": host,
                "host": self._host,
                "port": port,
                "family": family,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
        ]

    async def close(self) -> None:
        """Nothing is held."""


def trust(certificate: Certificate) -> ssl.SSLContext:
    """A client's TLS context that believes this certificate only."""
    return ssl.create_default_context(cadata=certificate.chain.decode("ascii"))


@dataclass
class Client:
    """A user's HTTP client that trusts one app's certificate and finds the gateway under every name."""

    bed: Bed
    session: aiohttp.ClientSession

    def url(self, name: str, path: str = "/") -> str:
        return f"https://{name}:{self.bed.https[1]}{path}"

    async def tell(self, name: str, path: str = "/", method: str = "GET", **options: Any) -> dict[str, Any]:
        """What the app behind `name` saw of a request."""
        async with self.session.request(method, self.url(name, path), **options) as response:
            assert response.status == 200, f"{method} {path}: {response.status}"
            told: dict[str, Any] = await response.json()
            return told


@asynccontextmanager
async def web_client(bed: Bed, *certificates: Certificate) -> AsyncIterator[Client]:
    """A client with connections of its own; every request ends within the bed's hold and patience."""
    context = trust(certificates[0])
    for certificate in certificates[1:]:
        context.load_verify_locations(cadata=certificate.chain.decode("ascii"))
    connector = aiohttp.TCPConnector(resolver=_Fixed(bed.https[0]), ssl=context, local_addr=(bed.client, 0))
    timeout = aiohttp.ClientTimeout(total=bed.hold + bed.patience)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        yield Client(bed, session)
        # Closing a TLS transport takes a few turns of the loop, for which aiohttp does not wait.
    await asyncio.sleep(0)


class Held:
    """One TLS connection kept open, to see whether it lives."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, patience: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._name = name
        self._patience = patience

    async def get(self, path: str = "/", host: str = "") -> tuple[int, bytes]:
        """Status and body of a GET on this very connection. Raises ConnectionError if it is closed."""
        try:
            self._writer.write(f"GET {path} HTTP/1.1\r\nHost: {host or self._name}\r\n\r\n".encode())
            await self._writer.drain()
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            return int(head.split(b" ")[1]), await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ConnectionError("the connection is closed") from error

    async def closed(self) -> bool:
        """Whether the other side ends it, within the bed's patience."""
        try:
            async with asyncio.timeout(self._patience):
                return await self._reader.read(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True


@asynccontextmanager
async def held(bed: Bed, name: str, certificate: Certificate, *, sni: str = "") -> AsyncIterator[Held]:
    """A TLS connection to `name` through the gateway, verified."""
    context = trust(certificate)
    context.check_hostname = (
        False  # `sni` may be spelt otherwise than the certificate; the chain is still verified
    )
    reader, writer = await asyncio.open_connection(
        *bed.https, ssl=context, server_hostname=sni or name, local_addr=(bed.client, 0)
    )
    try:
        yield Held(reader, writer, name, bed.patience)
    finally:
        writer.transport.abort()


async def refused(bed: Bed, name: str | None, certificate: Certificate | None = None) -> bool:
    """Whether a TLS handshake for `name` is refused, within the bed's hold and patience."""
    context = ssl.create_default_context() if certificate is None else trust(certificate)
    if certificate is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.check_hostname = name is not None and certificate is not None
    opening = asyncio.create_task(
        asyncio.open_connection(*bed.https, ssl=context, server_hostname=name or "")
    )
    done, _ = await asyncio.wait({opening}, timeout=bed.hold + bed.patience)
    opening.cancel()
    (outcome,) = await asyncio.gather(opening, return_exceptions=True)
    if isinstance(outcome, tuple):
        outcome[1].transport.abort()
    return bool(done) and isinstance(outcome, OSError)


async def presented(bed: Bed, name: str, protocols: Sequence[str]) -> bytes | None:
    """The certificate (DER) that a client of `name` is shown which offers these ALPN protocols; None if it is refused."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    try:
        async with asyncio.timeout(bed.hold + bed.patience):
            _, writer = await asyncio.open_connection(*bed.https, ssl=context, server_hostname=name)
    except (OSError, TimeoutError):
        return None
    shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


def local_route(
    app: str,
    name: str,
    port: int,
    certificate: Certificate | None,
    kind: RouteKind,
    host: str = "127.0.0.1",
) -> LocalRoute:
    """A route to a service of the suite's."""
    return LocalRoute(
        group=GROUP, app=app, name=name, kind=kind, host=host, port=port, certificate=certificate
    )


def target(
    bed: Bed, app: str, name: str, device: str, kind: RouteKind = RouteKind.HTTPS, epoch: int = 1
) -> Target:
    """A target at `device`, or at none ("")."""
    contact = bed.devices[device].contact() if device else {}
    return Target(group=GROUP, app=app, name=name, kind=kind, device=device, contact=contact, epoch=epoch)


@dataclass
class Town:
    """The bed with an app on each device, both reachable under their names."""

    bed: Bed
    ids: tuple[str, str]
    apps: tuple[App, App]
    certificates: tuple[Certificate, Certificate]

    @property
    def names(self) -> tuple[str, str]:
        return self.bed.names

    def gateways(self) -> list[Peer]:
        return [Peer(device=self.bed.gateway_id, contact=self.bed.gateway.contact())]

    def routes(self, index: int) -> list[LocalRoute]:
        """The RouteKind.HTTPS route of app `index`, which either device may serve."""
        return [self.web_route(index, self.apps[index].port)]

    def web_route(self, index: int, port: int, certificate: Certificate | None = None) -> LocalRoute:
        """The HTTPS route of app `index` to any port."""
        shown = certificate or self.certificates[index]
        return self.route(f"app{index}", self.names[index], port, RouteKind.HTTPS, shown)

    def route(
        self, app: str, name: str, port: int, kind: RouteKind, certificate: Certificate | None = None
    ) -> LocalRoute:
        """A route to a service where the bed's apps listen."""
        return local_route(app, name, port, certificate, kind, self.bed.app_host)

    def target(self, index: int, device: str, epoch: int = 1) -> Target:
        return target(self.bed, f"app{index}", self.names[index], device, RouteKind.HTTPS, epoch)

    async def serve(self, device: int, routes: Sequence[LocalRoute]) -> None:
        await self.bed.devices[self.ids[device]].serve(self.gateways(), routes)

    async def forward(self, *targets: Target) -> None:
        peers = [Peer(device=key, contact=device.contact()) for key, device in self.bed.devices.items()]
        await self.bed.gateway.forward(peers, targets)

    async def settle(self) -> None:
        """App 0 on device 0, app 1 on device 1, both led to."""
        await self.serve(0, self.routes(0))
        await self.serve(1, self.routes(1))
        await self.forward(self.target(0, self.ids[0]), self.target(1, self.ids[1]))
