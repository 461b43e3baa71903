"""Commands at a terminal in a container, on real engines."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fractal_containers.testing import RememberingRuntime, TestEngine, opened
from fractal_containers.testing_images import BUSYBOX

from fractal.api.app import AppRun, AppSpec, Command, ServiceSpec
from fractal.api.errors import NotFound
from fractal.api.runtime import Terminal

pytestmark = pytest.mark.usefixtures("inside")
SIZE = "busybox stty size"


def run_of(folder: Path) -> AppRun:
    (folder / "root").mkdir()
    spec = AppSpec(name="An app", services=(ServiceSpec(name="main", image=BUSYBOX),))
    return AppRun(group="group", app="app", epoch=1, spec=spec, volume_root=folder / "root")


async def until_shown(terminal: Terminal, text: bytes) -> bytes:
    """What was shown, up to where the text is in it."""
    shown = b""
    async with asyncio.timeout(60):
        while text not in shown:
            chunk = await terminal.read()
            assert chunk, shown
            shown += chunk
    return shown


async def rest(terminal: Terminal) -> bytes:
    shown = b""
    async with asyncio.timeout(60):
        while chunk := await terminal.read():
            shown += chunk
    return shown


async def test_a_person_has_a_terminal_inside(engine: TestEngine, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    async with opened(engine, tmp_path) as runtime:
        await runtime.prepare(run)
        await runtime.freezable(run)
        await runtime.start(run)
        shell = Command(argv=("sh",), env={"TERM": "vt100"})
        async with runtime.terminal(run.key, "main", shell, rows=33, columns=101) as terminal:
            await terminal.write(b"test -t 0 && echo is-a-$TERM\n")
            await until_shown(terminal, b"is-a-vt100")
            await terminal.write(SIZE.encode() + b"\n")
            await until_shown(terminal, b"33 101")
            await terminal.resize(44, 144)
            await terminal.write(SIZE.encode() + b"\n")
            await until_shown(terminal, b"44 144")
            await terminal.write(b"sleep 4321\n")
            await sleeping(runtime, run, True)
            await terminal.write(b"\x03")
            await terminal.write(b"echo inter''rupted\n")
            await until_shown(terminal, b"interrupted")
            await terminal.write(b"exit 7\n")
            await rest(terminal)
            assert await terminal.exit_code() == 7
        # Whoever leaves ends it, and what it started.
        sleeper = Command(argv=("sh", "-c", "sleep 4321 & sleep 4321"))
        async with runtime.terminal(run.key, "main", sleeper, rows=24, columns=80):
            await sleeping(runtime, run, True)
        await sleeping(runtime, run, False)
        with pytest.raises(NotFound):
            async with runtime.terminal(run.key, "other", shell, rows=24, columns=80):
                pass


async def sleeping(runtime: RememberingRuntime, run: AppRun, wanted: bool) -> None:
    """Wait until something sleeps in the container, or nothing does."""
    script = "grep -l [4]321 /proc/[0-9]*/cmdline"  # which does not find itself
    async with asyncio.timeout(60):
        while True:
            result = await runtime.exec(run.key, "main", ["sh", "-c", script])
            if (b"/cmdline" in result.output) == wanted:
                return
            await asyncio.sleep(0.1)
