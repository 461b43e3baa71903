"""The group's state as the log's fold gives it: frozen values, nothing but data.

Ids: a group's is the hash of its first entry, a device's and a member's are hashes of their signing keys (`crypto.keys`),
an app's, a store's and an invitation's are random; all are lower-case hex. Instants called `*_ms` are wall-clock labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Role(Enum):
    """What a member may do. An owner may do everything; an admin all but touch owners; a member run its own things."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"


class DeviceRole(Enum):
    """What a device does for the group."""

    HOST = "host"
    STORE = "store"
    GATEWAY = "gateway"


class Desired(Enum):
    """What people want of an app."""

    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timers:
    """The group's failover timers, in milliseconds (docs/explanation/failover.md). Milliseconds, as the log has no floats."""

    profile: str = "standard"
    beat: int = 3_000
    patience: int = 10_000
    answer_window: int = 8_000
    rank_step: int = 3_000
    proof: int = 12_000
    """F: how old a proof may be."""
    margin: int = 2_000
    poll: int = 2_000
    """Longest long poll of the log."""
    read_timeout: int = 6_000
    """After this a log read or store listing is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A person."""

    id: str
    name: str
    role: Role
    key: bytes
    """Ed25519 public key."""
    removed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A machine running the agent."""

    id: str
    name: str
    member: str
    sign_key: bytes
    """Ed25519 public key."""
    box_key: bytes
    """X25519 public key."""
    roles: frozenset[DeviceRole] = frozenset()
    arch: str = ""
    """As `platform.machine()` gives it."""
    version: str = ""
    """Version of its agent."""
    runtime: str = ""
    snapshot_format: str = ""
    receives: frozenset[str] = frozenset()
    images: bool = False
    """Its runtime runs container images, and saves and loads them."""
    capacity: int = 0
    """Free memory in MiB when last published, for placement."""
    contact: Mapping[str, str] = field(default_factory=dict)
    """What the transport published."""
    address: str = ""
    """For a gateway: its public host name or address."""
    draining: bool = False
    away_until: int = 0
    """Log position of nothing; wall_ms label of a bounded absence (at most 5 min after the entry)."""
    removed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """Somebody may join who proves knowledge of the code (docs/explanation/joining.md)."""

    id: str
    verify_key: bytes
    """Ed25519 public key derived from the code."""
    member: str
    """Member that the new device belongs to; "" for a new member."""
    role: Role
    by: str
    """Device that invited."""
    expires_ms: int
    used: bool = False
    lobby_key: bytes = field(default=b"", repr=False)
    """What requests and welcomes of this invitation are sealed to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """A device that asks to be let in; pending until approved or its invitation ends."""

    invitation: str
    name: str
    sign_key: bytes
    box_key: bytes
    member_name: str = ""
    member_key: bytes = b""
    certificate: bytes = b""
    """For a new member: its signature over the device's statement, as `NewDevice.certificate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntry:
    """A store of the group. Credentials are sealed with the group key like the rest of the log."""

    id: str
    name: str
    backend: str
    config: Mapping[str, str] = field(default_factory=dict)
    removed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How an app is treated."""

    failover: str = "automatic"
    """`automatic` | `manual`."""
    on_isolation: str = "freeze"
    """`freeze` | `keep`; `keep` only with manual failover."""
    interval: int = 60_000
    """Milliseconds between snapshots."""
    standby: int = 1
    """How many devices keep a warm copy."""
    devices: tuple[str, ...] = ()
    """Preferred devices, best first; the first ones are the standbys. Empty: all eligible."""
    trust: str = "group"
    """`group` | `member` | `list`: which devices get the app's key. `list` means `devices` and nobody else."""
    keep_ticks: int = 2 * 3_600_000
    """Milliseconds of snapshots that all stay, counted by `interval`."""
    keep_hourly: int = 48
    """How many last snapshots of an hour stay; likewise of days and weeks."""
    keep_daily: int = 30
    keep_weekly: int = 52
    keep_bytes: int = 0
    """Bytes that what stays may take in the store; 0: any number."""

    @property
    def keeps(self) -> bool:
        """Whether the app is to run on where it is while its device is cut off. Then nobody takes it over."""
        return self.failover == "manual" and self.on_isolation == "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppKey:
    """One generation of an app's key pair: backups are sealed to `public`; `sealed` gives its secret to trusted devices."""

    generation: int
    public: bytes
    sealed: Mapping[str, bytes] = field(default_factory=dict)
    """Device id -> sealed X25519 secret key."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Point:
    """A committed snapshot: the record `number` of `epoch` in an app's archive. Number 0: the empty beginning."""

    epoch: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The owner of `epoch` gave the app up."""

    epoch: int
    clean: bool
    """Its wait was over and its containers are stopped: the next one need not wait."""
    base: Point | None = None
    unhealthy: bool = False
    """Released because the app does not get healthy there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a fork or restore starts from."""

    app: str
    point: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreWish:
    """Somebody asked that the app go back to a moment."""

    id: str
    point: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One stored part of a sealed object."""

    size: int
    """Bytes."""
    hash: bytes
    """SHA-256 of the stored (sealed) bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedImage:
    """A container image that an app runs, sealed in the app's store: a takeover needs no registry."""

    name: str
    """As the manifest names it."""
    digest: str
    """`SupportsImages.image_digest`: what every device starts, whatever the name means elsewhere."""
    arch: str
    """As `platform.machine()` gives it."""
    object: str
    """Id of the sealed object in the store."""
    segments: tuple[Segment, ...]
    sealed_key: bytes
    """The object's key, sealed to the app's public key."""
    generation: int
    """Of the app's key."""
    replaced_ms: int = 0
    """Since when the app runs another image in its place, by the owner's wall clock; 0: it runs this one."""

    @property
    def stored(self) -> int:
        """Bytes in the store."""
        return sum(s.size for s in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An installed application."""

    id: str
    name: str
    manifest: str
    """The manifest's text."""
    spec: Mapping[str, object]
    """`AppSpec` as plain values (`manifest.plain`)."""
    store: str
    """Id of the store that holds its archive and epochs."""
    owner_member: str
    mirrors: tuple[str, ...] = ()
    """Ids of further stores that hold copies of its archive; none of them arbitrates."""
    policy: Policy = field(default_factory=Policy)
    desired: Desired = Desired.RUNNING
    placed: str = ""
    """Device that takes epoch 1."""
    epoch: int = 0
    """Highest announced epoch."""
    owner: str = ""
    """Device of that epoch; "" before the first."""
    unproven: int = 0
    """Position of the entry since which the owner may run the app without proof: its epoch's announcement, if the policy kept the
    app then; or the later change that ended this, which the owner need not have read. 0: it runs by proof only."""
    serving: int = 0
    """Highest epoch announced as healthy: routes lead to its owner."""
    unowned: tuple[tuple[int, int], ...] = ()
    """First and last of epochs that had no owner by this log, rising, above the last one that served."""
    failed: tuple[str, ...] = ()
    """Devices on which it did not get healthy since it last did somewhere."""
    release: Release | None = None
    """Of the current epoch."""
    move_to: str = ""
    restore: RestoreWish | None = None
    restored: str = ""
    """Id of the last restore wish that was carried out."""
    source: Source | None = None
    keys: tuple[AppKey, ...] = ()
    """Generations, oldest first."""
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> value sealed to the app's key, the newest once its owner has sealed them anew."""
    secrets_generation: int = 1
    """Newest generation of the app's key since which all of them but certificates were sealed anew."""
    pins: frozenset[Point] = frozenset()
    images: tuple[ArchivedImage, ...] = ()
    """Those that it runs, and earlier ones that kept moments still belong to."""
    removed: bool = False

    def counts(self, epoch: int) -> bool:
        """Whether what an epoch up to the present one holds may be what the next one starts from.

        Not if nobody ever owned it by the log: it was announced as burnt, or created below the present one by somebody who was
        in no position to. Its creator's signature says nothing of that.
        """
        return not any(first <= epoch <= last for first, last in self.unowned)

    @property
    def pinned_images(self) -> Mapping[str, ArchivedImage]:
        """What it runs, by the name that the manifest uses."""
        return {image.name: image for image in self.images if not image.replaced_ms}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A public name that leads to an app's service."""

    name: str
    app: str
    kind: str = "https"
    service: str = ""
    port: str = ""
    """Service and port name; empty: the manifest's web service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A device was asked to show that it lives, and has not answered yet."""

    device: str
    by: str
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """The end of one author's own chain."""

    number: int
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A signed statement of the folded state at a position."""

    position: int
    state_hash: bytes
    key: str
    """Where the sealed state is in the group's store."""
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """Everything that a group's log says, as far as it was folded."""

    id: str = ""
    name: str = ""
    timers: Timers = field(default_factory=Timers)
    members: Mapping[str, Member] = field(default_factory=dict)
    devices: Mapping[str, Device] = field(default_factory=dict)
    invitations: Mapping[str, Invitation] = field(default_factory=dict)
    requests: Mapping[str, JoinRequest] = field(default_factory=dict)
    """By device id of the requester."""
    stores: Mapping[str, StoreEntry] = field(default_factory=dict)
    apps: Mapping[str, App] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    challenges: Mapping[str, Challenge] = field(default_factory=dict)
    """Open ones by challenged device."""
    answers: Mapping[str, int] = field(default_factory=dict)
    """Device -> position of its last answer entry."""
    generation: int = 0
    group_keys: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Generation (as text) -> device id -> group key sealed to it."""
    key_checks: Mapping[str, bytes] = field(default_factory=dict)
    """Generation (as text) -> `seal.key_check` of its group key, by which a device knows a wrong one."""
    checkpoint: Checkpoint | None = None
    authors: Mapping[str, Author] = field(default_factory=dict)
    position: int = 0
    """Entries folded, valid or not."""
    head: bytes = b""
    """Running hash over all of them."""
    recent: tuple[bytes, ...] = ()
    """Running hashes of the last positions, newest last, to check what other authors had folded."""
    skipped: int = 0
    skips: tuple[tuple[int, str], ...] = ()
    """Last few skipped entries: position and reason."""
    alarms: Mapping[str, str] = field(default_factory=dict)
    """Device -> evidence out of an entry of its own that the log server showed different histories, unless the device lies:
    then it is to be removed, which ends its alarm."""
    sealed_out: int = 0
    """Position of the first entry that this reader could not unseal; 0 while there is none. Local, not hashed."""
    left: bool = False
    """This reader's own device was removed. Local, not hashed."""

    def device_name(self, device: str) -> str:
        """Name of a device by its id, also of a removed one; the id where it is unknown, "" for nobody."""
        known = self.devices.get(device)
        return known.name if known else device

    @property
    def forked(self) -> str:
        """Evidence that the log server showed different histories; "" while there is none."""
        return next(iter(self.alarms.values()), "")
