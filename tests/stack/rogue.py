"""A device that was removed from a group and does not accept it: its old keys, its old state, the store's credentials."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fractal.agent.here import group_addresses
from fractal.agent.journal import Journal
from fractal.agent.main import DEVICE_KEYS
from fractal.api.context import Context
from fractal.api.coordination import Coordinator
from fractal.api.errors import FractalError
from fractal.api.store import Store
from fractal.archive.archive import AppKeyring, Archive
from fractal.archive.epochs import Epochs
from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.copy.snapshotter import open_copy
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.builtin.sqlite import open_sqlite
from fractal.builtin.sqlite_config import SqliteConfig
from fractal.core.entries import Entry
from fractal.core.model import GroupState, Point
from fractal.crypto.keys import DeviceKeys
from fractal.crypto.seal import seal_entry
from fractal.shell.notes import SqliteNotes
from fractal.testing.context import real_context
from tests.stack.bed import Bed, Device


@dataclass
class Rogue:
    """Acts with what a device had when it was removed."""

    context: Context
    keys: DeviceKeys
    coordinator: Coordinator
    store: Store
    journal: Journal
    before: GroupState
    """What it knew of the group as a member."""
    notes: SqliteNotes
    state: Path

    def old_key(self, generation: int | None = None) -> tuple[int, bytes]:
        """The last group key that it was given, whichever one is asked for."""
        return self.journal.group_key(self.before.generation)

    async def append(self, entry: Entry, state: GroupState | None = None) -> None:
        """Put an entry into the log, signed and sealed as it can."""
        state = replace(state or self.before, generation=self.before.generation)
        raw = seal_entry(
            entry, state=state, keys=self.keys, group_key=self.old_key()[1], entropy=self.context.entropy
        )
        await self.append_raw(raw)

    async def append_raw(self, raw: bytes) -> None:
        """Put any bytes into the log."""
        await self.coordinator.append(self.journal.address, self.context.entropy.bytes(16).hex(), raw)

    async def create_epoch(self, app: str, epoch: int) -> None:
        """Create an epoch in the store."""
        epochs = Epochs(
            group=self.before.id,
            store=self.store,
            keys=self.keys,
            group_key=self.old_key,
            sign_key_of=lambda d: self.before.devices[d].sign_key if d in self.before.devices else None,
            clock=self.context.clock,
            entropy=self.context.entropy,
        )
        await epochs.create(app, epoch, self.before.timers)

    def app_keys(self, state: GroupState, app: str) -> dict[int, bytes]:
        """Generations of an app's key that it can open in a state."""
        keys = state.apps[app].keys
        return {
            k.generation: self.keys.unseal(k.sealed[self.keys.id]) for k in keys if self.keys.id in k.sealed
        }

    def archive(self, app: str) -> Archive:
        """The app's archive, with the keys that it has."""
        newest = self.before.apps[app].keys[-1]
        keyring = AppKeyring(
            generation=newest.generation, public=newest.public, secrets=self.app_keys(self.before, app)
        )
        return Archive(
            group=self.before.id,
            app=app,
            store=self.store,
            keys=self.keys,
            app_keys=keyring,
            group_key=self.old_key,
            sign_key_of=lambda d: self.before.devices[d].sign_key if d in self.before.devices else None,
            clock=self.context.clock,
            entropy=self.context.entropy,
            workers=self.context.workers,
            spool=self.context.state_dir / "spool",
            notes=self.notes,
        )

    async def write(self, app: str, epoch: int) -> Point:
        """Store its copy of the app's data as a snapshot of `epoch`."""
        volume = f"{self.before.id[:16]}.{app}"
        context = replace(self.context, state_dir=self.state / "snapshot" / "copy")
        async with open_copy(context, CopyConfig()) as snapshotter:
            await snapshotter.snapshot(volume, f"rogue-{epoch}")
            record = await self.archive(app).write(
                epoch,
                snapshotter=snapshotter,
                volume=volume,
                name=f"rogue-{epoch}",
                wall_ms=self.context.clock.wall_ms() + 86_400_000,
            )
        return Point(epoch=record.epoch, number=record.number)

    async def can_open(self, app: str, point: Point) -> bool:
        """Whether it gets at the data of a snapshot."""
        context = replace(self.context, state_dir=self.context.state_dir / "loot")
        context.state_dir.mkdir(exist_ok=True)
        try:
            async with open_copy(context, CopyConfig()) as snapshotter:
                await self.archive(app).restore(
                    point, snapshotter=snapshotter, volume="loot", name_of=lambda p: f"{p.epoch}-{p.number}"
                )
        except FractalError as error:
            print(f"no loot: {error}")
            return False
        return True


@asynccontextmanager
async def rogue(bed: Bed, device: Device, folder: Path) -> AsyncIterator[Rogue]:
    """Act as `device`, whose agent does not run, in the only group it was in."""
    async with AsyncExitStack() as stack:
        notes = SqliteNotes(device.state / "agent.sqlite")
        stack.callback(notes.close)
        stored = notes.get(DEVICE_KEYS)
        assert stored is not None
        keys = DeviceKeys.from_bytes(stored)
        ((group, address),) = group_addresses(notes).items()
        context = await stack.enter_async_context(real_context(folder, device=keys.id))
        log = SqliteConfig(path=str(bed.log / "log.sqlite"))
        coordinator = await stack.enter_async_context(open_sqlite(context, log))
        store = await stack.enter_async_context(open_directory(context, DirectoryConfig(path=bed.store)))
        journal = Journal(
            group=group,
            address=address,
            coordinator=coordinator,
            keys=keys,
            notes=notes,
            clock=context.clock,
            entropy=context.entropy,
        )
        yield Rogue(context, keys, coordinator, store, journal, journal.state, notes, device.state)
