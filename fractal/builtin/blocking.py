"""File work of the builtin backends: done in a worker thread, and its OSErrors told as BackendErrors."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from typing import TypeVar

from fractal.api.context import Workers
from fractal.api.errors import BackendError

T = TypeVar("T")

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "larger than the file system or the process's limit allows",
    errno.EACCES: "not permitted: check owner and mode of the folder",
    errno.EPERM: "not permitted: check owner and mode of the folder",
    errno.EROFS: "the file system is mounted read-only: check the disk and mount it writable",
    errno.EIO: "the disk could not read or write: check its health (dmesg, smartctl)",
    errno.ELOOP: "a symbolic link stands where none may be: remove it",
    errno.ENOTDIR: "something that is not a folder stands where a folder belongs: remove it",
    errno.ENOENT: "it is gone: is the disk mounted?",
    errno.EMFILE: "too many open files",
}
_RETRYABLE = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOENT,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


def explain(where: str, error: OSError) -> BackendError:
    """The BackendError that says what happened, where, and what to do."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    text = f"{where}: {reason}" + (f" ({advice})" if advice else "")
    return BackendError(text, retryable=error.errno in _RETRYABLE)


async def finish(
    workers: Workers, function: Callable[..., T], /, *arguments: object, stop: threading.Event | None = None
) -> T:
    """Run `function` in a worker; a cancellation goes on only when its thread has ended.

    A thread cannot be interrupted, and going on beside it would close its files below its feet or remove a folder
    that it still fills. Work of more than some milliseconds looks at `stop`, which is set on cancellation.
    """
    job = asyncio.ensure_future(workers.run(function, *arguments))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError:
                continue  # told once already; it is raised below
        if not job.cancelled():
            job.exception()  # retrieved: the cancellation is what the caller asked for
        raise
