"""Whose processes are left: by what a test's own folder or a mark of its own says."""

from __future__ import annotations

import os
from pathlib import Path


def all_pids() -> list[int]:
    """Every process id, but this one's."""
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and int(p.name) != os.getpid()]


def mentions(pid: int, text: str) -> bool:
    """Whether a process has the text in its arguments, its working folder or its environment."""
    wanted = os.fsencode(text)
    try:
        if wanted in Path(f"/proc/{pid}/cmdline").read_bytes():
            return True
        if os.fsencode(Path(f"/proc/{pid}/cwd").readlink()).startswith(wanted):
            return True
        return wanted in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
