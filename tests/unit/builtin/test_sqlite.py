"""The sqlite coordination backend beyond its contract: many processes, kills, and files that are not what they should be."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from fractal.api.context import Context
from fractal.api.errors import Ambiguous, BackendError, InvalidInput, Misconfigured, NotFound
from fractal.builtin import sqlite
from fractal.builtin.sqlite import SqliteCoordinator, open_sqlite
from fractal.builtin.sqlite_config import SqliteConfig
from fractal.shell.clock import SystemClock
from fractal.shell.entropy import SystemEntropy
from fractal.shell.process import ProcessRun
from fractal.shell.workers import ThreadWorkers

Open = Callable[..., AbstractAsyncContextManager[SqliteCoordinator]]

WRITER = """
import asyncio, logging, sys
from pathlib import Path
from fractal.api.context import Context
from fractal.builtin import sqlite
from fractal.builtin.sqlite import open_sqlite
from fractal.builtin.sqlite_config import SqliteConfig
from fractal.shell.clock import SystemClock
from fractal.shell.entropy import SystemEntropy
from fractal.shell.process import ProcessRun
from fractal.shell.workers import ThreadWorkers

async def main(path, name, count):
    async with ThreadWorkers(1) as workers:
        folder = Path(path).parent
        context = Context(device=name, state_dir=folder, runtime_dir=folder, logger=logging.getLogger("test"),
            clock=SystemClock(), entropy=SystemEntropy(), workers=workers, run=ProcessRun())
        async with open_sqlite(context, SqliteConfig(path=path, timeout=30.0)) as log:
            for number in range(count):
                await log.append("sqlite#g", f"{name}-{number}", f"{name} {number}".encode())
                print(number, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture
def opener(tmp_path: Path) -> Open:
    """Opens a coordinator on one file of this test, by default as device `a`."""

    @asynccontextmanager
    async def open_one(
        path: Path | None = None, *, device: str = "a", timeout: float = 5.0
    ) -> AsyncIterator[SqliteCoordinator]:
        async with ThreadWorkers() as workers:
            context = Context(
                device=device,
                state_dir=tmp_path,
                runtime_dir=tmp_path,
                logger=logging.getLogger("test"),
                clock=SystemClock(),
                entropy=SystemEntropy(),
                workers=workers,
                run=ProcessRun(),
            )
            path = path or tmp_path / "log.sqlite"
            async with open_sqlite(context, SqliteConfig(path=str(path), timeout=timeout)) as log:
                yield log

    return open_one


@pytest.fixture
def start_writer() -> Iterator[Callable[[Path, str, int], subprocess.Popen[bytes]]]:
    """Starts processes that append; kills what is left of them."""
    running: list[subprocess.Popen[bytes]] = []

    def start(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def read_all(log: SqliteCoordinator, address: str) -> list[bytes]:
    entries: list[bytes] = []
    cursor: str | None = None
    while True:
        page = await log.read(address, cursor, limit=7)
        entries += page.entries
        cursor = page.cursor
        if page.head:
            return entries


async def test_many_processes_share_one_order(
    tmp_path: Path, opener: Open, start_writer: Callable[[Path, str, int], subprocess.Popen[bytes]]
) -> None:
    path = tmp_path / "log.sqlite"
    async with opener() as one, opener(device="b") as two:
        address = await one.create("g", "")
        writers = [start_writer(path, f"w{n}", 25) for n in range(4)]
        live: list[bytes] = []
        cursor = None
        while len(live) < 100:
            page = await two.read(address, cursor, wait=20.0)
            assert page.entries, "a writer is stuck"
            live += page.entries
            cursor = page.cursor
        assert [process.wait(30) for process in writers] == [0] * 4
        replayed = await read_all(one, address)
    assert live == replayed
    for n in range(4):
        mine = [entry for entry in replayed if entry.startswith(b"w%d " % n)]
        assert mine == [b"w%d %d" % (n, i) for i in range(25)]


async def test_second_opening_in_one_process_does_not_drop_the_locks_of_the_first(
    tmp_path: Path, opener: Open, start_writer: Callable[[Path, str, int], subprocess.Popen[bytes]]
) -> None:
    path = tmp_path / "log.sqlite"
    async with opener() as first:
        address = await first.create("g", "")
        async with opener(device="b") as second:
            assert await read_all(first, address) == []
            assert await read_all(second, address) == []
            # Without its locks this process looks gone, and the last process to close removes the write-ahead log.
            assert start_writer(path, "w", 3).wait(30) == 0
            assert path.with_name("log.sqlite-shm").exists()
            assert start_writer(path, "v", 3).wait(30) == 0
            assert len(await read_all(first, address)) == 6
            assert len(await read_all(second, address)) == 6


async def test_killed_writers_lose_nothing_that_was_acknowledged(
    tmp_path: Path, opener: Open, start_writer: Callable[[Path, str, int], subprocess.Popen[bytes]]
) -> None:
    path = tmp_path / "log.sqlite"
    async with opener() as log:
        address = await log.create("g", "")
        acknowledged: dict[str, int] = {}
        for n in range(6):
            writer = start_writer(path, f"w{n}", 100_000)
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.013 * n)  # a different moment of its work each time
            writer.send_signal(signal.SIGKILL)
            acknowledged[f"w{n}"] = len(writer.stdout.readlines()) + 1
            await log.append(address, f"after-{n}", b"x %d" % n)
        entries = await read_all(log, address)
    for name, count in acknowledged.items():
        mine = [entry for entry in entries if entry.startswith(name.encode() + b" ")]
        assert mine == [f"{name} {i}".encode() for i in range(len(mine))]
        assert count <= len(mine) <= count + 1
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


async def test_file_is_private_and_names_stay_out_of_it(tmp_path: Path, opener: Open) -> None:
    async with opener() as log:
        address = await log.create("g", "Canary Group")
        await log.append(address, "t", b"entry")
        assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("log.sqlite*")} == {0o600}
    assert b"Canary" not in (tmp_path / "log.sqlite").read_bytes()


