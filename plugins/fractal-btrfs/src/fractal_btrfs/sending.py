"""A send stream out of the kernel, as chunks.

The kernel writes into a pipe from a thread of its own, not one of the agent's workers: the thread waits whenever the reader does,
and a few slow uploads would leave no worker for what they wait for. Whoever stops reading closes the pipe, and the kernel gives
up at its next write.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress

from fractal_btrfs import ioctls

CHUNK = 1 << 20


async def sent(subvolume: int, parent: int | None) -> AsyncGenerator[bytes, None]:
    """The stream of a read-only subvolume, by its descriptor; `parent` is an id. Raises OSError."""
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with suppress(PermissionError):  # the limit of pipes' sizes; a small pipe is slower, not wrong
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, CHUNK)
    os.set_blocking(writer, True)
    ended: asyncio.Future[OSError | None] = loop.create_future()
    thread = threading.Thread(
        target=_send, args=(loop, ended, subvolume, writer, parent), name="btrfs-send", daemon=True
    )
    thread.start()
    try:
        while chunk := await _chunk(loop, reader):
            yield chunk
    finally:
        os.close(reader)
        error = await _outlast(ended)
    if error is not None:
        raise error


async def _chunk(loop: asyncio.AbstractEventLoop, reader: int) -> bytes:
    """A whole chunk, less only at the end: the kernel writes 48 KiB at a time, and each chunk costs whoever handles it."""
    parts, missing = [], CHUNK
    while missing and (part := await _read(loop, reader, missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


async def _read(loop: asyncio.AbstractEventLoop, reader: int, most: int) -> bytes:
    """What there is, at least a byte; b"" at the end."""
    while True:
        try:
            return os.read(reader, most)
        except BlockingIOError:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(reader, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_reader(reader)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


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
