"""One app's archive in one store: what the agent talks to. The work is done in the modules beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from fractal.api.context import Clock, Entropy, Workers
from fractal.api.errors import BackendError, Corrupt, NotFound
from fractal.api.snapshot import Snapshot, Snapshotter
from fractal.api.store import Store
from fractal.archive.backup import Backup, Source
from fractal.archive.collecting import Leaving, Sweeper
from fractal.archive.epochs import Notes
from fractal.archive.healing import Fault, Healer, Mended, noticed
from fractal.archive.keyring import AppKeyring
from fractal.archive.merging import Merging
from fractal.archive.mirroring import Mirror
from fractal.archive.orphans import GRACE, Collector, Orphan, Proof, named_by_records
from fractal.archive.places import Apart, Place, Places, nowhere
from fractal.archive.progress import Progress
from fractal.archive.reading import Line, OwnerOf, Records
from fractal.archive.records import Record
from fractal.archive.restore import Fetcher, Restore
from fractal.archive.rules import Rules
from fractal.archive.sealed import GroupKey, SignKeyOf
from fractal.archive.thinning import Here, Outlook, Thinned, Thinner
from fractal.archive.timeline import Timeline
from fractal.archive.verify import Verifier, VerifyReport
from fractal.core.model import Point
from fractal.crypto.keys import DeviceKeys

__all__ = [
    "AppKeyring",
    "Archive",
    "Fault",
    "Here",
    "Mended",
    "Mirror",
    "Orphan",
    "Place",
    "Record",
    "Rules",
    "Timeline",
    "VerifyReport",
]


LATE_TRIES = 3
"""How often a replaced owner's snapshot is sent, if what it builds on is let go meanwhile. The second is in full, as a rule."""


