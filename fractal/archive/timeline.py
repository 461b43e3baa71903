"""Which snapshots an app's archive holds: read from the store, verified, and compared with what was seen before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fractal.api.context import Clock
from fractal.api.errors import Corrupt, NotFound
from fractal.api.store import Store
from fractal.archive import layout
from fractal.archive.epochs import Notes, Rollback
from fractal.archive.records import KIND, Record, record_of
from fractal.archive.sealed import GroupKey, SignKeyOf, listed, open_statement, read_small
from fractal.core.chain import branches, main_line
from fractal.core.model import Point

MAX_GAPS = 1000
"""Missing numbers that are told."""
MAX_LISTED = 4_000_000
"""Records of an app that are looked at: seven years of one a minute."""
FETCHES = 8
"""Records fetched at once."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Every record of an app, of all epochs, as one listing showed them."""

    records: Mapping[Point, Record]
    burnt: Mapping[Point, str] = field(default_factory=dict)
    """Names taken by something that is no record, and why: skipped by everybody."""
    gaps: tuple[Point, ...] = ()
    """Numbers that must have existed, because later ones of their epoch do, and are not there."""

    @property
    def points(self) -> tuple[Point, ...]:
        """Oldest first."""
        return tuple(sorted(self.records))

    def record(self, point: Point) -> Record:
        """Raises NotFound."""
        if (record := self.records.get(point)) is None:
            raise NotFound(f"the archive has no snapshot {point.epoch}.{point.number}")
        return record

    def newest(self, epoch: int) -> Record | None:
        """The last record of an epoch."""
        return max(
            (r for r in self.records.values() if r.epoch == epoch), key=lambda r: r.number, default=None
        )

    def main(self, bases: Mapping[int, Point], epoch: int) -> tuple[Record, ...]:
        """The line that ends with `epoch`, oldest first."""
        return tuple(self.records[p] for p in main_line(self.points, bases, epoch) if p in self.records)

    def branches(self, bases: Mapping[int, Point], epoch: int) -> tuple[Record, ...]:
        """What is on no part of that line: work of replaced owners, kept."""
        return tuple(self.records[p] for p in branches(self.points, bases, epoch))

    def chain_to(self, point: Point) -> list[Record]:
        """What a restore of `point` has to apply, from a full snapshot on.

        Raises NotFound if there is no such moment, Corrupt if its chain is broken, naming the nearest good moments.
        """
        chain = [self.record(point)]
        while (parent := chain[-1].body.parent) is not None:
            found = self.records.get(parent)
            if found is None or found.hash != chain[-1].body.parent_hash:
                what = "is missing" if found is None else "is not the one that it was taken against"
                raise Corrupt(
                    f"snapshot {_name(point)} cannot be restored: {_name(parent)}, on which it builds, {what}. "
                    + self._nearest(point)
                )
            chain.append(found)
        return chain[::-1]

    def whole(self, point: Point) -> bool:
        """Whether the chain to `point` is unbroken."""
        try:
            self.chain_to(point)
        except (NotFound, Corrupt):
            return False
        return True

    def _nearest(self, point: Point) -> str:
        before = next((p for p in reversed(self.points) if p < point and self.whole(p)), None)
        after = next((p for p in self.points if p > point and self.whole(p)), None)
        good = [_name(p) for p in (before, after) if p is not None]
        return f"Nearest whole snapshots: {', '.join(good)}" if good else "No other snapshot near it is whole"


def _name(point: Point) -> str:
    return f"{point.epoch}.{point.number}"


