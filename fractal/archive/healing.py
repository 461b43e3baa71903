"""Putting back what one store lost out of another: segments freely, records by a rule, epochs never.

Replacing is deleting and creating. A segment's bytes are named by a hash and its name is random, so nobody else puts anything
there. A record's name is a place in a sequence: between the two steps another writer could take it. So only who owns the
highest epoch puts records back, which are its own or of epochs that are over. An epoch object or a base is never put back:
what was deleted there is a lock that was opened, which a person has to look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fractal.api.context import Clock, Workers
from fractal.api.errors import BackendError, Corrupt
from fractal.api.store import Store
from fractal.archive import layout
from fractal.archive.orphans import Proof
from fractal.archive.places import place
from fractal.archive.reading import Records
from fractal.archive.records import ObjectRef, Record
from fractal.archive.restore import Fetcher
from fractal.archive.sealed import create
from fractal.archive.standing import keys_of, sizes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An object that a store lacks or has damaged."""

    key: str
    what: str
    ref: ObjectRef
    index: int = -1
    """Of the segment; -1: it is the record that is not there."""
    record: Record | None = None
    standing: bool
    """Something is there, and it is not what it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What became of a fault."""

    key: str
    source: str = ""
    """Name of the store that had it; "" if none did."""
    problem: str = ""
    """Why it is not whole yet."""


def noticed(fetcher: Fetcher) -> list[Fault]:
    """What the store of a fetcher lacked for certain since the last call, and another gave."""
    found, fetcher.lacks = fetcher.lacks, {}
    return [
        Fault(key=key, what=lack.why, ref=lack.ref, index=lack.index, standing=lack.standing)
        for key, lack in found.items()
        if lack.certain
    ]


@dataclass(kw_only=True)
class Healer:
    """Mends one app's archive in one store."""

    group: str
    app: str
    store: Store
    fetcher: Fetcher
    """Reads this store first, then the others."""
    records: Records
    """Of the app's own store."""
    clock: Clock
    workers: Workers

    async def faults(self, counting: Sequence[Record], *, deep: bool) -> list[Fault]:
        """Segments that are missing or of another size; with `deep` also those of other bytes. Raises BackendError."""
        await self.fetcher.keep_only(())  # left by a repair that was killed
        sizes = await sizes_of(self.store, self.group, self.app, counting)
        found: list[Fault] = []
        for record in counting:
            ref = record.body.object
            for index, key in enumerate(keys_of(self.group, self.app, ref)):
                segment, standing = ref.segments[index], key in sizes
                if not standing:
                    what = "this segment is missing"
                elif sizes[key] != segment.size:
                    what = f"{sizes[key]} bytes where {segment.size} are recorded"
                elif deep and not await self.fetcher.stands(ref, index):
                    what = "not the bytes that its record names"
                else:
                    continue
                found.append(Fault(key=key, what=what, ref=ref, index=index, standing=standing))
        return found

    def lost_records(self) -> list[Fault]:
        """Records that came from a mirror when the timeline was read last."""
        return [
            Fault(
                key=layout.slot_key(self.group, self.app, slot),
                what="this record is damaged" if how.damaged else "this record is missing",
                ref=record.body.object,
                record=record,
                standing=how.damaged,
            )
            for slot, how in sorted(self.records.rescued.items())
            if (record := self.records.known(slot)) is not None
        ]

    async def mend(self, fault: Fault, proof: Proof) -> Mended:
        """Put one thing back, on proof that is fresh. What cannot be put back is told, and stays as it is."""
        try:
            if not await proof():
                return Mended(key=fault.key, problem="this device does not own the app any more")
            if fault.record is not None:
                return await self._record(fault, fault.record)
            return await self._segment(fault)
        except (Corrupt, BackendError) as error:
            return Mended(key=fault.key, problem=str(error))

    async def _segment(self, fault: Fault) -> Mended:
        ref = fault.ref
        try:
            path = await self.fetcher.segment(ref, fault.index)
            lack = self.fetcher.lacks.pop(fault.key, None)
            if lack is None:
                return Mended(key=fault.key)  # it is whole after all
            if not lack.certain:
                # It may be whole: deleting it on that ground would leave nothing if the store fails again.
                return Mended(key=fault.key, problem=lack.why)
            await place(
                self.store,
                fault.key,
                path,
                ref.segments[fault.index].size,
                replace=fault.standing,
                clock=self.clock,
                workers=self.workers,
            )
        finally:
            await self.fetcher.discard(ref.id)
        return Mended(key=fault.key, source=lack.source)

    async def _record(self, fault: Fault, record: Record) -> Mended:
        if record.slot not in self.records.rescued:
            return Mended(key=fault.key)  # it is back
        source = self.records.rescued[record.slot].source
        data = await self.records.sealed(record)
        if fault.standing:
            await self.store.delete(fault.key)
        if not await create(self.store, fault.key, lambda: data, self.clock):
            return Mended(key=fault.key, problem="something else took this record's name: look at it")
        del self.records.rescued[record.slot]
        return Mended(key=fault.key, source=source)
