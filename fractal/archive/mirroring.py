"""Keeping a copy of an app's archive in another store: sealed as it is, by whoever owns the app, beside its snapshots.

    <mirror>/<group>/<app>/...       the same names, the same bytes; never an epoch or a base: those are the arbiter's alone

Segments go before the record that names them, so that what stands in a mirror is whole at any moment. Each is brought to
this device's disk and checked before a byte of it is sent: a mirror that is slow holds up nobody who reads from the arbiter,
and damage is not copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from fractal.api.context import Clock, Workers
from fractal.api.errors import BackendError, Corrupt, NotFound
from fractal.api.store import Store
from fractal.archive import layout
from fractal.archive.collecting import Sweeper
from fractal.archive.epochs import Notes
from fractal.archive.healing import Fault, Healer, Mended, noticed
from fractal.archive.orphans import GRACE, Collector, Proof, named_by_records
from fractal.archive.places import place
from fractal.archive.reading import Records
from fractal.archive.records import ObjectRef, Record
from fractal.archive.restore import Fetcher
from fractal.archive.rules import Rules
from fractal.archive.sealed import create, read_small
from fractal.archive.standing import keys_of, sizes_of
from fractal.archive.timeline import Timeline

SEGMENT_LIMIT = 3600.0
"""Seconds that one segment may take: 64 MiB at 150 kbit/s. A store that stands still is told, and tried again."""


@dataclass(kw_only=True)
class Mirror:
    """One app's copy in one store. One call at a time; `faults` and `mend` also beside those that fill it."""

    group: str
    app: str
    name: str
    """Of the store, for people."""
    store: Store
    source: Records
    """What the arbiter has."""
    records: Records
    """What is here, by notes of its own."""
    fetcher: Fetcher
    """Brings segments from the arbiter, or from other mirrors."""
    notes: Notes
    """Its own, likewise."""
    reader: Fetcher
    """Brings them from here, or else from the others: for looking at each and mending it."""
    clock: Clock
    workers: Workers
    _sizes: dict[str, int] = field(default_factory=dict)
    """Segments of what counts that are here, by the last listing and what was put since."""
    _ours: Timeline | None = None
    _sweeper: Sweeper = field(init=False)
    _collector: Collector = field(init=False)
    _healer: Healer = field(init=False)
    _mending: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._sweeper = Sweeper(
            group=self.group,
            app=self.app,
            store=self.store,
            clock=self.clock,
            notes=self.notes,
            records=self.records,
        )
        self._collector = Collector(
            group=self.group,
            app=self.app,
            store=self.store,
            clock=self.clock,
            notes=self.notes,
            named=self._named,
        )
        self._healer = Healer(
            group=self.group,
            app=self.app,
            store=self.store,
            fetcher=self.reader,
            records=self.source,
            clock=self.clock,
            workers=self.workers,
        )

    # --- filling -------------------------------------------------------------------------------------------------

    async def look(self) -> list[Record]:
        """What counts in the arbiter and is not whole here, oldest first, by listings sent now.

        Raises Rollback while the arbiter hides what was seen there, Corrupt if this is the arbiter's own place, BackendError.
        """
        await self.fetcher.keep_only(())  # left by a copy that was killed
        await self._require_apart()
        self._ours = await self.source.timeline()
        theirs = await self.records.timeline(strict=False)
        counting = self._ours.counting
        self._sizes = await sizes_of(self.store, self.group, self.app, counting.values())
        return [counting[slot] for slot in sorted(counting) if not self._whole(counting[slot], theirs)]

    async def _require_apart(self) -> None:
        """Two names for one place are one copy. Epochs stand in the arbiter alone, so they tell."""
        async for info in self.store.list(f"{layout.epochs_prefix(self.group)}{self.app}/"):
            raise Corrupt(
                f"store {self.name} is the place where the app's own store is, as {info.key} shows: what is there is no second copy"
            )

    def _whole(self, record: Record, theirs: Timeline) -> bool:
        standing = theirs.stored.get(record.slot)
        return (
            standing is not None
            and standing.hash == record.hash
            and all(
                self._sizes.get(key) == record.body.object.segments[i].size
                for i, key in enumerate(self._keys(record.body.object))
            )
        )

    def _keys(self, ref: ObjectRef) -> Iterable[str]:
        return keys_of(self.group, self.app, ref)

    async def copy(self, record: Record) -> None:
        """Have one record here, its segments first. What is here already is not sent again.

        Raises Corrupt if no store has what is to be copied or another record has its name here, BackendError.
        """
        ref = record.body.object
        try:
            for index, key in enumerate(self._keys(ref)):
                size = ref.segments[index].size
                if self._sizes.get(key) == size:
                    continue
                path = await self.fetcher.segment(ref, index)
                try:
                    async with asyncio.timeout(SEGMENT_LIMIT):
                        await place(
                            self.store,
                            key,
                            path,
                            size,
                            replace=key in self._sizes,
                            clock=self.clock,
                            workers=self.workers,
                        )
                except TimeoutError as error:
                    raise BackendError(
                        f"store {self.name}: {key} was not stored within {SEGMENT_LIMIT:g} s", retryable=True
                    ) from error
                self._sizes[key] = size
                await self.fetcher.discard(ref.id)  # one segment at a time is all that it takes of the disk
        finally:
            await self.fetcher.discard(ref.id)
        await self._copy_record(record)

    async def _copy_record(self, record: Record) -> None:
        key = layout.slot_key(self.group, self.app, record.slot)
        data = await self.source.sealed(record)
        if await create(self.store, key, lambda: data, self.clock):
            return
        if await self._stands(record, key):
            return
        # Nobody commits here, so nobody takes the name in between but with the very same bytes.
        await self.store.delete(key)
        if not await create(self.store, key, lambda: data, self.clock) and not await self._stands(
            record, key
        ):
            raise BackendError(f"store {self.name}: {key} could not be replaced", retryable=True)

    async def _stands(self, record: Record, key: str) -> bool:
        """Whether the record stands here; False for garbage. Raises Corrupt for another one, which is nobody's to delete."""
        try:
            found = self.records.authentic(record.slot, await read_small(self.store, key))
        except (Corrupt, NotFound):
            return False
        if found.hash != record.hash:
            raise Corrupt(
                f"store {self.name}: {key} is another record than in the app's own store: one of the two was rolled back. "
                f"It is left alone; look at both"
            )
        return True

    async def copy_trim(self) -> None:
        """Have what was decided to let go here as well: by that, and by nothing else, something leaves. After `look`."""
        trim = self._ours.trim if self._ours is not None else None
        if trim is None:
            return
        key = layout.trim_key(self.group, self.app, trim.number)
        try:
            await self.store.head(key)
        except NotFound:
            data = await read_small(self.source.store, key)
            await create(self.store, key, lambda: data, self.clock)

    def noticed(self) -> list[Fault]:
        """What the arbiter lacked when it was to be copied, and another mirror gave instead; each is told once."""
        return noticed(self.fetcher)

    async def faults(self) -> list[Fault]:
        """Segments here that are missing or damaged, by every byte. Raises BackendError."""
        ours = await self.source.timeline(strict=False)
        async with self._mending:
            return await self._healer.faults(
                [ours.counting[slot] for slot in sorted(ours.counting)], deep=True
            )

    async def mend(self, faults: Sequence[Fault], proof: Proof) -> list[Mended]:
        """Put them back out of the arbiter, or of another mirror."""
        async with self._mending:
            return [await self._healer.mend(fault, proof) for fault in faults]

    # --- deleting ------------------------------------------------------------------------------------------------

    async def sweep(self, rules: Rules, proof: Proof, *, grace: float = GRACE) -> list[Record]:
        """Delete what a trim let go and the rules do not keep, and what nothing names, each a day after it was first seen to be so, as in the arbiter.

        Raises Corrupt while something that stays is missing here, NotSupported by a store that deletes nothing, BackendError.
        """
        gone = await self._sweeper.collect(rules, proof, grace=grace)
        await self._collector.collect(proof, grace=grace)
        return gone

    async def _named(self) -> Collection[str]:
        """Also what only the arbiter's records name: it may be on its way here."""
        here = await named_by_records(self.records)
        return {*here, *await named_by_records(self.source)}
