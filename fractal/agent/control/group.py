"""`group` and `device approve`: making groups, letting devices in. Going out is in `leaving`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fractal.agent import membership
from fractal.agent.control.dispatch import command
from fractal.agent.control.member import member_list, parse_role
from fractal.agent.control.names import check_new_name, find_group, find_request
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress
from fractal.agent.jobs.coming_going import take_part
from fractal.api.errors import Conflict, InvalidInput, NotFound, Unreachable
from fractal.core.entries import DeviceUpdated
from fractal.core.lease import PROFILES
from fractal.core.model import GroupState, Role, Timers
from fractal.crypto.join import parse_code

JOIN_WAIT = 600.0
TELL_EVERY = 5.0
"""Seconds between two progress lines of a long wait."""
MIN_VALID, MAX_VALID = 60.0, 30 * 86400.0
"""Bounds of how long a code may be valid, in seconds."""

T = TypeVar("T")


@command("group.create")
async def create_group(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """A new log with this device as its first entry."""
    taken = [group.journal.state.name for group in agent.groups.values()]
    name = check_new_name("group", params.text("name"), taken)
    member = check_new_name("member", params.text("member") or "owner", ())
    timers = _profile(params.text("timers", "standard"))
    made: list[str] = []

    async def create(_: Progress) -> None:
        made.append(
            await membership.create_group(
                agent,
                name=name,
                device_name=agent.config.device.name,
                member_name=member,
                roles=agent.config.device.roles,
                timers=timers,
            )
        )

    async def take_part(_: Progress) -> None:
        group = await agent.open_group(made[0])
        await group.journal.poll(0.0)

    return plan(
        Action(f"Create group {name}", {"member": member, "device": agent.config.device.name}, create),
        Action("Take part in it", {}, take_part),
        result=lambda: {"group": made[0], "name": name},
    )


@command("group.list")
async def list_groups(agent: ControlAgent, _params: Params, _: Progress) -> dict[str, Any]:
    """Names and counts."""
    states = sorted((g.journal.state for g in agent.groups.values()), key=lambda s: s.name.casefold())
    return {
        "groups": [
            {
                "id": state.id,
                "name": state.name,
                "members": sum(not m.removed for m in state.members.values()),
                "devices": sum(not d.removed for d in state.devices.values()),
                "apps": sum(not a.removed for a in state.apps.values()),
            }
            for state in states
        ]
    }


@command("group.show")
async def show_group(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """Everything of a group but its apps."""
    group = find_group(agent, params)
    state, status = group.journal.state, group.status()
    timers = state.timers
    return {
        "group": status["group"],
        "timers": {
            "profile": timers.profile,
            "beat_s": timers.beat / 1000,
            "patience_s": timers.patience / 1000,
            "answer_window_s": timers.answer_window / 1000,
            "proof_s": timers.proof / 1000,
            "margin_s": timers.margin / 1000,
        },
        "members": member_list(state),
        "devices": list(status["devices"]),
        "invitations": _open_invitations(state, agent.clock.wall_ms()),
        "stores": sorted(s.name for s in state.stores.values() if not s.removed),
        "key_generation": state.generation,
    }


@command("group.invite")
async def invite(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """A code for one device, once."""
    group = find_group(agent, params)
    new_member = params.flag("new_member")
    if "role" in params and not new_member:
        raise InvalidInput("a role is for new members: say --new-member too")
    role = parse_role(params.text("role", Role.MEMBER.value))
    valid = params.number("valid_s", membership.INVITATION_MS / 1000)
    if not MIN_VALID <= valid <= MAX_VALID:
        raise InvalidInput(f"a code is valid for {MIN_VALID:g} to {MAX_VALID:g} seconds")
    made: list[str] = []

    async def make(_: Progress) -> None:
        made.append(
            await membership.invite(
                agent,
                group.journal,
                new_member=new_member,
                role=role,
                valid_ms=round(valid * 1000),
                backend_member=params.text("contact"),
            )
        )

    def result() -> dict[str, object]:
        invitation = group.journal.state.invitations[parse_code(made[0]).invitation]
        return {"code": made[0], "invitation": invitation.id, "expires_ms": invitation.expires_ms}

    whom = f"a new member ({role.value})" if new_member else "one more device of yours"
    return plan(Action(f"Invite {whom}", {"valid": f"{valid:g} s"}, make), result=result)


@command("group.join")
async def join(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Ask, wait for the welcome, take part. Running out of time is no error: the request stands."""
    code = parse_code(params.text("code"))
    if code.group in agent.groups:
        raise Conflict(f"this device is in {agent.groups[code.group].journal.state.name} already")
    member = check_new_name("member", params.text("member"), ()) if code.new_member else ""
    seconds = params.number("wait_s", JOIN_WAIT)
    joined: list[str] = []

    async def ask(_: Progress) -> None:
        await membership.request_join(
            agent, params.text("code"), device_name=agent.config.device.name, member_name=member
        )

    async def wait(progress: Progress) -> None:
        progress.say(
            f"Waiting for approval. On a device of the group: homeserver device approve {agent.keys.id}"
        )
        welcome = membership.await_welcome(agent, code.group, timeout=seconds, open_store=agent.open_store)
        agent.awaiting.add(code.group)
        try:
            await _ticking(agent, progress, seconds, welcome)
            await take_part(agent, code.group)
        except Unreachable:
            return  # the agent goes on waiting by itself
        except NotFound:
            # The agent's own look was quicker than this command's.
            if code.group not in agent.groups:
                raise
        finally:
            agent.awaiting.discard(code.group)
        joined.append(code.group)

    def result() -> dict[str, object]:
        name = agent.groups[code.group].journal.state.name if joined else ""
        state = "joined" if joined else "waiting"
        return {"state": state, "group": code.group, "name": name, "device": agent.keys.id}

    return plan(
        Action("Ask to join the group", {"group": code.group, "device": agent.config.device.name}, ask),
        Action(f"Wait up to {seconds:g} s for approval", {"device": agent.keys.id}, wait),
        result=result,
    )


