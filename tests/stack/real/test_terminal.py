"""`app exec --tty` as a person has it: a terminal of ours, joined to one in a container."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pytest

from fractal.demo.devices import command
from tests.stack.real.device import GROUP
from tests.stack.real.engines import Docker
from tests.stack.real.small import IMAGE, SETTINGS, Notebook, image
from tests.stack.real.test_bare import local_log
from tests.stack.real.world import World

LIMIT = 60.0


def size(descriptor: int, rows: int, columns: int) -> None:
    """Give a window another size, of which the kernel tells who is in it."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def until_shown(descriptor: int, text: bytes) -> bytes:
    """What our terminal shows, until the text is in it."""
    shown, end = b"", time.monotonic() + LIMIT
    while text not in shown:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{text!r} was not shown: {shown!r}"
        shown += os.read(descriptor, 4096)
    return shown


@pytest.mark.timeout(300)
def test_a_shell_inside_an_app_knows_its_window_and_gives_its_exit_code(real: World) -> None:
    pi = real.host("Pi", Docker, local_log(real))
    assert pi.engine is not None
    pi.engine.load(image(real.folder), IMAGE, SETTINGS)
    pi.start_agent()
    real.found(pi, ["directory", f"path={real.shared / 'store'}"], timers="fast")
    app = Notebook.install(real, pi)
    words = [
        *command(),
        "--config",
        str(pi.config),
        "app",
        "exec",
        "--tty",
        "--group",
        GROUP,
        app.name,
        "/bin/sh",
    ]
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    size(ours, 31, 97)
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *pi.machine.words(words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=pi.machine.environment(),
        start_new_session=True,
    )
    try:
        until_shown(ours, b"# ")
        os.write(ours, b"busybox stty size\n")
        until_shown(ours, b"31 97")
        size(ours, 40, 120)
        end = time.monotonic() + LIMIT
        while True:
            os.write(ours, b"busybox stty size; echo do''ne\n")
            if b"40 120" in until_shown(ours, b"done"):
                break
            assert time.monotonic() < end, "the new size did not arrive"
        # Ctrl-C is for what runs inside, not for the command line.
        os.write(ours, b"busybox sleep 1000\n")
        time.sleep(0.5)
        os.write(ours, b"\x03echo still''here\n")
        until_shown(ours, b"stillhere")
        os.write(ours, b"exit 7\n")
        assert process.wait(LIMIT) == 7
        assert termios.tcgetattr(theirs) == before, "our terminal is as it was"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)
        os.close(theirs)
