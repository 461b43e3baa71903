"""Datagrams: each goes from gateway to device behind a PROXY header of its own, and comes back bare.

A flow is one client address at one port. The gateway keeps a socket per flow, so the device tells flows apart by the
address they come from and needs no state shared with the gateway. Flows are bounded in number; the one that was idle for
longest makes room.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections import OrderedDict
from collections.abc import Callable

from fractal.api.context import Context
from fractal.api.errors import BackendError, InvalidInput
from fractal.api.transport import LocalRoute, Target
from fractal.builtin.direct import proxy
from fractal.builtin.direct.config import DirectConfig
from fractal.builtin.direct.peers import Contact, read_contact
from fractal.builtin.direct.proxy import Address
from fractal.builtin.direct.sockets import affordable, bind, plain_host

MAX_FLOWS = 1024
IDLE_FLOW = 120.0
"""Seconds; RFC 4787 asks NATs for at least as much."""
_MAX_WAITING = 32
"""Datagrams that may wait for a flow to be set up."""


class _Socket(asyncio.DatagramProtocol):
    """Hands datagrams to a function."""

    def __init__(self, take: Callable[[bytes, Address], None]) -> None:
        self._take = take

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._take(data, addr)  # as it came, of whatever length: the answer goes to it

    def error_received(self, exc: Exception) -> None:
        """A lost datagram; UDP promises no more."""


class _Flow:
    """A connected socket for one client, made on the first datagram."""

    def __init__(self, device: str, used: float) -> None:
        self.device = device
        self.used = used
        self.waiting: list[bytes] = []
        self.transport: asyncio.DatagramTransport | None = None
        self.opening: asyncio.Task[None] | None = None

    def send(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.sendto(data)
        elif len(self.waiting) < _MAX_WAITING:
            self.waiting.append(data)

    async def connect(
        self, host: str, port: int, source: str, take: Callable[[bytes, Address], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            self.transport, _ = await loop.create_datagram_endpoint(
                lambda: _Socket(take), remote_addr=(host, port), local_addr=(source, 0) if source else None
            )
        except (OSError, ValueError):
            return  # as lost as any datagram; the flow ages out and the next one tries again
        for data in self.waiting:
            self.transport.sendto(data)
        self.waiting.clear()

    def close(self) -> None:
        if self.opening is not None:
            self.opening.cancel()
        if self.transport is not None:
            self.transport.close()


class _Flows:
    """Flows by key, the least recently used first."""

    def __init__(self) -> None:
        self._flows: OrderedDict[object, _Flow] = OrderedDict()
        self._most = affordable(MAX_FLOWS)

    def get(self, key: object, device: str) -> tuple[_Flow, bool]:
        """The flow at `key`, and whether it is new. Old and surplus ones are closed on the way."""
        now = asyncio.get_running_loop().time()
        while self._flows and next(iter(self._flows.values())).used < now - IDLE_FLOW:
            self._flows.popitem(last=False)[1].close()
        flow = self._flows.get(key)
        new = flow is None or flow.device != device
        if flow is None or new:
            if flow is not None:
                self._flows.pop(key).close()
            if len(self._flows) >= self._most:
                self._flows.popitem(last=False)[1].close()
            flow = self._flows[key] = _Flow(device, now)
        flow.used = now
        self._flows.move_to_end(key)
        return flow, new

    def close(self, unwanted: Callable[[object, _Flow], bool] = lambda _key, _flow: True) -> None:
        for key in [key for key, flow in self._flows.items() if unwanted(key, flow)]:
            self._flows.pop(key).close()


class GatewayPort:
    """A public UDP port on a gateway."""

    def __init__(
        self,
        context: Context,
        config: DirectConfig,
        target: Callable[[], Target | None],
        note: Callable[[str, int, int], None],
    ) -> None:
        self._context = context
        self._config = config
        self._target = target
        self._note = note
        self._flows = _Flows()
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def open(
        cls,
        context: Context,
        config: DirectConfig,
        port: int,
        target: Callable[[], Target | None],
        note: Callable[[str, int, int], None],
    ) -> GatewayPort:
        """Bind the port. `note(device, sent, received)` counts bytes. Raises BackendError naming the port."""
        sock = bind(config.listen, port, f"route :{port}", datagram=True)
        self = cls(context, config, target, note)
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Socket(self._from_client), sock=sock
        )
        return self

    def forget(self, keep: str) -> None:
        """Drop the flows that lead to another device than `keep`."""
        self._flows.close(lambda _key, flow: flow.device != keep)

    def close(self) -> None:
        """Close the port and its flows."""
        self._flows.close()
        if self._transport is not None:
            self._transport.close()

    def _from_client(self, data: bytes, client: Address) -> None:
        target = self._target()
        if target is None or not target.device:
            return
        try:
            contact = read_contact(target.device, target.contact)
        except BackendError as error:
            self._context.logger.debug("%s", error)
            return
        flow, new = self._flows.get(client, target.device)
        header = proxy.Header(
            client=client[:2],
            route=target.name,
            token=contact.token,
            gateway=self._context.device,
            datagram=True,
        )
        flow.send(proxy.encode(header) + data)
        self._note(target.device, len(data), 0)
        if new:
            flow.opening = asyncio.create_task(
                flow.connect(
                    contact.host,
                    contact.port,
                    self._config.source,
                    lambda d, _from: self._to_client(flow, d, client),
                )
            )

    def _to_client(self, flow: _Flow, data: bytes, client: Address) -> None:
        if self._transport is not None:
            self._transport.sendto(data, client)
            self._note(flow.device, 0, len(data))


class DevicePort:
    """A device's UDP port, where gateways deliver datagrams for all of its UDP routes."""

    def __init__(
        self,
        contact: Contact,
        admits: Callable[[str, str], bool],
        route: Callable[[str], LocalRoute | None],
    ) -> None:
        self._contact = contact
        self._admits = admits
        self._route = route
        self._flows = _Flows()
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self, sock: socket.socket) -> None:
        """Begin to receive on a bound socket, which this object closes."""
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Socket(self._from_gateway), sock=sock
        )

    def forget(self, names: set[str]) -> None:
        """Drop the flows of these routes."""
        self._flows.close(lambda key, _flow: isinstance(key, tuple) and key[1] in names)

    def close(self) -> None:
        """Close the port and its flows."""
        self._flows.close()
        if self._transport is not None:
            self._transport.close()

    def _from_gateway(self, datagram: bytes, gateway: Address) -> None:
        try:
            header, data = proxy.split(datagram)
        except InvalidInput:
            return
        if not self._admits(plain_host(gateway[0]), header.gateway) or not header.datagram:
            return
        if not hmac.compare_digest(header.token, self._contact.token):
            return
        route = self._route(header.route)
        if route is None:
            return
        flow, new = self._flows.get((gateway, header.route), header.gateway)
        flow.send(data)
        if new:
            flow.opening = asyncio.create_task(
                flow.connect(route.host, route.port, "", lambda d, _from: self._to_gateway(d, gateway))
            )

    def _to_gateway(self, data: bytes, gateway: Address) -> None:
        if self._transport is not None:
            self._transport.sendto(data, gateway)
