"""A whole group of simulated devices, from its founding to the last check."""

from __future__ import annotations

import asyncio
import gc
import logging
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

from fractal.agent.journal_notes import key_notes
from fractal.api.app import AppSpec, ServiceSpec
from fractal.core.entries import DeviceUpdated, GroupChanged, StoreAdded
from fractal.core.lease import PROFILES
from fractal.core.model import Policy
from fractal.crypto.keys import DeviceKeys
from fractal.manifest.plain import to_plain_spec
from fractal.sim.faults import Fault, apply, draw
from fractal.sim.invariants import Truth
from fractal.sim.loop import new_loop
from fractal.sim.machine import InlineWorkers, Machine, quiet_logger
from fractal.sim.network import Network
from fractal.sim.once import once
from fractal.testing.group import World as Founding

FAULTS_FOR = 300.0
"""Simulated seconds in which faults begin."""
BOUND = 150.0
"""Seconds after the last fault ended by which every app must run."""
STATES_EVERY = 20.0
SPEC = AppSpec(name="counter", services=(ServiceSpec(name="main", image="counter"),))
TOKEN = "5" * 32
STORE_ID = "7" * 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one seed gave."""

    seed: int
    violations: tuple[str, ...]
    timeline: tuple[str, ...]
    faults: tuple[Fault, ...]
    counts: Counter[str]
    steps: int
    seconds: float
    """Simulated."""


class World:
    """Everything in one seed."""

    def __init__(self, seed: int, folder: Path, script: Sequence[Fault] | None = None) -> None:
        self.loop = new_loop()
        plan = Random(f"plan {seed}")
        self.random = Random(f"world {seed}")
        self.network = Network(self.loop, self.random)
        self.workers = InlineWorkers()
        self.truth = Truth(self)
        self.sick: set[tuple[str, str]] = set()
        self.timeline: list[str] = []
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self._kept: list[asyncio.Task[Any]] = []
        self._seed = seed
        self.gentle = script is None and plan.random() < 0.15
        self.profile = plan.choice(("standard", "standard", "fast", "patient"))
        size, apps = plan.choice((2, 3, 3, 4)), plan.choice((1, 2, 3))
        mortal = script is None and not self.gentle and plan.random() < 0.5
        self.dies_for_good = plan.randrange(size) if mortal else None
        if script is not None:
            size, apps, self.profile = 3, 1, "standard"
        self.faults = script or draw(plan, size, FAULTS_FOR, gentle=self.gentle)
        self._found(size, apps, plan, folder)

    # --- the group -----------------------------------------------------------------------------------------------

    def _found(self, size: int, apps: int, plan: Random, folder: Path) -> None:
        names = [f"d{n}" for n in range(size)]
        founding = Founding.founded(self._seed, device=names[0])
        for name in names[1:]:
            founding.join(name, "ann", by=names[0])
        if self.profile != "standard":
            founding.must(names[0], GroupChanged(timers=PROFILES[self.profile]))
        founding.must(names[0], StoreAdded(id=STORE_ID, name="Shelf", backend="sim"))
        self.apps = [f"{n:x}" * 16 for n in range(10, 10 + apps)]
        for app in self.apps:
            entry = founding.installation(
                app,
                store=STORE_ID,
                placed=names[0] if apps == 1 else plan.choice(names),
                policy=Policy(interval=plan.choice((10_000, 30_000)), standby=plan.choice((0, 1, 2))),
            )
            named = replace(entry, name=f"app-{app[0]}", spec=to_plain_spec(SPEC))
            founding.must(names[0], named)
        if Random(f"bent {self._seed}").random() < 0.2:
            # An app that nobody can run must be in no other app's way.
            founding.must(
                names[0], StoreAdded(id="8" * 16, name="Bent", backend="sim", config={"no": "such"})
            )
            bent = founding.installation("9" * 16, store="8" * 16, placed=names[0])
            founding.must(names[0], replace(bent, name="app-bent", spec=to_plain_spec(SPEC)))
        self.group_id = founding.state.id
        self._group_keys = dict(founding.group_keys)
        self._founding = founding
        self.network.hub.create(TOKEN)
        address = f"memory#{TOKEN}"
        self.network.hub.log(address).entries.extend(founding.log)
        self.machines: list[Machine] = []
        for name in names:
            machine = self._machine(name, founding.machines[name].keys, folder)
            machine.notes.write(
                {
                    f"groups/{self.group_id}": address.encode(),
                    **key_notes(self.group_id, self._group_keys),
                }
            )
            self.machines.append(machine)
        self.auditor = self._machine("audit", founding.machines[names[0]].keys, folder)

    def _machine(self, name: str, keys: DeviceKeys, folder: Path) -> Machine:
        return Machine(self, name, keys, self.random.uniform(0.996, 1.004), folder / name)

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

    def group_key(self, generation: int | None) -> tuple[int, bytes]:
        """For the auditor."""
        return generation or 1, self._group_keys[generation or 1]

    def sign_key_of(self, device: str) -> bytes | None:
        """For the auditor."""
        known = self._founding.state.devices.get(device)
        return known.sign_key if known else None

    def app_public(self, app: str) -> bytes:
        """For the auditor."""
        return self._founding.state.apps[app].keys[-1].public

    def app_secret(self, app: str) -> bytes:
        """For the auditor."""
        return self.auditor.keys.unseal(self._founding.state.apps[app].keys[-1].sealed[self.auditor.id])

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
        world = self

        class Lines(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                text = record.getMessage()
                if record.exc_info and record.exc_info[1] is not None:
                    error = record.exc_info[1]
                    world.wrong("agent", f"{machine.name}: {text}: {error!r}")
                else:
                    world.say(machine, text)

        return quiet_logger(f"fractal-sim.{machine.name}", Lines())

    def excused(self, app: str) -> bool:
        """Whether the app's owner said that it is away for some minutes: then nobody challenges it yet."""
        for machine in self.machines:
            if machine.group is not None:
                state = machine.group.state
                owner = state.devices.get(state.apps[app].owner)
                if owner is not None and owner.away_until > machine.group.agent.clock.wall_ms():
                    return True
        return False

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
        await self._watch(FAULTS_FOR)
        self._heal()
        await self._watch(BOUND)
        self.truth.alive()
        if self.gentle:
            self.truth.unmoved()
        for app in self.apps:
            await self.truth.restorable(app)

    async def _watch(self, seconds: float) -> None:
        end = self.loop.time() + seconds
        while self.loop.time() < end and not self.violations:
            await asyncio.sleep(min(STATES_EVERY, end - self.loop.time()))
            self.truth.states()

    def _heal(self) -> None:
        """No fault lasts longer; at most one device stays off."""
        self.say(None, "all faults end")
        weather = self.network.weather
        weather.cut = dict.fromkeys(weather.cut, -1000)
        weather.muted = dict.fromkeys(weather.muted, -1000)
        weather.loss = weather.slow = weather.lying = 0.0
        self.sick.clear()
        for number, machine in enumerate(self.machines):
            machine.fuse = None
            if number == self.dies_for_good:
                self.say(machine, "stays off for good")
                machine.lost = True
                machine.power_off()
                continue
            if machine.life is not None and machine.life.frozen and not machine.life.dead:
                self.loop.thaw(machine.life)
            machine.revive()
            self.later(
                1.0,
                machine.act,
                "drain over",
                lambda _, m=machine: DeviceUpdated(device=m.id, draining=False),
            )

    def close(self) -> None:
        """Nothing that still exists has any effect."""
        for machine in self.machines:
            machine.kill()
        self.loop.close()


@contextmanager
def _alone() -> Iterator[None]:
    """No garbage collection meanwhile, as it would run at other instants each time; what it breaks afterwards is no news."""
    told, collecting = sys.unraisablehook, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        sys.unraisablehook = lambda _: None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
        sys.unraisablehook = told
        if collecting:
            gc.enable()


def simulate(
    seed: int, *, only: Collection[int] | None = None, script: Sequence[Fault] | None = None
) -> Result:
    """Run one seed; `only` keeps just those faults, by number.

    With `script` these faults happen instead, to three devices with one app, placed on the first.
    """
    shared = Path("/dev/shm")
    with (
        _alone(),
        once(),
        tempfile.TemporaryDirectory(prefix="fractal-sim-", dir=shared if shared.is_dir() else None) as folder,
    ):
        world = World(seed, Path(folder), script)
        try:
            world.loop.run(world.course(only))
        finally:
            world.close()
        for error in world.loop.errors:
            world.wrong("agent", error)
        result = Result(
            seed=seed,
            violations=tuple(world.violations),
            timeline=tuple(world.timeline),
            faults=tuple(f for f in world.faults if only is None or f.number in only),
            counts=world.counts,
            steps=world.loop.steps,
            seconds=world.loop.time(),
        )
        del world
    return result
