"""What goes wrong with a server at the other end of a cable, and between devices that use it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from fractal_sftp.line import Unanswered
from fractal_sftp.remote import Remote
from fractal_sftp.store import SftpStore
from fractal_sftp.testing import MIB, TIMEOUT, Cable, SshServer, eventually, temporaries

from fractal.api.errors import Ambiguous, BackendError, Conflict, NotFound
from fractal.testing.store import keys, read

Opener = Callable[..., AbstractAsyncContextManager[SftpStore]]

BOUND = 4 * TIMEOUT
"""A call's own time-outs, one after the other, and some air."""


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
