"""Log and store as a device sees them: the memory backends behind a network that delays, loses and lies about success.

A request that was sent takes effect at the server when it arrives, whatever became of the device that sent it; the answer
is another journey. So a write may happen late, or happen and look failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from fractal.api.context import Context as BackendContext
from fractal.api.coordination import Page, Signal
from fractal.api.errors import Ambiguous, BackendError, FractalError
from fractal.api.store import ObjectInfo, Store
from fractal.builtin.memory_log import MemoryCoordinator, MemoryHub
from fractal.builtin.memory_store import MemoryObjects, MemoryStore, MemoryStoreConfig
from fractal.sim.loop import VirtualLoop

if TYPE_CHECKING:
    from fractal.sim.machine import Machine

T = TypeVar("T")
LOG, STORE, SIGNALS, APPENDS = "log", "store", "signals", "appends"
HANG = 45.0
"""Seconds after which a connection that says nothing is given up by the network itself."""


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine of a memory backend, which never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise AssertionError("a memory backend waited")


@dataclass(slots=True)
class Weather:
    """What is wrong with the network now. Counts, because faults overlap."""

    cut: dict[tuple[str, str], int] = field(default_factory=dict)
    """(device, service) -> how many faults keep them apart."""
    loss: float = 0.0
    """Probability that a request or an answer is lost."""
    slow: float = 0.0
    """Probability of a delay out of a heavy tail."""
    lying: float = 0.0
    """Probability that a write succeeds and looks timed out."""
    late: dict[str, float] = field(default_factory=dict)
    """Devices to which answers take about so many seconds."""
    muted: dict[str, int] = field(default_factory=dict)
    """Devices whose signals are lost."""

    def apart(self, device: str, service: str) -> bool:
        """Whether nothing gets through."""
        return self.cut.get((device, service), 0) > 0


class Network:
    """Carries calls between devices and the two servers."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        self._loop = loop
        self._random = random
        self._outside = Context()
        """Belongs to no program: a request under way survives whoever sent it."""
        self.weather = Weather()
        self.hub = MemoryHub()
        self.objects = MemoryObjects()
        self.waiting: list[asyncio.Future[None]] = []
        """Long polls at the log's server."""

    def delay(self) -> float:
        """One way."""
        if self._random.random() < self.weather.slow:
            return min(40.0, 0.05 * self._random.paretovariate(0.6))
        return self._random.uniform(0.005, 0.06)

    def _lost(self) -> bool:
        return self._random.random() < self.weather.loss

    async def call(
        self, machine: Machine, service: str, effect: Callable[[], T], *, writes: bool = False
    ) -> T:
        """Carry `effect` to the server of `service` and its result back. Raises BackendError, Ambiguous."""
        machine.moment(service)
        answer: asyncio.Future[T] = self._loop.create_future()
        quick = self._random.random() < 0.5
        mute = writes and service == LOG and self.weather.apart(machine.name, APPENDS)
        if mute or self.weather.apart(machine.name, service) or self._lost():
            self._later(1.0 if quick else HANG, self._fail, answer, "no connection", ambiguous=False)
        else:
            self._later(self.delay(), self._arrive, machine, service, effect, answer, writes)
        result = await answer
        machine.moment(service)
        return result

    def _arrive(
        self, machine: Machine, service: str, effect: Callable[[], T], answer: asyncio.Future[T], writes: bool
    ) -> None:
        try:
            result = effect()
        except FractalError as error:
            self._later(self.delay(), self._raise, answer, error)
            return
        if isinstance(result, asyncio.Future):
            result.add_done_callback(
                lambda _: self._arrive(machine, service, effect, answer, writes), context=self._outside
            )
            return
        lying = writes and self._random.random() < self.weather.lying
        if self.weather.apart(machine.name, service) or self._lost() or lying:
            wait = self._random.choice((1.0, 8.0, HANG))
            self._later(wait, self._fail, answer, "timed out", ambiguous=writes)
            return
        late = self.weather.late.get(machine.name, 0.0) * self._random.uniform(0.8, 1.0)
        self._later(self.delay() + late, self._tell, answer, result)

    def _later(self, delay: float, callback: Callable[..., None], *arguments: Any, **named: Any) -> None:
        self._loop.call_later(delay, lambda: callback(*arguments, **named), context=self._outside)

    def _tell(self, answer: asyncio.Future[T], result: T) -> None:
        if not answer.done():
            answer.set_result(result)

    def _raise(self, answer: asyncio.Future[T], error: FractalError) -> None:
        if not answer.done():
            answer.set_exception(error)

    def _fail(self, answer: asyncio.Future[T], why: str, *, ambiguous: bool) -> None:
        self._raise(answer, Ambiguous(why) if ambiguous else BackendError(why, retryable=True))

    # --- long polls ---

    def grown(self) -> None:
        """The log has a new entry."""
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def patience(self, seconds: float) -> asyncio.Future[None]:
        """Done when the log grows, at the latest after `seconds`."""
        future: asyncio.Future[None] = self._loop.create_future()
        self.waiting.append(future)
        self._later(seconds, self._tell, future, None)
        return future


