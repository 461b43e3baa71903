"""`device`: who is there, who wants in, names and draining. Leaving is in `leaving`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import check_new_name, find_device, find_group
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.ports import ControlAgent, ControlGroup
from fractal.agent.control.progress import Progress
from fractal.agent.control.waiting import wait_until
from fractal.core.entries import DeviceUpdated
from fractal.core.model import GroupState


@command("device.list")
async def list_devices(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """The devices as in `status`, and the join requests."""
    group = find_group(agent, params)
    return {"devices": list(group.status()["devices"]), "pending": pending_requests(group.journal.state)}


def pending_requests(state: GroupState) -> list[dict[str, Any]]:
    """Join requests whose invitation is still open, by name."""
    found = []
    for device, request in state.requests.items():
        invitation = state.invitations.get(request.invitation)
        if invitation is None or invitation.used:
            continue
        new = not invitation.member
        member = state.members.get(invitation.member)
        found.append(
            {
                "id": device,
                "name": request.name,
                "member": request.member_name if new else member.name if member else invitation.member,
                "new_member": new,
                "invited_by": state.device_name(invitation.by),
            }
        )
    return sorted(found, key=lambda r: str(r["name"]).casefold())


@command("device.rename")
async def rename_device(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """A new name, unlike all others in the group."""
    group = find_group(agent, params)
    state = group.journal.state
    device = find_device(state, params.text("device"))
    others = [d.name for d in state.devices.values() if d.id != device.id and not d.removed]
    name = check_new_name("device", params.text("name"), others)
    result = {"device": device.id, "name": name}
    if name == device.name:
        return plan(result=result)
    entry = DeviceUpdated(device=device.id, name=name)
    return plan(
        Action(
            f"Rename {device.name} to {name}", {"device": device.id}, lambda _: group.journal.append(entry)
        ),
        result=result,
    )


@command("device.drain")
async def drain_device(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Mark the device as draining, or not; its owner's agents move the apps. Waits if told to."""
    group = find_group(agent, params)
    device = find_device(group.journal.state, params.text("device"))
    draining, seconds = not params.flag("off"), params.number("wait_s")
    actions = []
    if device.draining is not draining:
        what = f"Let {device.name} take no more apps" if draining else f"Let {device.name} take apps again"
        entry = DeviceUpdated(device=device.id, draining=draining)
        actions.append(Action(what, {"device": device.id}, lambda _: group.journal.append(entry)))
    names = [app["name"] for app in _owned(group, device.id)]
    actions += [Action(f"Move {name} to another device", {"app": name}) for name in names if draining]

    async def wait(progress: Progress) -> None:
        await wait_until(
            group,
            seconds,
            lambda: not _owned(group, device.id),
            progress,
            lambda: f"still there: {', '.join(app['name'] for app in _owned(group, device.id))}",
        )

    if draining and seconds > 0:
        actions.append(Action(f"Wait up to {seconds:g} s until it owns no app", {}, wait))
    return plan(
        *actions,
        result=lambda: {
            "device": device.id,
            "draining": draining,
            "done": not draining or not _owned(group, device.id),
            "apps": _owned(group, device.id),
        },
    )


def _owned(group: ControlGroup, device: str) -> list[Mapping[str, Any]]:
    """The apps that a device owns and has not given up, as in `status`."""
    state = group.journal.state
    owned = {a.id for a in state.apps.values() if a.owner == device and a.release is None and not a.removed}
    return [app for app in group.status()["apps"] if app["id"] in owned]
