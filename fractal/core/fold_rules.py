"""What every part of the fold shares: who acts, what it may touch, and checks of values.

A handler gets a `Turn` and an entry and gives the next state, or raises Denied with the reason for which everybody skips
the entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from fractal.api.errors import Denied
from fractal.core.entries import NewDevice, NewMember
from fractal.core.model import App, Device, DeviceRole, GroupState, Member, Role

MAX_NAME = 100
KEY_SIZE = 32
MIN_ID = 12
MAX_NESTING = 12
"""Levels of a free-form value. A whole entry may have `canonical.MAX_DEPTH`, and a state holds it some levels deeper."""

_RANK = {Role.MEMBER: 0, Role.ADMIN: 1, Role.OWNER: 2}


class Certifier(Protocol):
    """Checks certificates and names their subjects; the only cryptography that handlers need."""

    @property
    def device(self) -> str:
        """Id of the reader's own device; "" for none."""

    def device_of(self, new: NewDevice, member_key: bytes) -> str:
        """Id of the device, "" if its certificate is not by `member_key`."""

    def member_of(self, new: NewMember, by_key: bytes) -> str:
        """Id of the member, "" if its certificate is not by `by_key`."""

    def shared(
        self, generation: int, check: bytes, sealed: Mapping[str, bytes], box_keys: Mapping[str, bytes]
    ) -> bool:
        """Whether one group key, which fits `check`, is sealed to every device. All who got something agree on that."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One authentic entry's place: the state before it (already counting it), and its author."""

    state: GroupState
    device: Device
    member: Member
    certifier: Certifier

    @property
    def admin(self) -> bool:
        """Whether the author's member is an admin or an owner."""
        return _RANK[self.member.role] >= _RANK[Role.ADMIN]

    @property
    def owner(self) -> bool:
        """Whether the author's member is an owner."""
        return self.member.role is Role.OWNER

    def require_admin(self) -> None:
        """Raises Denied unless the author acts for an admin or owner."""
        require(self.admin, "only admins and owners may do this")

    def require_over(self, target: Member) -> None:
        """Raises Denied unless the author's member may act on that member and what it owns."""
        if self.member.id != target.id:
            self.require_admin()
            require(self.owner or target.role is not Role.OWNER, "only owners may touch an owner")

    def require_grants(self, role: Role) -> None:
        """Raises Denied unless the author's member may make somebody of that role."""
        self.require_admin()
        require(self.owner or role is not Role.OWNER, "only owners may make owners")

    def manages(self, app: App) -> bool:
        """Whether the app is the author's member's own, or the member is an admin."""
        return self.admin or app.owner_member == self.member.id

    def managed(self, app: str) -> App:
        """The live app of that id. Raises Denied if there is none or the author's member does not manage it."""
        found = live_app(self.state, app)
        require(self.manages(found), "only the app's own member, admins and owners may do this")
        return found


def require(condition: bool, reason: str) -> None:
    """Raises Denied with the reason unless the condition holds."""
    if not condition:
        raise Denied(reason)


def require_name(name: str, what: str) -> None:
    """Raises Denied unless it is short and harmless on a terminal."""
    good = 0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()
    require(good, f"{what}: 1 to {MAX_NAME} printable characters without white space around them")
    require(not _is_id(name.lower()), f"{what}: it looks like an id, by which people name something else")


def require_id(value: str, what: str) -> None:
    """Raises Denied unless it is lower-case hex of an id's length: ids become parts of store keys, and no name is one."""
    require(_is_id(value), f"{what}: an id is {MIN_ID} to 64 lower-case hex digits")


def _is_id(text: str) -> bool:
    return MIN_ID <= len(text) <= 64 and all(c in "0123456789abcdef" for c in text)


def require_shallow(value: object, what: str, left: int = MAX_NESTING) -> None:
    """Raises Denied for a value nested deeper than a state can carry: every reader would fail to note such a state."""
    require(left > 0, f"{what}: nested deeper than {MAX_NESTING}")
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        require_shallow(item, what, left - 1)


def live_device(state: GroupState, device: str) -> Device:
    """The device, known and not removed. Raises Denied."""
    found = state.devices.get(device)
    if found is None or found.removed:
        raise Denied(f"device {device or '(none)'} is not in the group")
    return found


def live_host(state: GroupState, device: str) -> Device:
    """The device, live and with the role host. Raises Denied."""
    found = live_device(state, device)
    require(DeviceRole.HOST in found.roles, f"device {device} does not have the role host")
    return found


def live_member(state: GroupState, member: str) -> Member:
    """The member, known and not removed. Raises Denied."""
    found = state.members.get(member)
    if found is None or found.removed:
        raise Denied(f"member {member or '(none)'} is not in the group")
    return found


def live_app(state: GroupState, app: str) -> App:
    """The app, installed and not removed. Raises Denied."""
    found = state.apps.get(app)
    if found is None or found.removed:
        raise Denied(f"app {app or '(none)'} is not installed")
    return found


def with_app(state: GroupState, app: App) -> GroupState:
    """The state with that app in place of its old value."""
    return replace(state, apps={**state.apps, app.id: app})


def with_device(state: GroupState, device: Device) -> GroupState:
    """The state with that device in place of its old value."""
    return replace(state, devices={**state.devices, device.id: device})


def with_member(state: GroupState, member: Member) -> GroupState:
    """The state with that member in place of its old value."""
    return replace(state, members={**state.members, member.id: member})
