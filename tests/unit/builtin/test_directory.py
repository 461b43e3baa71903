"""The `directory` store where the contract cannot look: kills, races of processes, full disks, planted links."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fractal.api.errors import BackendError, Conflict, Misconfigured, NotFound
from fractal.api.store_files import TEMPORARY
from fractal.builtin import directory_files
from fractal.builtin.directory import DirectoryStore, open_directory, probe_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.testing.context import real_context
from fractal.testing.store import keys, read

WRITER = """
import asyncio, hashlib, sys
from pathlib import Path
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.testing.context import real_context
from fractal.api.errors import Conflict

async def chunks(seed):
    for number in range(8):
        yield hashlib.sha256(b"%s/%d" % (seed, number)).digest() * 2048

async def main(folder, path, mark, first):
    async with real_context(Path(folder)) as context, open_directory(context, DirectoryConfig(path=Path(path))) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(first, first + 100000):
            try:
                await store.put_new(f"race/{number}", chunks(mark.encode()))
                print("won", number, flush=True)
            except Conflict:
                print("lost", number, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
"""


def whole(mark: str) -> bytes:
    """What a writer with this mark puts into each object."""
    return b"".join(hashlib.sha256(b"%s/%d" % (mark.encode(), number)).digest() * 2048 for number in range(8))


@contextmanager
def writers(
    folder: Path, store: Path, marks: list[str], first: int = 0
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that create `race/<first>` and so on as fast as they can, from the same moment; killed in the end."""
    started = []
    try:
        for mark in marks:
            argv = [sys.executable, "-c", WRITER, str(folder / mark), str(store), mark, str(first)]
            pipe = subprocess.PIPE
            root = Path(__file__).parents[3]
            started.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, cwd=root))
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate(timeout=30)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DirectoryStore]:
    config = DirectoryConfig(path=tmp_path / "store")
    async with real_context(tmp_path / "context") as context, open_directory(context, config) as opened:
        yield opened


