"""The real clock, randomness, workers, folders, lock and supervisor socket."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fractal.api.errors import ExitCode, FractalError
from fractal.shell.clock import SystemClock
from fractal.shell.entropy import SystemEntropy
from fractal.shell.folders import private_folder
from fractal.shell.lock import AlreadyRunning, state_lock
from fractal.shell.notify import Notifier
from fractal.shell.workers import ThreadWorkers

HOLD_LOCK = """
import pathlib, sys
from fractal.shell.lock import state_lock
with state_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


async def test_the_clock_is_the_one_that_goes_on_while_the_machine_sleeps() -> None:
    clock = SystemClock()
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= clock.boottime() <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert abs(clock.wall_ms() - time.time() * 1000) < 60_000


async def test_sleep_is_never_short_and_can_be_cancelled() -> None:
    clock = SystemClock()
    start = clock.boottime()
    await clock.sleep(0.02)
    assert clock.boottime() - start >= 0.02
    task = asyncio.create_task(clock.sleep(3600))
    await clock.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_entropy_gives_what_was_asked_and_never_the_same() -> None:
    entropy = SystemEntropy()
    assert len(entropy.bytes(32)) == 32
    assert entropy.bytes(16) != entropy.bytes(16)
    assert 2.0 <= entropy.uniform(2.0, 3.0) <= 3.0


async def test_workers_run_off_the_loop_and_hand_exceptions_back() -> None:
    async with ThreadWorkers(threads=1) as workers:
        assert await workers.run(threading.get_ident) != threading.get_ident()
        assert await workers.run(pow, 2, 5) == 32
        with pytest.raises(ZeroDivisionError):
            await workers.run(divmod, 1, 0)


async def test_a_worker_that_lets_stop_iteration_escape_does_not_hang_its_caller() -> None:
    async with ThreadWorkers(threads=1) as workers:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await workers.run(next, iter(()))


async def test_leaving_the_pool_drops_what_has_not_begun() -> None:
    begun, go_on = threading.Event(), threading.Event()
    ran: list[int] = []

    def block() -> None:
        begun.set()
        go_on.wait()

    async with ThreadWorkers(threads=1) as workers:
        first = asyncio.create_task(workers.run(block))
        second = asyncio.create_task(workers.run(ran.append, 1))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        closing = asyncio.get_running_loop().call_later(0.02, go_on.set)
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    assert ran == []
    assert not closing.cancelled()


def test_a_private_folder_is_closed_to_others(tmp_path: Path) -> None:
    made = private_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    private_folder(made)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_file_in_place_of_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(FractalError, match="state: cannot be used as a folder"):
        private_folder(tmp_path / "state")


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    theirs = private_folder(tmp_path / "theirs")
    os.chown(theirs, 12345, 12345)
    with pytest.raises(FractalError, match="belongs to user 12345"):
        private_folder(theirs)


def test_a_second_agent_is_told_who_has_the_state_folder(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning, match=f"process {other.pid} ") as caught, state_lock(tmp_path):
            pass
        assert caught.value.exit_code is ExitCode.CONFLICT
        assert str(tmp_path / "lock") in str(caught.value)
    finally:
        other.kill()
        other.communicate()
    with state_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(FractalError, match="cannot be opened"), state_lock(tmp_path):
        pass
    assert (tmp_path / "elsewhere").read_text() == "precious"


@pytest.mark.parametrize("abstract", [False, True])
def test_the_supervisor_hears_what_it_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@fractal-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind("\0" + name[1:] if abstract else name)
        supervisor.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"})
        notifier.ready("2 apps")
        notifier.status("line one\nREADY=0")
        notifier.watchdog()
        notifier.stopping()
        heard = [supervisor.recv(1000) for _ in range(4)]
    assert heard == [b"READY=1\nSTATUS=2 apps", b"STATUS=line one READY=0", b"WATCHDOG=1", b"STOPPING=1"]
    assert notifier.watchdog_interval == 15.0


def test_no_supervisor_is_no_trouble(tmp_path: Path) -> None:
    Notifier({}).ready()
    assert Notifier({"WATCHDOG_USEC": "x"}).watchdog_interval is None
    assert Notifier({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_interval is None


def test_a_supervisor_that_went_away_is_logged_not_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert "was not told" in caplog.text
