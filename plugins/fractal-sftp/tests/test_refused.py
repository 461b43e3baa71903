"""What a server, its disk or its keys refuse: each is told, with what to do."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from fractal_sftp.line import Unanswered
from fractal_sftp.store import SftpStore, open_sftp
from fractal_sftp.testing import MIB, Cable, SshServer, temporaries

from fractal.api.errors import BackendError, Conflict, Misconfigured, NotFound, NotSupported
from fractal.testing.context import real_context
from fractal.testing.store import keys, read

Opener = Callable[..., AbstractAsyncContextManager[SftpStore]]


@pytest.fixture
def small_disk(tmp_path: Path, sshd: None) -> Iterator[Path]:
    """8 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", str(path)], check=True, timeout=60
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=60)


async def test_a_full_disk_is_told_and_leaves_nothing(
    server: SshServer, small_disk: Path, opener: Opener
) -> None:
    async with opener(server, small_disk / "store") as store:
        await store.put_new("a/1", b"x" * MIB)
        with pytest.raises(BackendError, match="full") as caught:
            await store.put_new("a/2", b"x" * (16 * MIB))
        assert not caught.value.retryable
        assert await keys(store) == ["a/1"]
        assert temporaries(small_disk / "store") == []
        await store.put_new("a/3", b"x" * MIB)


async def test_a_disk_that_is_not_mounted_is_no_empty_store(
    server: SshServer, tmp_path: Path, opener: Opener
) -> None:
    path = tmp_path / "store"
    async with opener(server, path) as store:
        await store.put_new("a/1", b"one")
        path.rename(tmp_path / "unmounted")
        for call in (
            keys(store),
            read(store, "a/1"),
            store.head("a/1"),
            store.delete("a/1"),
            store.put_new("b", b""),
        ):
            with pytest.raises(BackendError, match=r"is the disk mounted") as caught:
                await call
            assert caught.value.retryable
            assert not isinstance(caught.value, NotFound)


