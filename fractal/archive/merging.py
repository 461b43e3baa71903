"""Writing a merge: one record that leads to a moment in a single step where many did.

It is made of snapshots that are still on the device, so the file system merges what changed in between. It is never larger
than what it replaces: one that would be is given up while it is sealed, before a byte of it is stored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fractal.api.errors import Ambiguous, Corrupt, FractalError, NotFound
from fractal.api.plain import to_plain
from fractal.api.snapshot import SupportsLean
from fractal.archive import layout, spool
from fractal.archive.backup import RECHECK, Backup, Source
from fractal.archive.keyring import AppKeyring
from fractal.archive.progress import Progress
from fractal.archive.records import KIND, Record, RecordBody, make_record
from fractal.archive.sealed import create, seal_statement


class Outweighs(FractalError):
    """A merge would be larger than what it replaces, which therefore stays."""

    code = "outweighs"


class LimitedWriter(spool.ObjectWriter):
    """Gives up once the object is larger than `limit` bytes. Nothing of it is uploaded before all of it fits."""

    def __init__(self, folder: Path, limit: int) -> None:
        super().__init__(folder)
        self._limit = limit

    def write(self, parts: Iterable[bytes]) -> None:
        """As the writer's; raises Outweighs."""
        super().write(parts)
        if self.written > self._limit:
            raise Outweighs(f"more than the {self._limit} bytes that it would replace")

    async def begun(self, index: int) -> bool:
        """Never: what may be given up is not uploaded meanwhile."""
        return index < 0


@dataclass(kw_only=True)
class Merging(Backup):
    """Writes merges, beside the writer of ticks; its spool is a folder of its own."""

    _limit: int | None = field(default=None)

    async def merge(
        self,
        source: Source,
        moment: Record,
        limit: int | None,
        app_keys: AppKeyring,
        progress: Progress | None = None,
    ) -> Record:
        """The record of the merge that `source` describes, of `moment`. Called again after a crash it goes on where it was.

        Raises Outweighs, Corrupt if its name is taken by something else, BackendError, Ambiguous (call again).
        """
        folder = self.folder / f"{moment.epoch}-{moment.number}-{source.level}"
        await self.workers.run(spool.keep_only, self.folder, {folder.name})
        try:
            standing = await self.records.read(moment.point, source.level)
        except NotFound:
            standing = await self._write(source, moment, limit, folder, app_keys, progress)
        await self.workers.run(spool.discard, folder)
        if standing is None or standing.body.moment_hash != moment.identity:
            key = layout.level_key(self.group, self.app, moment.point, source.level)
            raise Corrupt(f"{key} is taken by something that is no merge of this snapshot: check the store")
        return standing

    async def tidy(self) -> None:
        """Nothing is to be merged: what a merge that was broken off left in the spool goes."""
        await self.workers.run(spool.keep_only, self.folder, ())

    async def _write(
        self,
        source: Source,
        moment: Record,
        limit: int | None,
        folder: Path,
        app_keys: AppKeyring,
        progress: Progress | None,
    ) -> Record | None:
        plan, held = await self.workers.run(spool.load_plan, folder), None
        resumed = plan is not None and plan.object.generation == app_keys.generation
        ahead: set[int] = set()
        if plan is None or not resumed:
            self._limit = limit
            try:
                plan, held = await self._seal(source, folder, app_keys, ahead)
            except Outweighs:
                await spool.to_its_end(self.workers, spool.discard, folder)
                raise
        check = resumed
        while True:
            started = self.clock.boottime()
            await self.uploader.upload(folder, plan.object, progress, check=check, ahead=ahead, held=held)
            if self.clock.boottime() - started <= RECHECK:
                break
            check, ahead = True, set()
        return await self._put_level(moment, plan)

    def _chunks(self, source: Source) -> AsyncIterator[bytes]:
        """Between snapshots far apart some file systems send much that did not change, and a merge is kept for long."""
        if source.parent_name is not None and isinstance(source.snapshotter, SupportsLean):
            return source.snapshotter.send_lean(source.volume, source.name, source.parent_name)
        return super()._chunks(source)

    def _writer(self, folder: Path) -> spool.ObjectWriter:
        return spool.ObjectWriter(folder) if self._limit is None else LimitedWriter(folder, self._limit)

    async def _put_level(self, moment: Record, plan: RecordBody) -> Record | None:
        """Create the record: what the moment's own says, but for the way that leads there."""
        body = replace(
            moment.body,
            format=plan.format,
            object=plan.object,
            parent=plan.parent,
            parent_hash=plan.parent_hash,
            previous_hash=b"",
            level=plan.level,
            moment_hash=moment.identity,
        )
        key = layout.level_key(self.group, self.app, moment.point, plan.level)
        record = make_record(moment.point, self.keys.id, body, key)
        data = seal_statement(
            KIND, key, to_plain(body), keys=self.keys, group_key=self.group_key, entropy=self.entropy
        )
        if await create(self.store, key, lambda: data, self.clock):
            self.records.remember(record)
            return record
        try:
            return await self.records.read(moment.point, plan.level)
        except NotFound as error:
            raise Ambiguous(f"{key} exists in the store and cannot be read yet") from error
