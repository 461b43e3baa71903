"""Keeping an archive small: merge what is due, prove what was merged, and decide what may go. One step at a time.

Everything is decided by a listing and by `core.retention`; nothing is remembered but what was proved or refused, so a
crash at any point costs at most the step's work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from fractal.api.context import Clock, Entropy
from fractal.api.errors import Corrupt
from fractal.api.plain import to_plain
from fractal.api.snapshot import Snapshotter
from fractal.api.store import Store
from fractal.archive import layout, trims
from fractal.archive.backup import Source
from fractal.archive.keyring import AppKeyring
from fractal.archive.merging import Merging, Outweighs
from fractal.archive.orphans import Proof
from fractal.archive.progress import Progress
from fractal.archive.reading import Records
from fractal.archive.records import Record
from fractal.archive.restore import Fetcher
from fractal.archive.rules import Rules
from fractal.archive.sealed import GroupKey, create, seal_statement
from fractal.archive.timeline import Timeline
from fractal.archive.trims import LevelRef, Trim, TrimBody
from fractal.archive.verify import prove
from fractal.core.model import Point
from fractal.core.retention import Merge, Retained, Slot, next_merge
from fractal.crypto.keys import DeviceKeys

TRIM_EVERY = 3600.0
"""Seconds between two trims that only let go: a decision about every single tick would be a waste."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What this device has of the app."""

    snapshotter: Snapshotter
    volume: str
    name_of: Callable[[Point], str]
    held: frozenset[Point]
    """Moments whose snapshots are here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinned:
    """What a step did."""

    merged: Record | None = None
    refused: Merge | None = None
    """A merge that came out larger than what it would replace."""
    proved: tuple[Record, ...] = ()
    trim: int = 0
    """Number of the trim that was written; 0: none."""
    let_go: int = 0
    """Records that it lets go."""
    back: int = 0
    """Records that were let go and count again by it."""
    over: int = 0
    """Bytes above the policy's limit that nothing can be let go for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What would be done: for people who want to see it first."""

    timeline: Timeline
    retained: Retained
    merge: Merge | None
    pending: tuple[Record, ...]
    """Merges that it relies on and that were not read back yet."""
    back: tuple[Point, ...] = ()
    """Moments that were let go and count again: the rules keep them, and they still stand."""
    cut_off: frozenset[Point] = frozenset()
    """Moments that build on what was let go, and to which nothing leads any more."""


