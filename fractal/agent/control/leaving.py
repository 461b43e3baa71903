"""`device remove`, `member remove` and `group leave`: going out, with new keys for who remains."""

from __future__ import annotations

from fractal.agent import membership
from fractal.agent.control.dispatch import command
from fractal.agent.control.names import find_device, find_group, find_member
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress
from fractal.agent.here import address_of, forget_group
from fractal.api.errors import BackendError, Conflict, Denied
from fractal.core.model import App, GroupState


@command("device.remove")
async def remove_device(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Another device; this one leaves by `group leave`."""
    group = find_group(agent, params)
    state = group.journal.state
    device = find_device(state, params.text("device"))
    if device.id == agent.keys.id:
        raise Conflict("that is this device: homeserver group leave takes it out")
    actions = [
        Action(
            f"Remove {device.name} and renew the keys that it knew",
            {"device": device.id},
            lambda _: membership.remove_device(agent, group.journal, device.id),
        ),
        *_taken_over(state, frozenset({device.id})),
    ]
    return plan(
        *actions,
        result=lambda: {"device": device.id, "key_generation": group.journal.state.generation},
    )


@command("member.remove")
async def remove_member(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Another member, or oneself with all devices but the one that is asked."""
    group = find_group(agent, params)
    state = group.journal.state
    member = find_member(state, params.text("member"))
    if state.devices[agent.keys.id].member == member.id:
        raise Conflict("that is your own member: leave with each of your devices by homeserver group leave")
    devices = frozenset(d.id for d in state.devices.values() if d.member == member.id and not d.removed)
    actions = [
        Action(
            f"Remove {member.name} with {len(devices)} device(s) and renew the keys that these knew",
            {"member": member.id},
            lambda _: membership.remove_member(agent, group.journal, member.id),
        ),
        *_taken_over(state, devices),
    ]
    return plan(
        *actions,
        result=lambda: {"member": member.id, "key_generation": group.journal.state.generation},
    )


@command("group.leave")
async def leave_group(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """This device leaves; with `force` also without the others knowing."""
    group = find_group(agent, params)
    state, journal = group.journal.state, group.journal
    force = params.flag("force")
    owned = [app.name for app in _owned(state, frozenset({agent.keys.id}))]
    if owned and not force:
        raise Conflict(
            f"this device owns {', '.join(owned)}: move them away first (homeserver device drain), or say --force"
        )
    if (unstored := group.unstored()) and not force:
        raise Conflict(
            f"no store has the last changes of {', '.join(unstored)} yet, which are on this device: wait, or say --force"
        )

    last = all(d.removed or d.id == agent.keys.id for d in state.devices.values())
    if last and not force:
        raise Denied(
            f"this is the last device of {state.name}: the group ends here, and nobody can open the archives of its apps "
            f"any more; if that is meant, say --force"
        )

    async def close(_: Progress) -> None:
        await agent.close_group(state.id)

    async def leave(progress: Progress) -> None:
        try:
            await membership.leave_group(agent, journal)
        except (BackendError, Denied) as error:
            if not force:
                # Still a member: go on as before.
                await agent.open_group(state.id)
                hint = "; --force forgets the group here without the others knowing"
                raise (Denied if isinstance(error, Denied) else BackendError)(f"{error}{hint}") from error
            progress.say(f"The group does not know yet that this device is gone: {error}")
            await _forget(agent, state.id)
        await group.erase()

    actions = [
        Action("Stop taking part in the group", {}, close),
        Action(
            f"Forget {state.name} on its last device: the group ends here"
            if last
            else f"Take this device out of {state.name} and forget it here",
            {"group": state.id},
            leave,
        ),
    ]
    return plan(*actions, result={"group": state.id})


async def _forget(agent: ControlAgent, group: str) -> None:
    """Leave without the group's consent."""
    try:
        await agent.coordinator.leave(address_of(agent, group))
    finally:
        forget_group(agent.notes, group)


def _taken_over(state: GroupState, devices: frozenset[str]) -> list[Action]:
    """What becomes of the apps that these devices own."""
    actions = []
    for app in _owned(state, devices):
        device = state.device_name(app.owner)
        beside = f", even if it still runs on {device}, which needs no proof for that: switch {device} off"
        actions.append(
            Action(f"Another device takes {app.name} over{beside if app.unproven else ''}", {"app": app.name})
        )
    return actions


def _owned(state: GroupState, devices: frozenset[str]) -> list[App]:
    """Apps that these devices own and have not given up, by name."""
    owned = (a for a in state.apps.values() if a.owner in devices and a.release is None and not a.removed)
    return sorted(owned, key=lambda a: a.name)