async def test_a_killed_writer_leaves_nothing_half_written(store: DirectoryStore, tmp_path: Path) -> None:
    chance = random.Random(20240607)
    for attempt in range(6):
        with writers(tmp_path, tmp_path / "store", [f"w{attempt}"], first=attempt * 100_000) as (process,):
            time.sleep(chance.uniform(0.0, 0.08))
            os.kill(process.pid, signal.SIGKILL)
            out, _ = process.communicate(timeout=30)
        whole_lines = out.split("\n")[:-1]  # the kill may fall into the middle of one
        won = {f"race/{line.split()[1]}" for line in whole_lines if line.startswith("won")}
        mine = [key for key in await keys(store, "race/") if int(key.split("/")[1]) // 100_000 == attempt]
        assert won <= set(mine), "what was acknowledged is there"
        for key in mine:
            assert await read(store, key) == whole(f"w{attempt}")


async def test_of_many_processes_one_wins_each_create(store: DirectoryStore, tmp_path: Path) -> None:
    marks = ["a", "b", "c", "d"]
    with writers(tmp_path, tmp_path / "store", marks) as processes:
        outputs = []
        for process in processes:
            assert process.stdout is not None
            outputs.append([process.stdout.readline().split() for _ in range(12)])
    for number in range(12):
        winners = [mark for mark, lines in zip(marks, outputs, strict=True) if ["won", str(number)] in lines]
        assert len(winners) == 1
        assert await read(store, f"race/{number}") == whole(winners[0])


async def test_leftovers_are_swept_once_they_are_old_and_orphaned(tmp_path: Path) -> None:
    config = DirectoryConfig(path=tmp_path / "store")
    temporary = tmp_path / "store" / "tmp"
    async with real_context(tmp_path / "context") as context, open_directory(context, config) as store:
        begun = asyncio.Event()
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"slow"
            begun.set()
            await go_on.wait()

        put = asyncio.create_task(store.put_new("slow", slow()))
        await asyncio.wait_for(begun.wait(), 30)
        (living,) = temporary.iterdir()
        (temporary / "fresh").write_bytes(b"fresh")
        (temporary / "stale").write_bytes(b"stale")
        for name in (living.name, "stale"):
            os.utime(temporary / name, (1, 1))
        async with open_directory(context, config):
            assert {path.name for path in temporary.iterdir()} == {living.name, "fresh"}
        go_on.set()
        await put
        assert await keys(store) == ["slow"]
        assert await read(store, "slow") == b"slow"


async def test_a_delete_beside_creates_loses_nothing(store: DirectoryStore) -> None:
    async def churn(name: str) -> None:
        for _ in range(30):
            await store.put_new(f"deep/er/folder/{name}", b"x")
            assert await read(store, f"deep/er/folder/{name}") == b"x"
            await store.delete(f"deep/er/folder/{name}")

    await asyncio.gather(*(churn(f"n{number}") for number in range(4)))
    assert await keys(store) == []


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as path:
        config = DirectoryConfig(path=path / "store")
        async with real_context(tmp_path / "context") as context, open_directory(context, config) as store:
            with pytest.raises(BackendError, match=r"a/big.*free some space") as caught:
                await store.put_new("a/big", b"x" * (8 << 20))
            assert not caught.value.retryable
            assert await keys(store) == []
            assert list((path / "store" / "tmp").iterdir()) == []
            await store.put_new("a/small", b"x")
            assert await read(store, "a/small") == b"x"


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(argv, check=False, capture_output=True).returncode != 0:
        pytest.skip(
            "mounting a small file system needs root; test_a_size_limit_is_told covers the error path"
        )
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


async def test_a_size_limit_is_told_and_leaves_nothing(store: DirectoryStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(BackendError, match=r"a/big.*larger than"):
            await store.put_new("a/big", b"x" * (2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert await keys(store) == []
    await store.put_new("a/big", b"x")


async def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    async with real_context(tmp_path / "context") as context:
        with unwritable(folder), pytest.raises(BackendError, match=r"locked.*check owner and mode"):
            async with open_directory(context, DirectoryConfig(path=folder)):
                pass
        async with open_directory(context, DirectoryConfig(path=folder)) as store:
            with unwritable(folder / "tmp"), pytest.raises(BackendError, match=r"a/b.*check owner and mode"):
                await store.put_new("a/b", b"x")
            assert await keys(store) == []


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """A folder that we may not write: no mode stops root, but the immutable flag does."""
    if os.geteuid() != 0:
        path.chmod(0o500)
    elif subprocess.run(["chattr", "+i", str(path)], check=False, capture_output=True).returncode != 0:
        pytest.skip("root can write everywhere here, and the file system has no immutable flag")
    try:
        yield
    finally:
        if os.geteuid() != 0:
            path.chmod(0o700)
        else:
            subprocess.run(["chattr", "-i", str(path)], check=True)


async def test_an_absent_store_is_never_an_empty_one(store: DirectoryStore, tmp_path: Path) -> None:
    await store.put_new("a", b"x")
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").mkdir()
    for call in (keys(store), read(store, "a"), store.head("a"), store.delete("a"), store.put_new("b", b"")):
        with pytest.raises(BackendError, match="mounted") as caught:
            await call
        assert not isinstance(caught.value, NotFound | Conflict)
        assert caught.value.retryable


async def test_links_planted_in_the_store_lead_nowhere(store: DirectoryStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret=").write_bytes(b"secret")
    objects = tmp_path / "store" / "objects"
    await store.put_new("good/1", b"good")
    (objects / "folder").symlink_to(outside)
    (objects / "good" / "secret=").symlink_to(outside / "secret=")
    os.mkfifo(objects / "good" / "pipe=")
    (objects / "good" / "Thumbs.db").write_bytes(b"foreign")
    assert await keys(store) == ["good/1"]
    for key in ("folder/secret", "good/secret", "good/pipe"):
        with pytest.raises(BackendError) as caught:
            await read(store, key)
        assert not isinstance(caught.value, NotFound), key
    with pytest.raises(BackendError):
        await store.put_new("folder/new", b"escaped")
    with pytest.raises(Conflict):
        await store.put_new("good/secret", b"escaped")
    with pytest.raises(BackendError):
        await store.delete("folder/secret")
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"secret=": b"secret"}


async def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    async with real_context(tmp_path / "context") as context:
        with pytest.raises(Misconfigured, match=r"path: .*not empty"):
            async with open_directory(context, DirectoryConfig(path=tmp_path)):
                pass
        (tmp_path / "newer").mkdir()
        (tmp_path / "newer" / "store").write_bytes(b"fractal directory store 2\n")
        (tmp_path / "newer" / "tmp").mkdir()
        with pytest.raises(Misconfigured, match="another version"):
            async with open_directory(context, DirectoryConfig(path=tmp_path / "newer")):
                pass
        with pytest.raises(Misconfigured, match="absolute"):
            async with open_directory(context, DirectoryConfig(path=Path("relative"))):
                pass


async def test_the_probe_tells_without_touching(tmp_path: Path) -> None:
    assert (await probe_directory(DirectoryConfig(path=tmp_path / "store"))).ready
    assert not (tmp_path / "store").exists()
    missing = await probe_directory(DirectoryConfig(path=tmp_path / "no" / "store"))
    assert not missing.ready
    assert "does not exist" in missing.detail


async def test_a_sweep_takes_nothing_that_is_just_being_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool's file may be older than what a sweep lets be, and has its name in the store before anything else is done with it."""
    source, swept = tmp_path / "spooled", list[str]()
    source.write_bytes(b"sealed")
    os.utime(source, (0, 0))
    linked = directory_files._linked

    def beside(*given: Any, **named: Any) -> bool:
        done = linked(*given, **named)
        swept.extend(directory_files.sweep(tmp_path / "store", int(time.time()) + 3600))
        return done

    async with real_context(tmp_path) as context:
        config = DirectoryConfig(path=tmp_path / "store")
        async with open_directory(context, config) as store:
            monkeypatch.setattr(directory_files, "_linked", beside)
            assert await store.adopt("app/0", source)
            assert swept == [] and await read(store, "app/0") == b"sealed"
            monkeypatch.undo()
            left = tmp_path / "store" / TEMPORARY / "left"
            os.link(source, left)
            assert directory_files.sweep(config.path, 3600) == ["left"], "its writer is gone"
            assert source.read_bytes() == b"sealed"
