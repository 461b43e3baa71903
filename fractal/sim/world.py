"""A whole group of simulated devices, from its founding to the last check."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from fractal.agent.handover import REST
from fractal.agent.journal_notes import key_notes
from fractal.api.app import AppSpec, ProcessSpec, ServiceSpec
from fractal.core.entries import DeviceUpdated, GroupChanged, StoreAdded
from fractal.core.lease import PROFILES, UNTRIED_GRACE, Why, vacancy
from fractal.core.model import Policy
from fractal.crypto.keys import DeviceKeys
from fractal.manifest.plain import to_plain_spec
from fractal.sim.audit import Auditor
from fractal.sim.counting import counting
from fractal.sim.faults import Fault, apply, draw
from fractal.sim.invariants import Truth, in_base64
from fractal.sim.loop import new_loop
from fractal.sim.machine import WAKING, InlineWorkers, Machine, SeededEntropy, SimLogger
from fractal.sim.network import Network
from fractal.sim.once import hurried, once
from fractal.sim.scene import Scene, drawn
from fractal.testing.group import World as Founding

STATES_EVERY = 60.0
AGES_EVERY = 5.0
MOVING = 60.0
"""Seconds that a planned move may take at the end."""
LONGEST_ABSENCE = 300.0
"""Seconds for which a device may ask not to be challenged."""
SPEC = AppSpec(name="counter", services=(ServiceSpec(name="main", process=ProcessSpec(argv=("counter",))),))
LETTERS = "!#$%&()*+-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|}~"
FOLDERS = Path("/dev/shm")
"""Where seeds have their files, if it is there."""
TOKEN = "5" * 32
STORE_ID = "7" * 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one seed gave."""

    seed: int
    kind: str
    violations: tuple[str, ...]
    timeline: tuple[str, ...]
    faults: tuple[Fault, ...]
    counts: Counter[str]
    takeovers: tuple[tuple[str, float], ...]
    """("profile" or "profile, double", seconds from an owner's death to its successor's start)."""
    steps: int
    seconds: float
    """Simulated."""


