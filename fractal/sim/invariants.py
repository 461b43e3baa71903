"""What must always hold, checked on what really happened in the simulated world, which no agent can see.

I1 one runner, I2 one owner per epoch and one state per position, I3 what was reported as committed can be restored, I5 the app
runs once faults have ended, I8 no move without need (docs/explanation/failover.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fractal.agent.local import Local
from fractal.api.canonical import decode
from fractal.api.errors import FractalError
from fractal.api.plain import from_plain
from fractal.archive.archive import AppKeyring, Archive
from fractal.archive.epochs import Epochs
from fractal.archive.layout import parse_epoch_key
from fractal.builtin.memory_store import MemoryStore, MemoryStoreConfig
from fractal.core.chain import main_line
from fractal.core.log import state_hash
from fractal.core.model import Point
from fractal.sim.volumes import SimSnapshotter, digest

if TYPE_CHECKING:
    from fractal.sim.machine import Machine
    from fractal.sim.processes import Tree
    from fractal.sim.world import World


class Truth:
    """Watches everything."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.owners: dict[tuple[str, int], str] = {}
        """(app, epoch) -> device that created the epoch."""
        self.committed: dict[tuple[str, Point], str] = {}
        """What was reported as committed -> digest of its content."""
        self._hashes: dict[int, tuple[str, bytes]] = {}
        self.checks = 0

    # --- I1 ------------------------------------------------------------------------------------------------------

    def moved(self, machine: Machine, tree: Tree) -> None:
        """A run may have begun to move: nobody else's run of the app may be moving, and it must be the owner's."""
        self.checks += 1
        if not tree.moving:
            return
        for other in self._world.machines:
            for run in other.guard.trees.values():
                if run.app == tree.app and run is not tree and run.moving:
                    self._world.wrong(
                        "I1",
                        f"app {tree.app[:4]} runs on {machine.name} at epoch {tree.epoch} and on {other.name} at epoch {run.epoch}",
                    )
        owner = self.owners.get((tree.app, tree.epoch))
        if owner != machine.name:
            self._world.wrong(
                "I2", f"app {tree.app[:4]} runs on {machine.name} at epoch {tree.epoch}, which is {owner}'s"
            )

    # --- I2 ------------------------------------------------------------------------------------------------------

    def created(self, key: str, machine: Machine) -> None:
        """An object was created in the store."""
        parsed = parse_epoch_key(self._world.group_id, key)
        if parsed is None:
            return
        what = "base of epoch" if parsed.base else "epoch"
        self._world.say(machine, f"created {what} {parsed.epoch} of {parsed.app[:4]}")
        if not parsed.base:
            self.owners[parsed.app, parsed.epoch] = machine.name
            self._world.counts["epochs"] += 1

    def states(self) -> None:
        """Equal positions have equal hashes; whom the log calls an owner is who created the epoch."""
        for machine in self._world.machines:
            group = machine.group
            if group is None:
                continue
            self.checks += 1
            state = group.state
            hashed = state_hash(state)
            name, other = self._hashes.setdefault(state.position, (machine.name, hashed))
            if other != hashed:
                self._world.wrong("I2", f"{machine.name} and {name} disagree at position {state.position}")
            for app in state.apps.values():
                real = self._world.device_id(self.owners.get((app.id, app.epoch), ""))
                if app.owner and app.owner != real:
                    self._world.wrong("I2", f"{machine.name} takes a wrong owner of {app.name}@{app.epoch}")

    # --- I3 ------------------------------------------------------------------------------------------------------

    def noted(self, machine: Machine, changes: Mapping[str, bytes | None]) -> None:
        """A device noted something: remember what it now calls committed."""
        for key, value in changes.items():
            if not key.startswith("app/") or not value:
                continue
            app = key.rpartition("/")[2]
            local = from_plain(Local, decode(value))
            point = local.committed
            if point is None:
                continue
            held = machine.disk.held.get(self._world.volume(app), {}).get(local.name_of(point))
            if held is None:
                continue
            self.checks += 1
            now = digest(held)
            if self.committed.setdefault((app, point), now) != now:
                self._world.wrong(
                    "I3", f"{machine.name} holds another {point.epoch}.{point.number} of {app[:4]}"
                )

    def root_deleted(self, machine: Machine, volume: str) -> None:
        """A root may be deleted only if a snapshot holds all that is in it."""
        root = machine.disk.roots.get(volume)
        if root is not None and root not in machine.disk.held.get(volume, {}).values():
            self._world.wrong("I3", f"{machine.name} deleted work that no snapshot holds")

    async def restorable(self, app: str) -> None:
        """Every committed snapshot lies on the main line of the highest epoch and restores bit for bit."""
        world = self._world
        auditor = world.auditor
        store = MemoryStore(MemoryStoreConfig(objects=world.network.objects))
        owners = {e: world.device_id(name) for (a, e), name in self.owners.items() if a == app}
        archive = Archive(
            group=world.group_id,
            app=app,
            store=store,
            keys=auditor.keys,
            app_keys=AppKeyring(
                generation=1, public=world.app_public(app), secrets={1: world.app_secret(app)}
            ),
            group_key=world.group_key,
            sign_key_of=world.sign_key_of,
            clock=auditor.clock,
            entropy=auditor.entropy,
            workers=world.workers,
            spool=auditor.folder / app,
            notes=auditor.notes,
            owner_of=owners.get,
        )
        epochs = Epochs(
            group=world.group_id,
            store=store,
            keys=auditor.keys,
            group_key=world.group_key,
            sign_key_of=world.sign_key_of,
            clock=auditor.clock,
            entropy=auditor.entropy,
        )
        points = (await archive.timeline()).points
        bases = {e: b for e in sorted(owners) if (b := await epochs.base(app, e)) is not None}
        line = set(main_line(points, bases, max(owners, default=0)))
        snapshotter = SimSnapshotter(auditor)
        for (of, point), expected in sorted(self.committed.items()):
            if of != app:
                continue
            self.checks += 1
            name = f"{point.epoch}.{point.number}"
            if point not in line:
                world.wrong("I3", f"committed snapshot {name} of {app[:4]} is not on the main line")
                continue
            try:
                await archive.restore(
                    point, snapshotter=snapshotter, volume=app, name_of=lambda p: f"p-{p.epoch}-{p.number}"
                )
            except FractalError as error:
                world.wrong("I3", f"committed snapshot {name} of {app[:4]}: {error}")
                continue
            if digest(auditor.disk.held[app][f"p-{point.epoch}-{point.number}"]) != expected:
                world.wrong("I3", f"committed snapshot {name} of {app[:4]} restores to something else")

    # --- I5, I8 --------------------------------------------------------------------------------------------------

    def running(self, app: str) -> bool:
        """Whether the app runs anywhere, un-frozen."""
        return any(t.app == app and t.moving for m in self._world.machines for t in m.guard.trees.values())

    def alive(self) -> None:
        """Faults ended long enough ago: every app must run."""
        for app in self._world.apps:
            self.checks += 1
            if not self.running(app) and not self._world.excused(app):
                self._world.wrong("I5", f"app {app[:4]} does not run {self._world.why_not(app)}")

    def unmoved(self) -> None:
        """Nothing happened that is a reason to move an app."""
        for (app, epoch), device in sorted(self.owners.items()):
            self.checks += 1
            if epoch > 1:
                self._world.wrong("I8", f"{device} took app {app[:4]} at epoch {epoch} without need")
