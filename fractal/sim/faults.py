"""What goes wrong, drawn from the seed before anything runs: so that a failure can be tried again with fewer faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from fractal.agent.group import GroupAgent
from fractal.core.entries import AppMoved, DeviceUpdated, GroupChanged
from fractal.core.lease import PROFILES
from fractal.sim.network import APPENDS, LOG, SIGNALS, STORE

if TYPE_CHECKING:
    from fractal.sim.machine import Machine
    from fractal.sim.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, for a while."""

    number: int
    at: float
    kind: str
    devices: tuple[int, ...]
    """Which devices it concerns, by number."""
    seconds: float
    value: float
    """A number in [0, 1) that decides details."""

    def __str__(self) -> str:
        who = ",".join(f"d{d}" for d in self.devices)
        return f"fault {self.number}: {self.kind} {who} for {self.seconds:.0f} s ({self.value:.2f})"


HARD: Sequence[tuple[str, int, float, float]] = (
    # kind, weight, shortest, longest
    ("agent killed", 4, 0.5, 40),
    ("power cut", 4, 3, 90),
    ("killed at a moment", 10, 1, 1),
    ("agent frozen", 4, 3, 60),
    ("cut off", 5, 5, 90),
    ("cut off but hears", 3, 10, 90),
    ("unheard, then cut off", 7, 15, 60),
    ("cut off from the log", 4, 5, 60),
    ("cut off from the store", 4, 5, 60),
    ("log down", 2, 3, 60),
    ("store down", 2, 3, 60),
    ("loss", 3, 10, 60),
    ("slow network", 3, 10, 60),
    ("success looks like failure", 4, 10, 90),
    ("wall clock steps", 1, 1, 1),
    ("move", 5, 1, 1),
    ("drain", 2, 30, 120),
    ("app gets sick", 1, 60, 200),
    ("timers change", 1, 1, 1),
    ("orderly end", 2, 30, 90),
    ("guard killed", 2, 1, 1),
    ("muted", 2, 20, 90),
)
GENTLE: Sequence[tuple[str, int, float, float]] = (
    ("muted", 5, 10, 120),
    ("wall clock steps", 2, 1, 1),
    ("agent killed", 3, 0.5, 4),
    ("store down", 3, 5, 60),
    ("cut off from the store", 2, 5, 60),
)
"""None of these is a reason to move an app."""
MOMENTS = ("", "note", "put", "/epoch/", "/base", "/record/", "disk", "runtime", "guard", "log", "store")
WALL_STEP = 7_200_000


def draw(random: Random, devices: int, seconds: float, *, gentle: bool) -> list[Fault]:
    """Faults until `seconds`, one every 4 to 25 s."""
    kinds = GENTLE if gentle else HARD
    faults: list[Fault] = []
    at = random.uniform(25.0, 40.0)
    while at < seconds:
        kind, _, low, high = random.choices(kinds, [k[1] for k in kinds])[0]
        size = random.choice((1, 1, 1, 2)) if kind.startswith("cut off") and not gentle else 1
        chosen = tuple(sorted(random.sample(range(devices), min(size, devices))))
        length = low + (high - low) * random.random() ** 2
        faults.append(
            Fault(number=len(faults), at=at, kind=kind, devices=chosen, seconds=length, value=random.random())
        )
        at += random.uniform(4.0, 25.0)
    return faults


def apply(world: World, fault: Fault) -> None:
    """Let it happen now, and end after its time."""
    world.say(None, str(fault))
    world.counts["faults"] += 1
    for number in fault.devices:
        KINDS[fault.kind](world, world.machines[number], fault)


# --- programs and machines -------------------------------------------------------------------------------------------


def _killed(world: World, machine: Machine, fault: Fault) -> None:
    machine.kill()
    world.later(fault.seconds, machine.revive)


def _power_cut(world: World, machine: Machine, fault: Fault) -> None:
    machine.power_off()
    world.later(fault.seconds, machine.revive)


def _at_a_moment(_: World, machine: Machine, fault: Fault) -> None:
    kind = MOMENTS[int(fault.value * len(MOMENTS))]
    machine.fuse = (kind, 1 + int(fault.value * 997) % (40 if not kind else 6))


def _frozen(world: World, machine: Machine, fault: Fault) -> None:
    life = machine.life
    if life is None or life.dead or life.frozen:
        return
    life.frozen = True

    def thaw() -> None:
        if not life.dead:
            world.say(machine, "agent goes on")
            world.loop.thaw(life)

    world.later(fault.seconds, thaw)


def _goodbye(world: World, machine: Machine, fault: Fault) -> None:
    machine.goodbye()
    world.later(60.0 + fault.seconds, machine.revive)


def _guard_killed(_: World, machine: Machine, __: Fault) -> None:
    machine.guard.die()


def _wall(_: World, machine: Machine, fault: Fault) -> None:
    machine.clock.step_ms += int((fault.value - 0.5) * WALL_STEP)


def _sick(world: World, machine: Machine, fault: Fault) -> None:
    app = world.apps[int(fault.value * len(world.apps))]
    world.sick.add((machine.name, app))
    world.later(fault.seconds, world.sick.discard, (machine.name, app))


