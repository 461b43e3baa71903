"""The guard's loop: one thread, no blocking call but the wait for the next event, a look at every deadline each 100 ms."""

from __future__ import annotations

import itertools
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal.guard import book, runs
from fractal.guard.cgroups import Cgroup
from fractal.guard.commands import COMMANDS, RefusedError, Wait
from fractal.guard.keeper import fork_keeper
from fractal.guard.linux import boottime, set_process_name
from fractal.guard.processes import DEAD, Process, Table, descendants, reap, scan, send
from fractal.guard.runs import Run
from fractal.guard.wire import BadMessageError, Lines, Message

BEAT = 0.1
"""Seconds between looks at the deadlines. Short, because the wait for events stops while the machine sleeps and the
deadlines do not: after a resume nothing may run past its deadline for longer than this."""
HURRY = 0.003
"""The same while something is being frozen or killed."""
NOTE_EVERY = 5.0
"""Seconds between notes of who belongs to the trees."""
PASSED_AFTER = 120.0
"""Seconds for which the end of a transient service can be asked for."""
IDLE = 60.0
"""Seconds without a run and without a connection after which a guard ends: whoever needs one starts it."""
MAX_CONNECTIONS = 32
PATIENCE = 10.0
"""Seconds after which a freeze or kill that does not complete is answered with an error (and still goes on)."""


@dataclass(slots=True)
class _Waiter:
    lines: Lines
    ticket: Any
    run: str
    done: Callable[[Run], bool]
    until: float


