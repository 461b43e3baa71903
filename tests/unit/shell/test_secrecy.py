"""A process that holds keys leaves no core and lets nobody of its own user in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fractal.agent import main
from fractal.config.model import DeviceConfig

HOLDER = """
import ctypes, os, resource
from fractal.shell.secrecy import keep_memory_private
libc = ctypes.CDLL(None)
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
libc.prctl(4, 1, 0, 0, 0)

def spy():
    me = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.close(os.open(f"/proc/{me}/mem", os.O_RDONLY))
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return "shut" if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) else "open"

before = spy()
keep_memory_private()
print(before, spy(), libc.prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0])
"""


def test_no_core_and_no_other_process_of_the_user_reads_its_memory() -> None:
    done = subprocess.run([sys.executable, "-c", HOLDER], capture_output=True, check=True, timeout=60)
    before, after, dumpable, core = done.stdout.decode().split()
    assert (after, dumpable, core) == ("shut", "0", "0")
    if before == "shut":
        pytest.skip("this machine lets no process read another's memory anyway")


def test_the_agent_does_so_before_it_reads_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []

    def load(_: Path) -> DeviceConfig:
        said.append("config")
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "keep_memory_private", lambda: said.append("private"))
    monkeypatch.setattr(main, "load", load)
    with pytest.raises(KeyboardInterrupt):
        main.run(tmp_path)
    assert said == ["private", "config"]
