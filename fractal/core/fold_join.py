"""What a join request does to the group's state. Pure; the opener has unsealed the request and checked its signatures."""

from __future__ import annotations

from dataclasses import replace

from fractal.api.errors import Denied
from fractal.core.fold_rules import require_name
from fractal.core.model import GroupState, JoinRequest

MAX_PENDING = 32
MAX_PER_CODE = 4
"""Requests kept at a time: whoever knows a code can make up any number of devices, and must not crowd others out."""


def fold_request(state: GroupState, device: str, request: JoinRequest) -> GroupState:
    """The state with the request pending. Raises Denied with the reason to skip it.

    A device that asks again replaces its earlier request; nobody else can, as the request is signed by the device's key.
    Whether the invitation has expired is for the approver to judge: the fold has no clock.
    """
    invitation = state.invitations.get(request.invitation)
    if invitation is None or invitation.used:
        raise Denied("join request without an open invitation")
    if device in state.devices:
        raise Denied(f"join request of device {device}, which the group knows already")
    if invitation.member:
        member = state.members.get(invitation.member)
        if member is None or member.removed:
            raise Denied("join request for a member who is not in the group")
        if request.member_key:
            raise Denied("join request of a new member under an invitation for a present one")
    elif not request.member_key:
        raise Denied("join request without the new member's key")
    require_name(request.name, "device name")
    if request.member_key:
        require_name(request.member_name, "member name")
    if device not in state.requests:
        others = sum(r.invitation == request.invitation for r in state.requests.values())
        if others >= MAX_PER_CODE or len(state.requests) >= MAX_PENDING:
            raise Denied(
                f"join request beyond {MAX_PER_CODE} pending ones of a code, or {MAX_PENDING} of all"
            )
    return replace(state, requests={**state.requests, device: request})


def close_invitation(state: GroupState, invitation: str, *, used: bool) -> GroupState:
    """The state after an invitation was used up (kept, marked) or withdrawn (forgotten), its requests gone with it."""
    invitations = dict(state.invitations)
    ended = invitations.pop(invitation, None)
    if ended is not None and used:
        invitations[invitation] = replace(ended, used=True)
    requests = {d: r for d, r in state.requests.items() if r.invitation != invitation}
    return replace(state, invitations=invitations, requests=requests)


def close_invitations_of(state: GroupState, devices: frozenset[str]) -> GroupState:
    """The state without open invitations that removed devices made: they still know those codes."""
    for invitation in tuple(state.invitations.values()):
        if invitation.by in devices and not invitation.used:
            state = close_invitation(state, invitation.id, used=False)
    return state
