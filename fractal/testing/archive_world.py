"""A small world for tests of the archive: a store in memory that can be told to misbehave, devices of one group, volumes that are dictionaries."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar, cast

from fractal.agent.notes import MemoryNotes
from fractal.api.errors import Ambiguous, BackendError, Conflict, Corrupt, NotFound, NotSupported
from fractal.api.snapshot import Snapshot, Snapshotter, Usage
from fractal.api.store import ObjectInfo, Store
from fractal.archive.archive import AppKeyring, Archive, Mirror, Place
from fractal.archive.epochs import Epochs
from fractal.archive.rules import Rules
from fractal.archive.thinning import Here, Thinned
from fractal.builtin.memory_store import MemoryObjects, MemoryStore, MemoryStoreConfig
from fractal.core.model import Point
from fractal.core.moments import Moment
from fractal.core.retention import Keep, anchors
from fractal.crypto.keys import DeviceKeys, app_keypair

GROUP = "aa" * 16
APP = "bb" * 8

Files = dict[str, bytes]
T = TypeVar("T")


class SeededEntropy:
    """Reproducible, so that golden files can be made."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


class HandClock:
    """Moves only when told, or when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1_700_000_000_000
        """Label at boottime 1000."""

    def boottime(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return self.wall + int(1000 * (self.now - 1000.0))

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class InlineWorkers:
    """Runs at once, after giving others a turn: every `await` of the code under test is a place to cancel it."""

    async def run(self, function: Callable[..., T], /, *arguments: object) -> T:
        await asyncio.sleep(0)
        return function(*arguments)


class Memory:
    """A snapshotter whose volumes are dictionaries."""

    format = "memory/1"
    receives = frozenset({"memory/1"})

    def __init__(self) -> None:
        self.roots: dict[str, Files] = {}
        self.held: dict[str, dict[str, Files]] = {}
        self.sent = 0
        self.received = 0
        self.waste: Callable[[str, str | None], int] = lambda _name, _parent: 0
        """Bytes that a send repeats without need, as btrfs does next to holes."""

    async def snapshot(self, volume: str, name: str) -> Snapshot:
        held = self.held.setdefault(volume, {})
        if name in held:
            raise Conflict(name)
        held[name] = dict(self.roots.get(volume, {}))
        return self._snapshot(volume, name)

    async def snapshots(self, volume: str) -> Sequence[Snapshot]:
        return [self._snapshot(volume, n) for n in self.held.get(volume, {})]

    async def delete(self, volume: str, name: str) -> None:
        self.held.get(volume, {}).pop(name, None)

    async def send(self, volume: str, name: str, parent: str | None = None) -> AsyncIterator[bytes]:
        new = self.held[volume][name]
        if parent is not None and parent not in self.held[volume]:
            raise NotFound(parent)
        old = self.held[volume][parent] if parent else {}
        self.sent += 1
        for path in sorted(old.keys() | new.keys()):
            if old.get(path) == new.get(path):
                continue
            data = new.get(path)
            head = json.dumps([path, -1 if data is None else len(data)]).encode() + b"\n"
            await asyncio.sleep(0)
            stream = head + (data or b"")
            for start in range(0, len(stream), 1 << 20):
                yield stream[start : start + (1 << 20)]
        if waste := self.waste(name, parent):
            yield json.dumps([".waste", waste]).encode() + b"\n" + Random(name).randbytes(waste)

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        self.received += 1
        held = self.held.setdefault(volume, {})
        assert stream_format == self.format
        assert name not in held
        files = dict(held[parent]) if parent else {}
        data = b"".join([chunk async for chunk in chunks])
        while data:
            line, _, data = data.partition(b"\n")
            try:
                path, size = json.loads(line)
            except ValueError as error:
                raise Corrupt("not a stream") from error
            files.pop(path, None)
            if size >= 0:
                files[path], data = data[:size], data[size:]
        held[name] = files
        return self._snapshot(volume, name)

    def _snapshot(self, volume: str, name: str) -> Snapshot:
        return Snapshot(volume=volume, name=name, path=Path("/nowhere"))

    async def usage(self) -> Usage:
        return Usage(total=1, free=1)


class Unruly(MemoryStore):
    """A store in memory that does what it is told to do wrong."""

    def __init__(self, objects: MemoryObjects, staleness: float = 0.0) -> None:
        super().__init__(MemoryStoreConfig(objects=objects, staleness=staleness))
        self.objects = objects.by_key
        self.fail: Callable[[str, str], str] = lambda _call, _key: ""
        """(call, key) -> "" | "before" | "after" (a create happened, then time-out) | "down"."""
        self.hidden: set[str] = set()
        self.slow: Callable[[str], Awaitable[None]] | None = None
        """What happens while an object is being read."""
        self.deletes = True
        self.puts: list[str] = []
        self.gets: list[str] = []

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        await asyncio.sleep(0)
        self.puts.append(key)
        how = self.fail("put", key)
        if how == "down":
            raise BackendError("the store is down", retryable=True)
        if how == "before":
            raise Ambiguous("timed out before")
        await super().put_new(key, data)
        if how == "after":
            raise Ambiguous("timed out after")

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        await asyncio.sleep(0)
        self.gets.append(key)
        if self.fail("get", key):
            raise BackendError("the store is down", retryable=True)
        if key in self.hidden:
            raise NotFound(key)
        if self.slow is not None:
            await self.slow(key)
        async for chunk in super().get(key, offset=offset, length=length):
            yield chunk

    async def head(self, key: str) -> ObjectInfo:
        await asyncio.sleep(0)
        if key in self.hidden:
            raise NotFound(key)
        return await super().head(key)

    async def delete(self, key: str) -> None:
        await asyncio.sleep(0)
        if not self.deletes:
            raise NotSupported("this store deletes nothing")
        how = self.fail("delete", key)
        if how in ("down", "before"):
            raise BackendError("the store is down", retryable=True)
        await super().delete(key)
        if how == "after":
            raise BackendError("timed out after", retryable=True)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await asyncio.sleep(0)
        if self.fail("list", prefix):
            raise BackendError("the store is down", retryable=True)
        async for info in super().list(prefix):
            if info.key not in self.hidden:
                yield info


class Device:
    """One device of the group: its keys, its durable notes, its spool, its volumes."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.keys = DeviceKeys.generate(SeededEntropy(f"keys of {name}"))
        self.entropy = SeededEntropy(f"entropy of {name}")
        self.notes = MemoryNotes()
        self.volumes = Memory()
        self.spool = world.folder / name
        self.names: dict[Point, str] = {}
        self.reads = True
        self.epoch = 1
        """The epoch that it owns."""
        self.keep = Keep(ticks=12, hourly=5, daily=4, weekly=3)
        self.pins: set[Point] = set()
        self.announced = 0
        """Highest epoch of which the group's log tells."""
        self.checks_owners = False
        """Whether records count only if the owner of their epoch wrote them, as with agents; from the next `restart` on."""
        self.unowned: set[int] = set()
        """Epochs that nobody owned by the log."""
        self.owners: dict[int, str] = {}
        """As it listed them last."""
        self.archive = self.restart()
        self.epochs = self.open_epochs()

    @property
    def snapshotter(self) -> Snapshotter:
        """Only the part of a snapshotter that the archive uses is there."""
        return cast("Snapshotter", self.volumes)

    def restart(self) -> Archive:
        """As after a crash: only notes, spool and snapshots are left."""
        secrets = {1: self.world.app_secret} if self.reads else {}
        self.archive = Archive(
            group=GROUP,
            app=APP,
            store=self.world.store,
            keys=self.keys,
            app_keys=AppKeyring(generation=1, public=self.world.app_public, secrets=secrets),
            group_key=self.world.group_key,
            sign_key_of=self.world.sign_key_of,
            clock=self.world.clock,
            entropy=self.entropy,
            workers=InlineWorkers(),
            spool=self.spool,
            notes=self.notes,
            owner_of=self.owners.get if self.checks_owners else None,
            list_owners=self.list_owners,
            line=self.line,
            counts=lambda epoch: epoch not in self.unowned,
            where="store Shelf",
            mirrors=self.world.places,
        )
        return self.archive

    def mirror(self, name: str) -> Mirror:
        """The copy of the archive in one of the mirrors, as this device tends it."""
        place = next(place for place in self.world.places() if place.name == name)
        return self.archive.mirror(place, self.world.mirrors[name])

    async def fill(self, name: str) -> int:
        """Have everything in a mirror that counts; how many records were copied."""
        mirror = self.mirror(name)
        lacking = await mirror.look()
        for record in lacking:
            await mirror.copy(record)
        await mirror.copy_trim()
        return len(lacking)

    async def list_owners(self) -> None:
        """Who owns which epoch, as the store shows it."""
        listed = await self.epochs.listing()
        self.owners |= {e: record.owner for e, record in listed.get(APP, {}).items()}

    async def line(self) -> tuple[dict[int, Point], int]:
        """Bases and highest epoch, as the store shows them."""
        listed = await self.epochs.listing()
        known = listed.get(APP, {})
        found = {e: await self.epochs.base(APP, e) for e in known}
        return {e: base for e, base in found.items() if base is not None}, max(known, default=self.epoch)

    # --- keeping it small ------------------------------------------------------------------------------------------

    async def rules(self) -> Rules:
        """By what this device thins the archive."""
        bases, _ = await self.line()
        return Rules(epoch=self.epoch, bases=bases, keep=self.keep, pins=frozenset(self.pins))

    def here(self) -> Here:
        """What it has."""
        held = frozenset(p for p in self.names if self.names[p] in self.volumes.held.get("v", {}))
        return Here(snapshotter=self.snapshotter, volume="v", name_of=self.name_of, held=held)

    async def owns(self) -> bool:
        """Fresh proof."""
        known = (await self.epochs.listing()).get(APP, {})
        return max(known, default=self.epoch) == self.epoch

    async def thin(self) -> Thinned:
        """One step of keeping the archive small."""
        return await self.archive.thin(await self.rules(), self.here(), self.owns)

    async def keep_small(self) -> None:
        """All that is due, as an agent does it after each hour."""
        while (await self.thin()).merged is not None:
            pass
        await self.archive.collect(await self.rules(), self.owns)
        await self.forget_snapshots()

    async def forget_snapshots(self) -> None:
        """Delete the local snapshots that nothing needs, as an agent does."""
        rules = await self.rules()
        timeline = await self.archive.timeline()
        line = [Moment(r.point, r.wall_ms) for r in timeline.main(rules.bases, rules.epoch)]
        fulls = {p for p, _ in timeline.counting if timeline.counting[p, _].parent is None}
        keep = anchors(line, fulls) | {m.point for m in line[-2:]}
        for point in [p for p in self.names if p not in keep]:
            await self.volumes.delete("v", self.names.pop(point))

    def open_epochs(self) -> Epochs:
        self.epochs = Epochs(
            group=GROUP,
            store=self.world.store,
            keys=self.keys,
            group_key=self.world.group_key,
            sign_key_of=self.world.sign_key_of,
            clock=self.world.clock,
            entropy=self.entropy,
            notes=self.notes,
            name="store",
            announced=lambda app: self.announced if app == APP else None,
        )
        return self.epochs

    def name_of(self, point: Point) -> str:
        return self.names.get(point, f"p-{point.epoch}-{point.number}")

    async def save(self, epoch: int, name: str, files: Files, parent: Point | None) -> Point:
        """Take snapshot `name` with those files, unless it was taken before, and store it."""
        self.volumes.roots["v"] = files
        if name not in self.volumes.held.get("v", {}):
            await self.volumes.snapshot("v", name)
        record = await self.archive.write(
            epoch,
            snapshotter=self.snapshotter,
            volume="v",
            name=name,
            wall_ms=self.world.clock.wall_ms(),
            parent=parent,
            name_of=self.name_of,
        )
        self.names[record.point] = name
        return record.point

    async def fetch(self, point: Point) -> Files:
        """Restore a moment and say what it holds."""
        snapshot = await self.archive.restore(
            point, snapshotter=self.snapshotter, volume="v", name_of=self.name_of
        )
        return self.volumes.held["v"][snapshot.name]


