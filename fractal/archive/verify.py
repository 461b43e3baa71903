"""Proving that an archive is whole: what stands in the store against what the records say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from fractal.api.context import Clock
from fractal.api.errors import Corrupt, Denied
from fractal.api.store import Store
from fractal.archive import layout
from fractal.archive.keyring import AppKeyring
from fractal.archive.records import Record
from fractal.archive.restore import Fetcher
from fractal.archive.timeline import Timeline
from fractal.core.model import Point

Progress = Callable[[int, int], None]


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
        total = sum(r.stored for r in timeline.records.values())
        done = 0
        damaged: set[Point] = set()
        for point in timeline.points:
            record = timeline.records[point]
            found = self._segments(record, sizes)
            if not found and deep is not None:
                found = await self._read(record, deep)
            if found:
                damaged.add(point)
                problems += found
            done += record.stored
            if progress is not None:
                progress(done, total)
        return VerifyReport(
            problems=tuple(problems),
            objects=len(timeline.records),
            bytes=total,
            seconds=self.clock.boottime() - started,
            broken=tuple(p for p in timeline.points if _unrestorable(timeline, p, damaged)),
        )

    def _records(self, timeline: Timeline) -> list[Problem]:
        """Names taken by garbage, missing numbers, broken references."""
        problems = [Problem(self._key(p), what) for p, what in timeline.burnt.items()]
        problems += [Problem(self._key(p), "this record is missing") for p in timeline.gaps]
        before: Record | None = None
        for point in timeline.points:
            record = timeline.records[point]
            if (
                before is not None
                and before.epoch == point.epoch
                and record.body.previous_hash != before.hash
            ):
                problems.append(Problem(self._key(point), "does not follow the record before it"))
            if not timeline.whole(point):
                problems.append(Problem(self._key(point), "its chain of snapshots is broken"))
            before = record
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
            await self.fetcher.fetch(record.body.object)
            async with aclosing(self.fetcher.open_record(record, app_keys)) as chunks:
                async for _ in chunks:
                    pass
        except (Corrupt, Denied) as error:
            return [Problem(self._key(record.point), str(error))]
        finally:
            await self.fetcher.discard(record.body.object.id)
        return []

    def _key(self, point: Point) -> str:
        return layout.record_key(self.group, self.app, point)


def _unrestorable(timeline: Timeline, point: Point, damaged: set[Point]) -> bool:
    if not timeline.whole(point):
        return True
    return any(record.point in damaged for record in timeline.chain_to(point))
