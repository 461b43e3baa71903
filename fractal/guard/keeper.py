"""The keeper: parent and subreaper of one run's services, and their undertaker when the guard is gone.

It decides nothing. It starts what the guard orders, reports what ends, and when the guard's end of the socket closes
it kills everything below itself. Freezing is the guard's work and needs nothing from here.
"""

from __future__ import annotations

import os
import select
import signal
import socket

from fractal.guard import service
from fractal.guard.linux import become_subreaper, close_all_but, ignore_polite_signals, set_process_name
from fractal.guard.processes import bury, descendants, reap
from fractal.guard.wire import BadMessageError, Lines, Message


def fork_keeper(guard: str) -> tuple[int, Lines]:
    """Fork a keeper off the guard; (its pid, the guard's end of the socket)."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            close_all_but({theirs.fileno()})
            _Keeper(theirs, guard).run()
            status = 0
        finally:
            # Whatever went wrong, this copy of the guard's stack must not unwind into the guard's own loop.
            os._exit(status)
    theirs.close()
    return pid, Lines(ours)


class _Keeper:
    def __init__(self, end: socket.socket, guard: str) -> None:
        self._lines = Lines(end)
        self._guard = guard
        self._services: dict[int, str] = {}

    def run(self) -> None:
        become_subreaper()
        ignore_polite_signals()
        set_process_name("fractal-keeper")
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        while self._lines.open:
            waiting = [self._lines.socket] if self._lines.wants_to_write else []
            ready, _, _ = select.select([self._lines.socket.fileno(), woken], waiting, [])
            if woken in ready:
                os.read(woken, 4096)
            if self._lines.socket.fileno() in ready:
                self._obey()
            self._lines.flush()
            self._report()
        bury(lambda table: descendants(table, os.getpid()))

    def _obey(self) -> None:
        try:
            for message in self._lines.receive():
                self._lines.send(self._spawn(message))
        except BadMessageError:
            self._lines.open = False  # not our guard any more

    def _spawn(self, message: Message) -> Message:
        order = service.Order.parse(message)
        try:
            pid = service.start(order, self._guard)
        except OSError as error:
            return {"failed": message["ticket"], "error": error.strerror}
        self._services[pid] = order.service
        return {"spawned": message["ticket"], "service": order.service, "pid": pid}

    def _report(self) -> None:
        for pid, code in reap():
            name = self._services.pop(pid, None)
            if name is not None:
                self._lines.send({"exited": name, "pid": pid, "code": code})
