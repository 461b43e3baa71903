"""Threads for work that blocks or computes."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from fractal.api.context import Workers

T = TypeVar("T")

_M_ARENA_MAX = -8


class ThreadWorkers(Workers):
    """A pool of `threads` threads, open between `async with` and its end.

    A cancelled `run` returns at once, but a function that has begun goes on to its end in its thread: functions that
    take long look at an event of their own. Leaving the pool drops what has not begun and waits for what has.
    """

    def __init__(self, threads: int = 3) -> None:
        one_arena()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="worker")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)

    async def run(self, function: Callable[..., T], /, *arguments: object) -> T:
        """Run `function(*arguments)` in a thread and return its result or raise its exception."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, _call, function, arguments)


def one_arena() -> None:
    """Have all threads allocate from one heap, where the C library is glibc.

    It gives each thread an arena of its own, which keeps what the thread once needed: with frames of 8 MiB that is half as
    much memory again (mallopt(3), M_ARENA_MAX).
    """
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return  # another C library, with other habits


def _call(function: Callable[..., T], arguments: tuple[object, ...]) -> T:
    try:
        return function(*arguments)
    except StopIteration as error:
        # A future cannot carry StopIteration: on Python 3.11 whoever awaits it would wait for ever.
        raise RuntimeError("a worker function let StopIteration escape") from error
