"""What is done to a volume's datasets. Each step leaves either the old or the new state; `collect` clears up after any of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path

from fractal.api.context import Context
from fractal.api.errors import BackendError, Conflict, NotFound
from fractal.api.snapshot import Snapshot
from fractal_zfs.command import BusyError, Zfs
from fractal_zfs.place import flush
from fractal_zfs.streaming import RECORD, is_end, read_head, sent
from fractal_zfs.volumes import (
    COLUMNS,
    DELETED,
    NAME,
    ROOT,
    VOLUME,
    Kept,
    Line,
    Volume,
    name_options,
    parse,
    short,
)

ROUNDS = 1000
"""Steps of one clearing-up; each makes something less."""


class Lines:
    """Works on volumes below one dataset."""

    def __init__(self, context: Context, zfs: Zfs, dataset: str, mountpoint: Path) -> None:
        self._context = context
        self._zfs = zfs
        self._dataset = dataset
        self._mountpoint = mountpoint
        self._logger: logging.Logger = context.logger

    # --- looking -------------------------------------------------------------------------------------------------

    async def load(self, name: str) -> Volume:
        """What there is of a volume."""
        dataset = f"{self._dataset}/v-{short(name)}"
        try:
            rows = await self._zfs.rows(
                "list", "-H", "-r", "-t", "filesystem,snapshot", "-o", ",".join(COLUMNS), dataset
            )
        except NotFound:
            rows = []
        return parse(name, dataset, rows)

    async def names(self) -> list[str]:
        """Every volume of which there is a dataset, also if nothing is in it."""
        rows = await self._zfs.rows(
            "list", "-H", "-r", "-t", "filesystem", "-o", f"name,{VOLUME}", self._dataset
        )
        start, found = f"{self._dataset}/v-", set()
        for path, known in rows:
            if path.startswith(start) and "/" not in (rest := path[len(start) :]):
                found.add(known if rest.startswith(":") else rest)
        return sorted(found - {"-"})

    async def shown(self, volume: Volume, kept: Kept) -> Snapshot:
        """The snapshot, where it can be read."""
        view = volume.views.get(kept.number)
        dataset = volume.view_of(kept)
        if view is None:
            with suppress(Conflict):  # somebody else looked at the same time
                await self._zfs("clone", "-o", "readonly=on", kept.path, dataset)
        elif not view.mounted:
            await self._mount(dataset)
        return Snapshot(volume=volume.name, name=kept.name, path=self._path(dataset))

    async def root_path(self, line: Line) -> Path:
        """Where the root is; it is mounted if it was not."""
        if not line.mounted:
            await self._mount(line.dataset)
        return self._path(line.dataset)

    def _path(self, dataset: str) -> Path:
        """Mount points below ours are inherited."""
        return self._mountpoint / dataset.removeprefix(f"{self._dataset}/")

    async def _mount(self, dataset: str) -> None:
        try:
            await self._zfs("mount", dataset)
        except BackendError as error:
            if "already mounted" not in str(error):
                raise

    # --- making --------------------------------------------------------------------------------------------------

    async def make_volume(self, volume: Volume) -> None:
        """The dataset that holds the volume's."""
        if not volume.exists:
            with suppress(Conflict):
                await self._zfs(
                    "create", "-o", "canmount=off", *name_options(VOLUME, volume.name), volume.dataset
                )
            volume.exists = True

    def fresh(self, volume: Volume) -> str:
        """Name of a dataset that is not there."""
        return f"{volume.dataset}/d-{self._context.entropy.bytes(8).hex()}"

    async def create_root(self, volume: Volume) -> Path:
        """An empty root."""
        await self.make_volume(volume)
        dataset = self.fresh(volume)
        await self._zfs("create", "-o", f"{ROOT}=on", dataset)
        path = self._path(dataset)
        await self._context.workers.run(path.chmod, 0o700)
        return path

    async def snapshot(self, volume: Volume, line: Line, name: str, *options: str) -> Kept:
        """A snapshot of a line as it is, with what was only in memory."""
        if line.mounted:
            await self._flush(line)
        tag = volume.next_tag(name)
        await self._zfs("snapshot", *options, *name_options(NAME, name), f"{line.dataset}@{tag}")
        found = (await self.load(volume.name)).find(name)
        line.snapshots.append(found)
        return found

    async def _flush(self, line: Line) -> None:
        try:
            await self._context.workers.run(flush, self._path(line.dataset))
        except OSError as error:
            raise BackendError(
                f"snapshot zfs: {line.dataset}: {error.strerror}: look at `zpool status`", retryable=True
            ) from error

    async def equals(self, root: Line, kept: Kept, token: str) -> bool:
        """Whether nothing was written to the root since the snapshot: the stream of the difference ends after it began."""
        if root.mounted:
            await self._flush(root)
        probe = f"{root.dataset}@look-{token}"
        await self._zfs("snapshot", probe)
        try:
            parent = f"@{kept.tag}" if kept.dataset == root.dataset else kept.path
            seen = bytearray()
            async with aclosing(sent("-i", parent, probe)) as chunks:
                async for chunk in chunks:
                    seen += chunk
                    if len(seen) > 2 * RECORD:
                        return False
            return is_end(bytes(seen[RECORD:]), read_head(bytes(seen)))
        finally:
            await self._zfs("destroy", probe)

    async def clone(self, source: Kept, target: Volume) -> Path:
        """A root of `target` out of a snapshot."""
        if target.root is not None:
            raise Conflict(f"snapshot zfs: volume {target.name} has a root already: set it aside first")
        await self.make_volume(target)
        dataset = self.fresh(target)
        await self._zfs("clone", "-o", f"{ROOT}=on", source.path, dataset)
        if source.dataset.startswith(f"{target.dataset}/"):
            # The root takes its history over, so that what came before can be deleted one day, and sent against.
            await self._zfs("promote", dataset)
            await self.collect(target.name)
        return self._path(dataset)

    async def retire(self, volume: Volume, line: Line) -> None:
        """The root is a root no more; what only it held is freed."""
        await self._zfs("inherit", ROOT, line.dataset)
        line.root = False
        await self.hide(line)
        if line.live:
            try:
                await self._zfs("rollback", line.snapshots[-1].path)
            except BackendError as error:
                self._logger.warning("%s (what was written since is not freed yet)", error)
        await self.collect(volume.name)

    async def hide(self, line: Line) -> None:
        """A line is not mounted: nobody may write to it."""
        try:
            await self._zfs("set", "canmount=off", line.dataset)
            line.mounted = False
        except BusyError as error:
            self._logger.warning("%s: somebody still has files of it open", error)

    # --- lines that take streams -----------------------------------------------------------------------------------

    async def line_after(self, volume: Volume, parent: Kept) -> str:
        """A line whose newest snapshot is `parent`, to add to: never the root, and no other snapshot is lost."""
        line = volume.lines[parent.dataset]
        if not line.root and line.snapshots[-1].number == parent.number:
            return line.dataset
        dataset = self.fresh(volume)
        await self._zfs("clone", "-o", "canmount=noauto", parent.path, dataset)
        await self._zfs("promote", dataset)
        return dataset

    async def open_line(self, volume: Volume, parent: Kept | None) -> Line:
        """A mounted line to write to: an empty one, or one that equals the parent. It holds nothing of use until it has a snapshot."""
        if parent is None:
            await self.make_volume(volume)
            dataset = self.fresh(volume)
            await self._zfs("create", "-o", "canmount=noauto", dataset)
        else:
            dataset = await self.line_after(volume, parent)
            await self._zfs("set", "canmount=noauto", dataset)
            line = (await self.load(volume.name)).lines[dataset]
            await self._zfs("rollback", line.snapshots[-1].path)
        await self._mount(dataset)
        return Line(dataset, "", True, self._path(dataset), root=False)

    async def reunite(self, volume: Volume, kept: Kept, parent: Kept) -> tuple[Kept, Kept]:
        """Both snapshots as of one line, where one is the other's descendant: ZFS sends a difference only within one."""
        for _ in range(len(volume.lines)):
            if kept.dataset == parent.dataset:
                break
            await self._zfs("promote", kept.dataset)
            volume = await self.load(volume.name)
            kept, parent = volume.find(kept.name), volume.find(parent.name)
        return kept, parent

    # --- clearing up -------------------------------------------------------------------------------------------------

    async def delete(self, volume: Volume, kept: Kept) -> None:
        """Gone for everybody at once; its blocks as soon as no clone needs them."""
        await self._zfs("set", f"{DELETED}=on", kept.path)
        await self.collect(volume.name)

    async def take_back(self, name: str, path: str) -> None:
        """A stream was refused of which ZFS may have made a whole snapshot: it sees the first end, not what follows."""
        try:
            await self._zfs("destroy", path)
        except NotFound:
            pass
        except BackendError as error:
            self._logger.warning("%s (part of a stream that was refused stays)", error)
        await self.collect(name)

    async def collect(self, name: str) -> None:
        """Free what nobody needs. What is busy now is left for the next time."""
        tried: set[str] = set()
        for _ in range(ROUNDS):
            volume = await self.load(name)
            action = _next_step(volume, tried)
            if action is None:
                return
            words, what = action
            tried.add(what)
            try:
                await self._zfs(*words, patience=3.0)
            except (BusyError, NotFound) as error:
                self._logger.info("snapshot zfs: %s stays for now: %s", what, error)

    async def sweep(self) -> None:
        """Finish what a killed process left half-done, and mount what a reboot unmounted."""
        for name in await self.names():
            volume = await self.load(name)
            for line in list(volume.lines.values()):
                for tag in line.passing:
                    with suppress(BackendError):
                        await self._zfs("destroy", f"{line.dataset}@{tag}")
                if line.root and line.snapshots and line.snapshots[-1].aside:
                    await self.retire(volume, line)
                elif line.root and line.origin.startswith(f"{volume.dataset}/"):
                    await self._promote_checkout(line)
            await self.collect(name)
            volume = await self.load(name)
            if volume.root is not None:
                await self.root_path(volume.root)

    async def _promote_checkout(self, line: Line) -> None:
        """A checkout that was killed before it had its history; a root whose history a received line took over is none."""
        if not line.snapshots:
            await self._zfs("promote", line.dataset)


