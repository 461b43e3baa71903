"""What must always hold, checked on what really happened in the simulated world, which no agent can see.

The invariants I1 to I8 are those of docs/explanation/simulation.md.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from fractal.agent.local import Local
from fractal.api.canonical import decode
from fractal.api.plain import from_plain
from fractal.archive.layout import parse_epoch_key
from fractal.core.log import DIAGNOSTIC, LOCAL, state_hash
from fractal.core.model import GroupState, Point
from fractal.sim.volumes import Files, digest

if TYPE_CHECKING:
    from fractal.sim.machine import Machine
    from fractal.sim.processes import Tree
    from fractal.sim.world import World

SHARED = [f.name for f in fields(GroupState) if f.name not in (*LOCAL, *DIAGNOSTIC)]
"""Fields of the folded state that every reader of the same entries has alike."""
COMMITS = ("committed", "names", "root")
"""Fields of a `Local` that say what is committed, and where it is."""
SLACK_MS = 60.0
"""By how much the figure "would lose" may be too small: what a clock of another rate and one pass of the loop make."""
ZSTD = b"\x28\xb5\x2f\xfd"
"""How a compressed frame begins."""
LATELY = 45.0
"""Seconds after a device was cut off for which losing its apps is no needless move."""


class Truth:
    """Watches everything."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.owners: dict[tuple[str, int], str] = {}
        """(app, epoch) -> device that created the epoch."""
        self._late: dict[tuple[str, str, Point], int] = {}
        """(device, app, base) -> the epoch for which it was chosen when that was over already."""
        self.committed: dict[tuple[str, Point], str] = {}
        """What was reported as committed -> digest of its content."""
        self.counts: dict[tuple[str, Point], int] = {}
        """The same -> value of the app's counter in it."""
        self.deaths: dict[str, tuple[float, bool]] = {}
        """App -> when its owner died, and whether a taker died too."""
        self.dead: dict[str, Machine] = {}
        """App -> that owner."""
        self.uploads: dict[str, float] = {}
        """App -> the longest that one of its snapshots took from being taken to being committed, in seconds."""
        self._rooted: set[tuple[str, int]] = set()
        self.takeovers: list[tuple[str, float]] = []
        """("profile" or "profile, double", seconds from death to start)."""
        self._states: dict[int, tuple[str, GroupState]] = {}
        self.last: dict[str, GroupState] = {}
        self._hashes: dict[str, tuple[GroupState, bytes]] = {}
        self._moved: set[tuple[str, int]] = set()
        self.checks = 0

    # --- I1 ------------------------------------------------------------------------------------------------------

    def moved(self, machine: Machine, tree: Tree) -> None:
        """A run may have begun to move: nobody else's run of the app may be moving, and it must be the owner's."""
        self.checks += 1
        if not tree.moving:
            return
        world = self._world
        for other in world.machines:
            for run in other.guard.trees.values():
                if run.app == tree.app and run is not tree and run.moving:
                    self._overlap(machine, tree, other, run)
        owner = self.owners.get((tree.app, tree.epoch))
        if owner != machine.name:
            world.wrong(
                "I2", f"app {tree.app[:4]} runs on {machine.name} at epoch {tree.epoch}, which is {owner}'s"
            )

    def _overlap(self, machine: Machine, tree: Tree, other: Machine, run: Tree) -> None:
        world = self._world
        if world.waking(machine) or world.waking(other):
            return  # `awake` looks again when the guard has had its time
        text = (
            f"app {tree.app[:4]} runs on {machine.name} at epoch {tree.epoch} and on {other.name} "
            f"at epoch {run.epoch}"
        )
        bound = world.scene.overlap
        if not bound:
            world.wrong("I1", text)
            return
        world.say(None, f"OVERLAP {text}")
        world.counts["overlaps under a lying server"] += 1

        def still() -> None:
            if tree.moving and run.moving:
                world.wrong("I1", f"{text}, for more than {bound:.0f} s")

        world.later(bound, still)

    def awake(self, machine: Machine) -> None:
        """A machine woke, and its guard has had its time."""
        for tree in machine.guard.trees.values():
            self.moved(machine, tree)

    # --- I2 ------------------------------------------------------------------------------------------------------

    def created(self, key: str, machine: Machine) -> None:
        """An object was created in the store."""
        world = self._world
        parsed = parse_epoch_key(world.group_id, key)
        if parsed is None:
            return
        what = "base of epoch" if parsed.base else "epoch"
        world.say(machine, f"created {what} {parsed.epoch} of {parsed.app[:4]}")
        if parsed.base:
            return
        world.counts["epochs"] += 1
        if (parsed.app, parsed.epoch) in self.owners:
            world.wrong("I2", f"epoch {parsed.epoch} of {parsed.app[:4]} was created twice")
        self._needless(parsed.app, parsed.epoch, machine)
        self.owners[parsed.app, parsed.epoch] = machine.name

    def folded(self, machine: Machine) -> None:
        """A device is about to read on: what it has folded so far is what everybody else has at that position."""
        group = machine.group
        if group is None:
            return
        state, last = group.state, self.last.get(machine.name)
        if state is last or state.sealed_out or state.left or machine.name in self._world.network.lies:
            return
        self.last[machine.name] = state
        self.checks += 1
        if last is not None:
            self._only_rises(machine, last, state)
        name, other = self._states.setdefault(state.position, (machine.name, state))
        if other is not state and any(getattr(other, f) != getattr(state, f) for f in SHARED):
            self._world.wrong("I2", f"{machine.name} and {name} disagree at position {state.position}")
        for app in state.apps.values():
            real = self._world.device_id(self.owners.get((app.id, app.epoch), ""))
            if app.owner and app.owner != real:
                self._world.wrong("I2", f"{machine.name} takes a wrong owner of {app.name}@{app.epoch}")

    def _only_rises(self, machine: Machine, before: GroupState, after: GroupState) -> None:
        if after.position < before.position:
            return  # another run of the agent, which folds again
        for app in before.apps.values():
            if after.apps[app.id].epoch < app.epoch:
                self._world.wrong("I2", f"the epoch of {app.name} falls on {machine.name}")

    def states(self) -> None:
        """What is compared field by field at every read, now as the hash that checkpoints state."""
        alike: dict[int, list[str]] = {}
        for name, state in self.last.items():
            self.checks += 1
            alike.setdefault(state.position, []).append(name)
        for position, names in alike.items():
            hashes = {self._hash(name) for name in names} if len(names) > 1 else {b""}
            if len(hashes) > 1:
                self._world.wrong("I2", f"{' and '.join(names)} hash position {position} differently")

    def _hash(self, name: str) -> bytes:
        """Hash of what a device has folded, once for as long as it folds nothing more."""
        state, known = self.last[name], self._hashes.get(name)
        if known is None or known[0] is not state:
            known = self._hashes[name] = (state, state_hash(state))
        return known[1]

    # --- I3 ------------------------------------------------------------------------------------------------------

    def noted(self, machine: Machine, changes: Mapping[str, bytes | None]) -> None:
        """A device noted something: remember what it now calls committed."""
        for key, value in changes.items():
            if not key.startswith("app/") or not value:
                continue
            app = key.rpartition("/")[2]
            # The agent itself checks what it noted, when it starts again: this is read far more often.
            local = from_plain(Local, {k: v for k, v in json.loads(value).items() if k in COMMITS})
            if local.committed is not None and not self._late_base(machine, app, local.committed, local.root):
                self._committed(machine, app, local.committed, local.name_of(local.committed))
            if local.root and (app, local.root) not in self._rooted:
                self._rooted.add((app, local.root))
                self._fresh(app, local.committed)

    def _late_base(self, machine: Machine, app: str, point: Point, root: int) -> bool:
        """Whether this is what an epoch starts from that was over before it was chosen: nobody was ever told that it is committed."""
        key = (machine.name, app, point)
        if point.epoch < root and (app, root + 1) in self.owners:
            self._late[key] = root
        # Until another epoch starts from it: of that one it is called committed like any other.
        return key in self._late and root in (self._late[key], 0)

    def _committed(self, machine: Machine, app: str, point: Point, name: str) -> None:
        volume = self._world.volume(app)
        held = machine.disk.held.get(volume, {}).get(name)
        if held is None:
            return
        self.checks += 1
        now = digest(held)
        self.counts[app, point] = int(held.get("count", "0"))
        taken = machine.disk.taken.pop((volume, name), None)
        if taken is not None:
            self.uploads[app] = max(self.uploads.get(app, 0.0), self._world.loop.time() - taken)
        if self.committed.setdefault((app, point), now) != now:
            self._world.wrong("I3", f"{machine.name} holds another {point.epoch}.{point.number} of {app[:4]}")

    def local(self, machine: Machine, app: str) -> Local:
        """What the device durably knows of an app."""
        stored = machine.notes.get(f"app/{self._world.group_id}/{app}")
        return from_plain(Local, decode(stored)) if stored else Local()

    def root_deleted(self, machine: Machine, volume: str) -> None:
        """A root may be deleted only if a snapshot holds all that is in it."""
        root = machine.disk.roots.get(volume)
        self.checks += 1
        if machine.removed or root is None or root in machine.disk.held.get(volume, {}).values():
            return
        if root not in self._stored(volume.rpartition(".")[2]):
            self._world.wrong("I3", f"{machine.name} deleted work that no snapshot holds")

    def _stored(self, app: str) -> list[Files]:
        """Contents of the app's snapshots anywhere."""
        volume = self._world.volume(app)
        return [f for m in self._world.machines for f in m.disk.held.get(volume, {}).values()]

    def snapshot_deleted(self, machine: Machine, volume: str, name: str) -> None:
        """A snapshot that still waits to be stored must not go."""
        self.checks += 1
        app = volume.rpartition(".")[2]
        if machine.removed or machine is self._world.auditor:
            return
        if name in {q.name for q in self.local(machine, app).queue}:
            self._world.wrong(
                "I3", f"{machine.name} deleted snapshot {name} of {app[:4]} before it was stored"
            )

    def deleted(self, key: str, machine: Machine) -> None:
        """An object of the store was deleted."""
        self._world.counts["objects collected"] += 1
        self._world.say(machine, f"deleted {key.rpartition('/')[2][:12]}")

    # --- I4 ------------------------------------------------------------------------------------------------------

    def ages(self, machine: Machine) -> None:
        """The figure "would lose" of every app that the device runs is not smaller than the truth."""
        group = machine.group
        if group is None:
            return
        now = self._world.loop.time()
        for app, job in group.jobs.items():
            volume = self._world.volume(app)
            root = machine.disk.roots.get(volume)
            if root is None or not job.owns or job.facts.now.root != job.app.epoch:
                continue
            machine.disk.settle(volume)
            committed = job.facts.now.committed
            known = 0 if committed is None else self.counts.get((app, committed), 0)
            safe = max(known, machine.disk.begun.get(volume, 0))
            first = machine.disk.written.get(volume, {}).get(safe + 1)
            if first is None or int(root.get("count", "0")) <= safe:
                continue
            said, truth = job.saver.would_lose(), 1000 * (now - first) * min(1.0, machine.clock.rate)
            self.checks += 1
            if 0 <= said < truth - SLACK_MS and not self._world.stepped(machine):
                self._world.wrong(
                    "I4",
                    f"{machine.name} says that {app[:4]} would lose {said} ms, and it would lose {truth:.0f} ms",
                )

    def _fresh(self, app: str, base: Point | None) -> None:
        """An epoch's root was made: if its predecessor died, of data that is no older than the interval and one upload."""
        owner = self.dead.pop(app, None)
        if owner is None or app not in self.deaths:
            return
        self.checks += 1
        known = 0 if base is None else self.counts.get((app, base), 0)
        first = owner.disk.written.get(self._world.volume(app), {}).get(known + 1)
        if first is None:
            return
        age = self.deaths[app][0] - first
        policy = max(s.apps[app].policy.interval for s in self.last.values()) / 1000
        most = policy / min(1.0, owner.clock.rate) + self.uploads.get(app, 0.0) + SLACK_MS / 1000
        if age > most:
            self._world.wrong(
                "I4",
                f"{app[:4]} is taken over with data that is {age:.1f} s old, and {most:.1f} s are allowed",
            )

    # --- I5, I8 --------------------------------------------------------------------------------------------------

    def died(self, machine: Machine) -> None:
        """A device died for so long that its apps must move: from now on their takeover is timed."""
        now = self._world.loop.time()
        for app in self._world.apps:
            began, _ = self.deaths.get(app, (now, False))
            if app in self.deaths:
                self.deaths[app] = (began, True)
            elif any(t.app == app and t.moving for t in machine.guard.trees.values()):
                self.deaths[app] = (now, False)
                self.dead[app] = machine

    def starting(self, app: str) -> None:
        """A device has the right to run the app and begins to start it."""
        if app in self.deaths:
            began, double = self.deaths.pop(app)
            kind = f"{self._world.profile}, double" if double else self._world.profile
            took = self._world.loop.time() - began
            self.takeovers.append((kind, took))
            self._world.say(None, f"takeover of {app[:4]} ({kind}): {took:.1f} s")

    def running(self, app: str) -> bool:
        """Whether the app runs anywhere, un-frozen."""
        return any(t.app == app and t.moving for m in self._world.machines for t in m.guard.trees.values())

    def alive(self) -> None:
        """Faults ended long enough ago: every app must run."""
        for app in self._world.apps:
            self.checks += 1
            if not self.running(app):
                self._world.wrong("I5", f"app {app[:4]} does not run {self._world.why_not(app)}")

    def _needless(self, app: str, epoch: int, machine: Machine) -> None:
        """Counted, not forbidden outside gentle seeds: a healthy, connected owner loses an app that nobody wanted elsewhere."""
        world = self._world
        before = self.owners.get((app, epoch - 1), "")
        owner = next((m for m in world.machines if m.name == before), None)
        known = machine.group.state.apps.get(app) if machine.group is not None else None
        if owner is None or owner is machine or known is None or known.release is not None:
            return
        if owner.removed or owner.asleep or owner.lost or owner.life is None or owner.life.frozen:
            return
        healthy = any(t.app == app and t.moving for t in owner.guard.trees.values())
        apart = world.loop.time() - world.cut_at.get(owner.name, -LATELY) < LATELY
        stormy = world.network.weather.loss or world.network.weather.slow or world.network.lies
        if healthy and not apart and not stormy:
            world.counts["needless moves"] += 1
            world.say(owner, f"loses {app[:4]} without need")

    def unmoved(self) -> None:
        """Nothing happened that is a reason to move an app."""
        for (app, epoch), device in sorted(self.owners.items()):
            self.checks += 1
            if epoch > 1:
                self._world.wrong("I8", f"{device} took app {app[:4]} at epoch {epoch} without need")

    # --- I7 ------------------------------------------------------------------------------------------------------

    def left(self, payload: bytes) -> None:
        """Bytes left a device: nothing of an app, a secret or a name is readable in them."""
        self.checks += 1
        if (at := payload.find(ZSTD)) >= 0:
            payload += unpacked(payload[at:])
        for word in self._world.secrets:
            if word in payload:
                self._world.wrong("I7", f"{word!r} left a device in clear")


def unpacked(data: bytes) -> bytes:
    """What a compressed frame holds; nothing if it is none."""
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError:
        return b""


def in_base64(word: bytes) -> tuple[bytes, ...]:
    """What is seen of a word in base64 text, wherever it begins there."""
    found = []
    for before in range(3):
        text = base64.urlsafe_b64encode(bytes(before) + word).rstrip(b"=")
        first, last = -(-8 * before // 6), (before + len(word)) * 8 // 6
        found.append(text[first:last])
    return tuple(found)
