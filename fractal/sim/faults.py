"""What goes wrong, drawn from the seed before anything runs: so that a failure can be tried again with fewer faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from fractal.agent.group import GroupAgent
from fractal.agent.membership import approve, invite, remove_device, request_join
from fractal.core.entries import AppMoved, AppRestoreWished, DeviceUpdated, GroupChanged
from fractal.core.lease import PROFILES
from fractal.core.model import DeviceRole
from fractal.sim.log_server import Lie
from fractal.sim.weather import APPENDS, LOG, SIGNALS, STORE

if TYPE_CHECKING:
    from fractal.sim.machine import Machine
    from fractal.sim.scene import Scene
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
    ("machine sleeps", 5, 2, 90),
    ("cut off", 5, 5, 90),
    ("cut off but hears", 3, 10, 90),
    ("unheard, then cut off", 7, 15, 60),
    ("cut off from the log", 4, 5, 60),
    ("cut off from the store", 4, 5, 60),
    ("cut off after an append", 3, 10, 60),
    ("reads the log, nothing else", 3, 20, 60),
    ("router reboots", 2, 60, 120),
    ("log down", 2, 3, 60),
    ("log slow", 2, 10, 60),
    ("log limits", 3, 20, 90),
    ("store down", 2, 3, 60),
    ("slow store", 2, 10, 60),
    ("store hides", 2, 10, 60),
    ("loss", 3, 10, 60),
    ("duplicates", 2, 10, 90),
    ("slow network", 3, 10, 60),
    ("success looks like failure", 4, 10, 90),
    ("store executes late", 3, 10, 90),
    ("disk full", 3, 10, 60),
    ("disk slow", 3, 10, 60),
    ("wall clock steps", 1, 1, 1),
    ("move", 5, 1, 1),
    ("drain", 2, 30, 120),
    ("app gets sick", 1, 60, 200),
    ("app does not start", 2, 30, 200),
    ("timers change", 1, 1, 1),
    ("orderly end", 2, 30, 90),
    ("guard killed", 2, 1, 1),
    ("muted", 2, 20, 90),
    ("restore", 2, 1, 1),
    ("device joins", 2, 40, 90),
    ("member joins", 1, 40, 90),
    ("device removed", 2, 1, 1),
    ("device leaves", 1, 1, 1),
)
GENTLE: Sequence[tuple[str, int, float, float]] = (
    ("muted", 5, 10, 120),
    ("wall clock steps", 2, 1, 1),
    ("agent killed", 3, 0.5, 4),
    ("store down", 3, 5, 60),
    ("cut off from the store", 2, 5, 60),
    ("log down", 3, 3, 60),
    ("log limits", 3, 20, 90),
    ("disk slow", 3, 10, 60),
    ("duplicates", 1, 10, 90),
    ("success looks like failure", 1, 10, 60),
)
"""None of these is a reason to move an app."""
HOSTILE: Sequence[tuple[str, int, float, float]] = (
    ("log withholds", 12, 30, 120),
    ("log forks", 3, 1, 1),
    ("log reorders", 3, 1, 1),
)
"""What a lying log server adds to the rest."""
DEATHS: Sequence[tuple[str, int, float, float]] = (
    ("owner dies", 4, 110, 140),
    ("owner dies, then its taker", 2, 150, 170),
)
MOMENTS = ("", "note", "put", "/epoch/", "/base", "/record/", "disk", "runtime", "guard", "log", "store")
WALL_STEP = 7_200_000


def draw(random: Random, scene: Scene) -> list[Fault]:
    """Faults until the scene's end of faults: one every 4 to 25 s, deaths as far apart as one takes to be over."""
    kinds = {"gentle": GENTLE, "hostile": (*HARD, *HOSTILE), "deaths": DEATHS, "idle": ()}.get(
        scene.kind, HARD
    )
    faults: list[Fault] = []
    at = random.uniform(25.0, 40.0)
    while kinds and at < scene.faults_for:
        kind, _, low, high = random.choices(kinds, [k[1] for k in kinds])[0]
        size = random.choice((1, 1, 1, 2)) if kind.startswith("cut off") and not scene.gentle else 1
        chosen = tuple(sorted(random.sample(range(scene.size), min(size, scene.size))))
        length = low + (high - low) * random.random() ** 2
        faults.append(
            Fault(number=len(faults), at=at, kind=kind, devices=chosen, seconds=length, value=random.random())
        )
        at += length + random.uniform(60.0, 80.0) if scene.kind == "deaths" else random.uniform(4.0, 25.0)
    return faults


