"""Blocking calls in worker threads, and their OSErrors told as BackendErrors."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from fractal.api.context import Workers
from fractal.api.errors import BackendError
from fractal.streams.replay import FOLDER

T = TypeVar("T")
_ADVICE = {
    errno.ENOSPC: "the file system is full: free some space or raise the pool's limit",
    errno.EDQUOT: "the quota is used up: free some space",
    errno.EPERM: "not permitted: the agent must run as root",
    errno.EACCES: "not permitted: the agent must run as root",
    errno.EROFS: "the file system is read-only: look into dmesg, mount it writable",
    errno.EIO: "the disk could not read or write: look into dmesg, check its health",
    errno.ENOTTY: "it is not on btrfs: choose another path",
    errno.ENOENT: "it is gone: is the file system mounted?",
}
_RETRYABLE = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE})


async def in_worker(workers: Workers, what: str, function: Callable[..., T], /, *arguments: object) -> T:
    """Run `function` in a worker; a cancellation goes on only when its thread has ended, as a thread cannot be interrupted."""
    job = asyncio.ensure_future(workers.run(function, *arguments))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError:
                continue  # told once already; it is raised below
        if not job.cancelled():
            job.exception()  # retrieved: the cancellation is what the caller asked for
        raise
    except OSError as error:
        raise explained(what, error) from error


def explained(what: str, error: OSError) -> BackendError:
    """What happened, where, and what to do."""
    name = error.filename if isinstance(error.filename, str | bytes) else ""
    where = f"{what}: {os.fsdecode(name)}" if name else what
    advice = _ADVICE.get(error.errno or 0)
    text = f"snapshot btrfs: {where}: {error.strerror or error}" + (f" ({advice})" if advice else "")
    return BackendError(text, retryable=error.errno in _RETRYABLE)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[int]:
    """A folder's descriptor for the length of a block."""
    descriptor = os.open(path, FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
