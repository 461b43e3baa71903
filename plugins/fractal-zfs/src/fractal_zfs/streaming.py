"""`zfs send` and `zfs receive`, as chunks, and the little that must be known of a stream before ZFS may see it.

A stream is records of 312 bytes, some with data after them: BEGIN first, END last (`drr` in OpenZFS's zfs_ioctl.h). A stream
may also be a package of several with properties, such as mount points: what `zfs send -R` and `-p` give. We send none, and refuse
them, as a property reaches outside of the snapshot. Of a whole stream ZFS itself checks the sums.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from fractal.api.errors import BackendError, Corrupt
from fractal_zfs.command import ENVIRONMENT, told

FORMAT = "zfs-send/1"
RECORD = 312
CHUNK = 1 << 20
STALL = 600.0
"""Seconds that ZFS may take for the next chunk, or to end: deleting much holds it up, and nothing holds it up for ever."""

_BEGIN, _END = 0, 5
_MAGIC = 0x2F5BACBAC
_ONE_STREAM = 1
_HELD = 2 * RECORD


@dataclass(frozen=True, slots=True)
class Head:
    """What a stream's first record says."""

    guid: int
    """Of the snapshot."""
    parent: int
    """Guid of the snapshot that it was made against; 0 if none."""
    order: str
    """Byte order of the sender, for `struct`."""


def read_head(data: bytes) -> Head:
    """Raises Corrupt."""
    if len(data) < RECORD:
        raise Corrupt(f"{FORMAT} stream: it was cut short")
    for order in "<>":
        kind, _, magic, version, _, _, _, guid, parent = struct.unpack_from(f"{order}IIQQQIIQQ", data)
        if magic == _MAGIC:
            if kind != _BEGIN or version & 0b11 != _ONE_STREAM:
                raise Corrupt(f"{FORMAT} stream: it is a package of streams or has properties")
            return Head(guid, parent, order)
    raise Corrupt(f"{FORMAT} stream: it does not begin as one")


def is_end(record: bytes, head: Head) -> bool:
    """Whether these 312 bytes end the stream."""
    if len(record) != RECORD:
        return False
    (kind,) = struct.unpack_from(f"{head.order}I", record)
    (guid,) = struct.unpack_from(f"{head.order}Q", record, 40)
    return (kind, guid) == (_END, head.guid)


async def sent(*words: str) -> AsyncGenerator[bytes, None]:
    """What `zfs send WORDS` gives. Raises BackendError. Whoever stops early ends it."""
    process = await asyncio.create_subprocess_exec(
        *["zfs", "send", *words],
        env=ENVIRONMENT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=CHUNK,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        while chunk := await _chunk(process.stdout, words):
            yield chunk
        said = await _ended(process)
        if process.returncode:
            raise told(("send", *words), said)
    finally:
        await _end(process)


async def _chunk(stdout: asyncio.StreamReader, words: tuple[str, ...]) -> bytes:
    """A whole chunk, less only at the end."""
    try:
        async with asyncio.timeout(STALL):
            return await stdout.readexactly(CHUNK)
    except asyncio.IncompleteReadError as error:
        return error.partial
    except TimeoutError as error:
        raise BackendError(
            f"snapshot zfs: zfs send {words}: nothing for {STALL:g} s", retryable=True
        ) from error


async def received(target: str, head: Head, data: AsyncIterator[bytes]) -> None:
    """Feed a stream to `zfs receive`, but its last two records only when they are known to be the last. Raises Corrupt, BackendError.

    ZFS makes the snapshot whole or not at all, and is done with the first end that it sees: a second one would go unnoticed.
    """
    process = await asyncio.create_subprocess_exec(
        *["zfs", "receive", "-F", target],
        env=ENVIRONMENT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        held, taken = bytearray(), True
        async for chunk in data:
            held += chunk
            if len(held) > _HELD:
                if not (taken := await _fed(process, bytes(held[:-_HELD]))):
                    break
                del held[:-_HELD]
        if taken and (not is_end(bytes(held[-RECORD:]), head) or is_end(bytes(held[:-RECORD]), head)):
            raise Corrupt(f"{FORMAT} stream: it was cut short, or goes on after its end")
        taken = taken and await _fed(process, bytes(held))
        process.stdin.close()
        said = await _ended(process)
        if process.returncode or not taken:
            raise _refused(target, said)
    finally:
        process.stdin.close()
        # It sees the end of the stream, and takes back what it has begun.
        await _end(process, kill=False)


async def _fed(process: asyncio.subprocess.Process, data: bytes) -> bool:
    """Whether it took the data; if not it has ended, and its status tells why."""
    assert process.stdin is not None
    try:
        process.stdin.write(data)
        async with asyncio.timeout(STALL):
            await process.stdin.drain()
        return True
    except (BrokenPipeError, ConnectionResetError):
        return False
    except TimeoutError as error:
        raise BackendError(
            f"snapshot zfs: zfs receive took nothing for {STALL:g} s", retryable=True
        ) from error


def _refused(target: str, said: str) -> Exception:
    lower = said.lower()
    if any(word in lower for word in ("space", "quota", "permission", "busy", "i/o error", "unable to open")):
        return told(("receive", target), said)
    return Corrupt(f"{FORMAT} stream: zfs refuses it: {' '.join(said.split())[:300]}")


async def _ended(process: asyncio.subprocess.Process) -> str:
    """What it said on stderr, when it has ended."""
    assert process.stderr is not None
    try:
        async with asyncio.timeout(STALL):
            said = await process.stderr.read(1 << 16)
            await process.wait()
    except TimeoutError as error:
        raise BackendError(f"snapshot zfs: zfs does not end for {STALL:g} s", retryable=True) from error
    return said.decode("utf-8", "replace")


async def _end(process: asyncio.subprocess.Process, *, kill: bool = True) -> None:
    """See the process off, also when cancelled: what it uses is about to be used otherwise."""
    if process.returncode is None and kill:
        with suppress(ProcessLookupError):
            process.kill()
    waiting = asyncio.ensure_future(_over(process))
    cancelled = False
    while not waiting.done():
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def _over(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(60):
            # Drained, or it could wait for us.
            await process.communicate()
    except (TimeoutError, BrokenPipeError, ConnectionResetError):
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
