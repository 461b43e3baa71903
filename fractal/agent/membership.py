"""Creating groups and letting devices in: what the control API's handlers call.

Each function is repeatable after a crash at any point: what it must remember is noted before it acts, and what it may
have done already it finds in the log. The newcomer's side is `agent.joining`, putting out is `agent.removal`; both
are offered here too.
"""

from __future__ import annotations

from dataclasses import dataclass

from fractal.agent.here import GroupLog, Here, address_of, forget_group, group_addresses, member_keys, send
from fractal.agent.joining import await_welcome, pending_joins, request_join, withdraw_join
from fractal.agent.journal import Stale, key_notes
from fractal.agent.removal import leave_group, remove_device, remove_member
from fractal.api.errors import Denied, NotFound
from fractal.core.entries import Approved, GroupCreated, Invited, NewDevice, NewMember
from fractal.core.log import fold
from fractal.core.model import DeviceRole, GroupState, Invitation, JoinRequest, Role, Timers
from fractal.crypto.join import make_code, new_code, welcome
from fractal.crypto.keys import MemberKeys, device_statement, member_id, member_statement, seal_to
from fractal.crypto.seal import GroupOpener, key_check, seal_genesis

INVITATION_MS = 24 * 3600 * 1000
"""How long an invitation is good unless said otherwise."""

__all__ = [
    "INVITATION_MS",
    "Asking",
    "GroupLog",
    "Here",
    "approve",
    "await_welcome",
    "create_group",
    "forget_group",
    "group_addresses",
    "invite",
    "leave_group",
    "member_keys",
    "pending_joins",
    "remove_device",
    "remove_member",
    "request_join",
    "requests",
    "send_welcomes",
    "withdraw_join",
]


# --- creating --------------------------------------------------------------------------------------------------------


async def create_group(
    here: Here,
    *,
    name: str,
    device_name: str,
    member_name: str,
    roles: frozenset[DeviceRole] = frozenset(),
    timers: Timers | None = None,
) -> str:
    """Make a group with this device as its first; its id. The caller opens it then.

    A crash before the end leaves at most an empty log that nobody knows of. Raises BackendError, InvalidInput, Denied.
    """
    member = member_keys(here.notes) or MemberKeys.generate(here.entropy)
    group_key = here.entropy.bytes(32)
    keys = here.keys
    created = GroupCreated(
        name=name,
        founder=_new_member(member_name, member.public, Role.OWNER, member),
        device=_new_device(device_name, member, keys.sign_public, keys.box_public, roles),
        timers=timers or Timers(),
        sealed_keys={keys.id: seal_to(keys.box_public, group_key, here.entropy)},
        key_check=key_check(group_key),
    )
    group, raw = seal_genesis(created, keys=keys, group_key=group_key, entropy=here.entropy)
    # Folded before it is sent, so that a bad name is refused here and not by every reader for ever.
    state = fold(GroupState(), raw, GroupOpener(keys, {1: group_key}))
    if state.id != group:
        raise Denied(f"group {name!r} cannot be made: {state.skips[-1][1]}")
    # The log gets no name: what a group is called is not for its server.
    address = await here.coordinator.create(group, "homeserver log")
    await send(here, address, raw)
    here.notes.write(
        {
            f"groups/{group}": address.encode("utf-8"),
            "member/keys": member.to_bytes(),
            **key_notes(group, {1: group_key}),
        }
    )
    return group


def _new_member(name: str, key: bytes, role: Role, by: MemberKeys) -> NewMember:
    certificate = by.sign(member_statement(key, role.value))
    return NewMember(name=name, key=key, role=role, by=by.id, certificate=certificate)


def _new_device(
    name: str, member: MemberKeys, sign_key: bytes, box_key: bytes, roles: frozenset[DeviceRole]
) -> NewDevice:
    certificate = member.sign(device_statement(member.id, sign_key, box_key))
    return NewDevice(
        name=name, member=member.id, sign_key=sign_key, box_key=box_key, certificate=certificate, roles=roles
    )


# --- inviting --------------------------------------------------------------------------------------------