class World:
    """What all devices share."""

    def killed(self, folder: Path) -> World:
        """What is left if every process dies by SIGKILL at this instant: a world of its own, made of copies."""
        left = World(folder)
        left.objects.update(self.objects)
        for name, mirror in self.mirrors.items():
            left.add_mirror(name).objects.update(mirror.objects)
        left.clock.now, left.clock.wall = self.clock.now, self.clock.wall
        for name, device in self.devices.items():
            if device.spool.exists():
                shutil.copytree(device.spool, folder / name, dirs_exist_ok=True)
            survivor = left.device(name)
            survivor.notes.write(dict(device.notes.scan("")))
            survivor.entropy = SeededEntropy(f"{folder} {name}")
            survivor.restart()
            survivor.names = dict(device.names)
            survivor.epoch, survivor.keep, survivor.pins = device.epoch, device.keep, set(device.pins)
            survivor.volumes.roots = dict(device.volumes.roots)
            survivor.volumes.held = {v: dict(held) for v, held in device.volumes.held.items()}
        return left

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = HandClock()
        self.store = Unruly(MemoryObjects())
        self.objects = self.store.objects
        self.mirrors: dict[str, Unruly] = {}
        """By name; empty unless a test adds some."""
        self.generation = 1
        self.app_public, self.app_secret = app_keypair(SeededEntropy("app"))
        self.devices: dict[str, Device] = {}
        self.strangers: set[str] = set()

    def add_mirror(self, name: str) -> Unruly:
        """One more store, empty, that mirrors the archive."""
        self.mirrors[name] = Unruly(MemoryObjects())
        return self.mirrors[name]

    def places(self) -> list[Place]:
        """The mirrors, oldest first."""

        def opener(store: Unruly) -> Callable[[], Awaitable[Store]]:
            async def open_store() -> Store:
                if store.fail("open", ""):
                    raise BackendError("it cannot be opened", retryable=True)
                return store

            return open_store

        return [Place(id=name, name=name, open=opener(store)) for name, store in self.mirrors.items()]

    def device(self, name: str) -> Device:
        if name not in self.devices:
            self.devices[name] = Device(self, name)
        return self.devices[name]

    def group_key(self, generation: int | None) -> tuple[int, bytes]:
        generation = self.generation if generation is None else generation
        if not 1 <= generation <= self.generation:
            raise NotFound(f"group key {generation}")
        return generation, bytes([generation]) * 32

    def sign_key_of(self, device: str) -> bytes | None:
        keys = {d.keys.id: d.keys.sign_public for d in self.devices.values() if d.name not in self.strangers}
        return keys.get(device)
