"""What goes wrong with agents, guards, apps, disks, clocks and whole machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractal.sim.faults import Fault
    from fractal.sim.machine import Machine
    from fractal.sim.world import World

MOMENTS = ("", "note", "put", "/epoch/", "/base", "/record/", "disk", "runtime", "guard", "log", "store")
"""Kinds of moment at which an agent may be killed; "" is any."""
WALL_STEP = 7_200_000
"""Milliseconds that lie between the largest step back and the largest step forward."""


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
    if life is None or life.dead or life.frozen or machine.asleep > 0:
        return
    life.frozen = True

    def thaw() -> None:
        if life.asleep is not None:
            world.later(1.0, thaw)
        elif not life.dead:
            world.say(machine, "agent goes on")
            world.loop.thaw(life)

    world.later(fault.seconds, thaw)


def _sleeps(world: World, machine: Machine, fault: Fault) -> None:
    machine.sleep()
    world.later(fault.seconds, _wakes, machine)


def _wakes(machine: Machine) -> None:
    if machine.asleep > 0:
        machine.wake()


def _owner_dies(world: World, machine: Machine, fault: Fault) -> None:
    app = world.apps[int(fault.value * len(world.apps))]
    owner = world.owner(app) or machine
    world.truth.died(owner)
    _power_cut(world, owner, fault)


def _double_failure(world: World, machine: Machine, fault: Fault) -> None:
    """The owner dies, and whoever creates the next epoch dies right after its put."""
    _owner_dies(world, machine, fault)
    for other in world.machines:
        other.fuse, other.doomed = ("put", 2), fault.seconds


def _no_room(world: World, machine: Machine, fault: Fault) -> None:
    notes = fault.value < 0.4
    machine.disk_full += 1
    machine.notes_full += notes

    def free() -> None:
        machine.disk_full -= 1
        machine.notes_full -= notes

    world.later(fault.seconds, free)


def _slow_disk(world: World, machine: Machine, fault: Fault) -> None:
    machine.slow_disk += 1

    def fast() -> None:
        machine.slow_disk = max(0, machine.slow_disk - 1)

    world.later(fault.seconds, fast)


def _does_not_start(world: World, machine: Machine, fault: Fault) -> None:
    app = world.apps[int(fault.value * len(world.apps))]
    world.broken.add((machine.name, app))
    world.later(fault.seconds, world.broken.discard, (machine.name, app))


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


KINDS: Mapping[str, Callable[[World, Machine, Fault], None]] = {
    "agent killed": _killed,
    "power cut": _power_cut,
    "killed at a moment": _at_a_moment,
    "agent frozen": _frozen,
    "disk full": _no_room,
    "disk slow": _slow_disk,
    "machine sleeps": _sleeps,
    "owner dies": _owner_dies,
    "owner dies, then its taker": _double_failure,
    "app does not start": _does_not_start,
    "wall clock steps": _wall,
    "app gets sick": _sick,
    "orderly end": _goodbye,
    "guard killed": _guard_killed,
}
