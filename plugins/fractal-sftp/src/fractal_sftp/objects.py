"""One object being written or read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress

import asyncssh

from fractal.api.errors import Ambiguous, BackendError, Conflict
from fractal.api.store_files import object_names
from fractal_sftp.line import Unanswered
from fractal_sftp.remote import ABSENT, EXISTS, UNSUPPORTED, Remote, chunks_of, is_file

BLOCK = 128 << 10
"""Bytes of one request, unless the server takes less. A block is also what a slow line must carry within the time-out."""
IN_FLIGHT = 32
"""Requests under way for one object."""
ATTEMPTS = 16
"""How often a create goes on after somebody's delete pruned the folder that it was about to link into."""


class Upload:
    """One object being created: `run`, and always `discard` in the end."""

    def __init__(self, remote: Remote, parts: tuple[str, ...], name: str, *, linked: bool) -> None:
        self._remote = remote
        self._key = "/".join(parts)
        self._folders, file = object_names(parts)
        self._target = remote.object(self._folders, file)
        self._temporary = remote.temporary(name)
        self._linked = linked
        self._file: asyncssh.SFTPClientFile | None = None
        self.leftover = False
        """Whether the temporary file may still be there after `discard`."""

    async def run(self, data: bytes | AsyncIterator[bytes]) -> None:
        """Create the object. Raises Conflict, Ambiguous, BackendError."""
        try:
            if await self._remote.look(self._target) is not None:
                raise self._conflict()
            self.leftover = True
            self._file = await self._remote.create(self._temporary)
            await self._write(data)
            # Without the extension the server's own habits must do; the store has said so when it was opened.
            with suppress(*UNSUPPORTED):
                await self._remote.session.ask(self._file.fsync())
            await self._name()
        except asyncssh.SFTPError as error:
            raise await self._remote.explain(self._key, error) from error

    async def discard(self) -> None:
        """Remove the temporary name; the object stays if it was created."""
        if not self.leftover:
            return
        with suppress(Unanswered, asyncssh.SFTPError):
            if self._file is not None:
                await self._remote.session.ask(self._file.close())
        try:
            await self._remote.remove(self._temporary)
            self.leftover = False
        except ABSENT:
            self.leftover = False
        except (Unanswered, asyncssh.SFTPError):
            return  # the store tries again when it is connected next, and any device's store after an hour

    def _conflict(self) -> Conflict:
        return Conflict(f"{self._remote.where}: {self._key}: exists already")

    async def _write(self, data: bytes | AsyncIterator[bytes]) -> None:
        assert self._file is not None
        size, at = min(BLOCK, self._remote.session.sftp.limits.max_write_len), 0
        flying: deque[asyncio.Task[int]] = deque()
        try:
            async for block in chunks_of(data, size):
                if len(flying) >= IN_FLIGHT:
                    await flying.popleft()
                flying.append(asyncio.create_task(self._remote.session.ask(self._file.write(block, at))))
                at += len(block)
            while flying:
                await flying.popleft()
        finally:
            await end_all(flying)

    async def _name(self) -> None:
        """Give the object its name, and bring this to disk with every folder above: another may have made one and not synced it."""
        for attempt in range(ATTEMPTS):
            try:
                await self._sent(self._give_name())
                break
            except ABSENT:
                if attempt and await self._remote.look(self._temporary) is None:
                    raise BackendError(
                        f"{self._remote.where}: {self._key}: somebody removed the unfinished upload",
                        retryable=True,
                    ) from None
                for depth in range(1, len(self._folders) + 1):
                    with suppress(*ABSENT):  # pruned again: the next attempt sees it
                        await self._remote.make_folder(self._remote.object(self._folders[:depth]))
            except EXISTS:
                if await self._remote.look(self._target) is not None:
                    raise self._conflict() from None
                raise
        else:
            raise BackendError(
                f"{self._remote.where}: {self._key}: its folder is being deleted over and over",
                retryable=True,
            )
        await self._sent(self._settle())

    async def _give_name(self) -> None:
        if self._linked:
            await self._remote.link(self._temporary, self._target)
        else:
            if await self._remote.look(self._target) is not None:
                raise self._conflict()
            await self._remote.rename(self._temporary, self._target)

    async def _settle(self) -> None:
        depths = range(len(self._folders) + 1)
        syncs = [self._remote.sync(self._remote.object(self._folders[:depth])) for depth in depths]
        for result in await asyncio.gather(*syncs, return_exceptions=True):
            # A folder that is gone was pruned, as somebody deleted the object already.
            if isinstance(result, BaseException) and not isinstance(result, (*UNSUPPORTED, *ABSENT)):
                if not isinstance(result, asyncssh.SFTPError):
                    raise result
                explained = await self._remote.explain(self._key, result)
                raise Ambiguous(f"created, but perhaps not on disk yet: {explained}") from result

    async def _sent(self, request: Awaitable[None]) -> None:
        """Once the name was asked for, no answer means that nobody knows."""
        try:
            await request
        except Unanswered as error:
            raise Ambiguous(f"{error}; {self._key} may have been created") from error


async def read_blocks(
    remote: Remote, file: asyncssh.SFTPClientFile, key: str, offset: int, length: int | None
) -> AsyncIterator[bytes]:
    """The file's bytes, blocks asked for ahead. Raises BackendError for what is not a plain file or shorter than it says."""
    attrs = await remote.session.ask(file.stat())
    if not is_file(attrs) or attrs.size is None:
        raise BackendError(f"{remote.where}: {key} is not a plain file: remove it")
    end = attrs.size if length is None else min(attrs.size, offset + length)
    size = min(BLOCK, remote.session.sftp.limits.max_read_len)
    flying: deque[tuple[int, asyncio.Task[bytes]]] = deque()
    try:
        while offset < end or flying:
            while offset < end and len(flying) < IN_FLIGHT:
                count = min(size, end - offset)
                flying.append((count, asyncio.create_task(remote.session.ask(file.read(count, offset)))))
                offset += count
            count, task = flying.popleft()
            block = await task
            if len(block) != count:
                raise BackendError(f"{remote.where}: {key} was cut short: verify the store")
            yield block
    finally:
        await end_all([task for _, task in flying])


async def end_all(tasks: Sequence[asyncio.Task[object]] | deque[asyncio.Task[int]]) -> None:
    """Cancel what still runs, and see what failed, so that nobody complains of it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
