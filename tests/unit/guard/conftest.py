"""A real guard in a folder of its own, and a program whose whole family shows when it last ran."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import fractal
from fractal.api.app import Limits
from fractal.api.runtime import Freezable
from fractal.guard import book
from fractal.guard.client import GuardClient, SpawnRequest
from fractal.guard.launch import end_guard, ensure_guard
from fractal.guard.processes import DEAD, marked, read_process, scan
from fractal.shell.clock import SystemClock
from fractal.shell.process import ProcessRun

FAMILY = """
import os, signal, sys, time
folder = sys.argv[1]
def beat(name):
    with open(f"{folder}/{name}.pid", "w") as file:
        file.write(str(os.getpid()))
    with open(f"{folder}/{name}", "wb", buffering=0) as file:
        while True:
            file.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME):.6f}\\n".encode())
            time.sleep(0.01)
def child(name, *, detach=0, scrub=False):
    if os.fork():
        return
    for _ in range(detach):
        os.setsid()
        if os.fork():
            os._exit(0)
    if scrub:
        source = "import sys, os, time\\nfolder = sys.argv[1]\\n" + BEAT + f"\\nbeat({name!r})"
        os.execve(sys.executable, [sys.executable, "-S", "-c", source, folder], {})
    beat(name)
BEAT = '''
def beat(name):
    with open(f"{folder}/{name}.pid", "w") as file:
        file.write(str(os.getpid()))
    with open(f"{folder}/{name}", "wb", buffering=0) as file:
        while True:
            file.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME):.6f}\\\\n".encode())
            time.sleep(0.01)
'''
if "stubborn" in sys.argv:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
if "storm" in sys.argv:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for index in range(3):
        if os.fork() == 0:
            while True:
                if os.fork():
                    time.sleep(0.002)
                    os._exit(0)
                with open(f"{folder}/storm{index}", "ab", buffering=0) as file:
                    file.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME):.6f}\\n".encode())
child("child")
child("daemon", detach=2)
child("scrubbed", detach=1, scrub=True)
beat("service")
"""
NAMES = ("service", "child", "daemon", "scrubbed")


class Family:
    """The program's processes, seen by what they write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def argv(self, *options: str) -> tuple[str, ...]:
        return (sys.executable, "-S", "-c", FAMILY, str(self.folder), *options)

    def last(self) -> float:
        """CLOCK_BOOTTIME of the last sign of life of any of them."""
        beats = [0.0]
        for path in self.folder.iterdir():
            if path.suffix != ".pid":
                beats += [float(line) for line in path.read_bytes().split(b"\n")[-3:-1] if line]
        return max(beats)

    def sizes(self) -> dict[str, int]:
        return {p.name: p.stat().st_size for p in self.folder.iterdir()}

    def pids(self) -> dict[str, int]:
        found = {}
        for name in NAMES:
            path = self.folder / f"{name}.pid"
            if path.exists() and (text := path.read_text()):
                found[name] = int(text)
        return found

    def alive(self) -> set[str]:
        living = {n: read_process(pid) for n, pid in self.pids().items()}
        return {n for n, p in living.items() if p is not None and p.state not in DEAD}

    async def up(self) -> None:
        """Until all of them beat."""
        await until(
            lambda: all((self.folder / n).exists() and (self.folder / n).stat().st_size > 40 for n in NAMES)
        )

    async def beats_again(self) -> None:
        before = self.sizes()
        await until(lambda: all(self.sizes()[n] > before[n] for n in NAMES))

    async def stands_still(self) -> bool:
        before = self.sizes()
        await asyncio.sleep(0.25)
        return self.sizes() == before


async def until(condition: Callable[[], bool], *, limit: float = 30.0) -> None:
    """Wait for a condition; fail after `limit` seconds."""
    end = now() + limit
    while not condition():
        assert now() < end, "the condition did not come true"
        await asyncio.sleep(0.01)


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Bench:
    """A folder with a guard in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self.run = ProcessRun()
        self.now = now
        self.environment = {**os.environ, "PYTHONPATH": str(Path(fractal.__file__).parents[1])}

        self.until = until

    async def end(self) -> None:
        await end_guard(self.folder, clock=self.clock)

    async def ensure(self, **options: float) -> GuardClient:
        return await ensure_guard(self.folder, run=self.run, clock=self.clock, **options)

    def family(self, name: str = "family") -> Family:
        folder = self.folder.parent / name
        folder.mkdir(exist_ok=True)
        return Family(folder)

    async def start(
        self, guard: GuardClient, family: Family, *options: str, run: str = "g.a.1", seconds: float = 600.0
    ) -> int:
        """Register, grant, spawn the family, and wait until all of it runs."""
        await guard.register(Freezable(run=run))
        assert await guard.grant({run: now() + seconds}) == {run}
        pid = await guard.spawn(self.request(family, *options, run=run))
        if seconds > 60:
            await family.up()
        return pid

    def request(
        self, family: Family, *options: str, run: str = "g.a.1", service: str = "main"
    ) -> SpawnRequest:
        return SpawnRequest(
            run=run,
            service=service,
            argv=family.argv(*options),
            cwd=family.folder,
            log=self.folder.parent / "service.log",
            env={"PATH": os.defpath},
            limits=Limits(files=256),
        )

    async def until_still(self, guard: GuardClient, run: str = "g.a.1") -> None:
        end = now() + 30
        while not ((state := (await guard.status())[run]).frozen and state.settled):
            assert now() < end, "not frozen"
            await asyncio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Nothing of the guard is left afterwards, also after a failure."""
    folder = tmp_path / "guard"
    made = Bench(folder)
    try:
        yield made
    finally:
        await made.end()
        noted = book.read(folder.resolve()).members
        left = {(p.pid, p.started) for p in scan().values() if p.state not in DEAD} & noted
        if left or marked(
            scan(), str(folder.resolve())
        ):  # the test failed after killing everything that buries
            await (await made.ensure()).close()
            await made.end()


@pytest.fixture
async def guard(bench: Bench) -> AsyncIterator[GuardClient]:
    async with await bench.ensure() as client:
        yield client
