"""The `sftp` store: the layout of `fractal.api.store_files` on a server, where `hardlink@openssh.com` is the atomic create."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import asyncssh

from fractal.api.context import Context
from fractal.api.errors import BackendError, InvalidInput, Misconfigured, NotSupported
from fractal.api.names import check_key, check_prefix
from fractal.api.store import ObjectInfo, Store
from fractal.api.store_files import (
    KNOWN,
    MARK,
    MARK_TEXT,
    OBJECTS,
    TEMPORARY,
    first_folders,
    may_hold,
    object_key,
    object_names,
)
from fractal_sftp.config import SftpConfig
from fractal_sftp.identity import load_identity
from fractal_sftp.line import Line, Session, Unanswered
from fractal_sftp.objects import Upload, end_all, read_blocks
from fractal_sftp.remote import ABSENT, EXISTS, UNSUPPORTED, Remote, is_file, is_folder, raw

ABANDONED = 3600
"""Seconds by the server's clock after which an upload that nothing was written to is removed."""
MAX_SWEPT = 1000
"""Leftovers removed at once."""
FOLDERS_AT_ONCE = 16


class SftpStore(Store):
    """A `Store` on a server. Open it by `open_sftp`."""

    def __init__(self, context: Context, config: SftpConfig, line: Line) -> None:
        self._context = context
        self._config = config
        self._line = line
        self._weakness = "it was never connected"
        self._leftovers: dict[str, Session] = {}

    @property
    def staleness(self) -> float:
        """0: there is one server, which answers from its own file system."""
        return 0.0

    @property
    def fencing(self) -> bool:
        """Whether the server has hard links, of which the second to one name failed when it was tried."""
        return not self._weakness

    @property
    def weakness(self) -> str:
        """Why it cannot fence, or ""."""
        return self._weakness

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Create the object; whole, in its folder and on disk when this returns."""
        parts, name = check_key(key), self._context.entropy.bytes(16).hex()
        remote = await self._remote()
        await self._remove_leftovers(remote)
        upload = Upload(remote, parts, name, linked=self.fencing)
        try:
            await upload.run(data)
        finally:
            await self._line.finish(self._discard(upload, name, remote.session))

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The object's bytes in chunks of at most 1 MiB."""
        folders, name = object_names(check_key(key))
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInput(
                f"{self._config.where}: {key}: offset {offset}, length {length}: neither may be negative"
            )
        remote = await self._remote()
        try:
            file = await remote.open(remote.object(folders, name))
            try:
                async for block in read_blocks(remote, file, key, offset, length):
                    yield block
            finally:
                await self._line.finish(self._close_file(remote, file))
        except ABSENT:
            raise await remote.absent(key) from None
        except asyncssh.SFTPError as error:
            raise await remote.explain(key, error) from error

    async def head(self, key: str) -> ObjectInfo:
        """The object's size."""
        folders, name = object_names(check_key(key))
        remote = await self._remote()
        try:
            found = await remote.look(remote.object(folders, name))
        except asyncssh.SFTPError as error:
            raise await remote.explain(key, error) from error
        if found is None:
            raise await remote.absent(key)
        if not is_file(found) or found.size is None:
            raise BackendError(f"{remote.where}: {key} is not a plain file: remove it")
        return ObjectInfo(key, found.size)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object below `prefix`, sorted. One walk over the folders below; what is created meanwhile may be missing."""
        check_prefix(prefix)
        start = first_folders(prefix)
        if start is None:
            return
        remote = await self._remote()
        try:
            found = await _walk(remote, start, prefix)
        except asyncssh.SFTPError as error:
            raise await remote.explain(prefix or "(all)", error) from error
        if not found:
            await remote.refuse_unmounted()
        for info in sorted(found):
            yield info

    async def delete(self, key: str) -> None:
        """Delete the object durably, and the folders that it leaves empty."""
        folders, name = object_names(check_key(key))
        remote = await self._remote()
        try:
            await remote.remove(remote.object(folders, name))
        except ABSENT:
            await remote.refuse_unmounted()
            return
        except (asyncssh.SFTPPermissionDenied, *UNSUPPORTED) as error:
            raise NotSupported(f"{remote.where}: the server lets nobody delete {key}") from error
        except asyncssh.SFTPError as error:
            raise await remote.explain(key, error) from error
        try:
            with suppress(*UNSUPPORTED):
                await remote.sync(remote.object(folders))
            for depth in range(len(folders), 0, -1):
                await remote.remove_folder(remote.object(folders[:depth]))
        except asyncssh.SFTPError:
            return  # not empty, or gone already

    async def prepare(self) -> None:
        """Make sure that there is a store of our version, learn whether it can fence, remove what dead uploads left."""
        remote = await self._remote()
        name = self._context.entropy.bytes(16).hex()
        try:
            await self._make(remote)
            self._weakness, now = await self._try_links(remote, name)
            if await remote.read_small(remote.top(MARK), 2 * len(MARK_TEXT)) != MARK_TEXT:
                raise Misconfigured(
                    "path", f"{remote.where}/{MARK} is of another version of the store: upgrade this device"
                )
            await self._sweep(remote, now)
        except asyncssh.SFTPError as error:
            raise await remote.explain("preparing the store", error) from error
        if self._weakness:
            self._context.logger.warning("%s: it cannot fence: %s", remote.where, self._weakness)

    async def _remote(self) -> Remote:
        return Remote(await self._line.session(), self._config.where, self._config.path)

    async def _make(self, remote: Remote) -> None:
        if await remote.look(remote.top(MARK)) is not None:
            return
        await remote.make_folder(remote.top())
        names = {raw(entry.filename) for entry in await remote.names(remote.top())}
        foreign = sorted(names - {name.encode() for name in KNOWN} - {b".", b".."})
        if foreign:
            raise Misconfigured(
                "path",
                f"{remote.where} is not a store and not empty ({foreign[0]!r}): choose an empty folder",
            )
        for folder in (OBJECTS, TEMPORARY):
            await remote.make_folder(remote.top(folder))

    async def _try_links(self, remote: Remote, name: str) -> tuple[str, int]:
        """Write, link, and link again (which must fail): why the server cannot fence, and the time by its clock."""
        path, second = remote.temporary(name), remote.temporary(f"{name}-second")
        file = await remote.create(path)
        try:
            await remote.session.ask(file.write(MARK_TEXT, 0))
            weakness = ""
            try:
                await remote.session.ask(file.fsync())
            except UNSUPPORTED:
                self._context.logger.warning(
                    "%s: the server lacks fsync@openssh.com: what it acknowledges may be lost in a power failure",
                    remote.where,
                )
            found = await remote.session.ask(file.stat())
            try:
                await remote.link(path, second)
            except (*UNSUPPORTED, asyncssh.SFTPPermissionDenied, *EXISTS):
                weakness = "the server has no hard links (hardlink@openssh.com, which OpenSSH has)"
                await self._put_mark(remote, name, linked=False)
            else:
                try:
                    await remote.link(path, second)
                    weakness = "creating a hard link twice succeeds on the server"
                except EXISTS:
                    await self._put_mark(remote, name, linked=True)
            return weakness, found.mtime or 0
        finally:
            await self._line.finish(_clear(remote, file, path, second))

    async def _put_mark(self, remote: Remote, name: str, *, linked: bool) -> None:
        if await remote.look(remote.top(MARK)) is None:
            with suppress(*EXISTS):
                await (remote.link if linked else remote.rename)(remote.temporary(name), remote.top(MARK))
            with suppress(*UNSUPPORTED):
                await remote.sync(remote.top())

    async def _sweep(self, remote: Remote, now: int) -> None:
        """Remove what writers left that died over an hour ago; files of other names are not ours to remove."""
        removed = 0
        for entry in await remote.names(remote.temporary()):
            name, mtime = raw(entry.filename), entry.attrs.mtime
            if not (
                is_file(entry.attrs) and mtime is not None and mtime < now - ABANDONED and b"/" not in name
            ):
                continue
            if removed == MAX_SWEPT:
                break
            with suppress(asyncssh.SFTPError):  # another device was quicker, or nothing may be deleted there
                await remote.remove(remote.temporary() + b"/" + name)
                self._context.logger.info("%s: removed the unfinished upload %r", remote.where, name)
                removed += 1

    async def _discard(self, upload: Upload, name: str, session: Session) -> None:
        await upload.discard()
        if upload.leftover and len(self._leftovers) < MAX_SWEPT:
            self._leftovers[name] = session

    async def _remove_leftovers(self, remote: Remote) -> None:
        """What this store could not remove because its connection was lost."""
        for name in [name for name, session in self._leftovers.items() if session is not remote.session]:
            del self._leftovers[name]
            with suppress(asyncssh.SFTPError):
                await remote.remove(remote.temporary(name))

    async def _close_file(self, remote: Remote, file: asyncssh.SFTPClientFile) -> None:
        with suppress(Unanswered, asyncssh.SFTPError):
            await remote.session.ask(file.close())


async def _clear(remote: Remote, file: asyncssh.SFTPClientFile, *paths: bytes) -> None:
    with suppress(Unanswered, asyncssh.SFTPError):
        await remote.session.ask(file.close())
    for path in paths:
        with suppress(Unanswered, asyncssh.SFTPError):
            await remote.remove(path)


async def _walk(remote: Remote, start: Sequence[str], prefix: str) -> list[ObjectInfo]:
    found: list[ObjectInfo] = []
    waiting: list[list[str]] = [[*start]]
    running: dict[asyncio.Task[list[asyncssh.SFTPName]], list[str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < FOLDERS_AT_ONCE:
                folders = waiting.pop()
                running[asyncio.create_task(remote.names(remote.object(folders)))] = folders
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                folders = running.pop(task)
                with suppress(*ABSENT):  # deleted meanwhile
                    _sort_out(task.result(), folders, prefix, found, waiting)
    finally:
        await end_all([*running])
    return found


def _sort_out(
    entries: Sequence[asyncssh.SFTPName],
    folders: list[str],
    prefix: str,
    found: list[ObjectInfo],
    waiting: list[list[str]],
) -> None:
    """Objects to `found`, folders to `waiting`; whatever no key leads to is left out."""
    for entry in entries:
        try:
            name = raw(entry.filename).decode("ascii")
        except UnicodeDecodeError:
            continue
        if "/" in name or name in {"", ".", ".."}:
            continue
        if is_folder(entry.attrs):
            if may_hold([*folders, name], prefix):
                waiting.append([*folders, name])
        elif is_file(entry.attrs) and entry.attrs.size is not None:
            key = object_key(folders, name)
            if key is not None and key.startswith(prefix):
                found.append(ObjectInfo(key, entry.attrs.size))


@asynccontextmanager
async def open_sftp(context: Context, config: SftpConfig) -> AsyncIterator[SftpStore]:
    """Log in and open the store, making it if the folder is empty. Raises Misconfigured, BackendError."""
    try:
        key = await context.workers.run(
            load_identity, config.identity, context.state_dir, context.entropy.bytes(32), context.device
        )
    except OSError as error:
        raise BackendError(f"{config.where}: this device's key: {error}") from error
    line = Line(context, config, key)
    try:
        store = SftpStore(context, config, line)
        await store.prepare()
        yield store
    finally:
        await line.close()
