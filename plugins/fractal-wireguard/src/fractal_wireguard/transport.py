"""The `wireguard` transport as a whole: both ends, the heartbeat, and what this device publishes about itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fractal.api.context import Context
from fractal.api.errors import BackendError, FractalError, NotSupported
from fractal.api.transport import (
    PUBLIC_PORT,
    Certificate,
    Link,
    LocalRoute,
    Peer,
    RouteKind,
    Target,
    Transport,
)
from fractal_wireguard.addresses import interface_name, of_device, write_contact
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.device import Device, resolve
from fractal_wireguard.device import Gateway as UsedGateway
from fractal_wireguard.gateway import SAVE_EVERY, Gateway
from fractal_wireguard.heartbeat import MISSES, Heartbeat
from fractal_wireguard.keys import own_key, write_private
from fractal_wireguard.link import Found, TunnelLink
from fractal_wireguard.network import Network
from fractal_wireguard.tools import check

LONG_SILENCE = 60
"""Beats that were missed, after which a way is renewed less often."""
SELDOM = 10
NEAR = 0.1
"""Seconds of a round trip in the tunnel up to which a connection is tried quickly (`passing.SOON`) while its app changes hands."""
LOOK = 30.0
"""Seconds between looks whether the packet filter is still there: a distribution's own firewall may clear everything."""
_HANDSHAKE_BYTES = 512
"""More than that since the last look is data, not answers to our own handshakes and keepalives."""


class WireguardTransport:
    """Satisfies `Transport`, `SupportsChallenge` and `SupportsProbe` of `fractal.api.transport`."""

    def __init__(
        self,
        context: Context,
        config: WireguardConfig,
        contact: Mapping[str, str],
        network: Network,
        device: Device,
        gateway: Gateway,
    ) -> None:
        self._context = context
        self._config = config
        self._contact = contact
        self._network = network
        self._device = device
        self._gateway = gateway
        self._applying = asyncio.Lock()
        self._renewing: dict[str, asyncio.Task[None]] = {}
        self._heard_bytes: dict[str, int] = {}
        self.heartbeat = Heartbeat(context.clock, self._known)

    def contact(self) -> Mapping[str, str]:
        """`key` and, on a gateway, `endpoint`."""
        return self._contact

    async def serve(self, gateways: Sequence[Peer], routes: Sequence[LocalRoute]) -> None:
        """Let in exactly these gateways, to exactly these routes.

        A route that cannot be served does not keep the others from being served; afterwards all such problems are raised as
        one, of the first one's type (InvalidInput, Conflict, BackendError).
        """
        async with self._applying:
            _raise(await self._device.apply(gateways, routes))

    async def forward(self, peers: Sequence[Peer], targets: Sequence[Target]) -> None:
        """Serve exactly these devices and lead exactly these names; problems as in `serve`, and BackendError for a port."""
        async with self._applying:
            _raise(await self._gateway.apply(peers, targets))

    async def challenge(self, group: str, app: str, name: str, certificate: Certificate | None) -> None:
        """As `SupportsChallenge.challenge`."""
        async with self._applying:
            await self._device.challenge(group, app, name, certificate)

    async def links(self) -> Sequence[Link]:
        """As a gateway, to each device; as a device, to each gateway. A peer that is both appears twice."""
        found, problem = dict[str, Found](), ""
        try:
            found = await self._network.peers()
        except BackendError as error:
            problem = f"the tunnel's interface does not answer: {error}"
        served = [(device, found.get(key)) for device, key in self._gateway.devices.items()]
        used = [(device, found.get(gateway.contact.key)) for device, gateway in self._device.gateways.items()]
        both = sorted(served + used, key=lambda item: item[0])
        return [self._link(device, peer, problem) for device, peer in both]

    async def probe(self, name: str, kind: RouteKind) -> None:
        """As `SupportsProbe.probe`: a TLS handshake through our own public port. Trust is the client's business, not ours."""
        port = self._config.https_port
        if kind is not RouteKind.HTTPS or not port:
            raise NotSupported(f"wireguard transport: no public port here to try {name} at")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            async with asyncio.timeout(self._config.hold + self._config.greeting_timeout + 5):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context, server_hostname=name
                )
        except (OSError, TimeoutError) as error:
            raise BackendError(
                f"{name} at port {port}: {str(error) or 'no answer'}", retryable=True
            ) from error
        writer.transport.abort()

    async def beat(self) -> None:
        """Ask each gateway for a sign of life, and renew the way to those that have missed three, until cancelled."""
        try:
            while True:
                await self._hasten()
                for device, gateway in self._device.gateways.items():
                    missed = self.heartbeat.ask(of_device(device).v6).missed
                    if missed and missed % (MISSES if missed < LONG_SILENCE else SELDOM) == 0:
                        old = self._renewing.get(device)
                        if old is None or old.done():
                            self._renewing[device] = asyncio.create_task(self._renew(gateway))
                await self._context.clock.sleep(self._config.heartbeat)
        finally:
            for task in self._renewing.values():
                await _end(task)

    async def _hasten(self) -> None:
        """As a gateway: look how far devices are while an app changes hands. From far away an answer takes longer than a quick try."""
        devices = [of_device(device).v6 for device in (self._gateway.devices if self._gateway.moving else ())]
        pulses = [self.heartbeat.ask(address) for address in devices]
        awake = self._context.clock.boottime() - MISSES * self._config.heartbeat
        trips = [p.rtt for p in pulses if p.heard is not None and p.heard > awake and p.rtt is not None]
        try:
            await self._gateway.hasten(bool(trips) and max(trips) < NEAR)
        except (BackendError, OSError) as error:
            self._context.logger.debug("transport wireguard: %s", error)  # the usual way stands

    async def _renew(self, gateway: UsedGateway) -> None:
        """Look the gateway up anew and shake hands again, unless only its agent is silent while the tunnel carries data."""
        key = gateway.contact.key
        try:
            peer = (await self._network.peers()).get(key)
            before, now = self._heard_bytes.get(key, 0), peer.received if peer is not None else 0
            self._heard_bytes[key] = now
            if now - before > _HANDSHAKE_BYTES:
                return
            gateway.endpoint = await resolve(gateway.contact) or gateway.endpoint
            await self._network.apply([key])
            self._heard_bytes[key] = 0
        except (BackendError, OSError) as error:
            self._context.logger.debug("transport wireguard: %s", error)  # tried again with later beats

    async def save(self) -> None:
        """Remember endpoints, until cancelled."""
        while True:
            await self._context.clock.sleep(SAVE_EVERY)
            if self._gateway.devices:
                try:
                    await self._gateway.save()
                except (BackendError, OSError) as error:
                    self._context.logger.debug("transport wireguard: %s", error)  # tried again in a second

    async def keep(self) -> None:
        """Have the packet filter stand, whoever clears it, until cancelled."""
        while True:
            await self._context.clock.sleep(LOOK)
            try:
                await self._network.keep_rules()
            except (BackendError, OSError) as error:
                self._context.logger.warning("transport wireguard: %s", error)  # tried again at the next look

    def _known(self, address: str) -> bool:
        return address in {
            of_device(device).v6 for device in (*self._gateway.devices, *self._device.gateways)
        }

    def _link(self, device: str, peer: Found | None, problem: str) -> Link:
        now = self._context.clock.boottime()
        pulse = self.heartbeat.pulses.get(of_device(device).v6)
        heard = pulse.heard if pulse is not None else None
        age = None if heard is None else max(0.0, now - heard)
        up = age is not None and age < (MISSES + 1) * self._config.heartbeat
        if peer is None:
            detail = problem or "not set up yet"
        elif not peer.handshake:
            detail = "no handshake yet"
        else:
            detail = f"handshake {max(0, self._context.clock.wall_ms() // 1000 - peer.handshake)} s ago"
        if pulse is not None and pulse.rtt is not None:
            detail += f", round trip {1000 * pulse.rtt:.1f} ms"
        return Link(
            device=device,
            up=up,
            last_seen=age,
            sent=peer.sent if peer else 0,
            received=peer.received if peer else 0,
            endpoint=peer.endpoint if peer else "",
            detail=detail,
        )


