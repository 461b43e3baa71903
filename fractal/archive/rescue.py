"""Records that an app's store lost and a mirror has: which ones are asked for, and by which hash each is known.

A mirror's listing adds nothing to a timeline. Only what the chain of hashes, the newest trim or a note of this device names
is looked for there, and taken if it is exactly that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fractal.api.context import Clock
from fractal.api.errors import BackendError, Corrupt, NotFound
from fractal.archive.places import Place, Places
from fractal.archive.records import Record
from fractal.archive.sealed import read_small
from fractal.archive.timeline import Timeline
from fractal.core.model import Point
from fractal.core.retention import Slot

LIMIT = 10.0
"""Seconds for which mirrors are asked: a slow one must not hold up who takes an app over."""
ANSWER = 4.0
"""Seconds that one mirror may take to give one record: one that hangs leaves time for the next."""
LATE = 1.0
"""Seconds after which an error is as bad as none: a device that is off is told of after three, for each record anew."""
AGAIN = 60.0
"""Seconds for which a mirror that did not answer is not asked at all, and one that lacks a record is not asked for that one."""
MOST = 1000
"""Records that are looked for at a time."""
MOST_VAIN = 10 * MOST
"""Answers that are remembered; what a hostile store makes one look for must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Rescued:
    """A record that came from a mirror."""

    source: str
    """Name of the mirror."""
    damaged: bool
    """Something else stands under its name in the app's store; else nothing does."""


class InVain:
    """What mirrors were asked for in vain a moment ago: each look at a timeline would ask, and wait, anew."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[tuple[str, Slot | None, bytes], float] = {}
        """By mirror, and record if it is about one; oldest first."""

    def now(self) -> float:
        """Boottime."""
        return self._clock.boottime()

    def silent(self, place: Place) -> None:
        """It did not answer."""
        self._note((place.id, None, b""))

    def lacks(self, place: Place, slot: Slot, digest: bytes) -> None:
        """It has no such record, or another one."""
        self._note((place.id, slot, digest))

    def covers(self, place: Place, slot: Slot, digest: bytes) -> bool:
        """Whether it need not be asked for this now."""
        now = self.now()
        keys = ((place.id, None, b""), (place.id, slot, digest))
        return any(self._until.get(key, now) > now for key in keys)

    def failed(self, place: Place, asked: float) -> None:
        """It answered with an error to what it was asked at that boottime."""
        if self.now() - asked > LATE:
            self.silent(place)

    def _note(self, key: tuple[str, Slot | None, bytes]) -> None:
        now = self.now()
        self._until.pop(key, None)
        while self._until and (len(self._until) >= MOST_VAIN or next(iter(self._until.values())) <= now):
            del self._until[next(iter(self._until))]
        self._until[key] = now + AGAIN


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
    in_vain: InVain,
) -> dict[Slot, tuple[Record, str]]:
    """What mirrors have of what is asked for, and of what that asks for, each with the mirror's name; in bounded time."""
    found: dict[Slot, tuple[Record, str]] = {}
    asked: set[Slot] = set()
    try:
        async with asyncio.timeout(LIMIT):
            while wanted and len(asked) < MOST:
                slot, digest = wanted.popitem()
                asked.add(slot)
                brought = await _bring(slot, digest, mirrors(), key_of(slot), authentic, in_vain)
                if brought is not None:
                    found[slot] = brought
                    for other, named in before(brought[0]):
                        gone = not other[1] and timeline.let_go(other[0])
                        if other not in asked and other not in timeline.stored and not gone and named:
                            wanted[other] = named
    except TimeoutError:
        pass  # what was found until then counts; the next look goes on
    return found


async def _bring(
    slot: Slot,
    digest: bytes,
    places: Iterable[Place],
    key: str,
    authentic: Callable[[Slot, bytes], Record],
    in_vain: InVain,
) -> tuple[Record, str] | None:
    """The record, from the first that has it. What none has stays missing, and is told as that."""
    for place in places:
        if in_vain.covers(place, slot, digest):
            continue
        asked = in_vain.now()
        try:
            async with asyncio.timeout(ANSWER):
                data = await read_small(await place.open(), key)
            record = authentic(slot, data)
        except TimeoutError:
            in_vain.silent(place)
        except NotFound:
            in_vain.lacks(place, slot, digest)
        except (Corrupt, BackendError):
            # It answered: it may have the record in a moment, or the log may say then who signed this one.
            in_vain.failed(place, asked)
        else:
            if record.hash == digest:
                return record, place.name
            in_vain.lacks(place, slot, digest)
    return None