async def invite(
    here: Here,
    log: GroupLog,
    *,
    new_member: bool,
    role: Role = Role.MEMBER,
    valid_ms: int = INVITATION_MS,
    backend_member: str = "",
) -> str:
    """Open an invitation and return the code to hand over: for a new member, or for one more device of our own member.

    `backend_member` is the person's id at the coordination backend, where that needs to know. The code admits one device,
    once, after somebody approved it. Raises Denied, BackendError, NotFound.
    """
    state = log.state
    address = address_of(here, state.id)
    mine = state.devices[here.keys.id].member
    admission = await here.coordinator.invite(address, backend_member)
    code = new_code(state.id, admission, here.entropy, new_member=new_member)
    text = make_code(code)
    await log.append(
        Invited(
            id=code.invitation,
            verify_key=code.signer.public,
            role=role,
            expires_ms=here.clock.wall_ms() + valid_ms,
            member="" if new_member else mine,
            lobby_key=code.lobby_key,
        )
    )
    return text


# --- approving -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asking:
    """A pending join request, for people to look at."""

    device: str
    request: JoinRequest
    invitation: Invitation
    expired: bool


def requests(here: Here, log: GroupLog) -> list[Asking]:
    """Who asks to be let in."""
    state = log.state
    now = here.clock.wall_ms()
    found = []
    for device, request in state.requests.items():
        invitation = state.invitations[request.invitation]
        found.append(Asking(device, request, invitation, expired=now > invitation.expires_ms))
    return sorted(found, key=lambda asking: (asking.request.name, asking.device))


async def approve(
    here: Here, log: GroupLog, device: str, *, roles: frozenset[DeviceRole] = frozenset()
) -> None:
    """Let a device in that asked, and welcome it. Raises NotFound, Denied, BackendError."""
    asking = next((asking for asking in requests(here, log) if asking.device == device), None)
    if asking is None:
        raise NotFound(f"no device {device} asks to join group {log.state.name!r}")
    if asking.expired:
        raise Denied("the invitation has expired: make a new one")
    entry = _approval(here, log, asking, roles)
    # Noted first: if this agent dies after the approval, it sends the welcome at its next start.
    note = f"welcome/{log.state.id}/{device}"
    here.notes.write({note: asking.invitation.id.encode("ascii")})
    try:
        await log.append(entry, wanted=lambda state: device in state.requests)
    except (Denied, Stale):
        here.notes.write({note: None})
        raise
    await send_welcomes(here, log)


def _approval(here: Here, log: GroupLog, asking: Asking, roles: frozenset[DeviceRole]) -> Approved:
    state, request, invitation = log.state, asking.request, asking.invitation
    mine = member_keys(here.notes, state.id)
    if mine is None or mine.id != state.devices[here.keys.id].member:
        raise Denied("this device does not hold its member's key: approve on another one")
    if request.member_key:
        new_member = _new_member(request.member_name, request.member_key, invitation.role, mine)
        device = NewDevice(
            name=request.name,
            member=member_id(request.member_key),
            sign_key=request.sign_key,
            box_key=request.box_key,
            certificate=request.certificate,
            roles=roles,
        )
    else:
        if invitation.member != mine.id:
            raise Denied("the device is for another member: approve on a device of that member")
        new_member = None
        device = _new_device(request.name, mine, request.sign_key, request.box_key, roles)
    return Approved(
        device=device,
        invitation=invitation.id,
        member=new_member,
        sealed_keys={
            str(generation): seal_to(request.box_key, key, here.entropy)
            for generation, key in _group_keys(log).items()
        },
    )


def _group_keys(log: GroupLog) -> dict[int, bytes]:
    return dict(log.group_key(generation) for generation in range(1, log.state.generation + 1))


async def send_welcomes(here: Here, log: GroupLog) -> None:
    """Send the welcomes that this device still owes; for the agent to call at start. Raises BackendError."""
    state = log.state
    prefix = f"welcome/{state.id}/"
    for key, value in here.notes.scan(prefix):
        device = state.devices.get(key.removeprefix(prefix))
        invitation = state.invitations.get(value.decode("ascii"))
        if device is not None and not device.removed and invitation is not None and invitation.used:
            request = JoinRequest(
                invitation=invitation.id, name=device.name, sign_key=device.sign_key, box_key=device.box_key
            )
            raw = welcome(
                invitation,
                request,
                here.keys,
                state.id,
                _group_keys(log),
                here.entropy,
                member=member_keys(here.notes, state.id) if invitation.member else None,
            )
            await send(here, address_of(here, state.id), raw)
        elif key.removeprefix(prefix) in state.requests:
            continue  # the approval may still be on its way
        here.notes.write({key: None})