@dataclass(kw_only=True)
class Thinner:
    """Thins one app's archive in one store."""

    group: str
    app: str
    store: Store
    keys: DeviceKeys
    group_key: GroupKey
    clock: Clock
    entropy: Entropy
    records: Records
    merging: Merging
    fetcher: Fetcher
    _proved: set[bytes] = field(default_factory=set)
    """Hashes of merges that were read back by this process and are in no trim yet."""
    _refused: set[Slot] = field(default_factory=set)
    _trimmed: float | None = None

    @property
    def refused(self) -> frozenset[Slot]:
        """Merges that came out too large, or that were read back and are not whole."""
        return frozenset(self._refused)

    def forget(self, record: Record) -> None:
        """A record that is about to leave the store: that it was read back says nothing any more."""
        self._proved.discard(record.hash)

    async def outlook(
        self, rules: Rules, held: Collection[Point] = frozenset(), stream_format: str = ""
    ) -> Outlook:
        """What the rules make of the archive as it stands. Raises Rollback, BackendError."""
        timeline, back = await self._taking_back(await self.records.timeline(), rules)
        waiting = {
            s for s in timeline.stored if s[1] and s not in timeline.counting and s not in self._refused
        }
        every = timeline.trying(waiting)
        pieces = every.fitting()
        if stream_format:
            # Of what another file system stored, a merge would be a chain of two kinds.
            here = {p: timeline.records[p] for p in held if p in timeline.records}
            held = {p for p, record in here.items() if record.format == stream_format}
        retained = rules.retained(every)
        unproved = sorted(s for s in retained.needed & waiting if timeline.stored[s].hash not in self._proved)
        return Outlook(
            timeline=timeline,
            retained=retained,
            merge=next_merge(rules.line(every), pieces, held, epoch=rules.epoch, refused=self._refused),
            pending=tuple(timeline.stored[slot] for slot in unproved),
            back=back,
            cut_off=every.cut_off,
        )

    async def _taking_back(self, timeline: Timeline, rules: Rules) -> tuple[Timeline, tuple[Point, ...]]:
        """What was let go and the rules keep counts again, as far as it still stands.

        A pin may reach the log between the owner's last look there and the trim that it decided by that look; a policy may keep
        more than it did; a trim may be the work of an owner that had turned hostile.
        """
        uploader = self.merging.uploader
        standing = timeline
        while True:
            kept = rules.kept(standing, self._refused)
            back = {p for p, level in kept if not level and standing.let_go(p)}
            # Of a record that is on its way out the segments go first.
            cut = [p for p in sorted(back) if not await uploader.stands(timeline.stored[p, 0].body.object)]
            if not cut:
                return timeline.taking_back(back) if back else timeline, tuple(sorted(back))
            left = {slot: record for slot, record in standing.stored.items() if slot[0] not in cut or slot[1]}
            standing = replace(standing, stored=left)

    async def step(
        self,
        rules: Rules,
        here: Here,
        app_keys: AppKeyring,
        proof: Proof,
        progress: Progress | None = None,
    ) -> Thinned:
        """Merge one thing that is due, prove what is not proved, and write a trim if there is something to decide.

        Raises Corrupt while any moment cannot be restored (nothing is let go then), Denied without the app's key, Rollback,
        Ambiguous, BackendError.
        """
        done = Thinned()
        found = await self.outlook(rules, here.held, here.snapshotter.format)
        if found.merge is not None:
            done = await self._merge(found, found.merge, here, app_keys, progress)
            found = await self.outlook(rules, here.held, here.snapshotter.format)
        else:
            await self.merging.tidy()
        proved = await self._prove(found, app_keys)
        done = replace(done, proved=proved, over=found.retained.over)
        return await self._trim(found, rules, proof, done)

    # --- merging -------------------------------------------------------------------------------------------------

    async def _merge(
        self, found: Outlook, merge: Merge, here: Here, app_keys: AppKeyring, progress: Progress | None
    ) -> Thinned:
        moment = found.timeline.record(merge.point)
        parent = found.timeline.record(merge.parent) if merge.parent is not None else None
        source = Source(
            epoch=merge.point.epoch,
            snapshotter=here.snapshotter,
            volume=here.volume,
            name=here.name_of(merge.point),
            parent=parent,
            parent_name=here.name_of(parent.point) if parent is not None else None,
            wall_ms=moment.wall_ms,
            level=merge.level,
            manifest_hash=moment.body.manifest_hash,
        )
        try:
            return Thinned(merged=await self.merging.merge(source, moment, merge.limit, app_keys, progress))
        except Outweighs:
            self._refused.add((merge.point, merge.level))
            return Thinned(refused=merge)
        except Corrupt:
            self._refused.add((merge.point, merge.level))
            raise

    async def _prove(self, found: Outlook, app_keys: AppKeyring) -> tuple[Record, ...]:
        """Read merges back that stand and do not count yet. One that is not whole is never trusted, and goes in the end."""
        await self.fetcher.keep_only(record.body.object.id for record in found.pending)
        proved = []
        for record in found.pending:
            try:
                await prove(self.fetcher, record, app_keys)
            except Corrupt:
                self._refused.add(record.slot)
                raise
            self._proved.add(record.hash)
            proved.append(record)
        return tuple(proved)

    # --- deciding --------------------------------------------------------------------------------------------------

    async def _trim(self, found: Outlook, rules: Rules, proof: Proof, done: Thinned) -> Thinned:
        timeline, retained = found.timeline, found.retained
        _refuse_broken(timeline)
        rules.refuse_cut_line()
        body = self._body(found, rules)
        before = timeline.trim.body if timeline.trim is not None else None
        let_go = [p for p, level in retained.let_go if not level and (p, 0) in timeline.counting]
        levels_changed = body is not None and body.levels != (before.levels if before else ())
        if body is None or not (found.back or levels_changed or (let_go and self._due())):
            return done
        if not await proof():
            return done
        number = self._number(timeline, rules.epoch)
        key = layout.trim_key(self.group, self.app, number)
        data = seal_statement(
            trims.KIND, key, to_plain(body), keys=self.keys, group_key=self.group_key, entropy=self.entropy
        )
        if not await create(self.store, key, lambda: data, self.clock):
            return done  # written by an earlier try of ours or by somebody else: the next look tells
        self.records.remember_trim(Trim(number=number, body=body, device=self.keys.id))
        self._trimmed = self.clock.boottime()
        self._proved -= {ref.hash for ref in body.levels}
        return replace(done, trim=number, let_go=len(let_go), back=len(found.back))

    def _body(self, found: Outlook, rules: Rules) -> TrimBody | None:
        timeline, retained = found.timeline, found.retained
        line = timeline.main(rules.bases, rules.epoch)
        if not line:
            return None
        gone = [p for p, level in retained.let_go if not level] + sorted(found.cut_off)
        needed = [timeline.stored[slot] for slot in sorted(retained.needed) if slot[1]]
        return TrimBody(
            epoch=rules.epoch,
            upto=line[-1].point,
            gone=trims.joined(timeline.trim.body.gone if timeline.trim else {}, gone),
            levels=tuple(LevelRef(point=r.point, level=r.level, hash=r.hash) for r in needed),
            wall_ms=self.clock.wall_ms(),
        )

    def _number(self, timeline: Timeline, epoch: int) -> int:
        """The number of the next trim: above all that stand, so that it is seen which one is missing."""
        number = max(timeline.trims, default=0) + 1
        if number < layout.MAX_NUMBER:
            return number
        # Somebody used the last one up, to end all retention. Only within an epoch do numbers tell which is newer, so any will do
        # that never was another trim's name.
        own = timeline.trim.number if timeline.trim is not None and timeline.trim.body.epoch == epoch else 0
        return own + 1 if 0 < own < layout.MAX_NUMBER - 1 else 1 + int.from_bytes(self.entropy.bytes(6))

    def _due(self) -> bool:
        return self._trimmed is None or self.clock.boottime() - self._trimmed >= TRIM_EVERY


def _refuse_broken(timeline: Timeline) -> None:
    for key in timeline.unread:
        raise Corrupt(f"nothing is let go while {key} cannot be read")
    for point in (*timeline.burnt, *timeline.gaps):
        raise Corrupt(f"nothing is let go while record {point.epoch}.{point.number} cannot be read")
    timeline.require_whole()