class Guard:
    """Holds the runs of one folder. `serve` returns when the guard is told to end, or has nothing to guard any more."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = boottime) -> None:
        self.directory = directory
        self._clock = clock
        self._needed = clock()
        self.runs: dict[str, Run] = {}
        self.ending = False
        self._selector = selectors.DefaultSelector()
        self._clients: set[Lines] = set()
        self._waiters: list[_Waiter] = []
        self._tickets = itertools.count(1)
        self._strays = False
        self._noted: frozenset[tuple[int, int]] = frozenset()
        self._next_note = 0.0

    def adopt(self, cgroups: dict[str, Path]) -> None:
        """Take over what an earlier guard held: frozen, before anything is served."""
        for key, path in cgroups.items():
            self.runs[key] = Run(key, Cgroup(path))
        self._enforce(boottime())

    def serve(self, listener: socket.socket, undertaker: int) -> None:
        """Serve until told to end or until the undertaker (a pid) is gone."""
        set_process_name("fractal-guard")
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "ending", True))
        self._selector.register(woken, selectors.EVENT_READ, lambda _: os.read(woken, 4096))
        while not self.ending and os.getppid() == undertaker:
            for key, events in self._selector.select(self._pause_length()):
                if isinstance(key.data, Lines):
                    self._attend(key.data, events)
                else:
                    key.data(key.fileobj)
            self._bury_children()
            self._enforce(boottime())
            self._answer_waiters(boottime())
            self._refresh_interest()
            self.end_if_idle()

    def end_if_idle(self) -> None:
        """End after a while in which nothing was kept and nobody was connected; never while a run is known, frozen or not."""
        now = self._clock()
        if self.runs or self._clients or self._strays:
            self._needed = now
        elif now - self._needed >= IDLE:
            say(f"no run and no agent for {IDLE:g} s")
            self.ending = True

    # -- connections

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                end, _ = listener.accept()
            except OSError:  # no more of them, or no descriptor left: those that wait are taken later
                return
            credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            _, uid, _ = struct.unpack("3i", credentials)
            if uid not in (os.geteuid(), 0) or len(self._clients) >= MAX_CONNECTIONS:
                say(f"connection refused: uid {uid}, {len(self._clients)} connections")
                end.close()
                continue
            lines = Lines(end)
            self._clients.add(lines)
            self._selector.register(end, selectors.EVENT_READ, lines)

    def _attend(self, lines: Lines, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            lines.flush()
        if events & selectors.EVENT_READ:
            try:
                for message in lines.receive():
                    if lines in self._clients:
                        self._command(lines, message)
                    else:
                        self._from_keeper(lines, message)
            except BadMessageError as error:
                lines.send({"error": "invalid", "message": str(error)})
                lines.open = False
        if not lines.open:
            self._drop(lines)

    def _refresh_interest(self) -> None:
        for key in list(self._selector.get_map().values()):
            lines = key.data
            if not isinstance(lines, Lines):
                continue
            if not lines.open:
                self._drop(lines)
                continue
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if lines.wants_to_write else 0)
            if wanted != key.events:
                self._selector.modify(lines.socket, wanted, lines)

    def _drop(self, lines: Lines) -> None:
        if lines.socket.fileno() >= 0:
            self._selector.unregister(lines.socket)
        lines.close()
        self._clients.discard(lines)
        self._waiters = [w for w in self._waiters if w.lines is not lines]

    def _command(self, lines: Lines, message: Message) -> None:
        ticket = message.get("ticket")
        try:
            operation = COMMANDS.get(str(message.get("op")))
            if operation is None:
                raise BadMessageError("op: unknown operation")
            answer = operation(self, message, lambda reply: lines.send({"ticket": ticket, **reply}))
        except (
            OSError
        ) as error:  # out of descriptors or processes, a cgroup in between: the others must not suffer
            lines.send({"ticket": ticket, "error": "failed", "message": str(error)})
            say(f"{message.get('op')}: {error}")
            return
        except (BadMessageError, RefusedError) as error:
            code = error.code if isinstance(error, RefusedError) else "invalid"
            lines.send({"ticket": ticket, "error": code, "message": str(error)})
            return
        if isinstance(answer, Wait):
            self._waiters.append(_Waiter(lines, ticket, answer.run, answer.done, boottime() + PATIENCE))
        elif answer is not None:
            lines.send({"ticket": ticket, **answer})

    def _answer_waiters(self, now: float) -> None:
        for waiter in list(self._waiters):
            run = self.runs.get(waiter.run)
            if run is None or waiter.done(run):
                waiter.lines.send({"ticket": waiter.ticket, "ok": True})
            elif now >= waiter.until:
                text = f"{waiter.run}: processes did not stop within {PATIENCE:g} s; still trying"
                waiter.lines.send({"ticket": waiter.ticket, "error": "slow", "message": text})
            else:
                continue
            self._waiters.remove(waiter)

    # -- keepers

    def keep(self, run: Run, order: Message, told: Callable[[Message], None]) -> None:
        """Have the run's keeper start a service; `told` gets its answer."""
        if run.lines is None:
            run.keeper, run.lines = fork_keeper(str(self.directory))
            self._selector.register(run.lines.socket, selectors.EVENT_READ, run.lines)
        ticket = next(self._tickets)
        run.tickets[ticket] = told
        run.lines.send({**order, "ticket": ticket})

    def _from_keeper(self, lines: Lines, message: Message) -> None:
        run = next((r for r in self.runs.values() if r.lines is lines), None)
        if run is None:
            return
        run.unsettle()  # what was just started may have to be stopped
        if "exited" in message:
            state = run.services.get(message["exited"])
            if state is not None and state.pid == message["pid"]:
                state.code, state.ended = message["code"], boottime()
            return
        told = run.tickets.pop(message["spawned" if "spawned" in message else "failed"], None)
        if "spawned" in message:
            run.services[message["service"]] = runs.ServiceState(message["pid"], boottime())
            self._next_note = 0.0
        if told is not None:
            told(
                {"pid": message["pid"]}
                if "pid" in message
                else {"error": "exec", "message": message["error"]}
            )

    def _bury_children(self) -> None:
        for pid, code in reap():
            self._strays = True
            run = next((r for r in self.runs.values() if r.keeper == pid), None)
            if run is not None:
                self._forget_keeper(run)
                say(f"{run.key}: keeper ended ({code})")

    def _forget_keeper(self, run: Run) -> None:
        if run.lines is not None:
            self._drop(run.lines)
        for told in run.tickets.values():
            told({"error": "keeper", "message": "the keeper died"})
        for state in run.services.values():
            if state.code is None:
                state.code, state.ended = -signal.SIGKILL, boottime()
        run.keeper, run.lines, run.tickets, run.members = 0, None, {}, {}
        run.unsettle()

    def release_keeper(self, run: Run) -> None:
        """End the keeper of a run that has no process left."""
        if run.lines is not None:
            self._drop(run.lines)  # at the end of its socket it buries what is below it, and goes

    # -- making it so

    def _pause_length(self) -> float:
        busy = self._strays or any(r.killing or (r.halted and not r.settled) for r in self.runs.values())
        return HURRY if busy else BEAT

    def _enforce(self, now: float) -> None:
        for run in self.runs.values():
            if not run.frozen and now >= run.deadline:
                run.frozen = True
                run.unsettle()
                say(f"{run.key}: frozen, proof ran out")
        noting = now >= self._next_note and any(r.keeper for r in self.runs.values())
        table = (
            scan() if self._strays or noting or any(r.needs_scan(now) for r in self.runs.values()) else None
        )
        for run in self.runs.values():
            try:
                if run.killing:
                    run.killing = not runs.kill(run, table if table is not None else Table())
                    run.unsettle()
                elif run.halted:
                    runs.halt(run, table if run.needs_scan(now) else None, now)
            except OSError as error:  # one run's cgroup must not keep the guard from the others
                run.unsettle()
                say(f"{run.key}: {error}")
        if self._strays and table is not None:
            self._kill_strays(table)
        if noting and table is not None:
            self.note(table)
            for run in self.runs.values():
                run.drop_passed(now - PASSED_AFTER)
            self._next_note = now + NOTE_EVERY

    def _kill_strays(self, table: dict[int, Process]) -> None:
        """Whatever hangs below the guard itself lost its keeper, and with it the run it belonged to."""
        keepers = {r.keeper for r in self.runs.values() if r.keeper}
        kept = set(keepers)
        for keeper in keepers:
            kept.update(p.pid for p in descendants(table, keeper))
        strays = [p for p in descendants(table, os.getpid()) if p.pid not in kept and p.state not in DEAD]
        # A keeper that was released kills its own; its socket is closed, so it is among these and needs no help.
        for process in strays:
            send(process, signal.SIGKILL)
        self._strays = bool(strays)

    def note(self, table: dict[int, Process]) -> None:
        """Write down what a successor needs to know, if it changed."""
        members = [p for r in self.runs.values() if r.keeper for p in descendants(table, r.keeper)]
        names = frozenset((p.pid, p.started) for p in members)
        if names != self._noted:
            self._noted = names
            self.write_book(members)

    def write_book(self, members: list[Process] | None = None) -> None:
        """Replace the book; a failure is said and survived (the marks find processes, the agent knows its cgroups)."""
        cgroups = {r.key: r.cgroup.path for r in self.runs.values() if r.cgroup is not None}
        if members is None:
            members = [Process(pid, 0, "", started) for pid, started in self._noted]
        try:
            book.write(self.directory, cgroups, members)
        except OSError as error:
            say(f"cannot write {self.directory}/book.json: {error.strerror}")


def say(text: str) -> None:
    """One line into the guard's log."""
    print(f"{boottime():.3f} {text}", file=sys.stderr, flush=True)  # noqa: T201 - stderr is the log file
