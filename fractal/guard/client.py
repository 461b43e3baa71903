"""The agent's side of the guard's socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fractal.api.app import Limits
from fractal.api.errors import BackendError, Conflict, NotFound, Unreachable
from fractal.api.runtime import Freezable

MAX_ANSWER = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnRequest:
    """A service for the guard to start. `argv[0]` is looked up in `env["PATH"]`; no shell is involved."""

    run: str
    service: str
    """Name within the run. One that begins with `~` is forgotten some time after it ended."""
    argv: tuple[str, ...]
    cwd: Path
    log: Path
    """Receives stdout and stderr, appended."""
    stdin: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    limits: Limits = field(default_factory=Limits)
    """Memory (address space), processes and files; `cpus` cannot be limited without a cgroup and is ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardService:
    """One process that the guard started."""

    pid: int
    started: float
    """CLOCK_BOOTTIME."""
    code: int | None
    """Exit code (negative: signal), None while it runs."""
    ended: float | None = None
    """CLOCK_BOOTTIME."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRun:
    """A run as the guard sees it."""

    run: str
    frozen: bool
    """Whether it has no right to run."""
    settled: bool
    """For a frozen or paused run: whether everything in it really stands still."""
    paused: bool
    final: bool
    deadline: float
    """CLOCK_BOOTTIME until which it may run."""
    pids: tuple[int, ...]
    services: Mapping[str, GuardService]


class GuardClient:
    """Talks to the guard behind a socket; connects by itself, and again after the guard was replaced.

    Every call raises Unreachable if there is no guard or it does not answer within `timeout` seconds, NotFound for a run
    that is not registered, Conflict for what contradicts the run's state, BackendError for anything else.
    """

    def __init__(self, path: Path, *, timeout: float = 3.0) -> None:
        self.path = path
        self.timeout = timeout
        self._tickets = itertools.count(1)
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._services: dict[str, tuple[object, Mapping[str, GuardService]]] = {}
        """By run: services as the guard told them last, and as they were read."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the guard goes on."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            with contextlib.suppress(OSError):
                await streams[1].wait_closed()

    async def ping(self) -> tuple[int, int]:
        """Pids of guard and undertaker."""
        answer = await self._call({"op": "ping"})
        return int(answer["pid"]), int(answer["undertaker"])

    async def register(self, run: Freezable) -> None:
        """Make the run known, frozen until granted. A known run keeps its state."""
        cgroup = "" if run.cgroup is None else str(run.cgroup)
        await self._call({"op": "register", "run": run.run, "cgroup": cgroup})

    async def grant(self, deadlines: Mapping[str, float]) -> frozenset[str]:
        """Let runs go on until a deadline on CLOCK_BOOTTIME, thawing what is frozen. Returns those that may.

        Left out are unknown runs, runs frozen for good, and deadlines that have passed.
        """
        answer = await self._call({"op": "grant", "runs": dict(deadlines)})
        return frozenset(str(run) for run in answer["granted"])

    async def freeze(self, run: str, *, final: bool = False) -> None:
        """Freeze now and take back the grant; `final`: no later grant thaws it. Returns when everything stands still."""
        await self._call({"op": "freeze", "run": run, "final": final}, patience=12.0)

    async def pause(self, run: str) -> None:
        """Halt for a snapshot, beside any freeze. Returns when everything stands still."""
        await self._call({"op": "pause", "run": run}, patience=12.0)

    async def unpause(self, run: str) -> None:
        """Undo `pause`; a frozen run stays frozen."""
        await self._call({"op": "unpause", "run": run})

    async def spawn(self, request: SpawnRequest) -> int:
        """Start a service; its pid, also if it runs already. Raises Conflict while the run is frozen."""
        limits = request.limits
        answer = await self._call(
            {
                "op": "spawn",
                "run": request.run,
                "service": request.service,
                "argv": list(request.argv),
                "cwd": str(request.cwd),
                "log": str(request.log),
                "stdin": "" if request.stdin is None else str(request.stdin),
                "env": dict(request.env),
                "limits": {"memory": limits.memory, "processes": limits.processes, "files": limits.files},
            },
            patience=10.0,
        )
        return int(answer["pid"])

    async def signal(self, run: str, service: str, signal: str) -> bool:
        """Signal a service's process group by name, e.g. `SIGTERM`; False if it has ended."""
        answer = await self._call({"op": "signal", "run": run, "service": service, "signal": signal})
        return bool(answer["sent"])

    async def kill(self, run: str) -> None:
        """SIGKILL everything of the run, frozen or not, without thawing it. Returns when nothing is left."""
        await self._call({"op": "kill", "run": run}, patience=12.0)

    async def forget(self, run: str) -> None:
        """Drop a run that has no process left. Nothing if it is unknown."""
        await self._call({"op": "forget", "run": run})

    async def status(self) -> Mapping[str, GuardRun]:
        """Every registered run."""
        answer = await self._call({"op": "status"})
        known, self._services = self._services, {}
        for key, value in answer["runs"].items():
            told, last = value["services"], known.get(key)
            # The same value stays: it is asked for every second, and seldom another.
            self._services[key] = last if last is not None and last[0] == told else (told, _services(told))
        return {key: _guard_run(key, value, self._services[key][1]) for key, value in answer["runs"].items()}

    async def end(self) -> None:
        """End the guard and with it every process tree; cgroups stay frozen."""
        await self._call({"op": "end"})

    async def _call(self, message: Mapping[str, Any], *, patience: float = 0.0) -> Mapping[str, Any]:
        async with self._lock:
            try:
                async with asyncio.timeout(max(patience, self.timeout)):
                    answer = await self._answer(message)
            except TimeoutError as error:
                await self.close()
                raise Unreachable(f"guard at {self.path}: {message['op']}: no answer in time") from error
            except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as error:
                await self.close()
                raise Unreachable(
                    f"guard at {self.path}: {message['op']}: {error}; is it running?"
                ) from error
            except asyncio.CancelledError:
                await self.close()  # half a conversation cannot be continued
                raise
        if "error" in answer:
            raise _ERRORS.get(str(answer["error"]), BackendError)(
                f"guard: {answer.get('message', 'refused')}"
            )
        return answer

    async def _answer(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._streams is not None:
            try:
                return await self._exchange(message)
            except (ConnectionError, EOFError):
                await self.close()  # that guard is gone; commands may be repeated to its successor
        return await self._exchange(message)

    async def _exchange(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._streams is None:
            self._streams = await _connect(self.path)
        reader, writer = self._streams
        ticket = next(self._tickets)
        writer.write(json.dumps({**message, "ticket": ticket}).encode() + b"\n")
        await writer.drain()
        while True:
            line = await reader.readuntil(b"\n")
            answer = json.loads(line)
            if isinstance(answer, dict) and answer.get("ticket") == ticket:
                return answer


class NotStarted(BackendError):
    """A program could not be started: it is not there, or may not be run."""


_ERRORS: Mapping[str, type[BackendError]] = {
    "unknown": NotFound,
    "conflict": Conflict,
    "frozen": Conflict,
    "exec": NotStarted,
}


async def _connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # Through a descriptor of the folder, because a socket's path may hold 107 bytes only.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/{path.name}", limit=MAX_ANSWER)
    finally:
        os.close(folder)


def _services(told: Mapping[str, Mapping[str, Any]]) -> Mapping[str, GuardService]:
    return {
        n: GuardService(pid=s["pid"], started=s["started"], code=s["code"], ended=s["ended"])
        for n, s in told.items()
    }


def _guard_run(key: str, value: Mapping[str, Any], services: Mapping[str, GuardService]) -> GuardRun:
    return GuardRun(
        run=key,
        frozen=value["frozen"],
        settled=value["settled"],
        paused=value["paused"],
        final=value["final"],
        deadline=value["deadline"],
        pids=tuple(value["pids"]),
        services=services,
    )
