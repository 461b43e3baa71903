"""What goes wrong between devices and the servers of log and store, and at these servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fractal.core.lease import PROFILES
from fractal.sim.log_server import Lie
from fractal.sim.weather import APPENDS, LOG, SIGNALS, STORE

if TYPE_CHECKING:
    from fractal.sim.faults import Fault
    from fractal.sim.machine import Machine
    from fractal.sim.world import World


def _cut(*services: str) -> Callable[[World, Machine, Fault], None]:
    def begin(world: World, machine: Machine, fault: Fault) -> None:
        cut = world.network.weather.cut
        pairs = [(machine.name, s) for s in services]
        if LOG in services:
            world.cut_at[machine.name] = world.loop.time() + fault.seconds
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


def _for_a_while(name: str, low: float, span: float) -> Callable[[World, Machine, Fault], None]:
    """One of the weather's figures is raised."""

    def begin(world: World, _: Machine, fault: Fault) -> None:
        weather = world.network.weather
        setattr(weather, name, low + span * fault.value)
        world.later(fault.seconds, setattr, weather, name, 0.0)

    return begin


def _limits(world: World, _: Machine, fault: Fault) -> None:
    weather = world.network.weather
    weather.limited += 1
    weather.buckets.clear()

    def end() -> None:
        weather.limited -= 1

    world.later(fault.seconds, end)


def _hides(world: World, machine: Machine, fault: Fault) -> None:
    hides = world.network.weather.hides
    hides[machine.name] = 1 + int(fault.value * 3)
    world.later(fault.seconds, hides.pop, machine.name, None)


def _lie(world: World, machine: Machine) -> Lie:
    return world.network.lies.setdefault(machine.name, Lie())


def _withholds(world: World, machine: Machine, fault: Fault) -> None:
    """The device, mostly the owner of an app, sees nothing new in the log, and nobody hears of it."""
    if fault.value < 0.7:
        machine = world.owner(world.apps[int(fault.value * 997) % len(world.apps)]) or machine
    lie = _lie(world, machine)
    if lie.fork is not None:
        return
    lie.withheld = world.entries()
    _muted(world, machine, fault)

    def show() -> None:
        lie.withheld = None
        world.network.grown()

    world.later(fault.seconds, show)


def _forks(world: World, machine: Machine, _: Fault) -> None:
    lie = _lie(world, machine)
    if lie.fork is None and lie.swapped is None:
        lie.fork = world.network.fork(world.address)


def _reorders(world: World, machine: Machine, _: Fault) -> None:
    lie = _lie(world, machine)
    if lie.fork is None and lie.swapped is None:
        lie.swapped = world.entries()


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


def _reads_only(world: World, machine: Machine, fault: Fault) -> None:
    """An owner, mostly: it can prove by the log, and neither list nor signal nor answer."""
    if fault.value < 0.7:
        machine = world.owner(world.apps[int(fault.value * 997) % len(world.apps)]) or machine
    _cut(APPENDS, STORE)(world, machine, fault)
    _muted(world, machine, fault)


def _snared(world: World, machine: Machine, fault: Fault) -> None:
    """Its next entry gets into the log, and then it hears of nothing any more, not even of that."""
    world.network.weather.snares[machine.name] = fault.seconds


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


KINDS: Mapping[str, Callable[[World, Machine, Fault], None]] = {
    "cut off": _cut(LOG, STORE, SIGNALS),
    "cut off but hears": _hears,
    "unheard, then cut off": _unheard,
    "cut off from the log": _cut(LOG),
    "cut off from the store": _cut(STORE),
    "log down": _down(LOG, SIGNALS),
    "log slow": _for_a_while("slow_log", 0.5, 6.0),
    "log limits": _limits,
    "log withholds": _withholds,
    "log forks": _forks,
    "log reorders": _reorders,
    "store down": _down(STORE),
    "store hides": _hides,
    "slow store": _for_a_while("slow_store", 2.0, 8.0),
    "store executes late": _for_a_while("belated", 0.2, 0.6),
    "loss": _for_a_while("loss", 0.05, 0.3),
    "duplicates": _for_a_while("twice", 0.1, 0.6),
    "slow network": _for_a_while("slow", 0.1, 0.6),
    "success looks like failure": _for_a_while("lying", 0.2, 0.7),
    "cut off after an append": _snared,
    "reads the log, nothing else": _reads_only,
    "router reboots": _cut(LOG, STORE, SIGNALS),
    "muted": _muted,
}
