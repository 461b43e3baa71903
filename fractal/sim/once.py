"""What is not quite as on a real device: two pure functions are computed once for all, and an archive's day is short.

Whether a signature holds and what a beat says depends on their bytes alone, so that remembering it changes no history, only
its price. Every byte that is sealed, signed and stored in a simulation is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import fractal.agent.care as care
import fractal.agent.jobs.beating as beating
import fractal.crypto.keys as keys
from fractal.agent.beats import Beat, read_beat
from fractal.archive.archive import Archive

DAY = 120.0
"""Seconds of a day of verifying and collecting, so that a seed sees some of them: its hour, and the 24 h for which an object must
have been an orphan, are as much shorter."""
MOST = 20_000
"""Results that are remembered; then all are forgotten."""


@contextmanager
def once() -> Iterator[None]:
    """Remember meanwhile."""
    real: Any = keys
    jobs: Any = beating
    bindings = real.bindings
    opened: dict[tuple[bytes, bytes], bytes] = {}
    read: dict[tuple[bytes, str], tuple[bytes | None, Beat]] = {}

    def sign_open(signed: bytes, public: bytes) -> bytes:
        known = opened.get((signed, public))
        if known is None:
            if len(opened) > MOST:
                opened.clear()
            found: bytes = bindings.crypto_sign_open(signed, public)
            known = opened[signed, public] = found
        return known

    def read_one(data: bytes, heard: float, group: str, sign_key_of: Callable[[str], bytes | None]) -> Beat:
        known = read.get((data, group))
        if known is None or sign_key_of(known[1].device) != known[0]:
            if len(read) > MOST:
                read.clear()
            beat = read_beat(data, heard, group, sign_key_of)
            read[data, group] = (sign_key_of(beat.device), beat)
            return beat
        return replace(known[1], heard=heard)

    told, jobs.read_beat = jobs.read_beat, read_one
    real.bindings = SimpleNamespace(**{**vars(bindings), "crypto_sign_open": sign_open})
    try:
        yield
    finally:
        real.bindings, jobs.read_beat = bindings, told


@contextmanager
def hurried() -> Iterator[None]:
    """A day is two minutes long for those who verify archives and collect orphans."""
    job: Any = care
    orphans: Any = Archive.collect_orphans.__kwdefaults__
    merged: Any = Archive.collect.__kwdefaults__
    told = job.DAY_MS, job.HOUR_MS, job.LOOK, job.FIRST, orphans["grace"]
    job.DAY_MS, job.HOUR_MS, job.LOOK, job.FIRST = int(1000 * DAY), int(1000 * DAY / 8), DAY / 12, DAY / 6
    orphans["grace"] = merged["grace"] = DAY
    try:
        yield
    finally:
        job.DAY_MS, job.HOUR_MS, job.LOOK, job.FIRST, grace = told
        orphans["grace"] = merged["grace"] = grace
