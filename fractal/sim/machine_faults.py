"""What goes wrong with agents, guards, apps, disks, clocks and whole machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fractal.sim import people_faults

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


def _elsewhere(world: World, machine: Machine, fault: Fault, kept: set[tuple[str, str]]) -> None:
    """Somebody moves an app to where it does not run. Not if another device fails it too: when all have, it rests for minutes."""
    app = world.apps[int(fault.value * len(world.apps))]
    owner = world.owner(app) or machine
    target = machine if machine is not owner else next(m for m in world.machines if m is not owner)
    if any(a == app for _, a in (*world.sick, *world.broken)):
        return
    kept.add((target.name, app))
    world.later(fault.seconds, kept.discard, (target.name, app))
    people_faults.move(owner, app, target)


def _sick_elsewhere(world: World, machine: Machine, fault: Fault) -> None:
    _elsewhere(world, machine, fault, world.sick)


def _broken_elsewhere(world: World, machine: Machine, fault: Fault) -> None:
    _elsewhere(world, machine, fault, world.broken)


def _at_its_release(world: World, machine: Machine, fault: Fault) -> None:
    """An owner is told to hand its app over, and is killed when it has noted that and said it to nobody."""
    app = world.apps[int(fault.value * len(world.apps))]
    owner = world.owner(app) or machine
    owner.fuse = ("release", 1)
    others = [m for m in world.machines if m is not owner]
    people_faults.move(machine, app, others[int(fault.value * 997) % len(others)])


def _after_its_put(world: World, _: Machine, fault: Fault) -> None:
    """Within this time, the agent of the next that creates an epoch is killed up to 5 s later, and comes back at once."""

    def taken(app: str, _: int) -> None:
        world.later(5.0 * fault.value, _restart, world.owner(app))

    people_faults.when_taken(world, fault.seconds, taken)


def _restart(machine: Machine) -> None:
    machine.world.say(machine, "killed after its put")
    machine.kill()
    machine.revive()


def _in_its_wait(world: World, _: Machine, fault: Fault) -> None:
    """The next that creates an epoch releases it before its wait is over. No step of an agent does that; its rules bear with it."""
    end = world.loop.time() + fault.seconds

    def look() -> None:
        for machine in world.machines:
            group = machine.group
            for job in group.jobs.values() if group is not None else ():
                facts = job.facts.now
                if job.owns and job.app.epoch > max(1, facts.waited, facts.released):
                    machine.run(f"gives {job.app.name} up in its wait", job.handover.release)
                    return
        if world.loop.time() < end:
            world.later(1.0, look)

    look()


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
    "moves to where it gets sick": _sick_elsewhere,
    "moves to where it does not start": _broken_elsewhere,
    "killed after its put": _after_its_put,
    "killed at its release": _at_its_release,
    "gives up in its wait": _in_its_wait,
}
