"""One agent per state folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fractal.api.errors import ExitCode, FractalError


class AlreadyRunning(FractalError):
    """Another agent uses this state folder."""

    exit_code = ExitCode.CONFLICT
    code = "already_running"


@contextmanager
def state_lock(state_dir: Path) -> Iterator[None]:
    """Hold `<state_dir>/lock` for as long as the context lasts; the kernel lets go of it when this process dies.

    Raises AlreadyRunning with the other's pid, FractalError if the file cannot be made.
    """
    path = state_dir / "lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FractalError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise AlreadyRunning(
                f"{path}: process {pid} already runs an agent with this state folder; stop it first, "
                "or give this one a state_dir of its own"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
