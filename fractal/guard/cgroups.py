"""Freezing by cgroup, v1 (freezer.state) and v2 (cgroup.freeze): needs neither the engine nor the agent."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from fractal.guard.processes import read_process, send

CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One run's cgroup. It may not exist (yet, or any more); then nothing of the run exists."""

    path: Path

    def exists(self) -> bool:
        """Whether the engine has made it."""
        return self._v1.exists() or self._v2.exists()

    def freeze(self) -> bool:
        """Ask for it, again if asked before; True once the kernel says that everything inside stands still."""
        try:
            if self._v1.exists():
                self._write(self._v1, "FROZEN")
                return self._v1.read_text(encoding="ascii").strip() == "FROZEN"
            self._write(self._v2, "1")
            return "frozen 1" in (self.path / "cgroup.events").read_text(encoding="ascii").splitlines()
        except (FileNotFoundError, OSError) as error:
            if not self.exists():
                return True
            raise OSError(error.errno, f"cannot freeze cgroup {self.path}: {error.strerror}") from error

    def thaw(self) -> None:
        """Let it go on."""
        with contextlib.suppress(FileNotFoundError):
            if self._v1.exists():
                self._write(self._v1, "THAWED")
            else:
                self._write(self._v2, "0")

    def pids(self) -> list[int]:
        """Every process inside, also in cgroups below."""
        found: list[int] = []
        for folder, _, _ in os.walk(self.path):
            with contextlib.suppress(OSError):  # the cgroup may be removed under our hands
                found += map(int, (Path(folder) / "cgroup.procs").read_text(encoding="ascii").split())
        return sorted(set(found))

    def kill(self) -> bool:
        """SIGKILL everything inside, without letting anything run again; True once nothing is left.

        Under v1 a frozen task takes the signal only when thawed. It is pending by then, so the task dies on its way out
        of the kernel, before another instruction of the program; everything inside is signalled before the thaw.
        """
        if not self.exists():
            return True
        if not self._v1.exists() and (kill := self.path / "cgroup.kill").exists():
            with contextlib.suppress(FileNotFoundError):
                self._write(kill, "1")
        self.freeze()
        for pid in self.pids():
            if (process := read_process(pid)) is not None:
                send(process, signal.SIGKILL)
        if self._v1.exists():
            self.thaw()
        return not self.pids()

    @property
    def _v1(self) -> Path:
        return self.path / "freezer.state"

    @property
    def _v2(self) -> Path:
        return self.path / "cgroup.freeze"

    @staticmethod
    def _write(path: Path, text: str) -> None:
        # Not write_text: O_CREAT would make a plain file where the cgroup is gone.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode("ascii"))
        finally:
            os.close(descriptor)
