"""What a client may ask of the guard. Every command is idempotent; an answer is sent when it is true, not before."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fractal.guard import book, runs
from fractal.guard.cgroups import Cgroup
from fractal.guard.linux import boottime
from fractal.guard.processes import scan
from fractal.guard.runs import Run
from fractal.guard.service import Order
from fractal.guard.wire import BadMessageError, Fields, Message

if TYPE_CHECKING:
    from fractal.guard.server import Guard

MAX_RUNS = 256
SIGNALS = frozenset({"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGKILL"})
"""What a manifest may name as stop signal. Neither SIGSTOP nor SIGCONT: only the guard halts and thaws."""

Reply = Callable[[Message], None]


class RefusedError(Exception):
    """The command is well formed but cannot be done now."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Wait:
    """Answer when `done` holds of the run, or the run is forgotten."""

    run: str
    done: Callable[[Run], bool]


def _known(guard: Guard, message: Message) -> Run:
    key = Fields(message).text("run", limit=200)
    run = guard.runs.get(key)
    if run is None:
        raise RefusedError("unknown", f"{key}: no such run; register it first")
    return run


def ping(guard: Guard, message: Message, reply: Reply) -> Mapping[str, Any]:
    """Who answers."""
    return {"pid": os.getpid(), "undertaker": os.getppid(), "directory": str(guard.directory)}


def register(guard: Guard, message: Message, reply: Reply) -> Wait:
    """Know a run from now on; frozen until granted. A known one keeps its state."""
    fields = Fields(message)
    key, path = fields.text("run", limit=200), fields.text("cgroup", default="")
    if not key:
        raise BadMessageError("run: must not be empty")
    try:
        cgroup = Cgroup(book.cgroup_path(path)) if path else None
    except ValueError as error:
        raise BadMessageError(str(error)) from error
    known = guard.runs.get(key)
    if known is not None and known.cgroup != cgroup:
        raise RefusedError("conflict", f"{key}: already registered as {known.cgroup or 'a process tree'}")
    if known is None:
        if len(guard.runs) >= MAX_RUNS:
            raise RefusedError("full", f"{MAX_RUNS} runs are registered; forget some")
        guard.runs[key] = Run(key, cgroup)
        if cgroup is not None:
            guard.write_book()
    return Wait(key, lambda run: not run.halted or run.settled)


def grant(guard: Guard, message: Message, reply: Reply) -> Mapping[str, Any]:
    """Let runs go on until a deadline on CLOCK_BOOTTIME; a later deadline stands against an earlier one.

    A deadline that has passed thaws nothing. Unknown runs and those frozen for good are left out of `granted`.
    """
    now = boottime()
    granted = []
    for key, deadline in Fields(message).mapping("runs").items():
        if isinstance(deadline, bool) or not isinstance(deadline, int | float) or not math.isfinite(deadline):
            raise BadMessageError(f"runs: {key!r}: expected seconds on CLOCK_BOOTTIME")
        run = guard.runs.get(key)
        if run is None or run.final or deadline <= now:
            continue
        run.deadline = max(run.deadline, float(deadline))
        granted.append(key)
        if run.frozen:
            run.frozen = False
            if not run.paused:
                runs.release(run, scan())
    return {"granted": granted}


def freeze(guard: Guard, message: Message, reply: Reply) -> Wait:
    """Freeze now and take back every grant; `final` also refuses later ones. Answered when everything stands still."""
    run = _known(guard, message)
    run.final = run.final or Fields(message).flag("final")
    run.deadline = 0.0
    if not run.frozen:
        run.frozen = True
        run.unsettle()
    return Wait(run.key, lambda r: r.settled or not r.halted)


def pause(guard: Guard, message: Message, reply: Reply) -> Wait:
    """Halt for a snapshot. Leaves the deadline as it is."""
    run = _known(guard, message)
    if not run.paused:
        run.paused = True
        if not run.frozen:
            run.unsettle()
    return Wait(run.key, lambda r: r.settled or not r.halted)


