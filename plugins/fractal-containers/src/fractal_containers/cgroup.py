"""A run's cgroups, by path and without the engine: an outer one for the guard to freeze, in it one for the containers.

Two levels, because freezing nests: the guard freezes the outer one and knows nothing of pauses, the runtime freezes the
inner one for a snapshot or after a kill and can never thaw what the guard froze. Works on the v1 freezer hierarchy (also
of a hybrid set-up) and on v2.

On v2 they are where systemd has slices of that name, whoever makes them: an engine with the systemd driver names the inner
slice, one with the cgroupfs driver its path, and neither has to answer for the cgroups to be found.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PARENT = "fractal-homeserver"
INNER = "app"
SLICE = "fractal"


@dataclass(frozen=True, slots=True)
class RunCgroup:
    """The cgroups of one run, which may not exist."""

    name: str
    """Without a dash: in the name of a slice it leads to another level."""
    root: Path = ROOT

    @property
    def parent(self) -> str:
        """What the engine is told as cgroup parent: the inner one's path. With the systemd driver its last part, a slice."""
        return f"/{self.inner.relative_to(self._hierarchy)}"

    @property
    def outer(self) -> Path:
        """What the guard freezes."""
        if self.version == 1:
            return self._hierarchy / PARENT / self.name
        return self._hierarchy / f"{SLICE}.slice" / f"{SLICE}-{self.name}.slice"

    @property
    def inner(self) -> Path:
        """What holds the containers' own cgroups."""
        return self.outer / (INNER if self.version == 1 else f"{SLICE}-{self.name}-{INNER}.slice")

    @property
    def version(self) -> int:
        """1 if the kernel freezes by the v1 hierarchy here, else 2."""
        return 1 if (self.root / "freezer" / "cgroup.procs").exists() else 2

    @property
    def _hierarchy(self) -> Path:
        return self.root / "freezer" if self.version == 1 else self.root

    def make(self) -> None:
        """Make both, so that the guard's freeze is there before the first container is."""
        self.inner.mkdir(mode=0o755, parents=True, exist_ok=True)

    def remove(self) -> bool:
        """Remove what is empty, in every hierarchy: the engine makes the parents of its cgroups and leaves them.

        False if something still runs in one of them.
        """
        whole = True
        roots = [path for path in self.root.iterdir() if path.is_dir()] if self.version == 1 else [self.root]
        for root in roots:
            outer = root / self.outer.relative_to(self._hierarchy)
            top = outer.parent
            for path in [*_below(outer), top]:
                try:
                    path.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    whole = whole and path == top  # other runs live there
        return whole

    def freeze(self) -> bool:
        """Halt the containers; True once the kernel says that all stand still. Nothing to halt counts too."""
        return _freeze(self.inner)

    def thaw(self) -> None:
        """Undo `freeze`, never what the guard did."""
        _thaw(self.inner)

    def frozen(self) -> bool:
        """Whether the guard has frozen the run (or is about to)."""
        own = _read(self.outer / "freezer.self_freezing") or _read(self.outer / "cgroup.freeze")
        return own == "1"

    def pids(self) -> list[int]:
        """Every process of the run."""
        return _processes(self.outer)

    def pids_of(self, container: str) -> list[int]:
        """Every process of one container, in the cgroup that engines call by its identity: `<id>`, `libpod-<id>`."""
        return sorted(
            {pid for name in (container, f"libpod-{container}") for pid in _processes(self.inner / name)}
        )

    def strike(self) -> bool:
        """SIGKILL everything, frozen or not; True if there was nothing. Follow with `hold` once the processes are gone.

        Everything is frozen first, so that nothing forks ahead of the signals. Under v1 a frozen task takes the signal
        only when thawed: it is pending by then, so the task ends before another instruction of the program.
        """
        _freeze(self.inner)
        if not (pids := self.pids()):
            return True
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.version == 1:
            self.release()
        return False

    def release(self) -> None:
        """Thaw everything, also what somebody paused by the engine. Only for what is about to die."""
        for folder in _below(self.outer):
            _thaw(folder)

    def hold(self, *, outer: bool) -> None:
        """Freeze again: a container that a hung engine starts belatedly comes up frozen. `outer`: the guard's as well."""
        if outer:
            _freeze(self.outer)
        _freeze(self.inner)

    def kill_marked(self, mark: bytes) -> None:
        """SIGKILL what holds `mark` (NAME=VALUE) in its environment, until a look finds none of it any more."""
        for _ in range(20):  # a bound for a program that forks faster than we look
            found = list(self._marked(mark))
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                return

    def _marked(self, mark: bytes) -> Iterator[int]:
        for pid in self.pids():
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    yield pid


def _processes(top: Path) -> list[int]:
    found: set[int] = set()
    for folder in _below(top):
        found.update(map(int, _read(folder / "cgroup.procs").split()))
    found.discard(0)  # processes of another pid namespace; as a target, 0 would be our own group
    return sorted(found)


def _below(top: Path) -> list[Path]:
    """The folder and all below it, deepest first."""
    return [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]


def _freeze(path: Path) -> bool:
    if (path / "freezer.state").exists():
        _write(path / "freezer.state", "FROZEN")
        return _read(path / "freezer.state") in ("FROZEN", "")
    _write(path / "cgroup.freeze", "1")
    events = _read(path / "cgroup.events")
    return not events or "frozen 1" in events.splitlines()


def _thaw(path: Path) -> None:
    if (path / "freezer.state").exists():
        _write(path / "freezer.state", "THAWED")
    else:
        _write(path / "cgroup.freeze", "0")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        if path.parent.exists() and path.exists():
            raise OSError(error.errno, f"{path}: {error.strerror}") from error
        return ""


def _write(path: Path, text: str) -> None:
    # Not write_text: O_CREAT would make a plain file where the cgroup is gone.
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode("ascii"))
        finally:
            os.close(descriptor)