def _next_step(volume: Volume, tried: set[str]) -> tuple[list[str], str] | None:
    """What to do next, and to what; None if there is nothing."""
    steps: list[Callable[[Volume], list[tuple[list[str], str]]]] = [_views, _deleted, _lines, _empty]
    for step in steps:
        for words, what in step(volume):
            if what not in tried:
                return words, what
    return None


def _views(volume: Volume) -> list[tuple[list[str], str]]:
    live = {kept.number for kept in volume.live()}
    return [(["destroy", v.dataset], v.dataset) for n, v in volume.views.items() if n not in live]


def _deleted(volume: Volume) -> list[tuple[list[str], str]]:
    origins = {line.origin for line in volume.lines.values()}
    return [(["destroy", k.path], k.path) for k in volume.all() if k.deleted and k.path not in origins]


def _lines(volume: Volume) -> list[tuple[list[str], str]]:
    """A line without snapshots goes; one whose snapshots only clones need gives them to the youngest of these."""
    found = []
    for line in volume.lines.values():
        if line.root or line.live:
            continue
        clones = [o for o in volume.lines.values() if o.origin.startswith(f"{line.dataset}@")]
        if clones:
            heir = max(clones, key=lambda o: o.origin.rpartition("@")[2])
            found.append((["promote", heir.dataset], f"{line.dataset} for {heir.dataset}"))
        else:
            found.append((["destroy", "-r", line.dataset], line.dataset))
    return found


def _empty(volume: Volume) -> list[tuple[list[str], str]]:
    gone = volume.exists and not volume.lines and not volume.views
    return [(["destroy", volume.dataset], volume.dataset)] if gone else []