def unpause(guard: Guard, message: Message, reply: Reply) -> Mapping[str, Any]:
    """Undo `pause`. A frozen run stays frozen."""
    run = _known(guard, message)
    if run.paused:
        run.paused = False
        if not run.frozen:
            runs.release(run, scan())
    return {"ok": True}


def spawn(guard: Guard, message: Message, reply: Reply) -> Mapping[str, Any] | None:
    """Start a service of a tree run. One that runs already is left alone; a frozen run refuses."""
    order = Order.parse(message)
    run = _known(guard, message)
    if run.cgroup is not None:
        raise RefusedError("conflict", f"{run.key}: is a cgroup; its engine starts its processes")
    if run.frozen or run.killing:
        raise RefusedError(
            "frozen", f"{run.key}: is {'being killed' if run.killing else 'frozen'}; it needs a grant first"
        )
    known = run.services.get(order.service)
    if known is not None and known.code is None:
        return {"pid": known.pid}
    guard.keep(run, {k: v for k, v in message.items() if k not in ("op", "ticket")}, reply)
    return None


def send_signal(guard: Guard, message: Message, reply: Reply) -> Mapping[str, Any]:
    """Signal a service's process group. Nothing if it has ended."""
    run = _known(guard, message)
    name = Fields(message).text("signal", limit=20)
    if name not in SIGNALS:
        raise BadMessageError(f"signal: {name!r} is not one of {', '.join(sorted(SIGNALS))}")
    state = run.services.get(Fields(message).text("service", limit=200))
    if state is not None and state.code is None:
        # Its keeper has not reaped it, or we would know its code soon; the number cannot be anybody else's before that,
        # because a session leader's group keeps its number.
        try:
            os.killpg(state.pid, signal.Signals[name])
        except ProcessLookupError:
            return {"sent": False}
        return {"sent": True}
    return {"sent": False}


def kill(guard: Guard, message: Message, reply: Reply) -> Wait:
    """SIGKILL everything of the run, frozen or not, without thawing it first. Answered when nothing is left."""
    run = _known(guard, message)
    run.killing = True
    run.paused = False
    return Wait(run.key, lambda r: not r.killing)


def forget(guard: Guard, message: Message, reply: Reply) -> Mapping[str, Any]:
    """No longer know a run that has no process; nothing if it is unknown."""
    key = Fields(message).text("run", limit=200)
    run = guard.runs.get(key)
    if run is None:
        return {"ok": True}
    if runs.population(run, scan()) or run.tickets:
        raise RefusedError("conflict", f"{key}: still has processes; kill it first")
    del guard.runs[key]
    guard.release_keeper(run)
    guard.write_book()
    return {"ok": True}


def status(guard: Guard, message: Message, reply: Reply) -> Mapping[str, Any]:
    """Every run: whether it is frozen (and stands still), until when it may run, its processes."""
    table = scan()
    return {
        "runs": {
            run.key: {
                "frozen": run.frozen,
                "settled": run.settled,
                "paused": run.paused,
                "final": run.final,
                "deadline": run.deadline,
                "pids": runs.population(run, table),
                "services": {
                    name: {"pid": s.pid, "started": s.started, "code": s.code, "ended": s.ended}
                    for name, s in run.services.items()
                },
            }
            for run in guard.runs.values()
        }
    }


def end(guard: Guard, message: Message, reply: Reply) -> Mapping[str, Any]:
    """End the guard; the undertaker kills every tree and freezes every cgroup."""
    guard.ending = True
    return {"ok": True}


COMMANDS: Mapping[str, Callable[[Guard, Message, Reply], Mapping[str, Any] | Wait | None]] = {
    "ping": ping,
    "register": register,
    "grant": grant,
    "freeze": freeze,
    "pause": pause,
    "unpause": unpause,
    "spawn": spawn,
    "signal": send_signal,
    "kill": kill,
    "forget": forget,
    "status": status,
    "end": end,
}
