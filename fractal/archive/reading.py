"""Which records and trims an app's archive holds: read from the store, verified, and compared with what was seen before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from fractal.api.context import Clock
from fractal.api.errors import BackendError, Corrupt, NotFound
from fractal.api.store import Store
from fractal.archive import layout, trims
from fractal.archive.epochs import Notes, Rollback
from fractal.archive.places import Places, nowhere
from fractal.archive.records import KIND, Record, record_of
from fractal.archive.rescue import LIMIT, InVain, Rescued, asked_for, rescue
from fractal.archive.sealed import GroupKey, SignKeyOf, at_once, listed, open_statement, read_small
from fractal.archive.timeline import Timeline, name
from fractal.archive.trims import Trim, TrimBody, trim_of
from fractal.core.chain import in_order, on_line
from fractal.core.model import Point
from fractal.core.retention import Slot

MAX_GAPS = 1000
"""Missing numbers that are told."""
MAX_LISTED = 4_000_000
"""Records of an app that are looked at: seven years of one a minute."""

OWNERS_AGAIN = 60.0
"""Seconds after which the owner of an epoch is looked for again. Records of one that has none are not even read."""

OwnerOf = Callable[[int], str | None]
"""Who owns an epoch; "" if nobody may, None if it is not known."""
Line = Callable[[], Awaitable[tuple[Mapping[int, Point], int]]]
"""The bases of an app's epochs, as far as they are known, and its highest epoch."""


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
        owner_of: OwnerOf | None,
        list_owners: Callable[[], Awaitable[object]] | None = None,
        line: Line | None = None,
        counts: Callable[[int], bool] = lambda _: True,
        mirrors: Places = nowhere,
    ) -> None:
        """`counts` says of an epoch whether somebody owned it by the log: what others decided in one lets nothing go."""
        self._group = group
        self._app = app
        self.store = store
        self._sign_key_of = sign_key_of
        self._group_key = group_key
        self._notes = notes
        self._clock = clock
        self._owner_of = owner_of
        self._list_owners = list_owners
        self._nobodys: frozenset[int] = frozenset()
        """Epochs that had no owner at the last look for one."""
        self._asked = float("-inf")
        self._line = line
        self._counts = counts
        self._mirrors = mirrors
        self._in_vain = InVain(clock)
        self.rescued: dict[Slot, Rescued] = {}
        """What the store lacks and a mirror gave."""
        self._known: dict[Slot, Record] = {}
        self._trims: dict[int, Trim] = {}
        self._trims_seen: dict[int, float] = {}
        self._last: Trim | None = None
        self._judged: tuple[tuple[list[Slot], list[int], dict[int, Point], int], Timeline] | None = None
        """What the last listing showed, and what it said."""
        self._seen: dict[Slot, float] = {}
        self._raw: dict[str, bytes] = {}
        """Fetched and not valid so far. It is fetched again next time: log or store may have changed."""
        self._note = f"archive/{group}/{app}/highest/"
        self._trim_note = f"archive/{group}/{app}/trim"

    # --- listing -------------------------------------------------------------------------------------------------

    async def timeline(self, *, strict: bool = True) -> Timeline:
        """By a listing sent now. Raises Rollback if a record that was seen before is missing (if `strict`), BackendError."""
        # What is written while the listing is under way may be missing in it.
        noted = dict(map(self._read_note, self._notes.scan(self._note)))
        noted_trim = self._noted_trim()
        slots = await self._list(layout.records_prefix(self._group, self._app), noted)
        # Trims after records: whatever was deleted before the first listing was let go by one that stands in the second.
        numbers = await self._list_trims()
        bases, epoch = await self._line() if self._line is not None and numbers else ({}, 0)
        if self._mirrors():
            timeline = self._judge(slots, numbers, bases, epoch)
            timeline = await self._with_rescued(slots, numbers, timeline, noted, bases, epoch)
        else:
            timeline = self._judged_once(slots, numbers, bases, epoch)
        self._last = timeline.trim
        self._refuse_vanished(slots, timeline)
        if strict:
            self._refuse_rollback(timeline, noted)
            self._refuse_older_trim(timeline, noted_trim)
        self._forget(slots, timeline)
        return timeline

    async def end_of(self, epoch: int) -> tuple[int, Timeline]:
        """The number that the next record of an epoch takes, and its records; bears with a store that lost some."""
        slots = await self._list(layout.epoch_records_prefix(self._group, self._app, epoch))
        # The next one follows what is known to stand, wherever it does.
        slots = sorted({*slots, *(s for s in self.rescued if s[0].epoch == epoch and s in self._known)})
        timeline = self._judge(slots, [], {}, 0)
        # Records of other epochs are among them where a store lags: those that were seen lately.
        newest = max((p.number for p, _ in timeline.stored if p.epoch == epoch), default=0)
        number = max(self._highest(epoch), newest) + 1
        while Point(epoch=epoch, number=number) in timeline.burnt:
            number += 1
        return number, timeline

    async def read(self, point: Point, level: int = 0) -> Record | None:
        """What stands at a record's name: None if that is no valid record. Raises NotFound if there is nothing."""
        slot = point, level
        if slot not in self._known and await self._of_somebody([slot]):
            key = self._key(slot)
            self._raw[key] = await read_small(self.store, key)
            self._parse(slot, {})
        return self._known.get(slot)

    def known(self, slot: Slot) -> Record | None:
        """A record that was read before."""
        return self._known.get(slot)

    def let_go(self, point: Point) -> bool:
        """Whether a moment's own record was let go, as far as the last listing told."""
        return self._last is not None and self._last.covers(point)

    def remember(self, record: Record) -> None:
        """A record that stands: one that is seen missing later was hidden or rolled back."""
        self._known[record.slot] = record
        self._seen.setdefault(record.slot, self._clock.boottime())
        if not record.level and record.number > self._highest(record.epoch):
            value = b"%d %s" % (record.number, record.hash.hex().encode())
            self._notes.write({f"{self._note}{record.epoch}": value})

    def forget(self, record: Record) -> None:
        """A record that is about to leave the store: where listings lag it is shown still, and must not be taken for there."""
        self._known.pop(record.slot, None)
        self._seen.pop(record.slot, None)

    def remember_trim(self, trim: Trim) -> None:
        """A trim that stands: it counts also while listings that lag do not show it."""
        self._trims[trim.number] = trim
        self._trims_seen[trim.number] = self._clock.boottime()

    def authentic(self, slot: Slot, data: bytes) -> Record:
        """The record that these bytes are, under that name. Raises Corrupt with the reason if they are none."""
        record = self._signed(slot, data)
        if self._owner_of is not None and self._owner_of(record.epoch) != record.device:
            raise Corrupt(
                f"{self._key(slot)}: written by {record.device}, which does not own epoch {record.epoch}"
            )
        return record

    def _signed(self, slot: Slot, data: bytes) -> Record:
        """The same, whoever of the group wrote it."""
        key = self._key(slot)
        said = open_statement(KIND, key, data, sign_key_of=self._sign_key_of, group_key=self._group_key)
        return record_of(key, slot, said.by, said.body)

    async def sealed(self, record: Record) -> bytes:
        """The object that a record is, out of the store, or out of a mirror. Raises Corrupt, NotFound, BackendError."""
        key = self._key(record.slot)
        if record.slot not in self.rescued:
            data = await read_small(self.store, key)
            if self.authentic(record.slot, data).hash == record.hash:
                return data
            raise Corrupt(f"{key}: another record than the one that was read there")
        for place in self._mirrors():
            try:
                async with asyncio.timeout(LIMIT):
                    data = await read_small(await place.open(), key)
                if self.authentic(record.slot, data).hash == record.hash:
                    return data
            except (TimeoutError, Corrupt, BackendError):
                continue
        raise NotFound(f"{key}: no mirror gives it any more")

    async def reread(self) -> None:
        """Look at every known record's bytes again, as listings do not. What is not there any more is forgotten, and looked for anew."""
        self._in_vain = InVain(self._clock)
        waiting = [record for record in self._known.values() if record.slot not in self.rescued]

        async def read() -> None:
            while waiting:
                record = waiting.pop()
                try:
                    await self.sealed(record)
                except (Corrupt, NotFound):
                    self._known.pop(record.slot, None)
                    self._seen.pop(record.slot, None)
                    self._judged = None

        await at_once(read, len(waiting))

    # --- fetching ------------------------------------------------------------------------------------------------

    async def _with_rescued(
        self,
        slots: Sequence[Slot],
        numbers: Sequence[int],
        timeline: Timeline,
        noted: Mapping[Point, bytes],
        bases: Mapping[int, Point],
        epoch: int,
    ) -> Timeline:
        """The timeline with what the store lost and a mirror has."""
        listed = set(slots)
        for slot in [s for s, how in self.rescued.items() if s in listed and not how.damaged]:
            del self.rescued[slot]  # it is back
        standing = {s for s in self.rescued if s in self._known}
        if standing - listed:
            timeline = self._judge(sorted(listed | standing), numbers, bases, epoch)
        wanted = asked_for(timeline, noted)
        if not wanted:
            return timeline
        found = await rescue(
            timeline,
            wanted,
            self._mirrors,
            key_of=self._key,
            authentic=self.authentic,
            in_vain=self._in_vain,
        )
        for slot, (record, source) in found.items():
            self._known[slot] = record
            self._raw.pop(self._key(slot), None)
            self.rescued[slot] = Rescued(source, slot in listed)
        return self._judge(sorted(listed | self.rescued.keys()), numbers, bases, epoch) if found else timeline

    def _read_note(self, noted: tuple[str, bytes]) -> tuple[Point, bytes]:
        key, value = noted
        number, _, digest = value.partition(b" ")
        point = Point(epoch=int(key.removeprefix(self._note)), number=int(number))
        return point, bytes.fromhex(digest.decode())

    def _key(self, slot: Slot) -> str:
        return layout.slot_key(self._group, self._app, slot)

    async def _list(self, prefix: str, noted: Iterable[Point] = ()) -> list[Slot]:
        names = listed(self.store, prefix, MAX_LISTED)
        slots = [layout.parse_slot_key(self._group, self._app, key) async for key in names]
        found = await self._of_somebody([slot for slot in slots if slot is not None], noted)
        await self._fetch([self._key(s) for s in found if s not in self._known])
        return sorted(found, key=_place)

    async def _of_somebody(self, slots: list[Slot], also: Iterable[Point] = ()) -> list[Slot]:
        """Those of epochs that somebody created, as far as it can be known now. Of `also` it is only found out.

        A record may be written before its epoch is created, by whoever may write into the store: it must not count then, and
        be taken for the owner's later.
        """
        owner_of = self._owner_of
        if owner_of is None:
            return slots
        epochs = {p.epoch for p, _ in slots} | {p.epoch for p in also}
        strange = {e for e in epochs if owner_of(e) is None}
        now = self._clock.boottime()
        if self._list_owners and (strange - self._nobodys or (strange and now - self._asked >= OWNERS_AGAIN)):
            await self._list_owners()
            strange = {e for e in strange if owner_of(e) is None}
            self._nobodys, self._asked = frozenset(strange), now
        # Of a burnt epoch they are looked at: its object may be damaged, and what it held must not vanish unsaid.
        return [slot for slot in slots if slot[0].epoch not in strange] if strange else slots

    async def _list_trims(self) -> list[int]:
        names = listed(self.store, layout.trims_prefix(self._group, self._app), MAX_LISTED)
        numbers = [layout.parse_trim_key(self._group, self._app, key) async for key in names]
        found = [number for number in numbers if number is not None]
        await self._fetch([self._trim_key(n) for n in found if n not in self._trims])
        recent = self._clock.boottime() - self.store.staleness
        return sorted({*found, *(n for n, seen in self._trims_seen.items() if seen > recent)})

    def _trim_key(self, number: int) -> str:
        return layout.trim_key(self._group, self._app, number)

    async def _fetch(self, keys: Sequence[str]) -> None:
        """Have the bytes of those that stand: one that vanished meanwhile has none."""
        if not keys:
            return
        waiting = list(reversed(keys))

        async def fetch() -> None:
            while waiting:
                key = waiting.pop()
                try:
                    self._raw[key] = await read_small(self.store, key)
                except Corrupt:
                    self._raw[key] = b""
                except NotFound:
                    self._raw.pop(key, None)

        await at_once(fetch, len(keys))

    # --- judging -------------------------------------------------------------------------------------------------

    def _judged_once(
        self, slots: list[Slot], numbers: list[int], bases: Mapping[int, Point], epoch: int
    ) -> Timeline:
        """As `_judge`; once for the same names, as what stands at them never changes, unless something could not be read."""
        nobodys = [n for n, trim in self._trims.items() if not self._counts(trim.body.epoch)]
        asked = slots, [n for n in numbers if n not in nobodys], dict(bases), epoch
        if (
            self._judged is not None
            and not self._raw
            and not self.store.staleness
            and self._judged[0] == asked
        ):
            return self._judged[1]
        timeline = self._judge(slots, numbers, bases, epoch)
        # Nor while a name has nothing behind it: that may be read by another way, and the listing stays the same.
        read = not self._raw and len(timeline.stored) == len(slots) and self._trims.keys() >= set(numbers)
        self._judged = (asked, timeline) if read else None
        return timeline

    def _judge(
        self, slots: Sequence[Slot], numbers: Sequence[int], bases: Mapping[int, Point], epoch: int
    ) -> Timeline:
        burnt: dict[str, str] = {}
        for slot in slots:
            if slot not in self._known and self._key(slot) in self._raw:
                self._parse(slot, burnt)
        for number in numbers:
            if number not in self._trims and self._trim_key(number) in self._raw:
                self._parse_trim(number, burnt)
        stored = {s: self._known[s] for s in slots if s in self._known}
        if self.store.staleness:
            # What this device read or wrote a moment ago may be missing from a listing that is allowed to lag.
            recent = self._clock.boottime() - self.store.staleness
            stored |= {s: r for s, r in self._known.items() if self._seen.get(s, recent) > recent}
        newest: dict[int, Record] = {}
        for slot in sorted(stored, key=_place):
            if not slot[1]:
                newest[slot[0].epoch] = stored[slot]
        for record in newest.values():
            self.remember(record)
        trim = self._counting([self._trims[n] for n in numbers if n in self._trims], bases, epoch)
        ticks = {
            slot[0]: burnt.pop(self._key(slot))
            for slot in (slots if burnt else ())
            if not slot[1] and self._key(slot) in burnt
        }
        standing = {p for p, _ in stored}
        return Timeline(
            stored=stored,
            trim=trim,
            burnt=ticks,
            unread=burnt,
            gaps=_gaps(standing, ticks, trim),
            trims=tuple(numbers),
        )

    def _counting(self, valid: Sequence[Trim], bases: Mapping[int, Point], epoch: int) -> Trim | None:
        """The newest of the highest epoch, of those that were decided by moments of the main line."""

        def counts(body: TrimBody) -> bool:
            return body.epoch <= epoch and self._counts(body.epoch) and on_line(body.upto, bases, epoch)

        good = [t for t in valid if self._line is None or counts(t.body)]
        found = max(good, key=lambda t: (t.body.epoch, t.number), default=None)
        if found is not None and found.number > self._noted_trim():
            self._notes.write({self._trim_note: b"%d" % found.number})
        return found

    def _parse(self, slot: Slot, burnt: dict[str, str]) -> None:
        key = self._key(slot)
        try:
            self._known[slot] = self.authentic(slot, self._raw[key])
            del self._raw[key]
        except Corrupt as error:
            burnt[key] = str(error)

    def _parse_trim(self, number: int, burnt: dict[str, str]) -> None:
        key = self._trim_key(number)
        try:
            said = open_statement(
                trims.KIND, key, self._raw[key], sign_key_of=self._sign_key_of, group_key=self._group_key
            )
            self._trims[number] = trim_of(key, number, said.by, said.body, self._owner_of)
            self._trims_seen[number] = self._clock.boottime()
            del self._raw[key]
        except Corrupt as error:
            burnt[key] = str(error)

    def _highest(self, epoch: int) -> int:
        value = self._notes.get(f"{self._note}{epoch}") or b"0 "
        return int(value.split(b" ")[0])

    def _noted_trim(self) -> int:
        return int(self._notes.get(self._trim_note) or b"0")

    def _forget(self, slots: Sequence[Slot], timeline: Timeline) -> None:
        """What was let go and left the store needs no memory any more."""
        for slot in self._known.keys() - set(slots) - timeline.stored.keys():
            if timeline.let_go(slot[0]) or slot[1]:
                del self._known[slot]
                self._seen.pop(slot, None)
        for number in self._trims.keys() - set(timeline.trims):
            del self._trims[number], self._trims_seen[number]

    # --- what a store may not do -----------------------------------------------------------------------------------

    def _refuse_vanished(self, slots: Sequence[Slot], timeline: Timeline) -> None:
        """A record that was listed and could not be read: unless it was let go, the store contradicts itself."""
        for slot in slots:
            if slot in timeline.stored or slot[0] in timeline.burnt:
                continue
            key = self._key(slot)
            if key not in timeline.unread and not slot[1] and not timeline.let_go(slot[0]):
                raise Rollback(f"{key} was listed and is not there", retryable=True)

    def _refuse_rollback(self, timeline: Timeline, noted: Mapping[Point, bytes]) -> None:
        for point, digest in noted.items():
            found = timeline.stored.get((point, 0))
            if found is None and (timeline.let_go(point) or self._never_counted(point, digest, timeline)):
                continue
            if found is not None and found.hash == digest:
                continue
            what = "is gone" if found is None else "was replaced by another"
            raise Rollback(
                f"record {name(point)} of app {self._app} {what}: the store was rolled back, or hides it. Check the store."
            )

    def _never_counted(self, point: Point, digest: bytes, timeline: Timeline) -> bool:
        """Whether a note tells of a record that the owner of its epoch did not write: earlier versions noted such."""
        owner = self._owner_of(point.epoch) if self._owner_of is not None else ""
        if owner is None:
            # Nobody created an epoch as high. A lower one must have been there.
            return point.epoch > max((p.epoch for p, _ in timeline.stored), default=0)
        data = self._raw.get(self._key((point, 0)))
        if not owner or data is None:
            return False
        try:
            record = self._signed((point, 0), data)
        except Corrupt:
            return False
        if record.hash != digest or record.device == owner:
            return False
        self._notes.write({f"{self._note}{point.epoch}": None})
        return True

    def _refuse_older_trim(self, timeline: Timeline, noted: int) -> None:
        """Trims replace each other: of those seen before, none may be newer than all that stand."""
        if noted > max(timeline.trims, default=0):
            raise Rollback(
                f"trim {noted} of app {self._app} is gone: the store was rolled back, or hides it. Check the store."
            )


def _place(slot: Slot) -> tuple[int, int, int]:
    """What slots are sorted by: as they are compared, and quicker."""
    point, level = slot
    return point.epoch, point.number, level


def _gaps(records: Iterable[Point], burnt: Mapping[Point, str], trim: Trim | None) -> tuple[Point, ...]:
    """The first few of them: a hostile writer may have left 10^14 numbers out."""
    newest: dict[int, int] = {}
    for point in records:
        newest[point.epoch] = max(newest.get(point.epoch, 0), point.number)
    standing = sorted({*records, *(p for p in burnt if p.number < newest.get(p.epoch, 0))}, key=in_order)
    found: list[Point] = []
    epoch, expected = 0, 1
    for point in standing:
        if point.epoch != epoch:
            epoch, expected = point.epoch, 1
        last = point.number - 1
        spans = trim.uncovered(epoch, expected, last) if trim else [(expected, last)]
        for first, end in spans:
            missing = range(first, min(end + 1, first + MAX_GAPS - len(found)))
            found.extend(Point(epoch=epoch, number=number) for number in missing)
        expected = point.number + 1
    return tuple(found)
