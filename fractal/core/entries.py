"""Every kind of log entry as a frozen value. `fold` gives them meaning; `crypto.seal` carries them.

The log holds intent and ownership, not traffic. A new optional field may be added at any time; a field's meaning never
changes; a new kind is skipped by agents that do not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fractal.core.model import AppKey, ArchivedImage, Desired, DeviceRole, Point, Policy, Role, Source, Timers


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """A device's public part, certified by its member's key."""

    name: str
    member: str
    sign_key: bytes
    box_key: bytes
    certificate: bytes
    """The member's signature over `keys.device_statement(member, sign_key, box_key)`."""
    roles: frozenset[DeviceRole] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMember:
    """A member's public part, certified by the admitting admin's member key (the founder's by itself)."""

    name: str
    key: bytes
    role: Role
    by: str
    """Id of the certifying member."""
    certificate: bytes
    """That member's signature over `keys.member_statement(key, role)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCreated:
    """First entry of every log: the founder, the first device, the first key."""

    name: str
    founder: NewMember
    device: NewDevice
    timers: Timers = field(default_factory=Timers)
    sealed_keys: Mapping[str, bytes] = field(default_factory=dict)
    """Device id -> group key of generation 1 sealed to it."""
    key_check: bytes = b""
    """`seal.key_check` of the new group key: whoever was given another key notices it instead of reading another log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChanged:
    """New name or timers (admins)."""

    name: str = ""
    timers: Timers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """An invitation whose code was shown to somebody (admins; a member for devices of its own)."""

    id: str
    verify_key: bytes
    role: Role
    expires_ms: int
    member: str = ""
    lobby_key: bytes = field(default=b"", repr=False)
    """Symmetric key derived from the code: join requests and welcomes are sealed to it (`crypto.join`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationEnded:
    """Withdrawn."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """A join request was approved: the device (and member) is in, and has the group's keys."""

    device: NewDevice
    invitation: str = ""
    member: NewMember | None = None
    sealed_keys: Mapping[str, bytes] = field(default_factory=dict)
    """Generation (as text) -> group key sealed to the new device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUpdated:
    """What a device says of itself: it alone may (its roles: its member or an admin may too). None: unchanged."""

    device: str
    name: str | None = None
    roles: frozenset[DeviceRole] | None = None
    arch: str | None = None
    version: str | None = None
    runtime: str | None = None
    snapshot_format: str | None = None
    receives: frozenset[str] | None = None
    images: bool | None = None
    capacity: int | None = None
    contact: Mapping[str, str] | None = None
    address: str | None = None
    draining: bool | None = None
    away_until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRemoved:
    """A device is out; the entry rotates the group key, and `app_keys` those of every app it was trusted with."""

    device: str
    generation: int
    """Of the new group key: the present one plus one."""
    sealed_keys: Mapping[str, bytes]
    """Remaining device id -> new group key sealed to it."""
    app_keys: Mapping[str, AppKey] = field(default_factory=dict)
    key_check: bytes = b""
    """`seal.key_check` of the new group key: whoever was given another key notices it instead of reading another log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRemoved:
    """A member and all its devices are out; rotates like `DeviceRemoved`."""

    member: str
    generation: int
    sealed_keys: Mapping[str, bytes]
    app_keys: Mapping[str, AppKey] = field(default_factory=dict)
    key_check: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged:
    """A member's role (owners; admins among members)."""

    member: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAdded:
    """A store that all may use."""

    id: str
    name: str
    backend: str
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRemoved:
    """No app uses it any more."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppInstalled:
    """An app is to exist; `placed` takes epoch 1."""

    app: str
    name: str
    manifest: str
    spec: Mapping[str, object]
    store: str
    placed: str
    key: AppKey
    policy: Policy = field(default_factory=Policy)
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    source: Source | None = None
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppChanged:
    """New manifest, policy, name, wish, secrets. None: unchanged."""

    app: str
    name: str | None = None
    manifest: str | None = None
    spec: Mapping[str, object] | None = None
    policy: Policy | None = None
    desired: Desired | None = None
    secrets: Mapping[str, bytes] | None = None
    mirrors: tuple[str, ...] | None = None
    """Not a part of the policy, though people see it there: an older agent that changes the policy, of which it writes all that
    it knows, would take the mirrors away.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class AppKeyAdded:
    """A new generation, or the newest one sealed to more devices."""

    app: str
    key: AppKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AppImages:
    """The container images that the app runs, as they are sealed in its store; all of them anew (the owner)."""

    app: str
    images: tuple[ArchivedImage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppMoved:
    """Somebody wants the app on that device ("" withdraws the wish)."""

    app: str
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRestoreWished:
    """Somebody wants the app back at a moment."""

    app: str
    id: str
    point: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRestored:
    """The owner carried the wish out."""

    app: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRemoved:
    """Gone from the group; its archive stays in the store: no command and no agent deletes it."""

    app: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """Keep a moment for ever, or no longer."""

    app: str
    point: Point
    keep: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenged:
    """`device` is silent: let it answer."""

    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The author lives; covers all challenges before this entry.

    Also said without a challenge by the owner of an app whose policy ceased to keep it where its device is cut off: from then on
    others may take it over.
    """

    seen: int
    """Log position that the author had folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """The author created these epochs in the apps' stores."""

    epochs: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Somebody's epoch object stands in the store and was not announced."""

    app: str
    epoch: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The author, owner of `epoch`, gives the app up for good at that epoch."""

    app: str
    epoch: int
    clean: bool
    base: Point | None = None
    unhealthy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The app is healthy on the author at that epoch: routes may lead there."""

    app: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteAdded:
    """First valid claim of a name wins."""

    name: str
    app: str
    kind: str = "https"
    service: str = ""
    port: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRemoved:
    """The name is free again."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """The author's folded state at `position`, kept sealed at `key` in the store."""

    position: int
    state_hash: bytes
    store: str
    key: str


Entry = (
    GroupCreated
    | GroupChanged
    | Invited
    | InvitationEnded
    | Approved
    | DeviceUpdated
    | DeviceRemoved
    | MemberRemoved
    | RoleChanged
    | StoreAdded
    | StoreRemoved
    | AppInstalled
    | AppChanged
    | AppKeyAdded
    | AppImages
    | AppMoved
    | AppRestoreWished
    | AppRestored
    | AppRemoved
    | Pinned
    | Challenged
    | Answered
    | Took
    | Found
    | Released
    | Serving
    | RouteAdded
    | RouteRemoved
    | Checkpointed
)

KINDS: Mapping[str, type[Entry]] = {
    "group.created": GroupCreated,
    "group.changed": GroupChanged,
    "invitation.made": Invited,
    "invitation.ended": InvitationEnded,
    "device.approved": Approved,
    "device.updated": DeviceUpdated,
    "device.removed": DeviceRemoved,
    "member.removed": MemberRemoved,
    "member.role": RoleChanged,
    "store.added": StoreAdded,
    "store.removed": StoreRemoved,
    "app.installed": AppInstalled,
    "app.changed": AppChanged,
    "app.key": AppKeyAdded,
    "app.images": AppImages,
    "app.moved": AppMoved,
    "app.restore": AppRestoreWished,
    "app.restored": AppRestored,
    "app.removed": AppRemoved,
    "app.pinned": Pinned,
    "lease.challenged": Challenged,
    "lease.answered": Answered,
    "lease.took": Took,
    "lease.found": Found,
    "lease.released": Released,
    "lease.serving": Serving,
    "route.added": RouteAdded,
    "route.removed": RouteRemoved,
    "log.checkpointed": Checkpointed,
}
