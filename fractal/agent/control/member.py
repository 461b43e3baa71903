"""`member`."""

from __future__ import annotations

from typing import Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import find_group, find_member
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress
from fractal.api.errors import InvalidInput
from fractal.core.entries import RoleChanged
from fractal.core.model import GroupState, Role


def member_list(state: GroupState) -> list[dict[str, Any]]:
    """The members as documented, by name."""
    found = [
        {
            "id": member.id,
            "name": member.name,
            "role": member.role.value,
            "devices": sorted(
                d.name for d in state.devices.values() if d.member == member.id and not d.removed
            ),
        }
        for member in state.members.values()
        if not member.removed
    ]
    return sorted(found, key=lambda m: str(m["name"]).casefold())


def parse_role(text: str) -> Role:
    """A role by its word. Raises InvalidInput."""
    try:
        return Role(text)
    except ValueError as error:
        raise InvalidInput(
            f"{text[:40]!r} is no role: choose {', '.join(role.value for role in Role)}"
        ) from error


@command("member.list")
async def list_members(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """All members."""
    return {"members": member_list(find_group(agent, params).journal.state)}


@command("member.role")
async def change_role(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """The fold decides whether the author may."""
    group = find_group(agent, params)
    member = find_member(group.journal.state, params.text("member"))
    role = parse_role(params.text("role"))
    result = {"member": member.id, "role": role.value}
    if member.role is role:
        return plan(result=result)
    entry = RoleChanged(member=member.id, role=role)
    return plan(
        Action(
            f"Make {member.name} {role.value} (now {member.role.value})",
            {"member": member.id},
            lambda _: group.journal.append(entry),
        ),
        result=result,
    )