class World:
    """Everything in one seed."""

    def __init__(
        self, seed: int, folder: Path, script: Sequence[Fault] | None = None, scene: Scene | None = None
    ) -> None:
        self.loop = new_loop()
        plan = Random(f"plan {seed}")
        self.random = Random(f"world {seed}")
        self.truth = Truth(self)
        self.network = Network(self.loop, self.random, self.truth)
        self.workers = InlineWorkers()
        self.sick: set[tuple[str, str]] = set()
        """(device, app): it does not get healthy there."""
        self.broken: set[tuple[str, str]] = set()
        """(device, app): it does not even start there."""
        self.cut_at: dict[str, float] = {}
        """Device -> when it was last known to be cut off from the log."""
        self.timeline: list[str] = []
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self._kept: list[asyncio.Task[Any]] = []
        self._seed = seed
        self._folder = folder
        self.scene = scene or (Scene() if script is not None else drawn(plan))
        self.profile = self.scene.profile
        self.canary = "".join(self.random.choice(LETTERS) for _ in range(24))
        plain = (self.canary.encode(), b"app-canary-", b"Shelf-canary")
        self.secrets = (*plain, *(word for secret in plain for word in in_base64(secret)))
        """What must be readable nowhere outside a device."""
        self.network.store_lag, self.network.log_lag = self.scene.store_lag, self.scene.log_lag
        self.network.excess_lag = self.scene.excess_lag
        self.faults = list(script) if script is not None else draw(plan, self.scene)
        self.network.remember_listed = any(f.kind == "store hides" for f in self.faults)
        self._found(plan, folder)

    # --- the group -----------------------------------------------------------------------------------------------

    def _found(self, plan: Random, folder: Path) -> None:
        scene = self.scene
        names = [f"d{n}" for n in range(scene.size)]
        founding = Founding.founded(self._seed, device=names[0])
        for name in names[1:]:
            founding.join(name, "ann", by=names[0])
        if self.profile != "standard":
            founding.must(names[0], GroupChanged(timers=PROFILES[self.profile]))
        founding.must(names[0], StoreAdded(id=STORE_ID, name="Shelf-canary", backend="sim"))
        self.apps = [f"{n:x}" * 16 for n in range(10, 10 + scene.apps)]
        for app in self.apps:
            entry = founding.installation(
                app,
                store=STORE_ID,
                placed=names[0] if scene.apps == 1 else plan.choice(names),
                policy=Policy(
                    interval=scene.interval or plan.choice((10_000, 30_000)), standby=plan.choice((0, 1, 2))
                ),
            )
            named = replace(entry, name=f"app-canary-{app[0]}", spec=to_plain_spec(SPEC))
            founding.must(names[0], named)
        if scene.bent:
            # An app that nobody can run must be in no other app's way.
            founding.must(
                names[0], StoreAdded(id="8" * 16, name="Bent", backend="sim", config={"no": "such"})
            )
            bent = founding.installation("9" * 16, store="8" * 16, placed=names[0])
            founding.must(names[0], replace(bent, name="app-bent", spec=to_plain_spec(SPEC)))
        self.group_id = founding.state.id
        self.group_keys = dict(founding.group_keys)
        self.network.hub.create(TOKEN)
        self.address = f"memory#{TOKEN}"
        self.network.begin_with(founding.log, self.address)
        self._member = founding.people["ann"].keys.to_bytes()
        self.machines: list[Machine] = []
        for name in names:
            machine = self._machine(name, founding.machines[name].keys, folder)
            machine.notes.write(
                {
                    f"groups/{self.group_id}": self.address.encode(),
                    "member/keys": self._member,
                    **key_notes(self.group_id, self.group_keys),
                }
            )
            self.machines.append(machine)
        self.auditor = self._machine("audit", founding.machines[names[0]].keys, folder)

    def newcomer(self) -> Machine:
        """A device that nobody knows yet; it is switched on, and asks nobody for anything."""
        name = f"d{len(self.machines)}"
        keys = DeviceKeys.generate(SeededEntropy(Random(self.random.getrandbits(64))))
        machine = self._machine(name, keys, self._folder)
        machine.founder = False
        self.machines.append(machine)
        machine.revive()
        return machine

    def _machine(self, name: str, keys: DeviceKeys, folder: Path) -> Machine:
        fast = (1.0 + self.scene.drift) ** 0.5
        # The extremes are what rules about time break at, so they come often.
        rate = self.random.choice((1 / fast, fast, self.random.uniform(1 / fast, fast)))
        return Machine(self, name, keys, rate, folder / name)

    def volume(self, app: str) -> str:
        """Name of an app's volume on every device."""
        return f"{self.group_id[:16]}.{app}"

    def owner(self, app: str) -> Machine | None:
        """The device that created the app's highest epoch."""
        epochs = [(e, name) for (a, e), name in self.truth.owners.items() if a == app]
        name = max(epochs, default=(0, ""))[1]
        return next((m for m in self.machines if m.name == name), None)

    def device_id(self, name: str) -> str:
        """Id of a device by its name."""
        return next((m.id for m in self.machines if m.name == name), "")

    def waking(self, machine: Machine) -> bool:
        """Whether the machine woke so short a time ago that its guard need not have looked."""
        return self.loop.time() < machine.woke + WAKING

    def stepped(self, machine: Machine) -> bool:
        """Whether the figure "would lose" goes by a wall clock that somebody turned: a new agent has only a label to go by."""
        return machine.clock.step_ms != 0

    def trusted(self) -> list[Machine]:
        """Devices that are in the group, run, and hold its owner's key: those that may let others in and put them out."""
        return [
            m
            for m in self.machines
            if m.group is not None and m.founder and not m.removed and not m.group.blind
        ]

    # --- what everything uses ------------------------------------------------------------------------------------

    def outside(self) -> Context:
        """A context that belongs to no program."""
        return Context()

    def later(self, delay: float, action: Callable[..., object], *arguments: object) -> None:
        """Do something after a while, whoever has died by then."""
        self.loop.call_later(delay, lambda: action(*arguments), context=Context())

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold a task for ever: what is collected runs its `finally`, and a killed program does not."""
        self._kept.append(task)

    def say(self, machine: Machine | None, text: str) -> None:
        """One line of the timeline."""
        self.timeline.append(f"{self.loop.time():9.3f} {machine.name if machine else '--':>5} {text}")

    def wrong(self, invariant: str, text: str) -> None:
        """An invariant does not hold."""
        self.say(None, f"VIOLATION {invariant}: {text}")
        if len(self.violations) < 20:
            self.violations.append(f"{invariant}: {text} (at {self.loop.time():.1f} s)")

    def logger(self, machine: Machine) -> logging.Logger:
        """The agent's log is part of the timeline; an unexpected exception in it is a violation."""

        def tell(text: str, error: BaseException | None) -> None:
            if error is not None:
                self.wrong("agent", f"{machine.name}: {text}: {error!r}")
            else:
                self.say(machine, text)

        return SimLogger(f"fractal-sim.{machine.name}", tell)

    def absence(self) -> float:
        """Seconds for which an app's owner said that it is still away: until then nobody challenges it."""
        longest = 0.0
        for machine in self.machines:
            if machine.group is not None:
                state, now = machine.group.state, machine.group.agent.clock.wall_ms()
                owners = {a.owner for a in state.apps.values()}
                left = [(d.away_until - now) / 1000 for d in state.devices.values() if d.id in owners]
                longest = max([longest, *(seconds for seconds in left if seconds <= LONGEST_ABSENCE)])
        return longest

    def untried(self) -> float:
        """Seconds for which an app that did not get healthy somewhere waits there for a device that has not tried it and may be gone,
        or rests there.
        """
        groups = [m.group for m in self.machines if m.group is not None]
        given_up = any(vacancy(g.state, a) is Why.UNHEALTHY for g in groups for a in g.state.apps.values())
        resting = any(job.nowhere for g in groups for job in g.jobs.values())
        return max(UNTRIED_GRACE if given_up else 0.0, REST if resting else 0.0)

    def why_not(self, app: str) -> str:
        """What each device says of an app that does not run."""
        said = []
        for machine in self.machines:
            group = machine.group
            job = group.jobs.get(app) if group else None
            if group is None or job is None:
                said.append(f"{machine.name}: off")
                continue
            state = group.state.apps[app]
            if machine.removed:
                continue
            owner = next((m.name for m in self.machines if m.id == state.owner), "nobody")
            said.append(f"{machine.name}: epoch {state.epoch} of {owner}, {job.problem() or 'no problem'}")
        return f"({'; '.join(said)})"

    # --- the course of things ------------------------------------------------------------------------------------

    async def course(self, only: Collection[int] | None) -> None:
        """Start, faults, an end to all faults, the last checks."""
        for machine in self.machines:
            self.later(self.random.uniform(0.0, 3.0), machine.revive)
        for fault in self.faults:
            if only is None or fault.number in only:
                self.later(fault.at, apply, self, fault)
        await self._watch(self.scene.faults_for)
        entries = self.entries()
        if self.scene.kind != "idle":
            self._heal()
        await self._watch(self.scene.rest)
        if self.violations:
            return
        if not all(self.truth.running(app) for app in self.apps):
            # It may be on its way from one device to another at this very instant, or its owner said that it comes back,
            # or it did not get healthy on the one device that is left.
            absence = max(self.absence(), self.untried())
            await self._watch(absence + self.scene.rest if absence else MOVING)
        if self.scene.kind != "hostile":
            self.truth.alive()
        if self.scene.gentle:
            self.truth.unmoved()
        if self.scene.kind == "idle":
            self.counts["idle seconds"] += int(self.scene.rest) * len(self.machines)
            self.counts["idle entries"] += self.entries() - entries
        auditor = Auditor(self)
        for app in self.apps:
            await auditor.restorable(app)
        self.counts["checks"] += self.truth.checks

    def entries(self) -> int:
        """Entries in the log."""
        return len(self.network.hub.log(self.address).entries)

    async def _watch(self, seconds: float) -> None:
        end = self.loop.time() + seconds
        while self.loop.time() < end and not self.violations:
            await asyncio.sleep(min(AGES_EVERY, end - self.loop.time()))
            for machine in self.machines:
                self.truth.ages(machine)
            if self.loop.time() >= self._hashed_at + STATES_EVERY:
                self._hashed_at = self.loop.time()
                self.truth.states()

    _hashed_at = 0.0

    def _heal(self) -> None:
        """No fault lasts longer; at most one device stays off."""
        self.say(None, "all faults end")
        self.network.weather.clear()
        self.network.excess_lag = 0.0
        for lie in self.network.lies.values():
            lie.withheld = None
        self.sick.clear()
        self.broken.clear()
        for number, machine in enumerate(self.machines):
            machine.fuse = None
            machine.disk_full = machine.notes_full = -1000
            machine.slow_disk = 0
            if machine.asleep > 0:
                machine.asleep = 1
                machine.wake()
                machine.asleep = -1000
            if number == self.scene.mortal and not machine.removed and self.spare(machine):
                self.say(machine, "stays off for good")
                machine.lost = True
                machine.power_off()
                continue
            if machine.life is not None and machine.life.frozen and not machine.life.dead:
                self.loop.thaw(machine.life)
            machine.down = 0
            if machine.parting:  # or it would be off later, and for good
                machine.power_off()
            machine.revive()
            self.later(
                1.0,
                machine.act,
                "drain over",
                lambda _, m=machine: DeviceUpdated(device=m.id, draining=False),
            )

    def spare(self, machine: Machine) -> bool:
        """Whether others remain that hold what the apps need."""
        return any(m is not machine and m.founder and not m.removed and not m.lost for m in self.machines)

    def close(self) -> None:
        """Nothing that still exists has any effect."""
        for machine in self.machines:
            machine.kill()
        self.loop.close()