@pytest.mark.parametrize(
    "content",
    [b"not a database at all, but long enough to be looked at" * 100, b"SQLite format 3\0" + b"\xff" * 4096],
)
async def test_file_that_is_no_database(tmp_path: Path, opener: Open, content: bytes) -> None:
    path = tmp_path / "log.sqlite"
    path.write_bytes(content)
    with pytest.raises(BackendError, match="damaged") as caught:
        async with opener():
            pass
    assert str(path) in str(caught.value) and not caught.value.retryable
    assert path.read_bytes() == content


async def test_damaged_pages(tmp_path: Path, opener: Open) -> None:
    path = tmp_path / "log.sqlite"
    async with opener() as log:
        address = await log.create("g", "")
        for n in range(50):
            await log.append(address, f"t{n}", bytes(1000))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    with pytest.raises(BackendError, match="damaged"):
        async with opener() as log:
            await log.read(address, None)


async def test_database_of_another_program(tmp_path: Path, opener: Open) -> None:
    connection = sqlite3.connect(tmp_path / "log.sqlite")
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(BackendError, match="some other program"):
        async with opener():
            pass


async def test_file_of_a_newer_version(tmp_path: Path, opener: Open) -> None:
    async with opener():
        pass
    connection = sqlite3.connect(tmp_path / "log.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(BackendError, match="update this agent"):
        async with opener():
            pass


async def test_full_disk(small_disk: Path, opener: Open) -> None:
    path = small_disk / "log.sqlite"
    async with opener(path) as log:
        address = await log.create("g", "")
        written = 0
        with pytest.raises(BackendError, match=r"free some space|disk below failed") as caught:
            for written in range(100):
                await log.append(address, f"t{written}", bytes([written]) * 10_000)
        entries = await read_all(log, address)
        assert len(entries) == written or isinstance(caught.value, Ambiguous)
        assert entries[:written] == [bytes([n]) * 10_000 for n in range(written)]
        subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
        await log.append(address, f"t{written}", bytes([written]) * 10_000)
        assert len(await read_all(log, address)) == written + 1


async def test_read_only_file_system(small_disk: Path, opener: Open) -> None:
    path = small_disk / "log.sqlite"
    async with opener(path) as log:
        address = await log.create("g", "")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(BackendError, match=r"log\.sqlite"):
        async with opener(path) as log:
            await log.append(address, "t", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
async def test_read_only_file(tmp_path: Path, opener: Open) -> None:
    async with opener():
        pass
    (tmp_path / "log.sqlite").chmod(0o400)
    with pytest.raises(BackendError, match="cannot be opened for writing"):
        async with opener():
            pass


async def test_locked_file_is_given_up_and_cancellable(tmp_path: Path, opener: Open) -> None:
    async with opener(timeout=0.3) as log, opener(timeout=60.0) as patient:
        address = await log.create("g", "")
        holder = sqlite3.connect(tmp_path / "log.sqlite", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendError, match=r"another process held the file for 0\.3 s") as caught:
            await log.append(address, "t", b"x")
        assert caught.value.retryable and not isinstance(caught.value, Ambiguous)
        waiting = asyncio.create_task(patient.append(address, "never", b"x"))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await log.read(address, None)).entries == ()  # readers never wait for a writer
        holder.execute("ROLLBACK")
        holder.close()
        await log.append(address, "t", b"x")
        assert await read_all(log, address) == [b"x"]


async def test_cancelled_long_poll_leaves_the_coordinator_usable(opener: Open) -> None:
    async with opener() as log:
        address = await log.create("g", "")
        poll = asyncio.create_task(log.read(address, None, wait=60.0))
        await asyncio.sleep(0.1)
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll
        await log.append(address, "t", b"x")
        assert await read_all(log, address) == [b"x"]


async def test_file_replaced_while_open(tmp_path: Path, opener: Open) -> None:
    path = tmp_path / "log.sqlite"
    async with opener() as log:
        address = await log.create("g", "")
        path.rename(tmp_path / "moved")
        with pytest.raises(BackendError, match="moved or replaced"):
            await log.read(address, None)
        with pytest.raises(Ambiguous, match="moved or replaced"):
            await log.append(address, "t", b"x")


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_side_file_deleted_while_open(tmp_path: Path, opener: Open, suffix: str) -> None:
    async with opener() as log:
        address = await log.create("g", "")
        await log.append(address, "t", b"x")
        (tmp_path / f"log.sqlite{suffix}").unlink()
        with pytest.raises(BackendError, match="moved or replaced"):
            await log.read(address, None)


async def test_file_put_back_from_a_copy_is_no_silent_rollback(tmp_path: Path, opener: Open) -> None:
    path = tmp_path / "log.sqlite"
    async with opener() as log:
        address = await log.create("g", "")
        await log.append(address, "one", b"1")
    copy = path.read_bytes()
    async with opener() as log:
        await log.append(address, "two", b"2")
        cursor = (await log.read(address, None)).cursor
    path.write_bytes(copy)
    async with opener() as log:
        with pytest.raises(BackendError, match="no longer holds entry 2"):
            await log.read(address, cursor)
        await log.append(address, "other", b"2")  # same place, another entry
        with pytest.raises(BackendError, match="no longer holds entry 2"):
            await log.read(address, cursor)


async def test_pages_are_bounded_in_bytes(opener: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fractal.builtin.sqlite_file.PAGE_BYTES", 2500)
    async with opener() as log:
        address = await log.create("g", "")
        for n in range(5):
            await log.append(address, f"t{n}", bytes([n]) * 1000)
        page = await log.read(address, None)
        assert len(page.entries) == 2 and not page.head
        assert len(await read_all(log, address)) == 5


async def test_waiting_hardly_touches_the_file(opener: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opener() as log:
        address = await log.create("g", "")
        queries: list[str] = []
        log._file._reader.set_trace_callback(queries.append)
        await log.read(address, None, wait=1.2)
        assert sum(query.startswith("BEGIN") for query in queries) <= 5


async def test_messages_to_a_silent_device_are_bounded(opener: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fractal.builtin.sqlite_file.KEPT_MESSAGES", 3)
    async with opener() as log, opener(device="b") as other:
        address = await log.create("g", "")
        for n in range(6):
            await log.signal(address, b"%d" % n, to="b")
        assert [s.payload for s in await other.signals(address)] == [b"3", b"4", b"5"]


@pytest.mark.parametrize(
    "cursor", ["", "x", "1", "1.zz", "-1.00000000", "9" * 30 + ".00000000", "²." + "0" * 8]
)
async def test_cursor_that_is_none(opener: Open, cursor: str) -> None:
    async with opener() as log:
        address = await log.create("g", "")
        with pytest.raises(InvalidInput):
            await log.read(address, cursor)


@pytest.mark.parametrize("address", ["", "sqlite", "memory#g", "sqlite#", "sqlite#a b", "sqlite#../x"])
async def test_address_that_is_none(opener: Open, address: str) -> None:
    async with opener() as log:
        with pytest.raises(InvalidInput):
            await log.join(address)


async def test_unknown_log(opener: Open) -> None:
    async with opener() as log:
        with pytest.raises(NotFound, match="no group other"):
            await log.join("sqlite#other")


async def test_configuration_is_checked(opener: Open) -> None:
    with pytest.raises(Misconfigured, match="not absolute"):
        async with opener(Path("relative.sqlite")):
            pass
    with pytest.raises(Misconfigured, match="timeout"):
        async with opener(timeout=0.0):
            pass


async def test_what_comes_after_a_long_quiet_is_read_within_the_same_poll(
    opener: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also once the file is no longer queried without a new stamp."""
    monkeypatch.setattr(sqlite, "QUIET", 0.0)
    async with opener() as reader, opener(device="b") as writer:
        address = await writer.create("g", "Family")
        await writer.append(address, "t-0", b"zero")
        first = await reader.read(address, None)
        poll = asyncio.create_task(reader.read(address, first.cursor, wait=60.0))
        await asyncio.sleep(2 * sqlite.LOOK_INSIDE + sqlite.LOOK_QUIET)
        assert not poll.done()
        await writer.append(address, "t-1", b"one")
        # Before its end, at which it would query in any case.
        async with asyncio.timeout(30.0):
            assert (await poll).entries == (b"one",)
