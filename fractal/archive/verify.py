"""Proving that an archive is whole: what stands in the store against what the records say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from fractal.api.context import Clock
from fractal.api.errors import BackendError, Corrupt, Denied
from fractal.api.store import Store
from fractal.archive import layout
from fractal.archive.keyring import AppKeyring
from fractal.archive.progress import Progress
from fractal.archive.records import Record
from fractal.archive.rescue import Rescued
from fractal.archive.restore import OPEN_LIMIT, Fetcher
from fractal.archive.standing import keys_of, sizes_of
from fractal.archive.timeline import Timeline
from fractal.core.model import Point
from fractal.core.retention import Slot, routes


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the store that is not as it must be."""

    key: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was looked at and what was found."""

    problems: tuple[Problem, ...]
    objects: int
    bytes: int
    """Stored bytes of the objects looked at."""
    seconds: float
    broken: tuple[Point, ...] = field(default=())
    """Snapshots that cannot be restored because of the problems."""


@dataclass(kw_only=True)
class Verifier:
    """Looks at one app's archive."""

    group: str
    app: str
    store: Store
    clock: Clock
    fetcher: Fetcher

    async def run(
        self,
        timeline: Timeline,
        *,
        deep: AppKeyring | None,
        rescued: Mapping[Slot, Rescued],
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Records, chains and sizes; with `deep` also every byte, decrypted with the app's keys. Raises BackendError.

        What only a mirror has is a problem of the store, and restores all the same.
        """
        started = self.clock.boottime()
        problems = self._records(timeline)
        problems += [
            Problem(
                layout.slot_key(self.group, self.app, slot),
                f"this record is {'damaged' if how.damaged else 'missing'}; store {how.source} has it",
            )
            for slot, how in sorted(rescued.items())
        ]
        records = [timeline.counting[slot] for slot in sorted(timeline.counting)]
        sizes = await sizes_of(self.store, self.group, self.app, records)
        total = sum(r.stored for r in records)
        done = 0
        damaged: set[Slot] = set()
        for record in records:
            found, whole = await self._look(record, sizes, deep)
            problems += found
            if not whole:
                damaged.add(record.slot)
            done += record.stored
            if progress is not None:
                progress(done, total)
        return VerifyReport(
            problems=tuple(problems),
            objects=len(records),
            bytes=total,
            seconds=self.clock.boottime() - started,
            broken=_unrestorable(timeline, damaged),
        )

    def _records(self, timeline: Timeline) -> list[Problem]:
        """Names taken by garbage, missing numbers, broken references."""
        problems = [Problem(self._key(p), what) for p, what in timeline.burnt.items()]
        problems += [Problem(self._key(p), "this record is missing") for p in timeline.gaps]
        problems += [Problem(key, what) for key, what in timeline.unread.items()]
        for point in timeline.points:
            record = timeline.records[point]
            # The one before it may have been let go; then the trim that says so, which is signed, stands in.
            before = timeline.stored.get((Point(epoch=point.epoch, number=point.number - 1), 0))
            if before is not None and not record.level and record.body.previous_hash != before.hash:
                problems.append(Problem(self._key(point), "does not follow the record before it"))
            if not timeline.whole(point):
                problems.append(Problem(self._key(point), "its chain of snapshots is broken"))
        for ref in timeline.trim.body.levels if timeline.trim else ():
            if ref.slot not in timeline.counting:
                key = layout.slot_key(self.group, self.app, ref.slot)
                problems.append(Problem(key, "this merge is missing, or is another one"))
        return problems

    async def _look(
        self, record: Record, sizes: Mapping[str, int], deep: AppKeyring | None
    ) -> tuple[list[Problem], bool]:
        """What is wrong with a record's object in the store, and whether it can be brought all the same."""
        found = self._segments(record, sizes)
        if not self.fetcher.mirrors():
            if not found and deep is not None:
                found = await self._read(record, deep)
            return found, not found
        if deep is None:
            sources = [await self._held(problem.key, record) for problem in found]
            told = [
                Problem(p.key, f"{p.what}; store {source} has it" if source else p.what)
                for p, source in zip(found, sources, strict=True)
            ]
            return told, all(sources)
        ref = record.body.object
        keys = keys_of(self.group, self.app, ref)
        for key in keys:
            self.fetcher.lacks.pop(key, None)  # seen at another time
        if unread := await self._read(record, deep):
            return unread, False
        lacks = self.fetcher.lacks
        return [
            Problem(key, f"{lacks[key].why}; store {lacks[key].source} has it")
            for key in keys
            if key in lacks
        ], True

    async def _held(self, key: str, record: Record) -> str:
        """Name of a mirror that has a segment, as far as sizes tell; "" if none is known to."""
        parsed = layout.parse_segment_key(self.group, self.app, key)
        for place in self.fetcher.mirrors() if parsed is not None else ():
            try:
                async with asyncio.timeout(OPEN_LIMIT):
                    held = (await (await place.open()).head(key)).size
            except (BackendError, TimeoutError):
                continue  # it is told to be missing, which it may be
            if parsed is not None and held == record.body.object.segments[parsed[1]].size:
                return place.name
        return ""

    def _segments(self, record: Record, sizes: Mapping[str, int]) -> list[Problem]:
        problems = []
        ref = record.body.object
        for key, segment in zip(keys_of(self.group, self.app, ref), ref.segments, strict=True):
            if key not in sizes:
                problems.append(Problem(key, "this segment is missing"))
            elif sizes[key] != segment.size:
                problems.append(Problem(key, f"{sizes[key]} bytes where {segment.size} are recorded"))
        return problems

    async def _read(self, record: Record, app_keys: AppKeyring) -> list[Problem]:
        try:
            await prove(self.fetcher, record, app_keys)
        except (Corrupt, Denied) as error:
            return [Problem(layout.slot_key(self.group, self.app, record.slot), str(error))]
        return []

    def _key(self, point: Point) -> str:
        return layout.record_key(self.group, self.app, point)


def _unrestorable(timeline: Timeline, damaged: set[Slot]) -> tuple[Point, ...]:
    """Moments to which no way leads past what is damaged."""
    found = routes([r for r in timeline.fitting() if r.slot not in damaged])
    return tuple(p for p in timeline.points if p not in found)


async def prove(fetcher: Fetcher, record: Record, app_keys: AppKeyring) -> None:
    """Read a stored object back, whole, and authenticate every byte. Raises Corrupt, Denied, BackendError."""
    try:
        await fetcher.fetch(record.body.object)
        async with aclosing(fetcher.open_record(record, app_keys)) as chunks:
            async for _ in chunks:
                pass
    finally:
        await fetcher.discard(record.body.object.id)
