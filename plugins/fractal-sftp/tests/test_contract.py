"""The contract of stores over a real sshd in a namespace of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from fractal_sftp.store import SftpStore
from fractal_sftp.testing import SshServer, free_port

from fractal.api.errors import NotFound
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.testing.context import real_context
from fractal.testing.store import StoreContract, keys, read

PATIENT = {"timeout": 30.0, "connect_timeout": 30.0}
Opener = Callable[..., AbstractAsyncContextManager[SftpStore]]
Peek = Callable[[str], Awaitable[bytes | None]]


class _OnServer(StoreContract):
    """Everything that a store must do, on the server of the fixture `kept_by`."""

    @pytest.fixture
    def kept_by(self, server: SshServer) -> SshServer:
        """The server that tests share."""
        return server

    @pytest.fixture
    async def backend(self, kept_by: SshServer, tmp_path: Path, opener: Opener) -> AsyncIterator[SftpStore]:
        """An empty store."""
        async with opener(kept_by, tmp_path / "store", **PATIENT) as opened:
            yield opened

    @pytest.fixture
    async def second(
        self, backend: SftpStore, kept_by: SshServer, tmp_path: Path, opener: Opener
    ) -> AsyncIterator[SftpStore]:
        """Another device's."""
        async with opener(kept_by, tmp_path / "store", **PATIENT) as opened:
            yield opened

    @pytest.fixture
    def peek(self, tmp_path: Path) -> Peek:
        """Reads the server's disk as a `directory` store, which has the same layout."""

        async def kept(key: str) -> bytes | None:
            async with (
                real_context(tmp_path / "beside") as context,
                open_directory(context, DirectoryConfig(path=tmp_path / "store")) as directory,
            ):
                try:
                    return await read(directory, key)
                except NotFound:
                    return None

        return kept


class TestSftp(_OnServer):
    """On OpenSSH as it is."""


class TestWithoutHardLinks(_OnServer):
    """A server that lacks them keeps objects all the same, and promises less."""

    @pytest.fixture
    def kept_by(self, sshd: None, tmp_path: Path) -> Iterator[SshServer]:
        """Such a server."""
        made = SshServer(tmp_path / "sshd", root=tmp_path / "disk", port=free_port(), denied=["hardlink"])
        with made:
            yield made

    async def test_it_says_so(self, backend: SftpStore) -> None:
        assert not backend.fencing
        assert "hard links" in backend.weakness


async def test_a_directory_store_can_be_served_and_the_other_way_round(
    server: SshServer, tmp_path: Path, opener: Opener
) -> None:
    long = "g/" + "x" * 300 + "/1"
    async with (
        real_context(tmp_path / "beside") as context,
        open_directory(context, DirectoryConfig(path=tmp_path / "store")) as directory,
    ):
        await directory.put_new(long, b"from the disk")
        async with opener(server, tmp_path / "store") as store:
            assert await read(store, long) == b"from the disk"
            await store.put_new("g/2", b"from afar")
            assert await keys(store) == await keys(directory) == ["g/2", long]
        assert await read(directory, "g/2") == b"from afar"
