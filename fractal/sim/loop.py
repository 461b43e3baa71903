"""An asyncio event loop with virtual time, on which a program can be stopped or killed in the middle of anything.

Time jumps to the next timer when nothing is ready. What runs is decided by the order of calls alone, so that one seed gives
one history. Each callback belongs to the `Life` in whose context it was made: one run of one program.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple, cast

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Stuck(Exception):
    """Nothing is ever going to happen again."""


class Crashed(BaseException):
    """Ends the callback in which a program was killed. Nothing that it still does has an effect."""


@dataclass(slots=True, eq=False)
class Life:
    """One run of one program, from its start to its end."""

    name: str
    dead: bool = False
    frozen: bool = False
    asleep: float | None = None
    """Since when its machine sleeps: its timers stand still meanwhile, as those of asyncio do on CLOCK_MONOTONIC."""
    stopped: list[_Timer] = field(default_factory=list)
    """Timers that would have gone off while the machine slept."""
    held: list[_Handle] = field(default_factory=list)
    """What would have run while it was frozen; kept for ever once it is dead, as a killed program cleans nothing up."""


LIFE: ContextVar[Life | None] = ContextVar("life", default=None)
_Timer = tuple[float, int, "_Handle | asyncio.Future[Any]", Life | None, Any]
"""When, in which order, what, whose, and the result if it is a future."""
_numbers = itertools.count(1)
_push, _pop = heapq.heappush, heapq.heappop


class _Task(asyncio.Task[Any]):
    """Hashed by the order of first use instead of by address: the order in a set repeats.

    Futures that are no tasks are asyncio's own, which tasks wait for in C; nobody has a set of them whose order matters.
    """

    def __hash__(self) -> int:
        try:
            return self._number
        except AttributeError:
            self._number: int = next(_numbers)
            return self._number


class _Handle:
    """A callback with the life that it belongs to. What asyncio itself uses of a handle, and no more: half of all time is here."""

    __slots__ = ("args", "callback", "context", "life", "time")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None, time: float
    ) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        # An empty context is false, and is one of its own nevertheless.
        if context is None:
            context = copy_context()
        self.context = context
        self.life: Life | None = context.get(LIFE)
        self.time = time

    def cancel(self) -> None:
        """As `asyncio.Handle.cancel`."""
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        """As `asyncio.Handle.cancelled`."""
        return self.callback is None

    def when(self) -> float:
        """As `asyncio.TimerHandle.when`."""
        return self.time


class VirtualLoop(asyncio.AbstractEventLoop):
    """The part of an event loop that programs without sockets, threads and processes use."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning of the simulation. Only the loop itself changes it."""
        self._ready: deque[_Handle] = deque()
        self._timers: list[_Timer] = []
        self._order = itertools.count()
        self._closed = False
        self.steps = 0
        self.errors: list[str] = []
        """What callbacks raised and nobody caught."""

    # --- running ---

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until `main` is done. Raises Stuck, and what it raises."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main)
            self._run(task)
            return task.result()
        finally:
            asyncio._set_running_loop(None)

    def _run(self, main: asyncio.Task[Any]) -> None:
        ready, done, jump, steps = self._ready, main.done, self._jump, 0
        while not done():
            if not ready:
                jump()
            handle = ready.popleft()
            callback, life = handle.callback, handle.life
            if callback is None:
                continue
            if life is not None and (life.dead or life.frozen):
                life.held.append(handle)
                continue
            steps += 1
            try:
                handle.context.run(callback, *handle.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except (
                BaseException
            ) as error:  # as asyncio's own handles do: one callback's error is not the loop's
                self.call_exception_handler({"message": f"in {callback!r}", "exception": error})
        self.steps += steps

    def _jump(self) -> None:
        """To the next timer whose sleeper or callback is not gone meanwhile."""
        timers, ready = self._timers, self._ready
        while not ready:
            if not timers:
                raise Stuck("no timer is left")
            timer = _pop(timers)
            when, _, due, life, result = timer
            if when > self.now:
                self.now = when
            if life is not None and life.asleep is not None:
                life.stopped.append(timer)
            elif type(due) is _Handle:
                if due.callback is not None:
                    ready.append(due)
            elif not due.done():  # type: ignore[union-attr]  # a future: handles have no other type
                due.set_result(result)  # type: ignore[union-attr]

    def thaw(self, life: Life) -> None:
        """Let a frozen program go on: whatever became due meanwhile runs now."""
        life.frozen = False
        held, life.held = life.held, []
        self._ready.extend(held)

    def wake(self, life: Life) -> None:
        """Its machine wakes: every timer goes off as much later as the sleep was long; whatever else came runs now."""
        if life.asleep is None:
            return
        slept, life.asleep = self.now - life.asleep, None
        moved = [t if t[3] is not life else _later(t, slept) for t in self._timers]
        moved += [_later(timer, slept) for timer in life.stopped]
        life.stopped = []
        heapq.heapify(moved)
        self._timers = moved
        self.thaw(life)

    def until(self, when: float) -> asyncio.Future[None]:
        """Done at that time: what a sleep waits for."""
        future: asyncio.Future[None] = asyncio.Future(loop=self)
        _push(self._timers, (when, next(self._order), future, LIFE.get(), None))
        return future

    def settle(self, delay: float, future: asyncio.Future[T], result: T) -> None:
        """Give a future its result after `delay` seconds, unless it is done by then; whoever sleeps hears it when awake."""
        _push(self._timers, (self.now + delay, next(self._order), future, None, result))

    # --- what asyncio calls ---

    def time(self) -> float:
        """Seconds since the beginning of the simulation."""
        return self.now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As in asyncio."""
        handle: Any = _Handle(callback, args, context, self.now)
        self._ready.append(handle)
        return cast("asyncio.Handle", handle)

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """There is one thread only."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio."""
        timer: Any = _Handle(callback, args, context, self.now + delay)
        _push(self._timers, (timer.time, next(self._order), timer, timer.life, None))
        return cast("asyncio.TimerHandle", timer)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio."""
        timer: Any = _Handle(callback, args, context, when)
        _push(self._timers, (when, next(self._order), timer, timer.life, None))
        return cast("asyncio.TimerHandle", timer)

    def create_future(self) -> asyncio.Future[Any]:
        """As in asyncio."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """As in asyncio."""
        assert not isinstance(coro, Generator)
        return _Task(coro, loop=self, name=name, context=context)

    get_debug = staticmethod(bool)
    """Never: asked for each future, so what answers is a function in C that says False."""

    def is_running(self) -> bool:
        """Whenever anybody can ask."""
        return not self._closed

    def is_closed(self) -> bool:
        """Whether the simulation is over."""
        return self._closed

    def close(self) -> None:
        """The simulation is over."""
        self._closed = True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what went wrong, unless it is what killing a program leaves behind."""
        error = context.get("exception")
        if error is not None and not isinstance(error, Crashed) and not self._closed:
            self.errors.append(f"{context.get('message')}: {error!r}")


def _later(timer: _Timer, seconds: float) -> _Timer:
    return (timer[0] + seconds, *timer[1:])


def new_loop() -> VirtualLoop:
    """A loop at time 0."""
    kind: Any = VirtualLoop  # sockets, threads and processes are left out on purpose
    loop: VirtualLoop = kind()
    return loop
