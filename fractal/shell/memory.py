"""How much memory this machine has to spare."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> int:
    """MiB that new work could use without swapping, as the kernel estimates; 0 where it does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) // 1024
    return 0
