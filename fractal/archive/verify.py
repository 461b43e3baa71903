"""Proving that an archive is whole: what stands in the store against what the records say."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field

from fractal.api.context import Clock
from fractal.api.errors import Corrupt, Denied
from fractal.api.store import Store
from fractal.archive import layout
from fractal.archive.keyring import AppKeyring
from fractal.archive.progress import Progress
from fractal.archive.records import Record
from fractal.archive.restore import Fetcher
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
        self, timeline: Timeline, *, deep: AppKeyring | None, progress: Progress | None = None
    ) -> VerifyReport:
        """Records, chains and sizes; with `deep` also every byte, decrypted with the app's keys. Raises BackendError."""
        started = self.clock.boottime()
        problems = self._records(timeline)
        sizes = {
            info.key: info.size async for info in self.store.list(layout.objects_prefix(self.group, self.app))
        }
        records = [timeline.counting[slot] for slot in sorted(timeline.counting)]
        total = sum(r.stored for r in records)
        done = 0
        damaged: set[Slot] = set()
        for record in records:
            found = self._segments(record, sizes)
            if not found and deep is not None:
                found = await self._read(record, deep)
            if found:
                damaged.add(record.slot)
                problems += found
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

    def _segments(self, record: Record, sizes: dict[str, int]) -> list[Problem]:
        problems = []
        for index, segment in enumerate(record.body.object.segments):
            key = layout.segment_key(self.group, self.app, record.body.object.id, index)
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
