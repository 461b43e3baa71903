"""What people do at the worst time: moves, drains, restores, devices and members that come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fractal.agent.group import GroupAgent
from fractal.agent.membership import approve, invite, remove_device, request_join
from fractal.core.entries import AppChanged, AppMoved, AppRestoreWished, DeviceUpdated, GroupChanged
from fractal.core.lease import PROFILES
from fractal.core.model import DeviceRole
from fractal.sim import network_faults

POLICIES: Sequence[tuple[str, str]] = (("automatic", "freeze"), ("manual", "keep"), ("manual", "freeze"))
"""Failover, and what the app does when its device is cut off."""

if TYPE_CHECKING:
    from fractal.sim.faults import Fault
    from fractal.sim.machine import Machine
    from fractal.sim.world import World


def _move(world: World, machine: Machine, fault: Fault) -> None:
    app = world.apps[int(fault.value * len(world.apps))]
    move(machine, app, world.machines[int(fault.value * 997) % len(world.machines)])


def move(machine: Machine, app: str, target: Machine) -> None:
    """Somebody at a device wishes an app to another one."""

    def wish(group: GroupAgent) -> AppMoved | None:
        known = group.state.apps.get(app)
        return None if known is None or known.owner == target.id else AppMoved(app=app, to=target.id)

    machine.act(f"move {app[:4]} to {target.name}", wish)


def _drain(world: World, machine: Machine, fault: Fault) -> None:
    machine.act("drain", lambda _: DeviceUpdated(device=machine.id, draining=True))
    world.later(
        fault.seconds, machine.act, "drain over", lambda _: DeviceUpdated(device=machine.id, draining=False)
    )


def _policy(world: World, machine: Machine, fault: Fault) -> None:
    app = world.apps[int(fault.value * 997) % len(world.apps)]
    failover, on_isolation = POLICIES[int(fault.value * len(POLICIES))]

    def wish(group: GroupAgent) -> AppChanged:
        policy = replace(group.app(app).policy, failover=failover, on_isolation=on_isolation)
        return AppChanged(app=app, policy=policy)

    machine.act(f"policy of {app[:4]}: {failover}, {on_isolation}", wish)


def when_taken(world: World, seconds: float, action: Callable[[str, int], None]) -> None:
    """Once, within so many seconds, when somebody creates an epoch: then with the app and that epoch."""
    end, known = world.loop.time() + seconds, set(world.truth.owners)

    def look() -> None:
        if new := sorted(world.truth.owners.keys() - known):
            action(*new[0])
        elif world.loop.time() < end:
            world.later(0.1, look)

    look()


def _policy_at_a_take(world: World, machine: Machine, fault: Fault) -> None:
    """The policy changes as somebody creates the app's next epoch. Its owner reads that, and a second later nothing more."""

    def taken(app: str, epoch: int) -> None:
        before = world.truth.owners.get((app, epoch - 1), "")
        owner = next((m for m in world.machines if m.name == before), machine)
        _policy(world, machine, fault)
        world.later(1.0, network_faults.KINDS["cut off"], world, owner, fault)

    when_taken(world, fault.seconds, taken)


def _unfit(world: World, machine: Machine, _: Fault) -> None:
    """Somebody at another device says that this one runs no apps any more."""
    other = next((m for m in world.trusted() if m is not machine), machine)
    roles = frozenset({DeviceRole.STORE})
    other.act(f"{machine.name} is no host", lambda _: DeviceUpdated(device=machine.id, roles=roles))


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


KINDS: Mapping[str, Callable[[World, Machine, Fault], None]] = {
    "restore": _restore,
    "device joins": _joins(member=False),
    "member joins": _joins(member=True),
    "device removed": _removed,
    "device leaves": _leaves,
    "move": _move,
    "drain": _drain,
    "timers change": _timers,
    "policy changes": _policy,
    "policy changes at a take": _policy_at_a_take,
    "host no more": _unfit,
}