@contextmanager
def _alone() -> Iterator[None]:
    """No garbage collection meanwhile, as it would run at other instants each time. Whoever has switched it off collects himself."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            collect()
            gc.enable()


def collect() -> None:
    """Free what seeds left behind: killed programs, whose coroutines nobody ended. What that breaks is no news."""
    told = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
    finally:
        sys.unraisablehook = told


def sweep() -> None:
    """Remove the folders of processes that were killed in the middle of a seed."""
    for folder in FOLDERS.glob("fractal-sim-*-*"):
        pid = folder.name.split("-")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def simulate(
    seed: int,
    *,
    only: Collection[int] | None = None,
    script: Sequence[Fault] | None = None,
    scene: Scene | None = None,
) -> Result:
    """Run one seed; `only` keeps just those faults, by number.

    With `script` these faults happen instead, in `scene`: three devices with one app, placed on the first, unless told.
    """
    with (
        _alone(),
        once(),
        hurried(),
        tempfile.TemporaryDirectory(
            prefix=f"fractal-sim-{os.getpid()}-", dir=FOLDERS if FOLDERS.is_dir() else None
        ) as folder,
    ):
        world = World(seed, Path(folder), script, scene)
        with counting(world.counts):
            try:
                world.loop.run(world.course(only))
            finally:
                world.close()
        for error in world.loop.errors:
            world.wrong("agent", error)
        result = Result(
            seed=seed,
            kind=world.scene.kind,
            violations=tuple(world.violations),
            timeline=tuple(world.timeline),
            faults=tuple(f for f in world.faults if only is None or f.number in only),
            counts=world.counts,
            takeovers=tuple(world.truth.takeovers),
            steps=world.loop.steps,
            seconds=world.loop.time(),
        )
        del world
    return result
