"""What the store does with files on the server, told as BackendErrors.

SFTP 3 has few words: OpenSSH says FAILURE for a name that exists, a full disk and a broken one alike. What it was is found
out by asking again.
"""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Sequence

import asyncssh
from asyncssh.constants import FILEXFER_TYPE_REGULAR, FXF_CREAT, FXF_EXCL, FXF_READ, FXF_WRITE

from fractal.api.errors import BackendError, NotFound
from fractal.api.store_files import MARK, OBJECTS, TEMPORARY
from fractal_sftp.line import Session

MAX_ENTRIES = 1_000_000
"""Names in one folder; more is no store."""
LITTLE_SPACE = 4 << 20
"""Bytes; with less left a write that failed is taken to have failed for it."""

EXISTS = (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists)
"""How servers say that a name exists; FAILURE may mean anything else too."""
ABSENT = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath)
UNSUPPORTED = (asyncssh.SFTPOpUnsupported,)


class Remote:
    """The store's folder as one session sees it."""

    def __init__(self, session: Session, where: str, path: str) -> None:
        self.session = session
        self.where = f"{where}: {path}"
        self._sftp = session.sftp
        self._path = path.encode().rstrip(b"/") or b"/"

    def object(self, folders: Sequence[str], file: str = "") -> bytes:
        """Path of an object's file or folder."""
        return b"/".join(
            [self._path, OBJECTS.encode(), *(name.encode() for name in [*folders, file] if name)]
        )

    def temporary(self, name: str = "") -> bytes:
        """Path of a file being written, or of the folder of these."""
        return b"/".join([self._path, TEMPORARY.encode(), *([name.encode()] if name else [])])

    def top(self, name: str = "") -> bytes:
        """Path of something in the store's folder, or of this itself."""
        return self._path + (b"/" + name.encode() if name else b"")

    async def create(self, path: bytes) -> asyncssh.SFTPClientFile:
        """A new file to write to."""
        attrs = asyncssh.SFTPAttrs(permissions=0o600)
        return await self.session.ask(
            self._sftp.open(path, FXF_WRITE | FXF_CREAT | FXF_EXCL, attrs, encoding=None)
        )

    async def open(self, path: bytes) -> asyncssh.SFTPClientFile:
        """A file to read from; on OpenSSH also a folder, to sync it."""
        return await self.session.ask(self._sftp.open(path, FXF_READ, encoding=None))

    async def look(self, path: bytes) -> asyncssh.SFTPAttrs | None:
        """What is there, not what a link leads to; None if nothing."""
        try:
            return await self.session.ask(self._sftp.lstat(path))
        except ABSENT:
            return None

    async def link(self, old: bytes, new: bytes) -> None:
        """A second name for a file; fails if it exists."""
        await self.session.ask(self._sftp.link(old, new))

    async def rename(self, old: bytes, new: bytes) -> None:
        """The old kind of rename, which most servers refuse if the name exists."""
        await self.session.ask(self._sftp.rename(old, new))

    async def remove(self, path: bytes) -> None:
        """Remove a file."""
        await self.session.ask(self._sftp.remove(path))

    async def remove_folder(self, path: bytes) -> None:
        """Remove an empty folder."""
        await self.session.ask(self._sftp.rmdir(path))

    async def make_folder(self, path: bytes) -> None:
        """Make a folder unless there is something already: whoever uses it next sees what."""
        try:
            await self.session.ask(self._sftp.mkdir(path, asyncssh.SFTPAttrs(permissions=0o700)))
        except EXISTS:
            if await self.look(path) is None:
                raise

    async def sync(self, path: bytes) -> None:
        """Bring a folder's names to disk: OpenSSH opens folders like files. Raises SFTPOpUnsupported where it cannot be done."""
        file = await self.open(path)
        try:
            await self.session.ask(file.fsync())
        finally:
            await self.session.ask(file.close())

    async def names(self, path: bytes) -> list[asyncssh.SFTPName]:
        """What lies in a folder; names are bytes that nobody has checked."""
        return await self.session.ask(self._names(path))

    async def _names(self, path: bytes) -> list[asyncssh.SFTPName]:
        found = []
        async for entry in self._sftp.scandir(path):
            found.append(entry)
            if len(found) % 100 == 0:
                self.session.hear()
            if len(found) > MAX_ENTRIES:
                raise BackendError(f"{self.where}: over {MAX_ENTRIES} names in {path!r}: that is no store")
        return found

    async def read_small(self, path: bytes, limit: int) -> bytes:
        """Up to `limit` bytes of a file."""
        file = await self.open(path)
        try:
            return await self.session.ask(file.read(limit, 0))
        finally:
            await self.session.ask(file.close())

    async def refuse_unmounted(self) -> None:
        """An absent object is no news; an absent store must never look like an empty one."""
        if await self.look(self.top(MARK)) is None:
            raise BackendError(f"{self.where}: there is no store there: is the disk mounted?", retryable=True)

    async def absent(self, key: str) -> NotFound:
        """The error for an object that is not there. Raises what `refuse_unmounted` does."""
        await self.refuse_unmounted()
        return NotFound(f"{self.where}: no object {key}")

    async def explain(self, what: str, error: asyncssh.SFTPError) -> BackendError:
        """What happened, where, and what to do."""
        where, reason = f"{self.where}: {what}", (error.reason or type(error).__name__).rstrip(".")
        if isinstance(error, asyncssh.SFTPPermissionDenied):
            return BackendError(f"{where}: permission denied: check owner and mode of the folder there")
        if isinstance(error, ABSENT):
            return BackendError(f"{where}: it is gone: is the disk mounted there?", retryable=True)
        if (
            isinstance(error, asyncssh.SFTPNoSpaceOnFilesystem | asyncssh.SFTPQuotaExceeded)
            or await self._full()
        ):
            return BackendError(f"{where}: the disk there is full: free some space")
        return BackendError(
            f"{where}: the server says {reason}: look at its disk (dmesg, quota, mounted read-only?)",
            retryable=True,
        )

    async def _full(self) -> bool:
        try:
            found = await self.session.ask(self._sftp.statvfs(self.top()))
        except asyncssh.SFTPError:
            return False
        return found.bavail * found.frsize < LITTLE_SPACE or (found.files > 0 and found.favail == 0)


def is_file(attrs: asyncssh.SFTPAttrs) -> bool:
    """Whether it is a plain file."""
    if attrs.permissions is not None:
        return stat.S_ISREG(attrs.permissions)
    return attrs.type == FILEXFER_TYPE_REGULAR


def is_folder(attrs: asyncssh.SFTPAttrs) -> bool:
    """Whether it is a folder."""
    return attrs.permissions is not None and stat.S_ISDIR(attrs.permissions)


def raw(name: str | bytes) -> bytes:
    """A name as the server said it. The connection was made without an encoding for names, so it is bytes."""
    assert isinstance(name, bytes)
    return name


async def chunks_of(data: bytes | AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `size`, the last one shorter."""
    if isinstance(data, bytes):
        for at in range(0, len(data), size):
            yield data[at : at + size]
        return
    held = bytearray()
    async for chunk in data:
        held += chunk
        at = 0
        while len(held) - at >= size:
            yield bytes(held[at : at + size])
            at += size
        del held[:at]
    if held:
        yield bytes(held)