class Archive:
    """Reads and writes an app's snapshots. Opening it costs nothing; the first call reads the records.

    `sign_key_of` also knows removed devices, whose records stay good; `owner_of` (epoch -> device, "" if it is burnt, None if
    unknown) lets records count only if the epoch's owner wrote them, `list_owners` has it know more; `line` tells the bases and the highest epoch, by which trims count.
    """

    def __init__(
        self,
        *,
        group: str,
        app: str,
        store: Store,
        keys: DeviceKeys,
        app_keys: AppKeyring,
        group_key: GroupKey,
        sign_key_of: SignKeyOf,
        clock: Clock,
        entropy: Entropy,
        workers: Workers,
        spool: Path,
        notes: Notes,
        owner_of: OwnerOf | None = None,
        list_owners: Callable[[], Awaitable[object]] | None = None,
        line: Line | None = None,
        counts: Callable[[int], bool] = lambda _: True,
        where: str = "the store",
        mirrors: Places = nowhere,
    ) -> None:
        self.app_keys = app_keys
        """May be replaced after a rotation."""
        self._group, self._app, self._store, self._where = group, app, store, where
        self._clock, self._workers, self._notes, self._spool = clock, workers, notes, spool
        self._mirrors = mirrors
        read = partial(
            Records,
            group=group,
            app=app,
            sign_key_of=sign_key_of,
            group_key=group_key,
            clock=clock,
            owner_of=owner_of,
            list_owners=list_owners,
            line=line,
            counts=counts,
        )
        self._read_apart = read
        self._records = read(store=store, notes=notes, mirrors=mirrors)
        self._fetcher = self._fetcher_of(store, where, "in", mirrors)
        self._backup = Backup(
            group=group,
            app=app,
            store=store,
            keys=keys,
            group_key=group_key,
            clock=clock,
            entropy=entropy,
            workers=workers,
            records=self._records,
            folder=spool / "out",
        )
        self._healer = Healer(
            group=group,
            app=app,
            store=store,
            fetcher=self._fetcher_of(store, where, "mend", mirrors),
            records=self._records,
            clock=clock,
            workers=workers,
        )
        self._verifier = Verifier(group=group, app=app, store=store, clock=clock, fetcher=self._fetcher)
        self._collector = Collector(
            group=group,
            app=app,
            store=store,
            clock=clock,
            notes=notes,
            named=partial(named_by_records, self._records),
        )
        merging = Merging(
            group=group,
            app=app,
            store=store,
            keys=keys,
            group_key=group_key,
            clock=clock,
            entropy=entropy,
            workers=workers,
            records=self._records,
            folder=spool / "merge",
        )
        self._thinner = Thinner(
            group=group,
            app=app,
            store=store,
            keys=keys,
            group_key=group_key,
            clock=clock,
            entropy=entropy,
            records=self._records,
            merging=merging,
            fetcher=Fetcher(group=group, app=app, store=store, workers=workers, folder=spool / "proof"),
        )
        self._sweeper = Sweeper(
            group=group,
            app=app,
            store=store,
            clock=clock,
            notes=notes,
            records=self._records,
            going=self._thinner.forget,
        )
        self._thinning = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._mending = asyncio.Lock()

    def _fetcher_of(self, store: Store, where: str, folder: str, mirrors: Places) -> Fetcher:
        return Fetcher(
            group=self._group,
            app=self._app,
            store=store,
            workers=self._workers,
            folder=self._spool / folder,
            where=where,
            mirrors=mirrors,
        )

    def mirror(self, place: Place, store: Store) -> Mirror:
        """The copy of this archive in another store, which is open."""

        def others() -> list[Place]:
            return [other for other in self._mirrors() if other.id != place.id]

        async def own() -> Store:
            return self._store

        def sources() -> list[Place]:
            return [Place(id="", name=self._where.removeprefix("store "), open=own), *others()]

        notes = Apart(self._notes, place.id)
        return Mirror(
            group=self._group,
            app=self._app,
            name=place.name,
            store=store,
            source=self._records,
            records=self._read_apart(store=store, notes=notes),
            fetcher=self._fetcher_of(self._store, self._where, f"to-{place.id}", others),
            reader=self._fetcher_of(store, f"store {place.name}", f"of-{place.id}", sources),
            notes=notes,
            clock=self._clock,
            workers=self._workers,
        )

    async def faults(self, *, deep: bool) -> list[Fault]:
        """What the store lacks of what counts, records and segments. Deep: by every byte, which takes no key. Raises BackendError."""
        async with self._mending:
            if deep:
                await self._records.reread()
            timeline = await self.timeline(strict=False)
            counting = [timeline.counting[slot] for slot in sorted(timeline.counting)]
            return [*self._healer.lost_records(), *await self._healer.faults(counting, deep=deep)]

    def noticed(self) -> list[Fault]:
        """What the store lacked when something was read, and a mirror gave instead; each is told once."""
        return noticed(self._fetcher)

    async def mend(self, faults: Sequence[Fault], proof: Proof) -> list[Mended]:
        """Put them back out of the mirrors, each on its own proof."""
        async with self._mending:
            return [await self._healer.mend(fault, proof) for fault in faults]

    async def timeline(self, *, strict: bool = True) -> Timeline:
        """All records of all epochs, by a listing sent now.

        Raises Rollback if one that this device saw before is missing (unless not `strict`), BackendError.
        """
        return await self._records.timeline(strict=strict)

    async def chain_to(self, point: Point) -> list[Record]:
        """What a restore of `point` applies, oldest first.

        Raises NotFound, Corrupt naming the nearest whole snapshots if the chain is broken, BackendError.
        """
        return (await self.timeline(strict=False)).chain_to(point)

    async def write(
        self,
        epoch: int,
        *,
        snapshotter: Snapshotter,
        volume: str,
        name: str,
        wall_ms: int,
        parent: Point | None = None,
        name_of: Callable[[Point], str] | None = None,
        level: int = 0,
        manifest_hash: bytes = b"",
        progress: Progress | None = None,
        replaced: bool = False,
    ) -> Record:
        """Store snapshot `name` of `volume`; returns when its record stands.

        The record standing is *not* yet the commit: it is committed once an epochs' listing that was sent after this returned
        shows no epoch above `epoch` (docs/explanation/failover.md, section 2); else it is a branch.

        `parent` is the stored snapshot to send against, `name_of(parent)` its name on this device. If the parent's record is no
        longer in the store, or of another format than this snapshotter's, a full snapshot is written, which heals the line. Called again with the same epoch and name,
        also after a crash, it goes on where it was. Raises BackendError, Ambiguous (call again).

        `replaced`: the epoch is not the highest any more, so its successor may have let go what this builds on: what the store
        holds is looked at before and after, and what nothing leads to is sent anew, in full.
        """

        def source(known: Record | None, there: Timeline | None = None) -> Source:
            if known is not None and (name_of is None or known.format != snapshotter.format):
                # A taker with another file system begins anew: a chain of two kinds is of use only to who receives both.
                known = None
            return Source(
                epoch=epoch,
                snapshotter=snapshotter,
                volume=volume,
                name=name,
                parent=known,
                parent_name=name_of(known.point) if known is not None and name_of is not None else None,
                wall_ms=wall_ms,
                level=level,
                manifest_hash=manifest_hash,
                there=there,
            )

        async with self._writing:
            if not replaced:
                known = await self._parent(parent) if name_of is not None else None
                return await self._backup.write(source(known), self.app_keys, progress)
            there = await self.timeline(strict=False)
            for _ in range(LATE_TRIES):
                known = there.records[parent] if parent is not None and there.whole(parent) else None
                record = await self._backup.write(source(known, there), self.app_keys, progress)
                there = await self.timeline(strict=False)
                if there.leads_to(record.body):
                    return record
            raise BackendError(f"what snapshot {name} builds on is let go again and again", retryable=True)

    async def restore(
        self,
        point: Point,
        *,
        snapshotter: Snapshotter,
        volume: str,
        name_of: Callable[[Point], str],
        progress: Progress | None = None,
    ) -> Snapshot:
        """Have snapshot `name_of(point)` on this device, by the shortest way from what is here.

        Raises NotFound, Corrupt (nothing half-restored is left), Denied without the app's secret key, BackendError.
        """
        async with self._reading:
            here = {s.name: s for s in await snapshotter.snapshots(volume)}
            restore = Restore(
                fetcher=self._fetcher,
                snapshotter=snapshotter,
                volume=volume,
                name_of=name_of,
                progress=progress,
            )
            if (next_one := await self._follows(point, lambda p: name_of(p) in here)) is not None:
                return await restore.run([next_one], self.app_keys)
            timeline = await self.timeline(strict=False)
            held = {p for p in timeline.points if name_of(p) in here}
            if point in held:
                await self._fetcher.keep_only(())  # left by a restore that was killed when it was done
                return here[name_of(point)]
            return await restore.run(timeline.chain_to(point, held), self.app_keys)

    async def verify(self, *, deep: bool, progress: Progress | None = None) -> VerifyReport:
        """Shallow: records, chains and sizes, which needs no key of the app. Deep: every byte, decrypted. Raises BackendError."""
        async with self._reading:
            if deep:
                await self._records.reread()
            timeline = await self.timeline(strict=False)
            return await self._verifier.run(
                timeline,
                deep=self.app_keys if deep else None,
                rescued=self._records.rescued,
                progress=progress,
            )

    async def orphans(self) -> list[Orphan]:
        """Objects that no record names, and for how long that was observed. Raises Corrupt, BackendError."""
        return await self._collector.look()

    async def collect_orphans(self, proof: Proof, *, grace: float = GRACE) -> list[Orphan]:
        """Delete what was an orphan for `grace` seconds; `proof` is asked before each. Raises Corrupt, BackendError."""
        return await self._collector.collect(proof, grace=grace)

    # --- keeping it small ------------------------------------------------------------------------------------------

    async def outlook(self, rules: Rules, held: Collection[Point] = frozenset()) -> Outlook:
        """What the rules would keep, let go and merge. Raises Rollback, BackendError."""
        return await self._thinner.outlook(rules, held)

    async def thin(self, rules: Rules, here: Here, proof: Proof, progress: Progress | None = None) -> Thinned:
        """One step: merge what is due, prove it, decide what may go. Ticks are written meanwhile.

        Raises Corrupt while a moment cannot be restored, Denied without the app's secret key, Rollback, BackendError.
        """
        async with self._thinning:
            return await self._thinner.step(rules, here, self.app_keys, proof, progress)

    async def leaving(self) -> list[Leaving]:
        """What was let go and still stands. Raises Rollback, BackendError."""
        async with self._thinning:
            return (await self._sweeper.look())[1]

    async def collect(self, rules: Rules, proof: Proof, *, grace: float = GRACE) -> list[Record]:
        """Delete what was seen to be let go for `grace` seconds and the rules do not keep; `proof` is asked before each.

        Raises Corrupt, NotSupported by a store that deletes nothing, Rollback, BackendError.
        """
        async with self._thinning:
            return await self._sweeper.collect(rules, proof, grace=grace, refused=self._thinner.refused)

    async def _follows(self, point: Point, here: Callable[[Point], bool]) -> Record | None:
        """The record of a moment that directly follows one that is `here`: no listing is needed to know the way. Else None."""
        if here(point) or self._records.let_go(point):
            return None
        try:
            record = await self._records.read(point)
            if record is None or record.parent is None or not here(record.parent):
                return None
            parent = await self._records.read(record.parent)
        except (NotFound, Corrupt):
            return None  # a timeline tells what is wrong, or has it from a mirror
        if parent is None or parent.identity != record.body.parent_hash:
            return None
        self._records.remember(record)
        return record

    async def _parent(self, parent: Point | None) -> Record | None:
        if parent is None or parent.number == 0 or self._records.let_go(parent):
            return None
        try:
            return await self._records.read(parent)
        except NotFound:
            return None
