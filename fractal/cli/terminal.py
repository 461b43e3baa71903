"""A person's terminal joined to one inside an app: raw mode, window size, and whatever happens the terminal as it was."""

from __future__ import annotations

import base64
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import click

from fractal.api.errors import FractalError
from fractal.cli.session import Session

SILENCE = 10 * 365 * 86400.0
"""Seconds for which a program may print nothing."""
END_OF_INPUT = b"\x04"


def interact(session: Session, params: Mapping[str, object]) -> int:
    """Run `app.terminal` with these parameters on our own terminal; the command's exit code."""
    if not (os.isatty(0) and os.isatty(1)):
        raise click.UsageError("--tty needs a terminal at standard input and output; leave it out")
    columns, rows = os.get_terminal_size(0)
    wanted = {**params, "rows": rows, "columns": columns, "term": os.environ.get("TERM")}
    with _raw(0), _Typist(session) as typist:

        def show(line: Mapping[str, Any]) -> None:
            typist.begin(line["terminal"])
            data = base64.b64decode(line["data"])
            while data:
                data = data[os.write(1, data) :]

        return int(
            session.client().call("app.terminal", wanted, on_output=show, timeout=SILENCE)["exit_code"]
        )


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """What is typed goes on as it is: Ctrl-C too is for the program inside."""
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class _Typist:
    """Passes on what is typed, and changes of the window, from a thread of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._terminal = ""
        self._wake, self._waking = os.pipe()
        os.set_blocking(self._waking, False)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._before: Any = None
        self._woken = -1

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGWINCH, lambda *_: None)
        self._woken = signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._woken)
        signal.signal(signal.SIGWINCH, self._before)
        os.write(self._waking, b"\0")  # no signal's number: the end
        if self._thread.is_alive():
            self._thread.join(5.0)
        os.close(self._waking)
        os.close(self._wake)

    def begin(self, terminal: str) -> None:
        """Type into this one from now on."""
        if not self._terminal:
            self._terminal = terminal
            self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([0, self._wake], [], [])
            try:
                if self._wake in ready:
                    numbers = os.read(self._wake, 64)
                    if 0 in numbers:
                        return
                    columns, rows = os.get_terminal_size(0)
                    self._send(rows=rows, columns=columns)
                if 0 in ready:
                    data = os.read(0, 4096)
                    self._send(data=base64.b64encode(data or END_OF_INPUT).decode())
                    if not data:
                        return
            except (FractalError, OSError):
                return  # the command has ended, which whoever shows its output is told too

    def _send(self, **params: object) -> None:
        self._session.client().call("app.type", {"terminal": self._terminal, **params}, timeout=30.0)
