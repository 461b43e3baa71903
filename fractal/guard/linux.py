"""The few things that the guard asks of Linux and that Python does not offer."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def boottime() -> float:
    """Seconds on CLOCK_BOOTTIME: goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Changes at every boot; process ids mean nothing across one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def become_subreaper() -> None:
    """Descendants whose parent dies become our children instead of init's. Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int) -> None:
    """Have the kernel send us `signum` when our parent dies. Lost at a change of user, so call it after that."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def set_process_name(name: str) -> None:
    """What `ps -o comm` shows, cut at 15 bytes."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode("ascii")[:15]), 0, 0, 0)


def spare_from_oom(*, spare: bool) -> None:
    """Ask the kernel not to choose us when memory runs out, or (for what we start) to choose as usual.

    Lowering needs a privilege; without it nothing changes.
    """
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        now = int(path.read_text(encoding="ascii"))
        if spare or now < 0:
            path.write_text("-800" if spare else "0", encoding="ascii")


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor above 2 that is not in `keep`."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(entry.name)
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
                os.close(descriptor)


def ignore_polite_signals() -> None:
    """A service manager signals every process at once; ours end by their own order (see the package docstring)."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
