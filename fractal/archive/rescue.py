"""Records that an app's store lost and a mirror has: which ones are asked for, and by which hash each is known.

A mirror's listing adds nothing to a timeline. Only what the chain of hashes, the newest trim or a note of this device names
is looked for there, and taken if it is exactly that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fractal.api.errors import BackendError, Corrupt
from fractal.archive.places import Places
from fractal.archive.records import Record
from fractal.archive.sealed import read_small
from fractal.archive.timeline import Timeline
from fractal.core.model import Point
from fractal.core.retention import Slot

LIMIT = 10.0
"""Seconds for which mirrors are asked: a slow one must not hold up who takes an app over."""
MOST = 1000
"""Records that are looked for at a time."""


@dataclass(frozen=True, slots=True)
class Rescued:
    """A record that came from a mirror."""

    source: str
    """Name of the mirror."""
    damaged: bool
    """Something else stands under its name in the app's store; else nothing does."""


def asked_for(timeline: Timeline, noted: Mapping[Point, bytes]) -> dict[Slot, bytes]:
    """Records that must stand and do not, with the hash of each as far as a timeline tells."""
    wanted: dict[Slot, bytes] = {}

    def want(slot: Slot, digest: bytes) -> None:
        if slot not in timeline.stored and not (not slot[1] and timeline.let_go(slot[0])) and digest:
            wanted.setdefault(slot, digest)

    for point, digest in noted.items():
        want((point, 0), digest)
    for record in timeline.stored.values():
        for slot, digest in before(record):
            want(slot, digest)
    for ref in timeline.trim.body.levels if timeline.trim else ():
        want(ref.slot, ref.hash)
    return wanted


def before(record: Record) -> Iterable[tuple[Slot, bytes]]:
    """The records that one names: what it was taken against, and the one before it in its epoch."""
    if record.parent is not None:
        yield (record.parent, 0), record.body.parent_hash
    if not record.level and record.number > 1:
        yield (Point(epoch=record.epoch, number=record.number - 1), 0), record.body.previous_hash


async def rescue(
    timeline: Timeline,
    wanted: dict[Slot, bytes],
    mirrors: Places,
    *,
    key_of: Callable[[Slot], str],
    authentic: Callable[[Slot, bytes], Record],
) -> dict[Slot, tuple[Record, str]]:
    """What mirrors have of what is asked for, and of what that asks for, each with the mirror's name; in bounded time."""
    found: dict[Slot, tuple[Record, str]] = {}
    asked: set[Slot] = set()

    async def look(slot: Slot, digest: bytes) -> None:
        for place in mirrors():
            try:
                record = authentic(slot, await read_small(await place.open(), key_of(slot)))
            except (Corrupt, BackendError):
                continue  # the next one may have it; what none has stays missing, and is told as that
            if record.hash == digest:
                found[slot] = record, place.name
                return

    try:
        async with asyncio.timeout(LIMIT):
            while wanted and len(asked) < MOST:
                slot, digest = wanted.popitem()
                asked.add(slot)
                await look(slot, digest)
                if slot in found:
                    for other, named in before(found[slot][0]):
                        gone = not other[1] and timeline.let_go(other[0])
                        if other not in asked and other not in timeline.stored and not gone and named:
                            wanted[other] = named
    except TimeoutError:
        pass  # what was found until then counts; the next look goes on
    return found