def apply(world: World, fault: Fault) -> None:
    """Let it happen now, and end after its time."""
    world.say(None, str(fault))
    world.counts["faults"] += 1
    world.counts[f"fault: {fault.kind}"] += 1
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


# --- network ---------------------------------------------------------------------------------------------------------


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


def _restore(world: World, machine: Machine, fault: Fault) -> None:
    app = world.apps[int(fault.value * len(world.apps))]
    points = sorted(p for a, p in world.truth.committed if a == app)
    if points:
        point = points[int(fault.value * 997) % len(points)]
        wish = f"{world.random.getrandbits(64):016x}"
        machine.act(
            f"restore {app[:4]} to {point.epoch}.{point.number}",
            lambda _: AppRestoreWished(app=app, id=wish, point=point),
        )


def _joins(*, member: bool) -> Callable[[World, Machine, Fault], None]:
    def begin(world: World, _: Machine, fault: Fault) -> None:
        if len(world.machines) >= world.scene.size + 2:
            return
        sponsor = next(iter(world.trusted()), None)
        agent, group = (sponsor.agent, sponsor.group) if sponsor else (None, None)
        if sponsor is None or agent is None or group is None:
            return
        newcomer = world.newcomer()

        async def invited() -> None:
            code = await invite(agent, group.journal, new_member=member)
            newcomer.run("asks to be let in", lambda: _ask(newcomer, code, "bob" if member else ""))

        sponsor.run("invites", invited)
        for n in range(int(fault.seconds // 6)):
            world.later(6.0 * (n + 1), _approve, world, newcomer)

    return begin


async def _ask(newcomer: Machine, code: str, member: str) -> None:
    agent = newcomer.agent
    if agent is not None:
        await request_join(agent, code, device_name=newcomer.name, member_name=member)


def _approve(world: World, newcomer: Machine) -> None:
    for machine in world.trusted():
        agent, group = machine.agent, machine.group
        if agent is not None and group is not None and newcomer.id in group.state.requests:
            journal, host = group.journal, frozenset({DeviceRole.HOST})
            machine.run(f"lets {newcomer.name} in", partial(approve, agent, journal, newcomer.id, roles=host))
            return


def _removed(world: World, machine: Machine, _: Fault) -> None:
    """Somebody else puts the device out, and everybody gets new keys; two founders always stay."""
    other = next((m for m in world.trusted() if m is not machine), None)
    agent, group = (other.agent, other.group) if other else (None, None)
    if other is None or agent is None or group is None or not _can_go(world, machine):
        return
    machine.removed = True
    other.run(f"puts {machine.name} out", lambda: remove_device(agent, group.journal, machine.id))


def _leaves(world: World, machine: Machine, _: Fault) -> None:
    agent, group = machine.agent, machine.group
    if agent is None or group is None or not _can_go(world, machine):
        return
    machine.removed = True
    machine.run("leaves", lambda: remove_device(agent, group.journal, machine.id))


def _can_go(world: World, machine: Machine) -> bool:
    staying = [
        m for n, m in enumerate(world.machines) if m.founder and not m.removed and n != world.scene.mortal
    ]
    return (
        not machine.removed
        and machine.group is not None
        and len([m for m in staying if m is not machine]) >= 2
    )


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
    "disk full": _no_room,
    "disk slow": _slow_disk,
    "cut off after an append": _snared,
    "reads the log, nothing else": _reads_only,
    "router reboots": _cut(LOG, STORE, SIGNALS),
    "machine sleeps": _sleeps,
    "owner dies": _owner_dies,
    "owner dies, then its taker": _double_failure,
    "app does not start": _does_not_start,
    "restore": _restore,
    "device joins": _joins(member=False),
    "member joins": _joins(member=True),
    "device removed": _removed,
    "device leaves": _leaves,
    "wall clock steps": _wall,
    "move": _move,
    "drain": _drain,
    "app gets sick": _sick,
    "timers change": _timers,
    "orderly end": _goodbye,
    "guard killed": _guard_killed,
    "muted": _muted,
}
