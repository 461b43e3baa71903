"""What the guard writes down, so that its successor (and the undertaker) knows what it held. Valid within one boot."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fractal.guard.cgroups import CGROUP_ROOT
from fractal.guard.linux import boot_id
from fractal.guard.processes import Process


@dataclass(frozen=True, slots=True)
class Book:
    """Cgroups by run, and processes that belonged to trees."""

    cgroups: Mapping[str, Path]
    members: frozenset[tuple[int, int]]
    """(pid, start time)."""


EMPTY = Book({}, frozenset())


def write(directory: Path, cgroups: Mapping[str, Path], members: Iterable[Process]) -> None:
    """Replace the book. Not synced: it means nothing after a reboot."""
    value = {
        "boot": boot_id(),
        "cgroups": {run: str(path) for run, path in cgroups.items()},
        "members": [[p.pid, p.started] for p in members],
    }
    draft = directory / "book.json.new"
    draft.write_text(json.dumps(value), encoding="utf-8")
    draft.replace(directory / "book.json")


def read(directory: Path) -> Book:
    """The last guard's book; an empty one if there is none, it is from another boot, or it is damaged.

    A damaged book loses nothing that the marks in the environments do not find again, and cgroups are registered anew
    by the agent before anything in them is granted.
    """
    try:
        value = json.loads((directory / "book.json").read_bytes())
        if value["boot"] != boot_id():
            return EMPTY
        return Book(
            {str(run): cgroup_path(str(path)) for run, path in value["cgroups"].items()},
            frozenset((int(pid), int(started)) for pid, started in value["members"]),
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return EMPTY


def cgroup_path(text: str) -> Path:
    """A folder below /sys/fs/cgroup, no link followed out of it. Raises ValueError."""
    path = Path(os.path.realpath(text))
    if CGROUP_ROOT not in path.parents or path.parent == CGROUP_ROOT:
        raise ValueError(f"{text}: not a cgroup of one run below {CGROUP_ROOT}")
    return path