@asynccontextmanager
async def open_wireguard(context: Context, config: WireguardConfig) -> AsyncIterator[Transport]:
    """Make the interface, start the proxies, bind every port. Raises BackendError saying what is missing."""
    check()
    path = context.state_dir / "private.key"
    key = own_key(path, context.entropy)
    port = _own_port(context, config)
    own = of_device(context.device)
    link = TunnelLink(context, config, config.interface or interface_name(context.device), own, path)
    network = Network(context, config, link, own)
    device, gateway = Device(context, config, network), Gateway(context, config, network)
    network.add(device.peers)
    network.add(gateway.peers)
    contact = dict(write_contact(key, config.advertise, port))
    if config.https_port:
        contact[PUBLIC_PORT] = str(config.https_port)
    transport = WireguardTransport(context, config, contact, network, device, gateway)
    async with AsyncExitStack() as undo:
        undo.push_async_callback(network.close)
        await network.open(port)
        undo.push_async_callback(gateway.close)
        await gateway.open()
        undo.push_async_callback(device.close)
        undo.callback(transport.heartbeat.close)
        await transport.heartbeat.open(own.v6)
        for work in (transport.beat, transport.save, transport.keep):
            undo.push_async_callback(_end, asyncio.create_task(work()))
        yield transport


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _own_port(context: Context, config: WireguardConfig) -> int:
    """The configured port, else the one used before, else any that is free: a device behind NAT keeps its place in it."""
    if config.udp_port:
        return config.udp_port
    remembered = context.state_dir / "port"
    with contextlib.suppress(OSError, ValueError):
        if 0 < (port := int(remembered.read_text())) < 65536:
            return port
    with socket.socket(
        socket.AF_INET6 if Path("/proc/net/if_inet6").exists() else socket.AF_INET, socket.SOCK_DGRAM
    ) as sock:
        sock.bind(("", 0))
        port = int(sock.getsockname()[1])
    write_private(remembered, str(port))
    return port


def _raise(problems: Sequence[FractalError]) -> None:
    """Raise one error of the first one's type that tells of all of them; nothing if there are none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise type(problems[0])("; ".join(str(problem) for problem in problems))