class SimCoordinator(MemoryCoordinator):
    """A `Coordinator` at the other end of the network."""

    def __init__(self, context: BackendContext, machine: Machine) -> None:
        super().__init__(context, machine.world.network.hub)
        self._machine = machine
        self._network = machine.world.network

    async def append(self, address: str, token: str, entry: bytes) -> None:
        """Append at the server."""

        def effect() -> None:
            at_once(super(SimCoordinator, self).append(address, token, entry))
            self._network.grown()

        await self._network.call(self._machine, LOG, effect, writes=True)

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        """Read at the server, which holds the request while there is nothing new."""
        end: float | None = None

        def effect() -> Page | asyncio.Future[None]:
            nonlocal end
            now = self._machine.world.loop.time()
            end = now + wait if end is None else end
            page = at_once(super(SimCoordinator, self).read(address, after, limit=limit))
            return page if page.entries or now >= end else self._network.patience(end - now)

        page = await self._network.call(self._machine, LOG, effect)
        assert isinstance(page, Page)
        return page

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        """Send, unless the device is muted."""

        def effect() -> None:
            if not self._network.weather.muted.get(self._machine.name):
                at_once(super(SimCoordinator, self).signal(address, payload, to=to))

        await self._network.call(self._machine, SIGNALS, effect)

    async def signals(self, address: str) -> Sequence[Signal]:
        """What arrived."""
        return await self._network.call(
            self._machine, SIGNALS, lambda: at_once(super(SimCoordinator, self).signals(address))
        )


class SimStore(Store):
    """A `Store` at the other end of the network."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._network = machine.world.network
        self._store = MemoryStore(MemoryStoreConfig(objects=self._network.objects))

    @property
    def staleness(self) -> float:
        """None."""
        return 0.0

    @property
    def fencing(self) -> bool:
        """As the memory store's."""
        return True

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Create at the server, all or nothing."""
        whole = data if isinstance(data, bytes) else b"".join([chunk async for chunk in data])

        def effect() -> None:
            at_once(self._store.put_new(key, whole))
            self._machine.world.truth.created(key, self._machine)

        self._machine.moment(f"put {key}")
        await self._network.call(self._machine, STORE, effect, writes=True)
        self._machine.moment(f"put {key}")

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The whole range in one answer."""

        async def read() -> list[bytes]:
            return [c async for c in self._store.get(key, offset=offset, length=length)]

        for chunk in await self._network.call(self._machine, STORE, lambda: at_once(read())):
            yield chunk

    async def head(self, key: str) -> ObjectInfo:
        """Size."""
        return await self._network.call(self._machine, STORE, lambda: at_once(self._store.head(key)))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """One answer, true when the server gave it."""

        async def read() -> list[ObjectInfo]:
            return [i async for i in self._store.list(prefix)]

        for info in await self._network.call(self._machine, STORE, lambda: at_once(read())):
            yield info

    async def delete(self, key: str) -> None:
        """Delete at the server."""
        await self._network.call(self._machine, STORE, lambda: at_once(self._store.delete(key)), writes=True)
