"""Processes: started without a shell, bounded, and never left behind."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from fractal.api.errors import BackendError, NotInstalled
from fractal.shell import process
from fractal.shell.process import ProcessRun

run = ProcessRun()
FORKS_AND_HANGS = """
import os, sys, time
child = os.fork()
if child == 0:
    time.sleep(3600)
open(sys.argv[1] + ".new", "w").write(f"{os.getpid()} {child}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(3600)
"""
ESCAPES = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(3600)
time.sleep(3600)
"""


def gone(pid: int) -> bool:
    """Dead, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until_gone(pid: int) -> None:
    while not gone(pid):
        await asyncio.sleep(0.01)


async def until_written(path: Path) -> list[int]:
    while not path.exists() or not path.read_text():
        await asyncio.sleep(0.01)
    return [int(pid) for pid in path.read_text().split()]


async def test_output_status_and_stdin() -> None:
    code = "import sys; print(sys.stdin.read().upper(), end=''); print('oops', file=sys.stderr); sys.exit(3)"
    done = await run([sys.executable, "-c", code], stdin=b"hello" * 100_000, check=False)
    assert (done.returncode, done.stderr) == (3, b"oops\n")
    assert done.stdout == b"HELLO" * 100_000


async def test_a_failure_tells_program_status_and_last_words() -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('no such dataset')"
    with pytest.raises(BackendError, match=r"exit status 1: no such dataset$") as caught:
        await run([sys.executable, "-c", code])
    assert not caught.value.retryable


async def test_nothing_is_interpreted_by_a_shell() -> None:
    done = await run(["echo", "$(id)", ";", "exit 3"])
    assert done.stdout == b"$(id) ; exit 3\n"


async def test_an_absent_program_is_not_installed_and_an_absent_folder_is_not_that(tmp_path: Path) -> None:
    with pytest.raises(NotInstalled, match="no-such-tool"):
        await run(["no-such-tool", "x"])
    with pytest.raises(BackendError, match="cannot be started") as caught:
        await run(["true"], cwd=tmp_path / "absent")
    assert not isinstance(caught.value, NotInstalled)


async def test_env_replaces_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRACTAL_TEST_LEAK", "1")
    done = await run([sys.executable, "-c", "import os; print('FRACTAL_TEST_LEAK' in os.environ)"], env={})
    assert done.stdout == b"False\n"


async def test_closed_stdin_is_the_programs_own_business() -> None:
    done = await run([sys.executable, "-c", "import os; os.close(0); print('fine')"], stdin=b"x" * 1_000_000)
    assert done.stdout == b"fine\n"


async def test_time_out_kills_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(BackendError, match="not finished after") as caught:
        await run([sys.executable, "-c", FORKS_AND_HANGS, pids.as_posix()], timeout=1.5)
    assert caught.value.retryable
    for pid in await until_written(pids):
        await until_gone(pid)


async def test_cancellation_kills_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    task = asyncio.create_task(run([sys.executable, "-c", FORKS_AND_HANGS, pids.as_posix()]))
    found = await until_written(pids)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in found:
        await until_gone(pid)


async def test_a_grandchild_that_keeps_the_pipes_cannot_keep_us(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(BackendError, match="not finished after"):
        await run([sys.executable, "-c", ESCAPES, pids.as_posix()], timeout=1.5)
    (escaped,) = await until_written(pids)
    os.kill(escaped, 9)


async def test_endless_output_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "OUTPUT_LIMIT", 100_000)
    with pytest.raises(BackendError, match="more than 100000 bytes"):
        await run([sys.executable, "-c", "while True: print('y' * 1000)"])
