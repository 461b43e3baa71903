"""Which epochs every later listing of a store must show: what was shown before, also before a restart.

An epoch that was read and is valid must stand for ever. A name of which that is not known, because it could not be read or
because nothing valid stood there so far, may be one that is valid: while it is missing, listings prove nothing, for `DOUBT`
seconds. Then it is forgotten, as garbage that a person removed: a store that had never shown it would have been believed too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from fractal.api.context import Clock
from fractal.api.errors import BackendError, ExitCode

DOUBT = 600.0
"""Seconds (boottime, of one run of the agent) without a name in doubt, after which nobody expects it any more."""
MOST_IN_DOUBT = 64
"""Names of one app in doubt that are remembered: whoever may write into the store must not fill this device's memory."""

Name = tuple[str, int]
"""An app and an epoch."""


class Rollback(BackendError):
    """A store no longer shows what it once showed: it was rolled back, or hides something. What it shows proves nothing."""

    exit_code = ExitCode.CONFLICT
    code = "rollback"


class Notes(Protocol):
    """The part of the agent's durable memory that the archive uses."""

    def get(self, key: str) -> bytes | None:
        """The value, None if there is none."""

    def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        """Every key that begins with `prefix`, with its value."""

    def write(self, changes: Mapping[str, bytes | None]) -> None:
        """Atomic and durable."""


class Expected:
    """What was shown of one store's epochs. With `notes`, durable: of valid ones the highest of each app, of doubtful ones all."""

    def __init__(self, *, group: str, store: str, clock: Clock, notes: Notes | None) -> None:
        self._clock = clock
        self._notes = notes
        self._valid_note = f"archive/{group}/epochs/{store}"
        self._doubt_note = f"archive/{group}/doubt/{store}"
        self._valid = self._recall(self._valid_note)
        """When each was first seen, boottime."""
        self._doubt = self._recall(self._doubt_note)
        self._missed: dict[Name, float] = {}
        """Names in doubt -> since when every listing lacked them."""
        self._highest: dict[str, int] = {}
        self._raise(self._valid)

    def names(self) -> frozenset[Name]:
        """Those that a listing which begins now has to show."""
        return frozenset(self._valid) | frozenset(self._doubt)

    def highest(self, app: str) -> int:
        """The highest valid epoch of an app that was ever seen; 0: none."""
        return self._highest.get(app, 0)

    def note(
        self, *, valid: Iterable[Name] = (), doubt: Iterable[Name] = (), settled: Iterable[Name] = ()
    ) -> None:
        """Expect these from now on. `settled`: those that were read and have no effect, whatever was thought of them."""
        now = self._clock.boottime()
        new = [name for name in valid if name not in self._valid]
        self._valid.update(dict.fromkeys(new, now))
        raised = self._raise(new)
        # Of what is below a valid one nothing depends any more.
        left = {
            n: t for n, t in (dict.fromkeys(doubt, now) | self._doubt).items() if n[1] > self.highest(n[0])
        }
        for name in settled:
            left.pop(name, None)
        self._write(raised=raised, left=left)

    def check(self, expected: frozenset[Name], shown: frozenset[Name], staleness: float, prefix: str) -> None:
        """Of a listing that came to its end. Raises Rollback if it lacks one that was `expected` when it began."""
        now = self._clock.boottime()
        for name in self._missed.keys() & shown:
            del self._missed[name]
        missing = expected - shown
        gone = sorted(missing & self._valid.keys())
        if gone:
            self._refuse(f"{prefix}{gone[0][0]}/{gone[0][1]}", now - self._valid[gone[0]] < staleness)
        lost = sorted(missing & self._doubt.keys())
        for name in lost:
            self._missed.setdefault(name, now)
        forgotten = {name for name in lost if now - self._missed[name] >= DOUBT + staleness}
        if forgotten:
            self._write(left={name: seen for name, seen in self._doubt.items() if name not in forgotten})
        for app, epoch in lost:
            if (app, epoch) not in forgotten:
                key = f"{prefix}{app}/{epoch}"
                if now - self._doubt[app, epoch] < staleness:
                    self._refuse(key, late=True)
                raise Rollback(
                    f"{key} was listed, could not be read or was no valid epoch, and is gone: the store hides it, or "
                    f"somebody removed it. The store is believed again after {DOUBT / 60:.0f} minutes without it",
                    retryable=True,
                )

    def _refuse(self, key: str, late: bool) -> None:
        if late:
            raise Rollback(f"the listing does not show {key} yet: it proves nothing", retryable=True)
        raise Rollback(
            f"{key} was in the store and is gone: the store was rolled back or hides it. Check the store."
        )

    def _raise(self, names: Iterable[Name]) -> bool:
        """Whether one of these is higher than all of its app were."""
        raised = False
        for app, epoch in names:
            if epoch > self._highest.get(app, 0):
                self._highest[app] = epoch
                raised = True
        return raised

    def _write(self, *, left: dict[Name, float], raised: bool = False) -> None:
        changes: dict[str, bytes | None] = {}
        if raised:
            changes[self._valid_note] = _text(self._highest.items())
        if left.keys() != self._doubt.keys():
            changes[self._doubt_note] = _text(left) or None
            self._missed = {name: since for name, since in self._missed.items() if name in left}
        self._doubt = left
        if changes and self._notes is not None:
            self._notes.write(changes)

    def _recall(self, key: str) -> dict[Name, float]:
        text = (self._notes.get(key) if self._notes is not None else None) or b""
        parts = (part.partition(":") for part in text.decode().split())
        return {(app, int(epoch)): float("-inf") for app, _, epoch in parts}


def _text(names: Iterable[Name]) -> bytes:
    return " ".join(f"{app}:{epoch}" for app, epoch in sorted(names)).encode()
