"""The tutorial's commands, run for real, in its order, in one shell, as a reader would paste them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fractal.demo.devices import kill
from fractal.guard.server import IDLE
from fractal.testing.leftovers import all_pids, mentions

from .markdown import ROOT, blocks

TUTORIAL = ROOT / "docs" / "tutorials" / "first-group.md"
LIMIT = 420.0
"""Seconds for all of it; about 90 on an idle machine, of which 40 are a takeover."""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder with a short path, as sockets need; whatever still runs in it at the end is killed by its id."""
    with tempfile.TemporaryDirectory(prefix="fhs-tutorial-") as folder:
        try:
            yield Path(folder)
        finally:
            for _ in range(3):
                for pid in [pid for pid in all_pids() if mentions(pid, folder)]:
                    kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.mark.timeout(LIMIT + 240)
def test_every_command_of_the_tutorial_works(home: Path) -> None:
    parts = [b.text for b in blocks(TUTORIAL) if b.language == "sh" and not b.skipped]
    assert len(parts) > 10
    script = "\n".join(parts).replace("8443", str(free_port()))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shell = subprocess.Popen(
        ["bash", "-eux", "-o", "pipefail"],
        env={**os.environ, "HOME": str(home), "PATH": path},
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = shell.communicate(script, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        shell.kill()
        output, _ = shell.communicate()
        pytest.fail(f"not finished within {LIMIT:.0f} s:\n{output[-4000:]}")
    assert shell.returncode == 0, output[-4000:]
    assert output.count("SUMMARY:Party") >= 3, output[-4000:]
    assert "All is well" in output
    assert not (home / "first-group").exists()
    until = time.monotonic() + IDLE + 60
    while (left := [pid for pid in all_pids() if mentions(pid, str(home))]) and time.monotonic() < until:
        time.sleep(0.5)  # the guards go by themselves
    assert [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in left] == []
