"""The `zfs` command: run, its errors told as BackendErrors, what is busy tried again within a bound."""

from __future__ import annotations

from fractal.api.context import Context
from fractal.api.errors import BackendError, Conflict, NotFound

BUSY_FOR = 20.0
"""Seconds for which a busy dataset is tried again: whatever used it is often not gone yet when it says so."""
TIMEOUT = 120.0


class BusyError(BackendError):
    """Somebody uses the dataset, or clones of it are there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class Zfs:
    """`await zfs("snapshot", "tank/a@b")` gives what it writes to stdout."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def __call__(self, *words: str, patience: float = BUSY_FOR) -> str:
        """Raises NotFound, Conflict, BusyError, BackendError."""
        end = self._context.clock.boottime() + patience
        pause = 0.05
        while True:
            done = await self._context.run(["zfs", *words], env=ENVIRONMENT, timeout=TIMEOUT, check=False)
            if done.returncode == 0:
                return done.stdout.decode("utf-8", "surrogateescape")
            error = told(words, done.stderr.decode("utf-8", "replace"))
            if not isinstance(error, BusyError) or self._context.clock.boottime() > end:
                raise error
            await self._context.clock.sleep(pause)
            pause = min(1.0, pause * 2)

    async def rows(self, *words: str) -> list[list[str]]:
        """Lines of `-H` output, by column."""
        return [line.split("\t") for line in (await self(*words)).splitlines()]


ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""Its messages are read, so they must not be translated."""


def told(words: tuple[str, ...], stderr: str) -> BackendError:
    """What happened, where, and what to do, by what the command says."""
    said = " ".join(stderr.split())[:500] or "it failed and says nothing"
    text = f"snapshot zfs: zfs {' '.join(words)[:200]}: {said}"
    lower = said.lower()
    if "does not exist" in lower:
        return NotFound(text)
    if "already exists" in lower:
        return Conflict(text)
    if "busy" in lower:
        return BusyError(text)
    if "dependent clones" in lower or "has children" in lower:
        return BusyError(text)
    if "out of space" in lower or "no space" in lower or "quota exceeded" in lower:
        return BackendError(f"{text} (the pool is full: free some space)")
    if "permission denied" in lower or "not permitted" in lower:
        return BackendError(f"{text} (run the agent as root, or see `zfs allow` in docs/how-to/use-zfs.md)")
    if "unable to open" in lower or "daemon" in lower or "internal error" in lower or "i/o error" in lower:
        return BackendError(f"{text} (is ZFS running? see `zpool status`)", retryable=True)
    return BackendError(text)
