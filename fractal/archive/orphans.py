"""Objects that nothing names: left by uploads that were broken off. Found by listing, deleted late and with proof.

An object may be younger than its record, so age alone decides nothing: it must have been an orphan at every look for a
whole `grace` of observed time (counted on CLOCK_BOOTTIME by whoever looks, so that no clock step shortens it), and at
the last look before it is deleted. A writer that took longer than an hour looks for its segments again before it commits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from fractal.api.context import Clock
from fractal.api.errors import Corrupt
from fractal.api.store import Store
from fractal.archive.epochs import Notes
from fractal.archive.reading import Records
from fractal.archive.standing import unnamed

GRACE = 24 * 3600.0
"""Seconds for which an object must have been seen as an orphan before it may go."""
LONGEST_STEP = 3600.0
"""Seconds by which one look may age an orphan: what happened between two looks further apart was not observed."""


class Ages:
    """For how long things were seen in a state: counted while somebody looks, durable, never by a clock that can be set."""

    def __init__(self, notes: Notes, clock: Clock, prefix: str) -> None:
        self._notes = notes
        self._clock = clock
        self._prefix = prefix
        self._looked: float | None = None

    def look(self, present: Collection[str]) -> dict[str, float]:
        """Seconds for which each of those that are there now was seen to be; 0 for one that is new."""
        now = self._clock.boottime()
        step = min(now - self._looked, LONGEST_STEP) if self._looked is not None else 0.0
        self._looked = now
        ages = {k.removeprefix(self._prefix): int(v) / 1000 for k, v in self._notes.scan(self._prefix)}
        new = {name: ages[name] + step if name in ages else 0.0 for name in present}
        changes: dict[str, bytes | None] = {self._prefix + n: None for n in ages if n not in new}
        changes |= {self._prefix + n: b"%d" % int(a * 1000) for n, a in new.items() if ages.get(n) != a}
        if changes:
            self._notes.write(changes)
        return new

    def forget(self, name: str) -> None:
        """It is gone."""
        self._notes.write({self._prefix + name: None})


Proof = Callable[[], Awaitable[bool]]
"""Whether this device owns the app's highest epoch, by a listing that is sent when it is called."""
Named = Callable[[], Awaitable[Collection[str]]]
"""Ids of the objects that something names, looked up when it is called. Raises Corrupt if that cannot be told."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """An object that nothing names."""

    id: str
    keys: tuple[str, ...]
    bytes: int
    age: float
    """Seconds for which it was observed to be one."""


@dataclass(kw_only=True)
class Collector:
    """Looks for orphans of one app, or among the images of a group."""

    group: str
    app: str
    store: Store
    clock: Clock
    notes: Notes
    named: Named
    place: str = ""
    """Tells stores apart where one app, or the images, have objects in several: what is seen in one says nothing of another."""
    _ages: Ages = field(init=False)

    def __post_init__(self) -> None:
        self._ages = Ages(self.notes, self.clock, f"archive/{self.group}/{self.app}/orphan{self.place}/")

    async def look(self) -> list[Orphan]:
        """Orphans and their age, at most so many as are kept in mind. Raises Corrupt if it cannot be told what is one."""
        # Once before, so that of a listing without end only what has no name is kept in mind; and once after: an object that gets its
        # name meanwhile is seen with it, not without.
        objects = await unnamed(self.store, self.group, self.app, await self.named())
        named = await self.named()
        orphans = {id_: keys for id_, keys in objects.items() if id_ not in named}
        ages = self._ages.look(orphans)
        return [Orphan(i, tuple(keys), sum(keys.values()), ages[i]) for i, keys in sorted(orphans.items())]

    async def collect(self, proof: Proof, *, grace: float = GRACE) -> list[Orphan]:
        """Delete orphans older than `grace`. Each deletion stands on proof that was fresh just before it. Raises NotSupported."""
        deleted = []
        for orphan in await self.look():
            if orphan.age < grace:
                continue
            if not await proof():
                break
            for key in orphan.keys:
                await self.store.delete(key)
            self._ages.forget(orphan.id)
            deleted.append(orphan)
        return deleted


async def named_by_records(records: Records) -> Collection[str]:
    """Objects of an app's snapshots. Raises Corrupt while a record cannot be read: it may name any of them."""
    timeline = await records.timeline()
    for key in timeline.unread:
        raise Corrupt(f"nothing is collected while {key} cannot be read: it may name any object")
    if timeline.burnt or timeline.gaps:
        point = next(iter(timeline.burnt), None) or timeline.gaps[0]
        raise Corrupt(
            f"nothing is collected while record {point.epoch}.{point.number} cannot be read: it may name any object"
        )
    return {record.body.object.id for record in timeline.stored.values()}
