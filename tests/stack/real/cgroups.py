"""A machine's own part of the cgroup tree: what its engine and its guard make there goes away as a whole."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def hierarchies() -> dict[str, str]:
    """Mounted hierarchies below ROOT: folder name -> mount options that mount it again. Empty on a v2-only system."""
    found = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, options = line.split(" ")[:4]
        if Path(target).parent != ROOT:
            continue
        if kind == "cgroup2":
            found[Path(target).name] = "v2"
        elif kind == "cgroup":
            found[Path(target).name] = ",".join(o for o in options.split(",") if o not in ("rw", "relatime"))
    return found


@dataclass(frozen=True, slots=True)
class Subtree:
    """One folder in each hierarchy, which is the root of the tree inside a machine."""

    name: str

    def folders(self) -> list[Path]:
        """The folder in every hierarchy."""
        return [ROOT / h / self.name for h in hierarchies()] or [ROOT / self.name]

    def make(self) -> None:
        """Make them, usable for processes."""
        for folder in self.folders():
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                for place in (folder.parent, folder):
                    above = (
                        place.parent / name
                    )  # v2 has none at its root, and takes an empty one for the parent's
                    if above.exists() and (place / name).exists() and not (place / name).read_text().strip():
                        (place / name).write_text(above.read_text())

    def script(self) -> str:
        """Shell lines that a process runs to enter, before it makes namespaces of its own."""
        return "\n".join(f"echo $$ > {folder}/cgroup.procs" for folder in self.folders())

    @staticmethod
    def inside() -> str:
        """Shell lines for the first process of a machine: mount the tree anew, with its own folder as root."""
        lines = []
        for name, options in hierarchies().items():
            target = ROOT / name
            kind = "cgroup2" if options == "v2" else f"cgroup -o {options}"
            lines += [f"umount {target}", f"mount -t {kind} cgroup {target}"]
        if (
            not lines
        ):  # v2 alone: a folder with processes of its own can give no controllers to folders below it
            lines = [
                f"umount {ROOT} && mount -t cgroup2 cgroup {ROOT} && mkdir -p {ROOT}/init",
                f"for pid in $(cat {ROOT}/cgroup.procs); do echo $pid > {ROOT}/init/cgroup.procs || true; done",
                f"for c in $(cat {ROOT}/cgroup.controllers); do echo +$c > {ROOT}/cgroup.subtree_control || true; done",
            ]
        return "\n".join(lines)

    def thaw(self) -> None:
        """Let everything go: under v1 what is frozen does not die."""
        for folder in self.folders():
            for path, _, _ in os.walk(folder):
                for name, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                    with contextlib.suppress(OSError):
                        if (Path(path) / name).exists():
                            (Path(path) / name).write_text(text)

    def remove(self, timeout: float = 10.0) -> list[Path]:
        """Remove all folders, as soon as the last processes have gone; what could not be removed."""
        deadline = time.monotonic() + timeout
        while True:
            left = []
            for folder in self.folders():
                for path, _, _ in os.walk(folder, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(path).rmdir()
                if folder.exists():
                    left.append(folder)
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for parent in {folder.parent for folder in self.folders()}:
            if parent.parent != ROOT and parent != ROOT and parent.name:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        return left
