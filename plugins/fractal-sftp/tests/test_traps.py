"""What goes wrong with a server at the other end of a cable."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from fractal_sftp.line import LONGEST_PAUSE, Session, Unanswered
from fractal_sftp.remote import Remote
from fractal_sftp.store import SftpStore, open_sftp
from fractal_sftp.testing import TIMEOUT, Cable, SshServer

from fractal.api.errors import Ambiguous, BackendError, Conflict, Misconfigured, NotFound, NotSupported
from fractal.testing.context import real_context
from fractal.testing.store import keys, read

Opener = Callable[..., AbstractAsyncContextManager[SftpStore]]

BOUND = 4 * TIMEOUT
"""A call's own time-outs, one after the other, and some air."""
MIB = 1 << 20


def temporaries(path: Path) -> list[str]:
    """What is being written, or was left."""
    return sorted(file.name for file in (path / "tmp").iterdir())


async def eventually(store: SftpStore, key: str) -> bytes:
    """Read until it works, as a caller does with retryable errors."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await read(store, key)
            except BackendError as error:
                assert error.retryable
                await asyncio.sleep(0.1)


async def test_a_pulled_cable_fails_calls_in_time_and_they_work_again_after(
    own_server: SshServer, own_cable: Cable, tmp_path: Path, opener: Opener
) -> None:
    path = tmp_path / "disk" / "store"

    async def listing(store: SftpStore) -> None:
        await keys(store)

    async with opener(own_server, path) as store:
        await store.put_new("a/1", b"one")
        own_cable.pull()
        for call in (
            store.put_new("a/2", b"two"),
            store.head("a/1"),
            read(store, "a/1"),
            listing(store),
            store.delete("a/1"),
        ):
            async with asyncio.timeout(
                BOUND + 30
            ):  # the assertion is that it ends by itself, with the right error
                with pytest.raises(BackendError) as caught:
                    await call
            assert caught.value.retryable
            assert not isinstance(caught.value, NotFound | Conflict)
        own_cable.put_back()
        assert await eventually(store, "a/1") == b"one"
        await store.put_new("a/3", b"three")
        assert "a/3" in await keys(store)


async def test_a_call_under_way_ends_when_the_cable_is_pulled(
    own_server: SshServer, own_cable: Cable, tmp_path: Path, opener: Opener
) -> None:
    path = tmp_path / "disk" / "store"

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield os.urandom(MIB)

    async with opener(own_server, path) as store:
        put = asyncio.create_task(store.put_new("a/1", endless()))
        async with asyncio.timeout(60):
            while not [name for name in temporaries(path) if (path / "tmp" / name).stat().st_size > MIB]:
                await asyncio.sleep(0.05)
        own_cable.pull()
        async with asyncio.timeout(BOUND + 30):
            with pytest.raises(Unanswered):
                await put
        own_cable.put_back()
        # Its name was never given to anybody, and what is left of it goes with the next upload.
        await store_again(store, "a/1")
        assert await keys(store) == ["a/1"]
        assert temporaries(path) == []


async def store_again(store: SftpStore, key: str) -> None:
    """Put until the connection is there again."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await store.put_new(key, b"again")
            except Unanswered:
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("hang", [False, True])
async def test_a_server_that_dies_or_hangs(
    own_server: SshServer, tmp_path: Path, opener: Opener, hang: bool
) -> None:
    async with opener(own_server, tmp_path / "disk" / "store") as store:
        await store.put_new("a/1", b"one")
        pids = own_server.pids()
        if hang:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        else:
            own_server.stop()
        try:
            async with asyncio.timeout(BOUND + 30):
                with pytest.raises(BackendError) as caught:
                    while True:  # the first may be quicker than the news
                        await store.head("a/1")
            assert caught.value.retryable
        finally:
            if hang:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            else:
                own_server.start()
        assert await eventually(store, "a/1") == b"one"


