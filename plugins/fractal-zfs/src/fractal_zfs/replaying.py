"""Streams of btrfs, replayed in a dataset: so that a device with ZFS can take over from one with btrfs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeVar

from fractal.api.context import Workers
from fractal.api.errors import BackendError, Corrupt
from fractal.streams.btrfs_send import FORMAT, Command, Decoder, Field, Kind
from fractal.streams.replay import FOLDER, Receiver
from fractal_zfs.volumes import Kept

T = TypeVar("T")


async def begun(chunks: AsyncIterator[bytes]) -> tuple[str | None, AsyncIterator[bytes]]:
    """Whose difference the stream is (None: everything), and the whole stream again. Raises Corrupt."""
    decoder, start = Decoder(), bytearray()
    first: Command | None = None
    async for chunk in chunks:
        start += chunk
        if (first := next(decoder.feed(chunk), None)) is not None:
            break

    async def whole() -> AsyncIterator[bytes]:
        yield bytes(start)
        async for chunk in chunks:
            yield chunk

    if first is None:
        raise Corrupt(f"{FORMAT} stream: it was cut short")
    if first.kind is Kind.SNAPSHOT:
        return first.uuid(Field.CLONE_UUID).hex(), whole()
    return None, whole()


def refuse_other(identity: str | None, base: Kept | None) -> Kept | None:
    """The snapshot to start from. Raises Corrupt if it is not the one that the stream was made against."""
    if identity is None:
        return None
    if base is None:
        raise Corrupt(f"{FORMAT} stream: it is incremental: name the snapshot that it was made against")
    if base.identity != identity:
        raise Corrupt(f"{FORMAT} stream: it was made against another snapshot than the one given as parent")
    return base


async def replayed(workers: Workers, top: Path, parent: Path | None, data: AsyncIterator[bytes]) -> str:
    """Do what the stream says below `top`; the identity of what came of it. Raises Corrupt, BackendError."""
    with ExitStack() as stack:
        folder = _opened(stack, top)
        former = None if parent is None else _opened(stack, parent)
        receiver = stack.enter_context(closing(Receiver(lambda _: folder, former)))
        async for chunk in data:
            await _in_worker(workers, receiver.feed, chunk)
        uuid, _ = await _in_worker(workers, receiver.finish)
        return uuid.hex()


def _opened(stack: ExitStack, path: Path) -> int:
    descriptor = os.open(path, FOLDER)
    stack.callback(os.close, descriptor)
    return descriptor


async def _in_worker(workers: Workers, function: Callable[..., T], /, *arguments: object) -> T:
    """A cancellation goes on only when the thread has ended: its descriptors are about to be closed."""
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
        raise BackendError(f"snapshot zfs: replaying: {error}", retryable=True) from error
