"""Calls beside each other on one connection, cancelled calls, slow answers, pauses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from fractal_sftp.line import LONGEST_PAUSE, Session, Unanswered
from fractal_sftp.store import SftpStore
from fractal_sftp.testing import MIB, TIMEOUT, Cable, SshServer, temporaries

from fractal.api.errors import NotFound
from fractal.testing.store import keys, read

Opener = Callable[..., AbstractAsyncContextManager[SftpStore]]


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