async def test_a_cable_pulled_after_the_name_was_asked_for_is_ambiguous(
    own_server: SshServer, own_cable: Cable, tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk" / "store"
    link = Remote.link

    async def link_and_pull(remote: Remote, old: bytes, new: bytes) -> None:
        await link(remote, old, new)
        own_cable.pull()

    async with opener(own_server, path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Remote, "link", link_and_pull)
            async with asyncio.timeout(BOUND + 30):
                with pytest.raises(Ambiguous):
                    await store.put_new("a/1", b"mine")
        own_cable.put_back()
        # What the caller of an ambiguous create does: repeat it, and read back what is there.
        assert await eventually(store, "a/1") == b"mine"
        with pytest.raises(Conflict):
            await store.put_new("a/1", b"mine")
        await store.put_new("a/2", b"")
        assert temporaries(path) == []


async def test_a_cable_pulled_before_the_answer_to_the_name_is_ambiguous_too(
    own_server: SshServer, own_cable: Cable, tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Remote.link

    async def pull_and_link(remote: Remote, old: bytes, new: bytes) -> None:
        own_cable.pull()
        await link(remote, old, new)

    async with opener(own_server, tmp_path / "disk" / "store") as store:
        with monkeypatch.context() as patch:
            patch.setattr(Remote, "link", pull_and_link)
            with pytest.raises(Ambiguous):
                await store.put_new("a/1", b"mine")
        own_cable.put_back()
        async with asyncio.timeout(60):
            while True:
                try:
                    await store.put_new("a/1", b"mine")
                except Conflict:  # the request got through in the end
                    break
                except Unanswered:
                    await asyncio.sleep(0.1)
                else:
                    break
        assert await read(store, "a/1") == b"mine"


async def test_of_devices_that_race_one_wins(server: SshServer, tmp_path: Path, opener: Opener) -> None:
    path = tmp_path / "store"
    async with opener(server, path) as one, opener(server, path) as two, opener(server, path) as three:
        stores = {b"one": one, b"two": two, b"three": three}
        for number in range(10):
            puts = [store.put_new(f"epoch/{number}", mine) for mine, store in stores.items()]
            results = await asyncio.gather(*puts, return_exceptions=True)
            winners = [mine for mine, result in zip(stores, results, strict=True) if result is None]
            assert [type(r) for r in results if r is not None] == [Conflict, Conflict]
            assert [await read(s, f"epoch/{number}") for s in stores.values()] == winners * 3
        assert temporaries(path) == []


async def test_what_a_dead_upload_left_goes_after_an_hour(
    server: SshServer, tmp_path: Path, opener: Opener
) -> None:
    path = tmp_path / "store"
    async with opener(server, path):
        pass
    old, young = path / "tmp" / ("a" * 32), path / "tmp" / ("b" * 32)
    for file in (old, young):
        file.write_bytes(b"half")
    past = old.stat().st_mtime - 3700
    os.utime(old, (past, past))
    async with opener(server, path) as store:
        assert temporaries(path) == [young.name]
        assert await keys(store) == []


async def test_names_that_no_key_has_are_ignored(server: SshServer, tmp_path: Path, opener: Opener) -> None:
    path = tmp_path / "store"
    async with opener(server, path) as store:
        await store.put_new("a/1", b"one")
        objects = path / "objects"
        (objects / "a" / "2").write_bytes(b"no = at the end")
        (objects / "a" / "B=").write_bytes(b"capital")
        (objects / "a" / "...=").write_bytes(b"allowed, if odd")
        (objects / "a" / "+3=").write_bytes(b"aliases")
        (objects / "a" / "x+").mkdir()
        (objects / "a" / "x+" / "+y=").write_bytes(b"too short to be in two pieces")
        (objects / "a" / "link=").symlink_to(objects / "a" / "1=")
        (objects / "loop").symlink_to(objects)
        os.mkfifo(objects / "a" / "fifo=")
        Path(os.fsdecode(bytes(objects) + b"/\xff\xfe=")).write_bytes(b"no text")
        Path(os.fsdecode(bytes(objects) + b"/new\nline=")).write_bytes(b"")
        deep = objects
        for _ in range(210):
            deep /= "d"
            deep.mkdir()
        (deep / "1=").write_bytes(b"too deep")
        assert await keys(store) == ["a/...", "a/1"]
        with pytest.raises(BackendError, match="not a plain file"):
            await store.head("a/fifo")


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


async def test_a_create_that_is_cancelled_leaves_no_file(
    server: SshServer, tmp_path: Path, opener: Opener
) -> None:
    path = tmp_path / "store"
    async with opener(server, path) as store:
        for _ in range(5):
            begun = asyncio.Event()
            put = asyncio.create_task(store.put_new("a/1", _then_wait(begun)))
            await begun.wait()
            put.cancel()
            await asyncio.wait([put], timeout=30)
            assert put.cancelled()
        assert temporaries(path) == []


async def _then_wait(begun: asyncio.Event) -> AsyncIterator[bytes]:
    yield b"x" * MIB
    begun.set()
    await asyncio.Event().wait()


async def test_uploads_and_downloads_run_beside_each_other(
    server: SshServer, tmp_path: Path, opener: Opener
) -> None:
    async with opener(server, tmp_path / "store", timeout=30.0) as store:
        data = [os.urandom(4 * MIB + number) for number in range(6)]
        await asyncio.gather(*(store.put_new(f"a/{number}", one) for number, one in enumerate(data)))
        assert await asyncio.gather(*(read(store, f"a/{number}") for number in range(6))) == data
        assert server.log.count("Accepted publickey") >= 1


async def test_callers_share_one_connection(own_server: SshServer, tmp_path: Path, opener: Opener) -> None:
    async with opener(own_server, tmp_path / "disk" / "store") as store:
        await asyncio.gather(*(store.put_new(f"a/{number}", b"") for number in range(40)))
        assert len(await keys(store)) == 40
    assert own_server.log.count("Accepted publickey") == 1


async def test_a_slow_answer_is_waited_for_while_others_arrive(
    server: SshServer, tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow uplink one block waits for those before it, for longer than the time-out."""
    async with opener(server, tmp_path / "store", timeout=1.0) as store:
        session: Session = await store._line.session()

        async def slow() -> str:
            await asyncio.sleep(3.0)
            return "there"

        async def chatter() -> None:
            while True:
                await store.head("a")
                await asyncio.sleep(0.2)

        await store.put_new("a", b"")
        talk = asyncio.create_task(chatter())
        try:
            assert await session.ask(slow()) == "there"
        finally:
            talk.cancel()
            await asyncio.wait([talk])
        with pytest.raises(Unanswered):
            await session.ask(slow())
        assert not session.alive


async def test_attempts_to_connect_have_pauses_with_a_bound(
    own_server: SshServer, own_cable: Cable, tmp_path: Path, opener: Opener
) -> None:
    async with opener(own_server, tmp_path / "disk" / "store", connect_timeout=TIMEOUT) as store:
        own_cable.pull()
        for _ in range(6):
            with pytest.raises(Unanswered):
                await store.head("a")
        line = store._line
        pause = line._not_before - line._context.clock.boottime()
        assert 1.0 < pause <= LONGEST_PAUSE
        own_cable.put_back()
        with pytest.raises(NotFound):
            await store.head("a")
        assert line._failures == 0