async def test_a_folder_of_somebody_else_is_left_alone(
    server: SshServer, tmp_path: Path, opener: Opener
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    with pytest.raises(Misconfigured, match=r"^path: .*not empty"):
        async with opener(server, tmp_path / "photos"):
            pass
    with pytest.raises(BackendError, match="is the disk mounted"):
        async with opener(server, tmp_path / "nowhere" / "store"):
            pass
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["1.jpg"]


async def test_permission_denied(server: SshServer, opener: Opener, tmp_path: Path, nobodys: Path) -> None:
    async with opener(server, nobodys / "store", user="nobody") as store:
        await store.put_new("a/1", b"one")
        (nobodys / "store" / "objects").chmod(0o500)
        with pytest.raises(BackendError, match="permission denied"):
            await store.put_new("b/1", b"two")
        (nobodys / "store" / "objects" / "a").chmod(0o500)
        with pytest.raises(NotSupported, match="lets nobody delete"):
            await store.delete("a/1")
        (nobodys / "store" / "objects" / "a").chmod(0)
        with pytest.raises(BackendError, match="permission denied"):
            await read(store, "a/1")
        with pytest.raises(BackendError, match="permission denied"):
            await keys(store)
        (nobodys / "store" / "objects" / "a").chmod(0o700)
        assert temporaries(nobodys / "store") == []
    nobodys.chmod(0o500)
    with pytest.raises(BackendError, match="permission denied"):
        async with opener(server, nobodys / "other", user="nobody"):
            pass


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A folder of an account that is not root, where it can get at it."""
    path = Path(tempfile.mkdtemp(prefix="fractal-sftp-"))
    try:
        os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        yield path
    finally:
        shutil.rmtree(path)


async def test_an_unknown_host_key_is_shown_and_trusted_only_once_it_is_pinned(
    server: SshServer, tmp_path: Path, opener: Opener
) -> None:
    with pytest.raises(Misconfigured) as caught:
        async with opener(server, tmp_path / "store", fingerprint=""):
            pass
    assert caught.value.key == "fingerprint"
    assert f"fingerprint={server.fingerprint}" in str(caught.value)
    assert "ssh-ed25519 AAAA" in str(caught.value)
    assert not (tmp_path / "store").exists()
    async with opener(server, tmp_path / "store") as store:
        await store.put_new("a", b"")


async def test_a_changed_host_key_is_refused_also_when_connected_anew(
    own_server: SshServer, tmp_path: Path, opener: Opener
) -> None:
    path = tmp_path / "disk" / "store"
    async with opener(own_server, path) as store:
        await store.put_new("a/1", b"one")
        pinned = own_server.fingerprint
        own_server.stop()
        own_server.make_host_key()
        own_server.start()
        with pytest.raises(Misconfigured) as caught:
            async with asyncio.timeout(60):
                while True:
                    try:
                        await store.put_new("a/2", b"secret")
                    except Unanswered:  # of the old connection
                        continue
        assert pinned in str(caught.value)
        assert own_server.fingerprint in str(caught.value)
        assert not caught.value.retryable
        assert "Accepted publickey" not in own_server.log.rpartition("Server listening")[2]


async def test_a_device_that_is_not_let_in_learns_the_line_that_lets_it_in(
    own_server: SshServer, tmp_path: Path
) -> None:
    path = tmp_path / "disk" / "store"
    async with real_context(tmp_path / "new", device="new") as context:
        for _ in range(2):
            with pytest.raises(Misconfigured, match=r"^user: .*authorized_keys") as caught:
                async with open_sftp(context, own_server.settings(path)):
                    pass
        line = "ssh-ed25519 " + str(caught.value).partition(": ssh-ed25519 ")[2]
        own_server.let_in(line)  # the same as the first time: the key stays
        async with open_sftp(context, own_server.settings(path)) as store:
            await store.put_new("a", b"")
        (key,) = list(context.state_dir.iterdir())
        assert (key.stat().st_mode & 0o777, b"PRIVATE KEY" in key.read_bytes()) == (0o600, True)
        assert line.split()[1] not in str(path)


async def test_a_private_key_that_others_may_read_is_not_used(server: SshServer, tmp_path: Path) -> None:
    server.let_in_device(tmp_path / "own", "own")
    key = tmp_path / "own" / "id_ed25519"
    locked, junk = tmp_path / "locked", tmp_path / "junk"
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "secret", "-f", locked], check=True, timeout=60)
    junk.write_bytes(b"\xffjunk")
    junk.chmod(0o600)
    async with real_context(tmp_path / "device") as context:
        async with open_sftp(context, server.settings(tmp_path / "store", identity=key)) as store:
            await store.put_new("a", b"")
        assert list(context.state_dir.iterdir()) == []
        key.chmod(0o640)
        for wrong in (key, locked, junk, tmp_path / "absent", tmp_path):
            with pytest.raises(Misconfigured) as caught:
                async with open_sftp(context, server.settings(tmp_path / "store", identity=wrong)):
                    pass
            assert (caught.value.key, str(wrong) in str(caught.value)) == ("identity", True)


async def test_a_server_that_lets_nothing_be_deleted_keeps_everything(
    own_cable: Cable, tmp_path: Path, opener: Opener
) -> None:
    server = SshServer(
        tmp_path / "sshd",
        root=tmp_path / "disk",
        address=own_cable.address,
        enter=own_cable.enter,
        denied=["remove", "rmdir", "rename", "posix-rename", "setstat", "fsetstat"],
    )
    with server:
        async with opener(server, tmp_path / "disk" / "store") as store:
            assert store.fencing
            await store.put_new("a/1", b"one")
            with pytest.raises(Conflict):
                await store.put_new("a/1", b"two")
            with pytest.raises(NotSupported):
                await store.delete("a/1")
            assert await keys(store) == ["a/1"]


async def test_a_server_without_sftp_says_so(own_cable: Cable, tmp_path: Path, opener: Opener) -> None:
    server = SshServer(
        tmp_path / "sshd", root=tmp_path / "disk", address=own_cable.address, enter=own_cable.enter
    )
    config = server._config

    def without() -> str:
        return "\n".join(line for line in config().splitlines() if "internal-sftp" not in line) + "\n"

    server._config = without  # type: ignore[method-assign]
    with server, pytest.raises(BackendError, match="there is no SFTP"):
        async with opener(server, tmp_path / "disk" / "store"):
            pass
