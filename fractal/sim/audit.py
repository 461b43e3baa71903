"""The last look at a simulated world: everything that was ever promised is read back with keys that only the auditor has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fractal.api.errors import FractalError
from fractal.archive.archive import AppKeyring, Archive
from fractal.archive.epochs import Epochs
from fractal.archive.layout import parse_segment_key
from fractal.builtin.memory_store import MemoryStore, MemoryStoreConfig
from fractal.core.chain import main_line
from fractal.core.keeping import outdone_strays
from fractal.core.model import AppKey, GroupState, Point
from fractal.sim.volumes import SimSnapshotter, digest

if TYPE_CHECKING:
    from fractal.sim.machine import Machine
    from fractal.sim.world import World

LEFT_OVER = 30
"""Snapshots of one app that a device may hold at the end besides its queue: the newest ones, roots put aside."""
STRAYS = 2
"""Roots put aside that a later one outdoes: two crashes may follow each other before anything is deleted."""
MAKES_ROOM = 60.0
"""Seconds within which a device deletes what it fetched in a hurry: the longest interval until its owner stores one more, twice."""


class Auditor:
    """Reads with the keys of all devices, also of those that were put out."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.state = max((s for _, s in world.truth.last.items()), key=lambda s: s.position)

    def group_key(self, generation: int | None) -> tuple[int, bytes]:
        """Any generation, from any device that has it."""
        wanted = generation or self.state.generation
        for machine in self._world.machines:
            group = machine.group
            key = group.journal.opener.group_key(group.state, wanted) if group is not None else None
            if key is not None:
                return wanted, key
        return wanted, self._world.group_keys[wanted]

    def _disputed(self) -> bool:
        """Whether devices have different keys of one generation of the group."""
        groups = [m.group for m in self._world.machines if m.group is not None]
        for generation in range(1, max(g.state.generation for g in groups) + 1):
            held = {g.journal.opener.group_key(g.state, generation) for g in groups} - {None}
            if len(held) > 1:
                return True
        return False

    def sign_key_of(self, device: str) -> bytes | None:
        """Of any device that ever was in the group."""
        known = self.state.devices.get(device)
        return known.sign_key if known else None

    def keyrings(self, app: str) -> list[AppKeyring]:
        """Every generation of the app's key, from any device that it was sealed to: as the group's log has them.

        Then as those have them whom the log's server showed another history, where they made keys that nobody else knows of.
        """
        lied_to = (m.group for m in self._world.machines if m.name in self._world.network.lies)
        states = [self.state, *(group.state for group in lied_to if group is not None)]
        views = [state.apps[app].keys for state in states]
        return [self._keyring(keys) for n, keys in enumerate(views) if keys not in views[:n]]

    def _keyring(self, keys: tuple[AppKey, ...]) -> AppKeyring:
        secrets: dict[int, bytes] = {}
        for machine in self._world.machines:
            secrets |= AppKeyring.of(keys, machine.keys).secrets
        return AppKeyring(generation=keys[-1].generation, public=keys[-1].public, secrets=secrets)

    async def restorable(self, app: str) -> None:
        """Every committed snapshot restores bit for bit, and lies on the main line unless the log lied."""
        world, truth = self._world, self._world.truth
        auditor = world.auditor
        store = MemoryStore(MemoryStoreConfig(objects=world.network.objects))
        owners = {e: world.device_id(name) for (a, e), name in truth.owners.items() if a == app}
        bases: dict[int, Point] = {}

        async def ends() -> tuple[dict[int, Point], int]:
            return bases, max(owners, default=0)

        archive, *others = (
            Archive(
                group=world.group_id,
                app=app,
                store=store,
                keys=auditor.keys,
                app_keys=keyring,
                group_key=self.group_key,
                sign_key_of=self.sign_key_of,
                clock=auditor.clock,
                entropy=auditor.entropy,
                workers=world.workers,
                spool=auditor.folder / app,
                notes=auditor.notes,
                owner_of=owners.get,
                line=ends,
            )
            for keyring in self.keyrings(app)
        )
        epochs = Epochs(
            group=world.group_id,
            store=store,
            keys=auditor.keys,
            group_key=self.group_key,
            sign_key_of=self.sign_key_of,
            clock=auditor.clock,
            entropy=auditor.entropy,
        )
        keys = list(world.network.objects.by_key)  # before any listing: what is uploaded meanwhile is no leak
        bases |= {e: b for e in sorted(owners) if (b := await epochs.base(app, e)) is not None}
        timeline = await archive.timeline()
        line = set(main_line(timeline.points, bases, max(owners, default=0)))
        snapshotter = SimSnapshotter(auditor)
        for (of, point), expected in sorted(truth.committed.items()):
            if of != app:
                continue
            truth.checks += 1
            name = f"{point.epoch}.{point.number}"
            if timeline.let_go(point):
                continue  # retention, by its own rules
            # Who sees another history of the log may take an app from its living owner: then that one's work is a branch.
            if point not in line and world.scene.kind == "hostile":
                continue
            if point not in line:
                world.wrong("I3", f"committed snapshot {name} of {app[:4]} is not on the main line")
                continue
            if error := await self._restored([archive, *others], point, snapshotter, app):
                world.wrong("I3", f"committed snapshot {name} of {app[:4]}: {error}")
                continue
            if digest(auditor.disk.held[app][f"p-{point.epoch}-{point.number}"]) != expected:
                world.wrong("I3", f"committed snapshot {name} of {app[:4]} restores to something else")
        # In this order: an object that got its record meanwhile is found in the second.
        try:
            orphans = {o.id for o in await archive.orphans()}
        except FractalError as error:
            # Who removed a device in a history that he alone was shown made keys that contradict the others': nobody reads
            # the records of both, so nothing is collected until people solve it.
            if not (others or self._disputed()):
                world.wrong("I6", f"{app[:4]} is never collected again: {error}")
            return
        named = {record.body.object.id for record in (await archive.timeline()).stored.values()}
        self._leaks(app, keys, named | orphans)
        await self.piles(app)

    async def _restored(
        self, archives: Sequence[Archive], point: Point, snapshotter: SimSnapshotter, app: str
    ) -> str:
        """Why a moment cannot be restored by any of them; "" if it was."""
        why = ""
        for archive in archives:
            try:
                await archive.restore(
                    point, snapshotter=snapshotter, volume=app, name_of=lambda p: f"p-{p.epoch}-{p.number}"
                )
            except FractalError as error:
                why = why or str(error)
                continue
            return ""
        return why

    def _leaks(self, app: str, keys: list[str], known: set[str]) -> None:
        """Whatever crashes left behind is known to those who clean up."""
        world = self._world
        for key in keys:
            world.truth.checks += 1
            parsed = parse_segment_key(world.group_id, app, key)
            still = key in world.network.objects.by_key
            if parsed is not None and parsed[0] not in known and still:
                world.wrong("I6", f"{key} is named by nothing and found by no collection")

    async def piles(self, app: str) -> None:
        """No device goes on holding more than it has use for.

        Who took the app a moment ago may just have fetched a whole chain: it starts first, and makes room with the next snapshot.
        """
        world = self._world
        until = world.loop.time() + MAKES_ROOM
        for machine in world.machines:
            if machine.lost or machine.removed:
                continue
            world.truth.checks += 1
            while (held := self._too_many(machine, app)) and world.loop.time() < until:
                await world.auditor.clock.sleep(1.0)
            if held:
                world.wrong("I6", f"{machine.name} keeps {len(held)} snapshots of {app[:4]}: {held}")
            if len(strays := outdone_strays(machine.disk.held.get(world.volume(app), {}))) > STRAYS:
                world.wrong("I6", f"{machine.name} keeps whole copies of {app[:4]}: {sorted(strays)}")

    def _too_many(self, machine: Machine, app: str) -> list[str]:
        """What a device holds of an app, if that is more than it may."""
        held = machine.disk.held.get(self._world.volume(app), {})
        queued = {q.name for q in self._world.truth.local(machine, app).queue}
        aside = [n for n in held if n.startswith(("stray-", "before-"))]
        return sorted(held) if len(held) - len(queued) - len(aside) > LEFT_OVER else []

    def state_now(self) -> GroupState:
        """The newest state that any device folded."""
        return self.state
