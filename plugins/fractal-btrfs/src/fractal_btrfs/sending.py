"""A send stream out of the kernel, as chunks.

The kernel writes into a pipe from a thread of its own, and another reads it, not the agent's workers: the first waits whenever the reader does,
and a few slow uploads would leave no worker for what they wait for. Whoever stops reading closes the pipe, and the kernel gives
up at its next write.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from fractal.api.context import Workers
from fractal_btrfs import ioctls
from fractal_btrfs.blocking import in_worker
from fractal_btrfs.lean import Lean

T = TypeVar("T")
CHUNK = 1 << 20
_LEAN_CHUNK = CHUNK - (128 << 10)
"""With what was left of the chunk before, no more than a chunk."""


class _Thread(Workers):
    """One thread, for one stream."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="btrfs-read")

    async def run(self, function: Callable[..., T], /, *arguments: object) -> T:
        """As `Workers.run`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def end(self) -> None:
        """When nothing runs in it any more."""
        self._pool.shutdown(wait=False)


async def sent(subvolume: int, parent: int | None, lean: Lean | None = None) -> AsyncGenerator[bytes, None]:
    """The stream of a read-only subvolume, by its descriptor; `parent` is an id. Raises OSError, BackendError, Corrupt.

    What goes through `lean` comes out shorter; whoever gave it closes it.
    """
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with suppress(PermissionError):  # the limit of pipes' sizes; a small pipe is slower, not wrong
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, CHUNK)
    ended: asyncio.Future[OSError | None] = loop.create_future()
    thread = threading.Thread(
        target=_send, args=(loop, ended, subvolume, writer, parent), name="btrfs-send", daemon=True
    )
    thread.start()
    reading = _Thread()
    try:
        # By the event loop, each 48 KiB would cost two changes of what it waits for: as much again as the kernel's own work.
        size = CHUNK if lean is None else _LEAN_CHUNK
        while chunk := await in_worker(reading, "reading a stream", _chunk, reader, size):
            if lean is not None:
                chunk = await in_worker(reading, "comparing with the parent", lean.feed, chunk)
            if chunk:
                yield chunk
    finally:
        reading.end()
        os.close(reader)
        error = await _outlast(ended)
    if error is not None:
        raise error
    if lean is not None:
        lean.finish()


def _chunk(reader: int, size: int) -> bytes:
    """A whole chunk, less only at the end: the kernel writes 48 KiB at a time, and each chunk costs whoever handles it."""
    parts, missing = [], size
    while missing and (part := os.read(reader, missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


async def _outlast(ended: asyncio.Future[OSError | None]) -> OSError | None:
    """Wait for the thread, also when cancelled: it uses descriptors that the caller is about to close."""
    cancelled = False
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return ended.result()


def _send(
    loop: asyncio.AbstractEventLoop,
    ended: asyncio.Future[OSError | None],
    subvolume: int,
    writer: int,
    parent: int | None,
) -> None:
    error: OSError | None = None
    try:
        ioctls.send(subvolume, writer, parent)
    except OSError as failure:
        error = None if failure.errno == errno.EPIPE else failure
    finally:
        os.close(writer)
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_tell, ended, error)


def _tell(ended: asyncio.Future[OSError | None], error: OSError | None) -> None:
    if not ended.done():
        ended.set_result(error)
