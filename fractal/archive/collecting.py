"""Taking what was let go out of the store: late, with proof, and only while everything that stays is there.

Segments go before the record that names them, so that a crash in between leaves a record which a trim tells to be gone and
the next look goes on with, never objects that nothing names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fractal.api.context import Clock
from fractal.api.errors import Corrupt
from fractal.api.store import Store
from fractal.archive import layout
from fractal.archive.epochs import Notes
from fractal.archive.orphans import GRACE, Ages, Proof
from fractal.archive.reading import Records
from fractal.archive.records import Record
from fractal.archive.rules import Rules
from fractal.archive.standing import keys_of, sizes_of
from fractal.archive.timeline import Timeline
from fractal.core.retention import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A record that was let go and still stands."""

    record: Record
    age: float
    """Seconds for which it was seen to be let go."""


@dataclass(kw_only=True)
class Sweeper:
    """Collects what the trims of one app let go."""

    group: str
    app: str
    store: Store
    clock: Clock
    notes: Notes
    records: Records
    going: Callable[[Record], None] = lambda _: None
    """Told of each record before anything of it goes: what was found out about it holds no more."""
    _ages: Ages = field(init=False)

    def __post_init__(self) -> None:
        self._ages = Ages(self.notes, self.clock, f"archive/{self.group}/{self.app}/gone/")

    async def look(self) -> tuple[Timeline, list[Leaving]]:
        """What was let go, by a listing sent now, and for how long that was seen. Raises Rollback, BackendError."""
        timeline = await self.records.timeline()
        leaving = [timeline.stored[s] for s in sorted(timeline.stored.keys() - timeline.counting.keys())]
        ages = self._ages.look([_text(record) for record in leaving])
        return timeline, [Leaving(record=record, age=ages[_text(record)]) for record in leaving]

    async def collect(
        self, rules: Rules, proof: Proof, *, grace: float = GRACE, refused: Collection[Slot] = ()
    ) -> list[Record]:
        """Delete what was let go for `grace` seconds, but for what the rules keep; `proof` is asked before each.

        Merges at `refused` were read back and are not whole. Raises Corrupt while something that stays is missing, NotSupported by
        a store that deletes nothing, Rollback, BackendError.
        """
        timeline, leaving = await self.look()
        ripe = await self._not_kept(
            [found.record for found in leaving if found.age >= grace], timeline, rules, refused
        )
        old = [n for n in timeline.trims if timeline.trim is not None and n < timeline.trim.number]
        if not ripe and not old:
            return []
        await self._require_all(timeline)
        kept = {record.body.object.id for record in timeline.counting.values()}
        gone: list[Record] = []
        for record in ripe:
            if not await proof():
                return gone
            self.going(record)
            self.records.forget(record)
            # A record that names an object of another one was not made by us; that object stays.
            if record.body.object.id not in kept:
                await self._delete_object(record)
            await self.store.delete(layout.slot_key(self.group, self.app, record.slot))
            self._ages.forget(_text(record))
            gone.append(record)
        if old and await proof():
            for number in old:
                await self.store.delete(layout.trim_key(self.group, self.app, number))
        return gone

    async def _not_kept(
        self, ripe: list[Record], timeline: Timeline, rules: Rules, refused: Collection[Slot]
    ) -> list[Record]:
        """Those that the rules do not keep either. The next trim of ours takes the others back, if they are whole."""
        if not ripe:
            return []
        rules.refuse_cut_line()
        kept = rules.kept(timeline, refused)
        found = [record for record in ripe if record.slot in kept]
        sizes = await sizes_of(self.store, self.group, self.app, found) if found else {}
        # Of what is on its way out the segments went first: it is of no use to anybody.
        whole = {
            r.slot for r in found if all(k in sizes for k in keys_of(self.group, self.app, r.body.object))
        }
        return [record for record in ripe if record.slot not in whole]

    async def _delete_object(self, record: Record) -> None:
        for key in keys_of(self.group, self.app, record.body.object):
            await self.store.delete(key)

    async def _require_all(self, timeline: Timeline) -> None:
        """Nothing goes while something that stays cannot be restored, or lacks a byte: what goes may be its only rescue."""
        timeline.require_whole()
        sizes = await sizes_of(self.store, self.group, self.app, timeline.counting.values())
        for record in timeline.counting.values():
            ref = record.body.object
            for key, segment in zip(keys_of(self.group, self.app, ref), ref.segments, strict=True):
                if sizes.get(key) != segment.size:
                    raise Corrupt(f"nothing is removed while {key}, which is needed, is missing or cut")


def _text(record: Record) -> str:
    """What its age is noted under: a merge that is made anew takes the name of the one that went, and must not take its age."""
    return f"{record.epoch}.{record.number}.{record.level}.{record.hash.hex()[:16]}"
