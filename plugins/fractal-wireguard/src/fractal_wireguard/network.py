"""What both ends share: the interface, its peers and the packet filter, kept as both of them want it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from fractal.api.context import Context
from fractal_wireguard.addresses import Addresses
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.firewall import Firewall, Rules
from fractal_wireguard.link import Found, TunnelLink, Wanted

Wishes = Callable[[], Mapping[str, Wanted]]


class Network:
    """Applies the sum of both ends' wishes."""

    def __init__(self, context: Context, config: WireguardConfig, link: TunnelLink, own: Addresses) -> None:
        self._link = link
        self._firewall = Firewall(context, link.name, config.segment)
        self._wishes: list[Wishes] = []
        self._lock = asyncio.Lock()
        self.own = own
        self.rules = Rules()
        self.held: set[str] = set()
        """Addresses of apps that this device serves."""
        self.gateways: set[str] = set()
        """IPv4 addresses of gateways that this device uses."""
        self.apps: set[str] = set()
        """IPv4 addresses of apps that this device, as a gateway, leads to."""

    def add(self, wishes: Wishes) -> None:
        """Let one end say which peers it wants."""
        self._wishes.append(wishes)

    async def open(self, port: int) -> None:
        """Make the interface, and let nothing in yet. Raises BackendError."""
        await self._firewall.apply(self.rules)
        await self._link.open(port, self.apply)

    async def close(self) -> None:
        """Take everything away."""
        await self._link.close()
        await self._firewall.close()

    async def apply(self, renew: Sequence[str] = ()) -> None:
        """Have the rules, routes and peers that are wanted now. Raises BackendError."""
        async with self._lock:
            await self._firewall.apply(self.rules)
            await self._link.hold_routes(self.gateways | self.apps)
            await self._link.apply(self.wanted(), renew)

    async def apply_rules(self) -> None:
        """The packet filter only."""
        async with self._lock:
            await self._firewall.apply(self.rules)

    async def keep_rules(self) -> None:
        """Look whether the packet filter still stands, and set it anew if not. Raises BackendError."""
        async with self._lock:
            await self._firewall.keep()

    async def hold_addresses(self) -> None:
        """Have the apps' addresses that are served here."""
        async with self._lock:
            await self._link.hold_addresses(self.held)

    async def peers(self) -> dict[str, Found]:
        """As they are, by public key."""
        return await self._link.peers()

    def wanted(self) -> dict[str, Wanted]:
        """The sum: a peer that is both a gateway and a device has both sides' addresses."""
        total: dict[str, Wanted] = {}
        for wishes in self._wishes:
            for key, wish in wishes().items():
                old = total.get(key)
                total[key] = (
                    wish
                    if old is None
                    else Wanted(
                        allowed=old.allowed | wish.allowed,
                        endpoint=old.endpoint or wish.endpoint,
                        keepalive=max(old.keepalive, wish.keepalive),
                    )
                )
        return total