class Records:
    """Reads an app's records and remembers the valid ones; they never change."""

    def __init__(
        self,
        *,
        group: str,
        app: str,
        store: Store,
        sign_key_of: SignKeyOf,
        group_key: GroupKey,
        notes: Notes,
        clock: Clock,
        owner_of: Callable[[int], str | None] | None,
    ) -> None:
        self._group = group
        self._app = app
        self._store = store
        self._sign_key_of = sign_key_of
        self._group_key = group_key
        self._notes = notes
        self._clock = clock
        self._owner_of = owner_of
        self._known: dict[Point, Record] = {}
        self._seen: dict[Point, float] = {}
        self._raw: dict[Point, bytes] = {}
        """Fetched and not yet judged. What turns out to be no record is fetched again next time: log or store may have changed."""
        self._note = f"archive/{group}/{app}/highest/"

    async def timeline(self, *, strict: bool = True) -> Timeline:
        """By a listing sent now. Raises Rollback if a record that was seen before is missing (if `strict`), BackendError."""
        # What is written while the listing is under way may be missing in it.
        noted = self._notes.scan(self._note)
        points = await self._list(layout.records_prefixes(self._group, self._app))
        timeline = self._judge(points)
        if strict:
            self._refuse_rollback(timeline.records, noted)
        return timeline

    async def end_of(self, epoch: int) -> tuple[int, Timeline]:
        """The number that the next record of an epoch takes, and its records; bears with a store that lost some."""
        points = await self._list([layout.epoch_records_prefix(self._group, self._app, epoch)])
        timeline = self._judge(points)
        newest = timeline.newest(epoch)
        number = max(self._highest(epoch), newest.number if newest else 0) + 1
        while Point(epoch=epoch, number=number) in timeline.burnt:
            number += 1
        return number, timeline

    async def read(self, point: Point) -> Record | None:
        """What stands at a record's name: None if that is no valid record. Raises NotFound if there is nothing."""
        if point not in self._known:
            self._raw[point] = await read_small(self._store, self._key(point))
            self._parse(point, {})
        return self._known.get(point)

    def remember(self, record: Record) -> None:
        """A record that stands: one that is seen missing later was hidden or rolled back."""
        self._known[record.point] = record
        self._seen.setdefault(record.point, self._clock.boottime())
        if record.number > self._highest(record.epoch):
            value = b"%d %s" % (record.number, record.hash.hex().encode())
            self._notes.write({f"{self._note}{record.epoch}": value})

    def _key(self, point: Point) -> str:
        return layout.record_key(self._group, self._app, point)

    async def _list(self, prefixes: Iterable[str]) -> list[Point]:
        found: list[Point] = []
        for prefix in prefixes:
            async for key in listed(self._store, prefix, MAX_LISTED):
                point = layout.parse_record_key(self._group, self._app, key)
                if point is not None:
                    found.append(point)
        await self._fetch([p for p in found if p not in self._known])
        return sorted(found)

    async def _fetch(self, points: Sequence[Point]) -> None:
        waiting = list(reversed(points))

        async def fetch() -> None:
            while waiting:
                point = waiting.pop()
                try:
                    self._raw[point] = await read_small(self._store, self._key(point))
                except Corrupt:
                    self._raw[point] = b""
                except NotFound as error:
                    raise Rollback(
                        f"{self._key(point)} was listed and is not there", retryable=True
                    ) from error

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(FETCHES, len(points))):
                    tasks.create_task(fetch())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    def _judge(self, listed: Sequence[Point]) -> Timeline:
        burnt: dict[Point, str] = {}
        for point in listed:
            if point not in self._known:
                self._parse(point, burnt)
        records = {p: self._known[p] for p in listed if p in self._known}
        # What this device read or wrote a moment ago may be missing from a listing that is allowed to lag.
        recent = self._clock.boottime() - self._store.staleness
        records |= {p: r for p, r in self._known.items() if self._seen.get(p, recent) > recent}
        newest: dict[int, Record] = {}
        for point in sorted(records):
            newest[point.epoch] = records[point]
        for record in newest.values():
            self.remember(record)
        return Timeline(records, burnt, _gaps(records, burnt))

    def _parse(self, point: Point, burnt: dict[Point, str]) -> None:
        key = self._key(point)
        try:
            said = open_statement(
                KIND, key, self._raw.pop(point), sign_key_of=self._sign_key_of, group_key=self._group_key
            )
            owner = self._owner_of(point.epoch) if self._owner_of is not None else None
            if owner is not None and owner != said.by:
                raise Corrupt(f"{key}: written by {said.by}, which does not own epoch {point.epoch}")
            self._known[point] = record_of(key, point, said.by, said.body)
        except Corrupt as error:
            burnt[point] = str(error)

    def _highest(self, epoch: int) -> int:
        value = self._notes.get(f"{self._note}{epoch}") or b"0 "
        return int(value.split(b" ")[0])

    def _refuse_rollback(self, records: Mapping[Point, Record], noted: list[tuple[str, bytes]]) -> None:
        for key, value in noted:
            point = Point(epoch=int(key.removeprefix(self._note)), number=int(value.split(b" ")[0]))
            found = records.get(point)
            if found is not None and found.hash.hex().encode() == value.split(b" ")[1]:
                continue
            what = "is gone" if found is None else "was replaced by another"
            raise Rollback(
                f"record {_name(point)} of app {self._app} {what}: the store was rolled back, or hides it. Check the store."
            )


def _gaps(records: Mapping[Point, Record], burnt: Mapping[Point, str]) -> tuple[Point, ...]:
    """The first few of them: a hostile writer may have left 10^14 numbers out."""
    newest: dict[int, int] = {}
    for point in records:
        newest[point.epoch] = max(newest.get(point.epoch, 0), point.number)
    standing = sorted({*records, *(p for p in burnt if p.number < newest.get(p.epoch, 0))})
    found: list[Point] = []
    epoch, expected = 0, 1
    for point in standing:
        if point.epoch != epoch:
            epoch, expected = point.epoch, 1
        missing = range(expected, min(point.number, expected + MAX_GAPS - len(found)))
        found.extend(Point(epoch=epoch, number=number) for number in missing)
        expected = point.number + 1
    return tuple(found)
