"""A device's disk: volumes that are dictionaries, and what the apps write to them. It outlives agents and reboots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fractal.api.errors import BackendError, Conflict, Corrupt, NotFound
from fractal.api.snapshot import Snapshot, Usage

if TYPE_CHECKING:
    from fractal.sim.machine import Machine
    from fractal.sim.processes import Tree

Files = dict[str, str]
FORMAT = "sim/1"
WRITE_EVERY = 1.0
"""Seconds between two writes of a simulated app."""

_ENCODER = json.JSONEncoder(sort_keys=True)


def digest(files: Files) -> str:
    """What identifies the content of a volume."""
    return hashlib.blake2b(_ENCODER.encode(files).encode(), digest_size=12).hexdigest()


class Disk:
    """Roots and snapshots by volume."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.roots: dict[str, Files] = {}
        self.held: dict[str, dict[str, Files]] = {}
        self.written: dict[str, dict[int, float]] = {}
        """Volume -> value of its counter -> when the app wrote it last."""
        self.begun: dict[str, int] = {}
        """Volume -> value of its counter in the snapshot that its root was made of."""
        self.taken: dict[tuple[str, str], float] = {}
        """When a snapshot was taken that is not committed yet."""
        self.shown: dict[tuple[str, str], Snapshot] = {}
        """What a snapshot is called: always the same."""

    def app_writes(self, tree: Tree) -> None:
        """Carry out what the run's processes wrote since the last look."""
        now = self._machine.world.loop.time()
        root = self.roots.get(tree.volume)
        if not tree.moving or root is None:
            return
        count = int((now - tree.written) / WRITE_EVERY)
        if count > 0:
            before = int(root.get("count", "0"))
            at = self.written.setdefault(tree.volume, {})
            for n in range(1, count + 1):
                at[before + n] = tree.written + n * WRITE_EVERY
            tree.written += count * WRITE_EVERY
            tree.writes += count
            root["count"] = str(before + count)
            root["canary"] = self._machine.world.canary
            root[f"by-{self._machine.name}"] = f"{tree.epoch}:{tree.writes}"

    def settle(self, volume: str) -> None:
        """Bring a volume up to now."""
        for tree in self._machine.guard.trees.values():
            if tree.volume == volume:
                self.app_writes(tree)


class SimSnapshotter:
    """A `Snapshotter` whose every call takes effect at one instant of its own."""

    format = FORMAT
    receives = frozenset({FORMAT})

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._disk = machine.disk

    async def _work(self) -> None:
        slow = self._machine.slow_disk
        await self._machine.clock.sleep(self._machine.world.random.uniform(0.001, 0.05) * (1 + 100 * slow))
        self._machine.moment("disk")

    def _room(self) -> None:
        """Raises BackendError while the disk is full."""
        if self._machine.disk_full > 0:
            raise BackendError("no space left on device", retryable=True)

    def _path(self, volume: str) -> Path:
        return Path("/volumes") / volume

    def _snapshot(self, volume: str, name: str) -> Snapshot:
        known = self._disk.shown.get((volume, name))
        if known is None:
            known = Snapshot(volume=volume, name=name, path=self._path(volume) / name)
            self._disk.shown[volume, name] = known
        return known

    def _held(self, volume: str, name: str) -> Files:
        try:
            return self._disk.held[volume][name]
        except KeyError as error:
            raise NotFound(f"no snapshot {name} of {volume}") from error

    async def create_root(self, volume: str) -> Path:
        """Empty."""
        await self._work()
        self._room()
        self._disk.roots.setdefault(volume, {})
        return self._path(volume)

    async def root(self, volume: str) -> Path | None:
        """Where it is."""
        await self._work()
        return self._path(volume) if volume in self._disk.roots else None

    async def delete_root(self, volume: str) -> None:
        """Gone."""
        await self._work()
        self._disk.settle(volume)
        self._machine.world.truth.root_deleted(self._machine, volume)
        self._disk.roots.pop(volume, None)

    async def set_aside(self, volume: str, name: str) -> None:
        """The root becomes a snapshot."""
        await self._work()
        self._disk.settle(volume)
        root = self._disk.roots.pop(volume, None)
        if root is not None:
            self._disk.held.setdefault(volume, {})[name] = root

    async def snapshot(self, volume: str, name: str) -> Snapshot:
        """A copy."""
        await self._work()
        self._room()
        self._disk.settle(volume)
        held = self._disk.held.setdefault(volume, {})
        if name in held:
            raise Conflict(f"snapshot {name} of {volume} exists")
        if volume not in self._disk.roots:
            raise NotFound(f"volume {volume} has no root")
        held[name] = dict(self._disk.roots[volume])
        self._disk.taken[volume, name] = self._machine.world.loop.time()
        return self._snapshot(volume, name)

    async def snapshots(self, volume: str) -> Sequence[Snapshot]:
        """All, oldest first."""
        await self._work()
        return [self._snapshot(volume, n) for n in self._disk.held.get(volume, {})]

    async def volumes(self) -> Sequence[str]:
        """All."""
        return sorted({*self._disk.roots, *self._disk.held})

    async def delete(self, volume: str, name: str) -> None:
        """Gone."""
        await self._work()
        self._machine.world.truth.snapshot_deleted(self._machine, volume, name)
        self._disk.held.get(volume, {}).pop(name, None)

    async def send(self, volume: str, name: str, parent: str | None = None) -> AsyncIterator[bytes]:
        """What differs from the parent, or everything."""
        await self._work()
        new = self._held(volume, name)
        old = self._held(volume, parent) if parent is not None else {}
        changed = {k: v for k, v in new.items() if old.get(k) != v}
        gone = sorted(old.keys() - new.keys())
        text = _ENCODER.encode([changed, gone, parent is not None and digest(old)]).encode()
        half = len(text) // 2
        yield text[:half]
        await self._work()
        yield text[half:]

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        """All or nothing. Raises Corrupt for a stream that was sent against another parent."""
        text = b"".join([chunk async for chunk in chunks])
        await self._work()
        self._room()
        try:
            changed, gone, against = json.loads(text)
        except ValueError as error:
            raise Corrupt("not a stream") from error
        old = dict(self._held(volume, parent)) if parent is not None else {}
        if stream_format != FORMAT or against != (parent is not None and digest(old)):
            raise Corrupt("the stream was sent against something else")
        held = self._disk.held.setdefault(volume, {})
        held[name] = {**{k: v for k, v in old.items() if k not in gone}, **changed}
        return self._snapshot(volume, name)

    async def checkout(self, volume: str, name: str) -> Path:
        """A writable copy."""
        await self._work()
        self._room()
        if volume in self._disk.roots:
            raise Conflict(f"volume {volume} has a root")
        self._disk.roots[volume] = root = dict(self._held(volume, name))
        self._disk.begun[volume] = int(root.get("count", "0"))
        return self._path(volume)

    async def unchanged(self, volume: str, name: str) -> bool:
        """Exactly."""
        await self._work()
        self._disk.settle(volume)
        held = self._disk.held.get(volume, {}).get(name)
        return held is not None and self._disk.roots.get(volume) == held

    async def usage(self) -> Usage:
        """Plenty."""
        return Usage(total=1 << 40, free=1 << 39)