@command("device.approve")
async def approve(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Certify, hand over the keys, and rename if wanted."""
    group = find_group(agent, params)
    state = group.journal.state
    device, request = find_request(state, params.text("device"))
    taken = [d.name for d in state.devices.values() if not d.removed]
    name = check_new_name("device", params.text("name") or request.name, taken)
    invitation = state.invitations.get(request.invitation)
    host = state.members.get(invitation.member) if invitation is not None and invitation.member else None
    actions = [
        Action(
            f"Let {request.name} in",
            {"device": device, "member": host.name if host is not None else f"{request.member_name} (new)"},
            lambda _: membership.approve(agent, group.journal, device),
        )
    ]
    if name != request.name:
        entry = DeviceUpdated(device=device, name=name)
        actions.append(Action(f"Rename it to {name}", {}, lambda _: group.journal.append(entry)))
    return plan(*actions, result={"device": device, "name": name})


async def _ticking(
    agent: ControlAgent, progress: Progress, seconds: float, work: Coroutine[Any, Any, T]
) -> T:
    """The outcome of `work`, telling every few seconds that it goes on."""
    begun = agent.clock.boottime()
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=TELL_EVERY))[0]:
            progress.step(round(agent.clock.boottime() - begun), round(seconds), "s")
        return task.result()
    finally:
        task.cancel()


def _profile(word: str) -> Timers:
    try:
        return PROFILES[word]
    except KeyError as error:
        raise InvalidInput(f"{word[:40]!r} is no failover profile: choose {', '.join(PROFILES)}") from error


def _open_invitations(state: GroupState, now_ms: int) -> list[dict[str, Any]]:
    found = [i for i in state.invitations.values() if not i.used and i.expires_ms > now_ms]
    return [
        {
            "id": invitation.id,
            "member": state.members[invitation.member].name if invitation.member in state.members else "",
            "role": invitation.role.value,
            "by": state.device_name(invitation.by),
            "expires_ms": invitation.expires_ms,
        }
        for invitation in sorted(found, key=lambda i: (i.expires_ms, i.id))
    ]
