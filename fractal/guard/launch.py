"""Start, find and end the guard of a folder."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys
from pathlib import Path

from fractal.api.context import Clock, Run
from fractal.api.errors import FractalError, Unreachable
from fractal.guard.client import GuardClient

SOCKET = "guard.sock"
LOCK = "guard.lock"


async def ensure_guard(
    directory: Path, *, run: Run, clock: Clock, timeout: float = 20.0, patience: float = 3.0
) -> GuardClient:
    """A client of the guard of `directory`, which is started if there is none.

    The guard is detached: it outlives the caller. One that holds its socket but does not answer (hung, stopped) is
    killed, and with it the apps, after twice `patience` seconds; its successor comes up with everything frozen. Raises Unreachable after `timeout`
    seconds, with the end of the guard's log.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = directory.resolve()
    client = GuardClient(directory / SOCKET, timeout=patience)
    end = clock.boottime() + timeout
    while clock.boottime() < end:
        if await _answers(client):
            return client
        kill_hung(directory)
        # The launcher waits for the lock of a dying guard, and says so if another one came first: then we ask again.
        package_root = str(Path(__file__).resolve().parents[2])
        done = await run(
            [sys.executable, "-P", "-m", "fractal.guard", "--dir", str(directory)],
            env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": package_root},
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            await clock.sleep(0.1)
    raise Unreachable(f"no guard in {directory} after {timeout:g} s: {_log_end(directory)}")


async def _answers(client: GuardClient) -> bool:
    # Twice: after this process itself was stopped for a while its first time-out says nothing about the guard.
    for _ in range(2):
        try:
            await client.ping()
            return True
        except Unreachable:
            continue
    return False


async def end_guard(directory: Path, *, clock: Clock, timeout: float = 20.0) -> None:
    """End the guard of `directory` and everything it keeps; returns when all of it is gone. Nothing if none runs."""
    client = GuardClient(directory / SOCKET)
    try:
        await client.end()
    except Unreachable:
        kill_hung(directory)
    finally:
        await client.close()
    end = clock.boottime() + timeout
    while not _free(directory):
        if clock.boottime() >= end:
            raise FractalError(
                f"the guard in {directory} did not end within {timeout:g} s; see {directory}/guard.log"
            )
        await clock.sleep(0.02)


def kill_hung(directory: Path) -> bool:
    """SIGKILL the process that listens on the guard's socket, if there is one; its undertaker does the rest."""
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(f"/proc/self/fd/{folder}/{SOCKET}")
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid, uid, _ = struct.unpack("3i", credentials)
            if pid <= 1 or uid not in (os.geteuid(), 0):
                return False
            # The kernel names the process that called listen(); while the connection stands it has not ended.
            os.kill(pid, signal.SIGKILL)
            return True
    except OSError:
        return False  # nobody listens: dead already, or never started
    finally:
        os.close(folder)


def _free(directory: Path) -> bool:
    try:
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _log_end(directory: Path) -> str:
    try:
        lines = (directory / "guard.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it left no log"
    return "; ".join(lines[-3:]) or "its log is empty"
