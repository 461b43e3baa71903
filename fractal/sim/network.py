"""Log and store as a device sees them: the memory backends behind a network that delays, loses and lies about success.

A request that was sent takes effect at the server when it arrives, whatever became of the device that sent it; the answer
is another journey. So a write may happen late, or happen and look failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from fractal.api.errors import Ambiguous, BackendError, FractalError
from fractal.builtin.log_limits import check_entry
from fractal.builtin.memory_log import MemoryHub
from fractal.builtin.memory_store import MemoryObjects
from fractal.sim.log_server import Lie
from fractal.sim.loop import VirtualLoop
from fractal.sim.weather import APPENDS, LOG, SIGNALS, STORE, Weather

if TYPE_CHECKING:
    from fractal.sim.invariants import Truth
    from fractal.sim.machine import Machine

T = TypeVar("T")
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


class Network:
    """Carries calls between devices and the two servers."""

    def __init__(self, loop: VirtualLoop, random: Random, truth: Truth) -> None:
        self._loop = loop
        self._random = self.random = random
        self.truth = truth
        self.now = loop.time
        self.at_once = at_once
        self._outside = Context()
        """Belongs to no program: a request under way survives whoever sent it."""
        self.weather = Weather()
        self.hub = MemoryHub()
        self.objects = MemoryObjects()
        self.keys: list[str] = []
        """Keys of all objects, sorted: listings are most of what a store is asked for."""
        self.lies: dict[str, Lie] = {}
        """Device -> what the log's server makes it believe."""
        self.log_lag = 0.0
        """Seconds by which reads of the log may lag, as its server declares."""
        self.store_lag = 0.0
        """The same of listings of the store."""
        self.excess_lag = 0.0
        """Seconds by which the store's listings lag more than it declares."""
        self.created: dict[str, float] = {}
        """Key -> when it was created."""
        self.listed: dict[str, set[str]] = {}
        """Device -> keys that some listing showed it."""
        self.remember_listed = False
        self._appended: list[float] = []
        self._before = 0
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
        if writes and service == STORE and self._random.random() < self.weather.belated:
            # Given up by whoever sent it; the server carries it out later nevertheless.
            self._later(self._random.uniform(3.0, 60.0), self._carry_out, effect)
            self._later(self._random.choice((1.0, 8.0)), self._fail, answer, "timed out", True)
            return await answer
        if self.weather.twice and self._random.random() < self.weather.twice:
            self._later(self._random.uniform(0.1, 20.0), self._carry_out, effect)
        mute = writes and service == LOG and self.weather.apart(machine.name, APPENDS)
        if mute or self.weather.apart(machine.name, service) or self._lost():
            self._later(1.0 if quick else HANG, self._fail, answer, "no connection", False)
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
            self._later(wait, self._fail, answer, "timed out", writes)
            return
        late = self.weather.late.get(machine.name, 0.0) * self._random.uniform(0.8, 1.0)
        if service == LOG:
            late += self.weather.slow_log * self._random.random()
        elif service == STORE:
            late += self.weather.slow_store * self._random.random()
        self._loop.settle(self.delay() + late, answer, result)

    def _carry_out(self, effect: Callable[[], Any]) -> None:
        try:
            effect()
        except FractalError:
            return  # nobody waits for the answer

    def _later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_later(delay, callback, *arguments, context=self._outside)

    def _raise(self, answer: asyncio.Future[T], error: FractalError) -> None:
        if not answer.done():
            answer.set_exception(error)

    def _fail(self, answer: asyncio.Future[T], why: str, ambiguous: bool) -> None:
        self._raise(answer, Ambiguous(why) if ambiguous else BackendError(why, retryable=True))

    def snare(self, machine: Machine) -> None:
        """Cut a device off from everything, for as long as somebody wished."""
        seconds = self.weather.snares.pop(machine.name)
        for service in (LOG, STORE, SIGNALS):
            pair = (machine.name, service)
            self.weather.cut[pair] = self.weather.cut.get(pair, 0) + 1
            self._later(seconds, self._heal, pair)

    def _heal(self, pair: tuple[str, str]) -> None:
        self.weather.cut[pair] -= 1

    # --- the log ---

    def append(self, hub: MemoryHub, address: str, token: str, entry: bytes) -> None:
        """One entry more; nothing if its token is known."""
        log = hub.log(address)
        check_entry(entry)
        if token in log.tokens:
            return
        log.tokens.add(token)
        log.entries.append(bytes(entry))
        self.truth.left(entry)
        if hub is self.hub:
            self._appended.append(self.now())
        self.grown()

    def appended(self, index: int) -> float:
        """When the entry at that index came."""
        index -= self._before
        return self._appended[index] if index >= 0 else 0.0

    def begin_with(self, entries: list[bytes], address: str) -> None:
        """The log's past."""
        self.hub.log(address).entries.extend(entries)
        self._before = len(entries)

    def fork(self, address: str) -> MemoryHub:
        """A second log with the same past."""
        hub = MemoryHub()
        hub.create(address.partition("#")[2])
        real, other = self.hub.log(address), hub.log(address)
        other.entries.extend(real.entries)
        other.tokens.update(real.tokens)
        return hub

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
        self._loop.settle(seconds, future, None)
        return future
