"""An app's data on this device: its volume root and local snapshots, and how they come from and go to the archive."""

from __future__ import annotations

import asyncio
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fractal.agent.local import RESTORED, Queued
from fractal.api.errors import BackendError, Corrupt, FractalError
from fractal.archive.archive import AppKeyring, Archive
from fractal.core.chain import EMPTY, main_line, tip
from fractal.core.keeping import STRAY, outdone_strays
from fractal.core.model import App, Point
from fractal.core.moments import Moment
from fractal.core.retention import anchors

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob
    from fractal.archive.records import Record

UNREAD = 20
"""Local snapshots that stay while the archive could not be read since the agent's start."""
ROOM = 12
"""Local snapshots up to which making room for one more can wait until nobody waits for it."""
KEEP = 2
"""Local snapshots of the main line that stay: the parent of the next tick, and one before it. Beside them parents of merges."""


class AppData:
    """Moves data. Every method can be repeated after a crash: the durable facts change only after what they tell is true."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self.newest: Point | None = None
        self.fetched: Point | None = None
        self._line: list[Moment] | None = None
        """The main line as last listed, with what was committed here since; None before the first look."""
        self._fulls: set[Point] = set()
        self._anchors: set[Point] | None = None
        """Of both; None if they changed since it was asked."""
        self._in_use: list[str] = []
        """Local snapshots that something reads or takes just now."""
        self._restoring = 0
        """Restores under way: what they brought so far is the parent of what they bring next."""
        self._open_until: dict[str, float] = {}
        """Local snapshots that people look into, and until when (boottime)."""
        self.crowded = True
        """Whether snapshots may be here that nothing needs: a restore in a hurry brings dozens, also one of an earlier agent."""
        self._clearing = asyncio.Lock()
        self._bases: dict[int, Point] = {}
        self._archive: tuple[object, Archive] | None = None
        """With the keys that it was last given."""
        self._secrets: tuple[object, object, dict[str, tuple[int, str]]] | None = None

    # --- names ---------------------------------------------------------------------------------------------------

    @property
    def volume(self) -> str:
        """Name of the app's volume on this device."""
        return f"{self._job.group.id[:16]}.{self._job.id}"

    def _app(self) -> App:
        return self._job.app

    async def root(self) -> Path:
        """The writable volume root. Raises BackendError if there is none."""
        root = await self._job.group.agent.snapshotter.root(self.volume)
        if root is None:
            raise BackendError(f"volume {self.volume} has no root")
        return root

    # --- keys ----------------------------------------------------------------------------------------------------

    def keyring(self) -> AppKeyring:
        """The app's keys as far as this device holds them."""
        return AppKeyring.of(self._app().keys, self._job.group.agent.keys)

    def secrets(self) -> dict[str, str]:
        """The app's secrets in clear. Raises BackendError naming one that no key held by this device opens."""
        return {name: value for name, (_, value) in self._opened().items()}

    def outdated(self) -> frozenset[str]:
        """Secrets that are not sealed to the app's newest key: a device that joins later could not open them."""
        newest = self._app().keys[-1].generation
        return frozenset(name for name, (generation, _) in self._opened().items() if generation != newest)

    def _opened(self) -> dict[str, tuple[int, str]]:
        """Name -> generation of the key that opens it, and value."""
        app = self._app()
        if self._secrets is None or self._secrets[0] is not app.secrets or self._secrets[1] is not app.keys:
            held = self.keyring().secrets
            opened = {name: self._open(name, sealed, held) for name, sealed in app.secrets.items()}
            self._secrets = (app.secrets, app.keys, opened)
        return self._secrets[2]

    def _open(self, name: str, sealed: bytes, held: Mapping[int, bytes]) -> tuple[int, str]:
        from fractal.crypto.keys import unseal_with

        for generation in sorted(held, reverse=True):
            with suppress(Corrupt, UnicodeDecodeError):
                return generation, unseal_with(held[generation], sealed).decode()
        raise BackendError(f"no key of {self._app().name} on this device opens its secret {name!r}")

    async def archive(self) -> Archive:
        """The app's archive in its store."""
        group, app = self._job.group, self._app()
        if self._archive is not None and self._archive[0] is not app.keys:
            self._archive[1].app_keys = self.keyring()
            self._archive = (app.keys, self._archive[1])
        if self._archive is None:
            opened = await group.store(app.store)
            spool = group.agent.folder("spool") / self.volume
            archive = Archive(
                group=group.id,
                app=app.id,
                store=opened.store,
                keys=group.agent.keys,
                app_keys=self.keyring(),
                group_key=group.journal.group_key,
                owner_of=self._owner_of,
                list_owners=self._list_owners,
                sign_key_of=group.sign_key_of,
                clock=group.agent.clock,
                entropy=group.agent.entropy,
                workers=group.agent.workers,
                spool=spool,
                notes=group.agent.notes,
                line=self._ends,
                counts=lambda epoch: self._app().counts(epoch),
                where=f"store {group.state.stores[app.store].name}",
                mirrors=self._job.mirrors.places,
            )
            self._archive = (app.keys, archive)
        return self._archive[1]

    def _owner_of(self, epoch: int) -> str | None:
        known = self._job.group.stored(self._app()).get(epoch)
        return known.owner if known else None

    async def _list_owners(self) -> None:
        await self._job.group.list_epochs(self._app().store)

    async def _ends(self) -> tuple[dict[int, Point], int]:
        """The bases of the app's epochs, and the highest one."""
        group, store = self._job.group, self._app().store
        opened = await group.store(store)
        if not opened.highest(self._job.id):
            opened = await group.list_epochs(store)
        return await self._owned_bases(), opened.highest(self._job.id)

    # --- reading the archive -------------------------------------------------------------------------------------

    async def bases(self) -> dict[int, Point]:
        """The base of every listed epoch that has one; they never change once they stand."""
        app = self._app()
        opened = await self._job.group.store(app.store)
        for epoch, record in opened.listed.get(self._job.id, {}).items():
            # What nobody owned has none that matters. Strangers can leave a thousand such epochs: each would be asked for every time.
            if epoch not in self._bases and record.owner and app.counts(epoch):
                base = await opened.epochs.base(self._job.id, epoch)
                if base is not None:
                    self._bases[epoch] = base
        return self._bases

    async def _owned_bases(self) -> dict[int, Point]:
        """Without those of epochs that nobody owned by the log, which have a signed object all the same, and may have been read before that was known."""
        app = self._app()
        return {epoch: base for epoch, base in (await self.bases()).items() if app.counts(epoch)}

    async def look(self) -> Point:
        """The newest point of the main line, by a listing that starts now."""
        timeline = await (await self.archive()).timeline()
        app, bases = self._app(), await self._owned_bases()
        points = [point for point in timeline.points if app.counts(point.epoch)]
        self.newest = tip(points, bases, app.epoch)
        line = main_line(points, bases, app.epoch)
        self._line = [Moment(p, timeline.records[p].wall_ms) for p in line]
        self._fulls = {slot[0] for slot, r in timeline.counting.items() if r.parent is None}
        self._anchors = None
        return self.newest

    def committed(self, record: Record) -> None:
        """A snapshot of this device became the newest of the main line."""
        self.newest = self.fetched = record.point
        if record.parent is None:
            self._fulls.add(record.point)
        if self._line is not None:
            self._line.append(Moment(record.point, record.wall_ms))
        self._anchors = None

    def _parents(self) -> set[Point]:
        """Moments that coming merges build on, as far as the main line is known."""
        if self._anchors is None:
            self._anchors = anchors(self._line or [], self._fulls)
        return self._anchors

    async def held(self) -> frozenset[Point]:
        """Moments whose snapshots are on this device."""
        names = self._job.facts.now.names
        here = {s.name for s in await self._job.group.agent.snapshotter.snapshots(self.volume)}
        return frozenset(_point(key) for key, name in names.items() if name in here)

    @contextmanager
    def holding(self, names: Iterable[str]) -> Iterator[None]:
        """Keep these snapshots, which are being read or taken."""
        held = list(names)
        self._in_use += held
        try:
            yield
        finally:
            for name in held:
                self._in_use.remove(name)

    @property
    def opened(self) -> bool:
        """Whether somebody looks into a moment on this device."""
        now = self._job.group.agent.clock.boottime()
        return any(end > now for end in self._open_until.values())

    async def open(self, point: Point, seconds: float) -> Path:
        """Where a moment can be read on this device, for so long. Raises NotFound, Corrupt, Denied, BackendError."""
        clock, snapshotter = self._job.group.agent.clock, self._job.group.agent.snapshotter
        async with self._clearing:
            name = self._job.facts.now.name_of(point)
            if self._app().removed:
                # Noted before it comes: a removed app is looked after only while something of it is known to be here.
                self._job.facts.put(self._job.facts.now.named(point, name))
            self._open_until[name] = max(self._open_until.get(name, 0.0), clock.boottime() + seconds)
        name = await self._restore(point)
        self._open_until.setdefault(name, clock.boottime() + seconds)
        found = {s.name: s.path for s in await snapshotter.snapshots(self.volume)}
        return found[name]

    async def fetch(self, last: Point | None = None) -> None:
        """Bring the newest snapshot of the main line here, beside whatever runs.

        `last` is the one with which the app was released: people wait, so it is not looked for first, nor room made for it. Only
        once: if it is not newer than what is here, a look tells what is, else it would be fetched again and again.
        """
        if last is not None and (self.fetched is None or self.fetched < last):
            with suppress(FractalError):  # whoever released it may say anything: then a look tells
                await self._restore(last, prune=False)
                self.fetched = last
                return
        point = await self.look()
        if point != EMPTY:
            await self._restore(point)
        self.fetched = point

    async def _restore(self, point: Point, *, prune: bool = True) -> str:
        """Have a local snapshot that holds the point; return its name."""
        facts, snapshotter = self._job.facts, self._job.group.agent.snapshotter
        held = {s.name for s in await snapshotter.snapshots(self.volume)}
        name = facts.now.name_of(point)
        if name not in held:
            archive = await self.archive()
            self._restoring += 1
            try:
                snapshot = await archive.restore(
                    point, snapshotter=snapshotter, volume=self.volume, name_of=facts.now.name_of
                )
            finally:
                self._restoring -= 1
            name = snapshot.name
        facts.put(facts.now.named(point, name))
        self.crowded = True
        await self._name_parents()
        if prune or len(held) > ROOM:
            await self.prune(keep={name})
        return name

    async def _name_parents(self) -> None:
        """What a restore brought on its way is a parent of merges to come, if this device takes the app over."""
        facts = self._job.facts
        here = {s.name for s in await self._job.group.agent.snapshotter.snapshots(self.volume)}
        now = facts.now
        for point in self._parents():
            if (name := now.name_of(point)) in here:
                now = now.named(point, name)
        facts.put(now)

    async def prune(self, *, keep: set[str]) -> None:
        """Delete local snapshots that nothing needs any more."""
        facts, snapshotter = self._job.facts, self._job.group.agent.snapshotter
        snapshots = await snapshotter.snapshots(self.volume)
        outdone = outdone_strays(s.name for s in snapshots)
        needed = self._needed(keep)
        for snapshot in snapshots:
            spared = self._spared(snapshot.name) and snapshot.name not in outdone
            if not spared and snapshot.name not in needed:
                await snapshotter.delete(self.volume, snapshot.name)
                # Asked anew: while one is deleted others are taken, named and opened.
                needed = self._needed(keep)
        facts.change(names={k: n for k, n in facts.now.names.items() if n in needed})
        self.crowded = False

    async def make_room(self) -> None:
        """Prune where nothing is about to be stored, once: whatever that deleted, only a restore makes it worth another look."""
        await self.prune(keep=set())
        self.crowded = False

    def _spared(self, name: str) -> bool:
        return name.startswith(STRAY) or (self._restoring > 0 and name.startswith(RESTORED))

    def _needed(self, keep: set[str]) -> set[str]:
        """Names of local snapshots that something needs, and those to `keep`."""
        facts = self._job.facts.now
        keep = (
            keep | {q.name for q in facts.queue} | {facts.name_of(q.parent) for q in facts.queue if q.parent}
        )
        if facts.committed is not None:
            keep.add(facts.name_of(facts.committed))
        wish = self._app().restore
        if wish is not None:
            keep.add(facts.name_of(wish.point))  # fetched, and about to be put in place
        # Being taken at this moment: it has its number, and is queued as soon as it stands.
        keep.add(f"t-{facts.root}-{facts.counter}")
        newest = sorted(facts.names, key=_point)[-KEEP:]
        now = self._job.group.agent.clock.boottime()
        self._open_until = {name: end for name, end in self._open_until.items() if end > now}
        keep |= {facts.names[k] for k in newest} | {*self._in_use, *self._open_until}
        if self._line is None:
            # What coming merges need is not known before the first look, which an unreadable archive may put off for ever.
            keep |= {facts.names[k] for k in sorted(facts.names, key=_point)[-UNREAD:]}
        else:
            keep |= {facts.name_of(p) for p in self._parents()}
        return keep

    # --- the volume root -----------------------------------------------------------------------------------------

    async def make_folders(self) -> None:
        """Have a folder for each of the app's volumes below the root. Raises BackendError."""
        root = await self.root()
        spec = self._job.spec

        def make() -> None:
            for volume in spec.volumes:
                if volume not in spec.ignored:
                    make_folder(root / volume)

        await self._job.group.agent.workers.run(make)

    def ignored_root(self) -> Path:
        """Where folders are that no snapshot holds: beside the root, never in it."""
        path = self._job.group.agent.folder("ignored") / self.volume
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    async def forget_ignored(self) -> None:
        """What is ignored begins empty with every root, so that nothing can come to need it."""
        agent = self._job.group.agent
        await agent.workers.run(_remove_tree, agent.config.device.state_dir / "ignored" / self.volume)

    async def hold(self, point: Point, *, prune: bool = True) -> str:
        """Have a local snapshot that holds the point; its name. Raises NotFound, Corrupt, Denied, BackendError."""
        return await self._restore(point, prune=prune)

    async def has_root(self) -> bool:
        """Whether there is a volume root: not between the two steps of a restore that a crash broke off."""
        return await self._job.group.agent.snapshotter.root(self.volume) is not None

    async def require_root(self) -> None:
        """Make the root out of the last committed snapshot if there is none: a restore set it aside, as all of it was stored,
        and then failed for good.
        """
        if await self.has_root():
            return
        committed = self._job.facts.now.committed
        if committed is None:
            await self._job.group.agent.snapshotter.create_root(self.volume)
        else:
            name = await self._restore(committed)
            await self._job.group.agent.snapshotter.checkout(self.volume, name)
        await self.make_folders()

    async def put_back(self, point: Point) -> None:
        """Make the root hold an earlier moment; the present one was stored before and is kept aside until then."""
        facts, snapshotter = self._job.facts, self._job.group.agent.snapshotter
        name = await self._restore(point)
        if await self.has_root():
            counter = facts.now.counter + 1
            facts.change(counter=counter)
            await snapshotter.set_aside(self.volume, f"before-restore-{counter}")
        await snapshotter.checkout(self.volume, name)
        await self.forget_ignored()
        await self.make_folders()

    async def set_aside(self) -> None:
        """The root's epoch was replaced: keep what it holds beyond the last committed snapshot as a branch."""
        facts, snapshotter = self._job.facts, self._job.group.agent.snapshotter
        now = facts.now
        # Its run ended before, if only by a crash of the whole device: then its logs are still here.
        await self._job.group.agent.runtime.remove(f"{self._job.group.id}.{self._job.id}.{now.root}")
        if await snapshotter.root(self.volume) is None:
            facts.change(root=0)
            return
        last = now.name_of(now.committed) if now.committed else ""
        ended = now.released == now.root or self._app().removed
        if ended and now.committed and not now.ticks and await snapshotter.unchanged(self.volume, last):
            # Released or removed after its last snapshot was stored: nothing is in it that the archive lacks.
            await snapshotter.delete_root(self.volume)
            facts.change(root=0)
            return
        name = await self._branch_name()
        await snapshotter.set_aside(self.volume, name)
        facts.change(root=0)
        self._job.logger.info(
            "%s: what epoch %d had not stored is kept as a branch", self._app().name, now.root
        )
        self._job.group.pulse.beat()

    async def _branch_name(self) -> str:
        """Name of the branch that is about to be made, queued durably before it exists so that no crash forgets it."""
        job, snapshotter = self._job, self._job.group.agent.snapshotter
        now = job.facts.now
        held = {s.name for s in await snapshotter.snapshots(self.volume)}
        begun = [q.name for q in now.queue if q.branch and q.epoch == now.root and q.name not in held]
        if begun:
            return begun[0]
        name = f"b-{now.root}-{now.counter + 1}"
        wall_ms = job.group.agent.clock.wall_ms()
        queued = Queued(name=name, epoch=now.root, wall_ms=wall_ms, parent=now.committed, branch=True)
        job.facts.put(replace(now, counter=now.counter + 1, queue=(*now.queue, queued)))
        return name

    async def clean_up(self) -> None:
        """Delete what is here of the app: it was removed from the group, or this device left. Its archive stays."""
        async with self._clearing:
            await self._clear()

    async def _clear(self) -> None:
        agent = self._job.group.agent
        for run in self._job.runs():
            await agent.runtime.kill(run.key)
            await agent.runtime.remove(run.key)
        await agent.snapshotter.delete_root(self.volume)
        for snapshot in await agent.snapshotter.snapshots(self.volume):
            await agent.snapshotter.delete(self.volume, snapshot.name)
        await agent.workers.run(shutil.rmtree, agent.folder("spool") / self.volume, True)
        await self.forget_ignored()
        self._job.facts.forget()
        self._job.care.forget()


def _point(key: str) -> Point:
    """Of a name in `Local.names`."""
    epoch, _, number = key.partition(".")
    return Point(epoch=int(epoch), number=int(number))


def _remove_tree(path: Path) -> None:
    """Raises BackendError for what cannot be removed."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackendError(
            f"{error.filename or path}: cannot be removed: {error.strerror}", retryable=True
        ) from error


def make_folder(path: Path) -> None:
    """A volume's folder below the root, if it is not there. Raises BackendError for a symlink or anything else, or without room.

    The app writes what it likes there, and restores bring it back: a link in a volume's place would bind another folder of the
    device into its containers.
    """
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o755)
        found = path.lstat()
    except OSError as error:
        raise BackendError(
            f"{path}: the volume's folder cannot be made: {error.strerror}", retryable=True
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise BackendError(
            f"{path}: in place of a volume's folder is something else; restore an earlier moment"
        )
