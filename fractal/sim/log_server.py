"""The log's server: the memory log, which may lag by a declared bound, and which a hostile seed makes lie to one device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fractal.api.context import Context as BackendContext
from fractal.api.coordination import Page, Signal
from fractal.api.errors import BackendError
from fractal.builtin.memory_log import MemoryCoordinator, MemoryHub
from fractal.sim.weather import LOG, SIGNALS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from fractal.sim.machine import Machine
    from fractal.sim.network import Network


@dataclass(slots=True)
class Lie:
    """What the server shows one device instead of the log. A lie that was told is never taken back, but for withholding."""

    withheld: int | None = None
    """Only so many entries are shown."""
    fork: MemoryHub | None = None
    """A log of its own, to which its own entries go too."""
    swapped: int | None = None
    """The entries at this index and the next change places; until both are there, neither is shown."""


@dataclass(slots=True)
class Journalled:
    """When entries came, so that a lagging reader can be told what it does not see yet."""

    at: list[float] = field(default_factory=list)


def shown(network: Network, device: str, entries: Sequence[bytes]) -> Sequence[bytes]:
    """The entries that a read by the device sees at this instant."""
    lie = network.lies.get(device)
    if lie is not None and lie.withheld is not None:
        return entries[: lie.withheld]
    if lie is not None and lie.swapped is not None and len(entries) > lie.swapped:
        at = lie.swapped
        if len(entries) < at + 2:
            return entries[:at]
        return [*entries[:at], entries[at + 1], entries[at], *entries[at + 2 :]]
    if network.log_lag:
        since = network.now() - network.random.uniform(0.0, network.log_lag)
        count = len(entries)
        while count > 0 and network.appended(count - 1) > since:
            count -= 1
        return entries[:count]
    return entries


class SimCoordinator(MemoryCoordinator):
    """A `Coordinator` at the other end of the network."""

    def __init__(self, context: BackendContext, machine: Machine) -> None:
        super().__init__(context, machine.world.network.hub)
        self._machine = machine
        self._network = machine.world.network

    @property
    def staleness(self) -> float:
        """As this seed's server declares."""
        return self._network.log_lag

    def _seen(self) -> MemoryHub:
        lie = self._network.lies.get(self._machine.name)
        return lie.fork if lie is not None and lie.fork is not None else self._network.hub

    async def append(self, address: str, token: str, entry: bytes) -> None:
        """Append at the server."""
        network = self._network

        def effect() -> None:
            wait = network.weather.granted(self._machine.name, network.now())
            if wait:
                raise BackendError(f"M_LIMIT_EXCEEDED: retry after {wait:.1f} s", retryable=True)
            network.append(self._seen(), address, token, entry)
            if self._machine.name in network.weather.snares:
                network.snare(self._machine)

        await network.call(self._machine, LOG, effect, writes=True)

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        """Read at the server, which holds the request while there is nothing new."""
        network = self._network
        network.truth.folded(self._machine)
        end: float | None = None
        start = int(after or 0)

        def effect() -> Page | asyncio.Future[None]:
            nonlocal end
            now = network.now()
            end = now + wait if end is None else end
            seen = self._seen()
            entries = seen.log(address).entries
            if seen is network.hub and (network.lies or network.log_lag):
                entries = list(shown(network, self._machine.name, entries))
            new = tuple(entries[start : start + limit])
            if not new and now < end:
                # A replica that lags gets entries without anybody appending at that moment.
                return network.patience(min(end - now, 0.5) if network.log_lag else end - now)
            return Page(new, str(start + len(new)), head=start + len(new) >= len(entries))

        page = await network.call(self._machine, LOG, effect)
        assert isinstance(page, Page)
        return page

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        """Send, unless the device is muted."""
        network = self._network
        hub = self._seen()

        def effect() -> None:
            network.truth.left(payload)
            if network.weather.muted.get(self._machine.name, 0) <= 0:
                network.at_once(MemoryCoordinator(self._context, hub).signal(address, payload, to=to))

        await network.call(self._machine, SIGNALS, effect)

    async def signals(self, address: str) -> Sequence[Signal]:
        """What arrived."""
        network = self._network
        self._hub = self._seen()
        return await network.call(
            self._machine, SIGNALS, lambda: network.at_once(super(SimCoordinator, self).signals(address))
        )
