"""Which moments an app's archive holds and how one comes to each: what one listing of its store showed, verified."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from fractal.api.errors import Corrupt, NotFound
from fractal.archive.records import Record, RecordBody
from fractal.archive.trims import Trim, without
from fractal.core.chain import branches, main_line
from fractal.core.model import Point
from fractal.core.retention import Route, Slot, routes, way


@dataclass(frozen=True)
class Timeline:
    """Every record of an app, of all epochs and levels, as one listing showed them."""

    stored: Mapping[Slot, Record]
    """All that stands, also what was let go and merges that do not count yet."""
    trim: Trim | None = None
    """What was let go, and which merges count."""
    burnt: Mapping[Point, str] = field(default_factory=dict)
    """Names taken by something that is no record, and why: skipped by everybody."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Likewise names of merges and trims, in full."""
    gaps: tuple[Point, ...] = ()
    """Numbers that must have existed, because later ones of their epoch do, and are not there."""
    trims: tuple[int, ...] = ()
    """Numbers of the trims that stand, valid or not."""
    trial: frozenset[Slot] = frozenset()
    """Merges that are taken to count though no trim names them: to see what would come of it."""

    # --- moments -------------------------------------------------------------------------------------------------

    @cached_property
    def records(self) -> Mapping[Point, Record]:
        """Each moment, oldest first, with the record that tells of it: its own, or the highest merge if that was let go."""
        found: dict[Point, Record] = {}
        for slot in sorted(self.counting, key=lambda s: (s[0].epoch, s[0].number, -s[1])):
            found[slot[0]] = self.counting[slot]
        return found

    @cached_property
    def counting(self) -> Mapping[Slot, Record]:
        """What was not let go, with the merges that were found whole."""
        listed = {ref.slot: ref.hash for ref in self.trim.body.levels} if self.trim else {}
        return {
            slot: record
            for slot, record in self.stored.items()
            if (self._merge_counts(record, listed) if slot[1] else not self.let_go(slot[0]))
        }

    def _merge_counts(self, record: Record, listed: Mapping[Slot, bytes]) -> bool:
        return listed.get(record.slot) == record.hash or record.slot in self.trial

    @property
    def points(self) -> tuple[Point, ...]:
        """Oldest first."""
        return tuple(self.records)

    def let_go(self, point: Point) -> bool:
        """Whether retention let a moment's own record go."""
        return self.trim is not None and self.trim.covers(point)

    def record(self, point: Point) -> Record:
        """Raises NotFound."""
        if (record := self.records.get(point)) is not None:
            return record
        if self.let_go(point):
            raise NotFound(
                f"snapshot {name(point)} was let go by the app's retention. {self._nearest(point)}"
            )
        raise NotFound(f"the archive has no snapshot {name(point)}")

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

    def taking_back(self, points: Iterable[Point]) -> Timeline:
        """As if these had not been let go."""
        if self.trim is None:
            return self
        body = self.trim.body
        left = replace(body, gone=without(body.gone, set(points)))
        return replace(self, trim=replace(self.trim, body=left))

    def trying(self, merges: Iterable[Slot]) -> Timeline:
        """As if these merges counted."""
        return replace(self, trial=frozenset(merges))

    def undone(self) -> Timeline:
        """As if no moment's own record had ever been let go."""
        if self.trim is None:
            return self
        return replace(self, trim=replace(self.trim, body=replace(self.trim.body, gone={})))

    # --- ways ----------------------------------------------------------------------------------------------------

    def fitting(self) -> list[Record]:
        """The records that count, as far as their parent is the one that they were taken against."""
        return [r for r in self.counting.values() if self._misfit(r) is None]

    @cached_property
    def routes(self) -> Mapping[Point, Route[Record]]:
        """The shortest way to every moment that can be restored."""
        return routes(self.fitting())

    def chain_to(self, point: Point, held: Collection[Point] = frozenset()) -> list[Record]:
        """What a restore of `point` has to apply, by the shortest way: from a full snapshot on, or from one that is `held`.

        Raises NotFound if there is no such moment, Corrupt if its chain is broken, naming the nearest good moments.
        """
        record = self.record(point)
        if point in held:
            return []
        found = routes(self.fitting(), held) if held else self.routes
        if point not in found:
            raise Corrupt(
                f"snapshot {name(point)} cannot be restored: {self._break(record)}. {self._nearest(point)}"
            )
        return way(found, point)

    def whole(self, point: Point) -> bool:
        """Whether the chain to `point` is unbroken."""
        return point in self.routes

    def leads_to(self, body: RecordBody) -> bool:
        """Whether one comes to what a record with this body builds on, and it is what it was taken against."""
        if body.parent is None:
            return True
        return self.whole(body.parent) and self.records[body.parent].identity == body.parent_hash

    @cached_property
    def cut_off(self) -> frozenset[Point]:
        """Moments that build on one that was let go: a replaced owner stored them too late. Nothing leads there any more."""
        found: set[Point] = set()
        for point in self.points:
            record = self.records[point]
            parent = record.parent
            if self.whole(point) or parent is None:
                continue
            if parent in found or (parent not in self.records and self.let_go(parent)):
                found.add(point)
        return frozenset(found)

    def require_whole(self) -> None:
        """Raises Corrupt if any moment cannot be restored, unless it was let go what it builds on."""
        for point in self.points:
            if not self.whole(point) and point not in self.cut_off:
                self.chain_to(point)

    def _misfit(self, record: Record) -> str | None:
        """Why a record cannot follow its parent; None if it can."""
        own = self.stored.get((record.point, 0))
        if record.level and own is not None and own.hash != record.body.moment_hash:
            return f"the merge of {name(record.point)} is of another snapshot of that name"
        if record.parent is None:
            return None
        found = self.records.get(record.parent)
        if found is None:
            return f"{name(record.parent)}, on which it builds, is missing"
        if found.identity != record.body.parent_hash:
            return f"{name(record.parent)}, on which it builds, is not the one that it was taken against"
        return None

    def _break(self, record: Record) -> str:
        """Where the chain of a moment that cannot be reached is broken."""
        while (why := self._misfit(record)) is None and record.parent is not None:
            record = self.records[record.parent]
        return why or f"the merge of {name(record.point)} has no way to what it builds on"

    def _nearest(self, point: Point) -> str:
        before = max((p for p in self.routes if p < point), default=None)
        after = min((p for p in self.routes if p > point), default=None)
        good = [name(p) for p in (before, after) if p is not None]
        return f"Nearest whole snapshots: {', '.join(good)}" if good else "No other snapshot near it is whole"


def name(point: Point) -> str:
    """As people write it."""
    return f"{point.epoch}.{point.number}"
