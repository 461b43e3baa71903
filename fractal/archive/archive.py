"""One app's archive in one store: what the agent talks to. The work is done in the modules beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fractal.api.context import Clock, Entropy, Workers
from fractal.api.errors import NotFound
from fractal.api.snapshot import Snapshot, Snapshotter
from fractal.api.store import Store
from fractal.archive.backup import Backup, Progress, Source
from fractal.archive.epochs import Notes
from fractal.archive.keyring import AppKeyring
from fractal.archive.orphans import GRACE, Collector, Orphan, Proof, named_by_records
from fractal.archive.records import Record
from fractal.archive.restore import Fetcher, Restore
from fractal.archive.sealed import GroupKey, SignKeyOf
from fractal.archive.timeline import Records, Timeline
from fractal.archive.verify import Verifier, VerifyReport
from fractal.core.model import Point
from fractal.crypto.keys import DeviceKeys

__all__ = ["AppKeyring", "Archive", "Orphan", "Record", "Timeline", "VerifyReport"]


class Archive:
    """Reads and writes an app's snapshots. Opening it costs nothing; the first call reads the records.

    `sign_key_of` also knows removed devices, whose records stay good; `owner_of` (epoch -> device, None if unknown) lets
    records count only if the epoch's owner wrote them.
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
        owner_of: Callable[[int], str | None] | None = None,
    ) -> None:
        self.app_keys = app_keys
        """May be replaced after a rotation."""
        self._records = Records(
            group=group,
            app=app,
            store=store,
            sign_key_of=sign_key_of,
            group_key=group_key,
            notes=notes,
            clock=clock,
            owner_of=owner_of,
        )
        self._fetcher = Fetcher(group=group, app=app, store=store, workers=workers, folder=spool / "in")
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
        self._verifier = Verifier(group=group, app=app, store=store, clock=clock, fetcher=self._fetcher)
        self._collector = Collector(
            group=group,
            app=app,
            store=store,
            clock=clock,
            notes=notes,
            named=partial(named_by_records, self._records),
        )
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()

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
    ) -> Record:
        """Store snapshot `name` of `volume`; returns when its record stands.

        The record standing is *not* yet the commit: it is committed once an epochs' listing that was sent after this returned
        shows no epoch above `epoch` (docs/explanation/failover.md, section 2); else it is a branch.

        `parent` is the stored snapshot to send against, `name_of(parent)` its name on this device. If the parent's record is no
        longer in the store a full snapshot is written, which heals the line. Called again with the same epoch and name,
        also after a crash, it goes on where it was. Raises BackendError, Ambiguous (call again).
        """
        async with self._writing:
            known = await self._parent(parent) if name_of is not None else None
            source = Source(
                epoch=epoch,
                snapshotter=snapshotter,
                volume=volume,
                name=name,
                parent=known,
                parent_name=name_of(known.point) if known is not None and name_of is not None else None,
                wall_ms=wall_ms,
                level=level,
                manifest_hash=manifest_hash,
            )
            return await self._backup.write(source, self.app_keys, progress)

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
            chain = await self.chain_to(point)
            restore = Restore(
                fetcher=self._fetcher,
                snapshotter=snapshotter,
                volume=volume,
                name_of=name_of,
                progress=progress,
            )
            return await restore.run(chain, self.app_keys)

    async def verify(self, *, deep: bool, progress: Progress | None = None) -> VerifyReport:
        """Shallow: records, chains and sizes, which needs no key of the app. Deep: every byte, decrypted. Raises BackendError."""
        async with self._reading:
            timeline = await self.timeline(strict=False)
            return await self._verifier.run(timeline, deep=self.app_keys if deep else None, progress=progress)

    async def orphans(self) -> list[Orphan]:
        """Objects that no record names, and for how long that was observed. Raises Corrupt, BackendError."""
        return await self._collector.look()

    async def collect_orphans(self, proof: Proof, *, grace: float = GRACE) -> list[Orphan]:
        """Delete what was an orphan for `grace` seconds; `proof` is asked before each. Raises Corrupt, BackendError."""
        return await self._collector.collect(proof, grace=grace)

    async def _parent(self, parent: Point | None) -> Record | None:
        if parent is None or parent.number == 0:
            return None
        try:
            return await self._records.read(parent)
        except NotFound:
            return None
