"""Programs and waits for the runtimes' contract."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from fractal.api.app import AppRun
from fractal.api.runtime import RunStatus, Runtime, ServiceStatus

VOLUME = "data"
LIMIT = 60.0
"""Seconds after which the suite gives up on something that must happen."""
QUIET = 0.3
"""Seconds for which a stopped program is watched. Too short never fails a good runtime."""

BEAT = """
import os, signal, sys, time
data = os.environ["DATA"]
name = os.environ.get("NAME", "beat")
def note(text):
    with open(f"{data}/{name}.notes", "a") as file:
        file.write(text + "\\n")
def beat(as_name=name):
    with open(f"{data}/{as_name}", "ab", buffering=0) as file:
        while True:
            file.write(b".")
            time.sleep(0.01)
note("start")
"""
POLITE = (
    BEAT
    + """
def leave(*_):
    note("bye")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("hello from", name, flush=True)
print("trouble from", name, file=sys.stderr, flush=True)
beat()
"""
)
STUBBORN = BEAT + "\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nbeat()\n"
DAEMON = (
    BEAT
    + """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        beat("daemon")
    os._exit(0)
os.wait()
beat()
"""
)
SERVER = (
    BEAT
    + """
import socket
server = socket.create_server((os.environ["HOST"], int(os.environ["PORT"])), backlog=8)
while True:
    end, _ = server.accept()
    if end.recv(4096):
        status = os.environ.get("STATUS", "200")
        end.sendall(f"HTTP/1.1 {status} X\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok".encode())
    end.close()
"""
)


def notes(run: AppRun, service: str) -> list[str]:
    """What a program noted, word by word."""
    path = run.volume_root / VOLUME / f"{service}.notes"
    return path.read_text().split() if path.exists() else []


def size(run: AppRun, name: str) -> int:
    """Bytes of a heartbeat file; 0 if there is none."""
    path = run.volume_root / VOLUME / name
    return path.stat().st_size if path.exists() else 0


async def quiet(run: AppRun, name: str) -> bool:
    """Whether nothing writes to a heartbeat file."""
    before = size(run, name)
    await asyncio.sleep(QUIET)
    return size(run, name) == before


async def running(backend: Runtime, run: AppRun) -> bool:
    """Whether any service of the run is said to run."""
    return any(
        s.running
        for r in await backend.observe()
        if (r.app, r.epoch) == (run.app, run.epoch)
        for s in r.services
    )


async def seen(backend: Runtime, run: AppRun) -> RunStatus:
    """The run's status; it must be there."""
    found = [
        r for r in await backend.observe() if (r.group, r.app, r.epoch) == (run.group, run.app, run.epoch)
    ]
    assert len(found) == 1, f"{run.key} is observed {len(found)} times"
    return found[0]


async def service_where(
    backend: Runtime, run: AppRun, name: str, condition: Callable[[ServiceStatus], bool]
) -> ServiceStatus:
    """The service's status as soon as it fulfils the condition."""
    end = time.monotonic() + LIMIT
    while True:
        for service in (await seen(backend, run)).services:
            if service.name == name and condition(service):
                return service
        assert time.monotonic() < end, f"{name} did not come to what was expected"
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "what was expected did not happen"
        await asyncio.sleep(0.02)


async def until_async(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition that must itself be awaited."""
    end = time.monotonic() + LIMIT
    while not await condition():
        assert time.monotonic() < end, "what was expected did not happen"
        await asyncio.sleep(0.02)


async def started_again(backend: Runtime, run: AppRun, service: str) -> bool:
    """Start, and see whether the service was started more than once."""
    await backend.start(run)
    return len(notes(run, service)) > 1


async def log(backend: Runtime, run: AppRun, tail: int) -> bytes:
    """The kept output of service `main`."""
    return b"".join([chunk async for chunk in backend.logs(run.key, "main", tail=tail)])


async def logged(backend: Runtime, run: AppRun, tail: int, text: bytes) -> bool:
    """Whether its output holds `text`."""
    return text in await log(backend, run, tail)


async def status_of(host: str, port: int) -> int:
    """Status of a GET."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
