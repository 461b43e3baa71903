"""The `direct` transport as a whole: both ends, and what this device publishes about itself."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured, NotSupported
from fractal.api.transport import Certificate, Link, LocalRoute, Peer, RouteKind, Target, Transport
from fractal.builtin.direct.config import DirectConfig
from fractal.builtin.direct.device import Device
from fractal.builtin.direct.gateway import Gateway
from fractal.builtin.direct.peers import Contact
from fractal.builtin.direct.sockets import bind

_ATTEMPTS = 20


class DirectTransport:
    """Satisfies `fractal.api.transport.Transport`, `SupportsChallenge` and `SupportsProbe`."""

    def __init__(
        self, context: Context, config: DirectConfig, contact: Contact, device: Device, gateway: Gateway
    ) -> None:
        self._context = context
        self._config = config
        self._contact = contact
        self._device = device
        self._gateway = gateway
        self._applying = asyncio.Lock()

    def contact(self) -> Mapping[str, str]:
        """`host`, `port`, `token` and, if configured, `source` and the public port."""
        return self._contact.plain()

    async def serve(self, gateways: Sequence[Peer], routes: Sequence[LocalRoute]) -> None:
        """Let in exactly these gateways, to exactly these routes.

        A malformed route, one without a usable certificate or a name wanted twice does not keep the others from being
        served; afterwards all such problems are raised as one, of the first one's type (InvalidInput, Conflict).
        """
        async with self._applying:
            await self._device.apply(gateways, routes)

    async def forward(self, peers: Sequence[Peer], targets: Sequence[Target]) -> None:
        """Serve exactly these devices and lead exactly these names; problems as in `serve`, and BackendError for a port."""
        async with self._applying:
            await self._gateway.apply(peers, targets)

    async def challenge(self, group: str, app: str, name: str, certificate: Certificate | None) -> None:
        """As `SupportsChallenge.challenge`: a name has one answer, whichever app asks for it. Raises InvalidInput."""
        del group, app
        self._device.challenge(name, certificate)

    async def links(self) -> Sequence[Link]:
        """As a gateway, to each device; as a device, to each gateway. A peer that is both appears twice."""
        now = self._context.clock.boottime()
        self._device.silence(now)
        health = [*self._gateway.health.values(), *self._device.health.values()]
        return [item.link(now) for item in sorted(health, key=lambda item: item.device)]

    async def probe(self, name: str, kind: RouteKind) -> None:
        """As `SupportsProbe.probe`: a TLS handshake through our own public port. Trust is the client's business, not ours."""
        port = self._config.https_port
        if kind is not RouteKind.HTTPS or not port:
            raise NotSupported(f"direct transport: no public port here to try {name} at")
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host = self._config.listen
        any_host = {str(ipaddress.IPv4Address(0)): "127.0.0.1", str(ipaddress.IPv6Address(0)): "::1"}
        try:
            _, writer = await asyncio.open_connection(
                any_host.get(host, host), port, ssl=context, server_hostname=name
            )
        except (OSError, ssl.SSLError) as error:
            raise BackendError(f"{name} at port {port}: {error}", retryable=True) from error
        writer.transport.abort()


@asynccontextmanager
async def open_direct(context: Context, config: DirectConfig) -> AsyncIterator[Transport]:
    """Bind every port and run. Raises BackendError naming a port that cannot be had, Misconfigured."""
    host = config.advertise or config.listen
    if host in (str(ipaddress.IPv4Address(0)), str(ipaddress.IPv6Address(0))):
        raise Misconfigured("advertise", f"needed, as other devices cannot reach {host!r}, which `listen` is")
    token = _remembered_token(context)
    stream, datagram = _bind_device_port(context, config)
    port: int = stream.getsockname()[1]
    contact = Contact(
        host=host, port=port, token=bytes.fromhex(token), source=config.source, https=config.https_port
    )
    device = Device(context, config, contact)
    gateway = Gateway(context, config)
    try:
        await device.open(stream, datagram)
        gateway.open()
        yield DirectTransport(context, config, contact, device, gateway)
    finally:
        await gateway.close()
        await device.close()


def _bind_device_port(context: Context, config: DirectConfig) -> tuple[socket.socket, socket.socket]:
    """TCP and UDP sockets at one port: the configured one, else the one used before, else any."""
    if config.device_port:
        return _bind_both(config.listen, config.device_port)
    remembered = context.state_dir / "port"
    if remembered.exists() and (text := remembered.read_text()).isdigit() and 0 < int(text) < 65536:
        try:
            return _bind_both(config.listen, int(text))
        except BackendError as error:
            context.logger.warning("%s; taking another port", error)
    for attempt in range(_ATTEMPTS):
        try:
            stream, datagram = _bind_both(config.listen, 0)
        except BackendError:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            _write(remembered, str(stream.getsockname()[1]))
            return stream, datagram
    raise AssertionError("unreachable")


def _bind_both(listen: str, port: int) -> tuple[socket.socket, socket.socket]:
    with ExitStack() as undo:
        stream = undo.enter_context(bind(listen, port, "gateways"))
        datagram = bind(listen, stream.getsockname()[1], "gateways", datagram=True)
        undo.pop_all()
        return stream, datagram


def _remembered_token(context: Context) -> str:
    """This device's token, made at first use and kept, as others have it from the log."""
    path = context.state_dir / "token"
    if path.exists() and re.fullmatch(r"[0-9a-f]{64}", text := path.read_text()):
        return text
    token = context.entropy.bytes(32).hex()
    _write(path, token)
    return token


def _write(path: Path, text: str) -> None:
    """Replace a small file whole, readable by its owner only."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