# --- network ---------------------------------------------------------------------------------------------------------


def _cut(*services: str) -> Callable[[World, Machine, Fault], None]:
    def begin(world: World, machine: Machine, fault: Fault) -> None:
        cut = world.network.weather.cut
        pairs = [(machine.name, s) for s in services]
        for pair in pairs:
            cut[pair] = cut.get(pair, 0) + 1

        def heal() -> None:
            for pair in pairs:
                cut[pair] -= 1

        world.later(fault.seconds, heal)

    return begin


def _down(*services: str) -> Callable[[World, Machine, Fault], None]:
    def begin(world: World, _: Machine, fault: Fault) -> None:
        for machine in world.machines:
            _cut(*services)(world, machine, fault)

    return begin


def _loss(world: World, _: Machine, fault: Fault) -> None:
    weather = world.network.weather
    weather.loss = 0.05 + 0.3 * fault.value

    def heal() -> None:
        weather.loss = 0.0

    world.later(fault.seconds, heal)


def _slow(world: World, _: Machine, fault: Fault) -> None:
    weather = world.network.weather
    weather.slow = 0.1 + 0.6 * fault.value

    def heal() -> None:
        weather.slow = 0.0

    world.later(fault.seconds, heal)


def _lying(world: World, _: Machine, fault: Fault) -> None:
    weather = world.network.weather
    weather.lying = 0.2 + 0.7 * fault.value

    def heal() -> None:
        weather.lying = 0.0

    world.later(fault.seconds, heal)


def _muted(world: World, machine: Machine, fault: Fault) -> None:
    muted = world.network.weather.muted
    muted[machine.name] = muted.get(machine.name, 0) + 1

    def heal() -> None:
        muted[machine.name] -= 1

    world.later(fault.seconds, heal)


def _hears(world: World, machine: Machine, fault: Fault) -> None:
    """The way out is broken; what others signal still arrives."""
    _cut(LOG, STORE)(world, machine, fault)
    _muted(world, machine, fault)


def _unheard(world: World, machine: Machine, fault: Fault) -> None:
    """The worst that can happen to a lease. An owner reads and proves, and can neither signal nor answer; shortly before it is
    replaced it is cut off as well, so that it cannot learn of it. Sometimes the taker is killed right after its put.
    """
    app = world.apps[int(fault.value * 997) % len(world.apps)]
    machine = world.owner(app) or machine
    timers = PROFILES[world.profile]
    until = (timers.patience + timers.answer_window - 1_000 - 0.7 * fault.value**2 * timers.proof) / 1000
    first = replace(fault, seconds=until + fault.seconds)
    _cut(APPENDS)(world, machine, first)
    _muted(world, machine, first)
    world.later(until, _cut(LOG, STORE, SIGNALS), world, machine, fault)
    late = world.network.weather.late
    world.later(until / 2, late.update, {machine.name: 0.9 * timers.read_timeout / 1000})
    world.later(until, late.pop, machine.name, None)
    if int(fault.value * 9973) % 2:
        for other in world.machines:
            if other is not machine:
                other.fuse = ("/epoch/", 2)


# --- people ----------------------------------------------------------------------------------------------------------


def _move(world: World, machine: Machine, fault: Fault) -> None:
    app = world.apps[int(fault.value * len(world.apps))]
    target = world.machines[int(fault.value * 997) % len(world.machines)]

    def wish(group: GroupAgent) -> AppMoved | None:
        known = group.state.apps.get(app)
        return None if known is None or known.owner == target.id else AppMoved(app=app, to=target.id)

    machine.act(f"move {app[:4]} to {target.name}", wish)


def _drain(world: World, machine: Machine, fault: Fault) -> None:
    machine.act("drain", lambda _: DeviceUpdated(device=machine.id, draining=True))
    world.later(
        fault.seconds, machine.act, "drain over", lambda _: DeviceUpdated(device=machine.id, draining=False)
    )


def _timers(_: World, machine: Machine, fault: Fault) -> None:
    timers = list(PROFILES.values())[int(fault.value * len(PROFILES))]
    machine.act(f"timers {timers.profile}", lambda _: GroupChanged(timers=timers))


KINDS: dict[str, Callable[[World, Machine, Fault], None]] = {
    "agent killed": _killed,
    "power cut": _power_cut,
    "killed at a moment": _at_a_moment,
    "agent frozen": _frozen,
    "cut off": _cut(LOG, STORE, SIGNALS),
    "cut off but hears": _hears,
    "unheard, then cut off": _unheard,
    "cut off from the log": _cut(LOG),
    "cut off from the store": _cut(STORE),
    "log down": _down(LOG, SIGNALS),
    "store down": _down(STORE),
    "loss": _loss,
    "slow network": _slow,
    "success looks like failure": _lying,
    "wall clock steps": _wall,
    "move": _move,
    "drain": _drain,
    "app gets sick": _sick,
    "timers change": _timers,
    "orderly end": _goodbye,
    "guard killed": _guard_killed,
    "muted": _muted,
}
