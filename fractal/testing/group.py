"""A whole group in memory, for tests: people, devices, and a log that the test itself may damage.

`World` writes real entries with real keys; `read` folds any list of raw entries as any of its devices would.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fractal.api import canonical
from fractal.core.entries import (
    AppInstalled,
    Approved,
    DeviceRemoved,
    Entry,
    GroupCreated,
    NewDevice,
    NewMember,
    StoreAdded,
)
from fractal.core.log import fold, skipped_because
from fractal.core.model import AppKey, DeviceRole, GroupState, Policy, Role
from fractal.crypto.keys import (
    DeviceKeys,
    MemberKeys,
    app_keypair,
    device_statement,
    member_statement,
    seal_shared,
    seal_to,
)
from fractal.crypto.seal import Envelope, GroupOpener, key_check, pad, seal_entry, seal_genesis, seal_group


class SeededEntropy:
    """Randomness that repeats: never for real keys."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        """As `Entropy.bytes`."""
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        """As `Entropy.uniform`."""
        return self._random.uniform(low, high)


@dataclass(frozen=True, slots=True)
class Person:
    """A member and its keys."""

    name: str
    role: Role
    keys: MemberKeys

    @property
    def id(self) -> str:
        """The member's id."""
        return self.keys.id


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and its keys."""

    name: str
    person: Person
    keys: DeviceKeys

    @property
    def id(self) -> str:
        """The device's id."""
        return self.keys.id


@dataclass
class World:
    """A group that grows by what its devices say. `state` is the honest reader's, folded as the log grows."""

    seed: int = 0
    log: list[bytes] = field(default_factory=list)
    state: GroupState = field(default_factory=GroupState)
    people: dict[str, Person] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    group_keys: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entropy = SeededEntropy(self.seed)

    @classmethod
    def founded(cls, seed: int = 0, *, device: str = "attic", person: str = "ann") -> World:
        """A new group of one owner with one host device."""
        world = cls(seed)
        machine = world.machine(device, world.person(person, Role.OWNER))
        world.group_keys[1] = world.entropy.bytes(32)
        founder = machine.person
        entry = GroupCreated(
            name="Group 1",
            founder=world.certified_member(founder, by=founder),
            device=world.certified_device(machine),
            sealed_keys=world.sealed(world.group_keys[1], [machine]),
            key_check=key_check(world.group_keys[1]),
        )
        _, raw = seal_genesis(entry, keys=machine.keys, group_key=world.group_keys[1], entropy=world.entropy)
        world.opener = GroupOpener(machine.keys, world.group_keys)
        world.put(raw)
        return world

    opener: GroupOpener = field(init=False)

    # --- making parts ---

    def person(self, name: str, role: Role) -> Person:
        """A person with a new key, known to the test only."""
        self.people[name] = Person(name, role, MemberKeys.generate(self.entropy))
        return self.people[name]

    def machine(self, name: str, person: Person) -> Machine:
        """A device with new keys, known to the test only."""
        self.machines[name] = Machine(name, person, DeviceKeys.generate(self.entropy))
        return self.machines[name]

    def certified_member(self, person: Person, *, by: Person) -> NewMember:
        """A person's public part, signed by an admin."""
        said = member_statement(person.keys.public, person.role.value)
        return NewMember(
            name=person.name,
            key=person.keys.public,
            role=person.role,
            by=by.id,
            certificate=by.keys.sign(said),
        )

    def certified_device(
        self, machine: Machine, roles: Iterable[DeviceRole] = (DeviceRole.HOST,)
    ) -> NewDevice:
        """A device's public part, signed by its member."""
        keys = machine.keys
        said = device_statement(machine.person.id, keys.sign_public, keys.box_public)
        return NewDevice(
            name=machine.name,
            member=machine.person.id,
            sign_key=keys.sign_public,
            box_key=keys.box_public,
            certificate=machine.person.keys.sign(said),
            roles=frozenset(roles),
        )

    def sealed(self, secret: bytes, machines: Iterable[Machine]) -> dict[str, bytes]:
        """The secret sealed to each device."""
        return {m.id: seal_to(m.keys.box_public, secret, self.entropy) for m in machines}

    def shared(self, key: bytes, machines: Iterable[Machine]) -> dict[str, bytes]:
        """A group key as a rotation gives it to each device."""
        return {m.id: seal_shared(m.keys.box_public, key) for m in machines}

    def live(self) -> list[Machine]:
        """Devices that the group knows and has not removed."""
        known = self.state.devices
        return [m for m in self.machines.values() if m.id in known and not known[m.id].removed]

    def app_key(self, generation: int = 1, machines: Iterable[Machine] | None = None) -> AppKey:
        """A new app key for these devices, all live ones unless told."""
        public, secret = app_keypair(self.entropy)
        chosen = self.live() if machines is None else machines
        return AppKey(generation=generation, public=public, sealed=self.sealed(secret, chosen))

    # --- writing ---

    def seal(self, machine: str, entry: Entry, *, state: GroupState | None = None) -> bytes:
        """The raw entry that the device would send, having folded `state` (the whole log unless told)."""
        folded = state or self.state
        return seal_entry(
            entry,
            state=folded,
            keys=self.machines[machine].keys,
            group_key=self.group_keys[folded.generation],
            entropy=self.entropy,
        )

    def custom(self, machine: str, kind: str, body: dict[str, Any], **header: Any) -> bytes:
        """An entry of any kind and body, sealed and signed as it must be, its header changed by `header`."""
        state, keys = self.state, self.machines[machine].keys
        last = state.authors.get(keys.id)
        fields: dict[str, Any] = {
            "group": state.id,
            "author": keys.id,
            "number": last.number + 1 if last else 1,
            "prev": last.hash if last else b"",
            "position": state.position,
            "head": state.head,
            "generation": state.generation,
            **header,
        }
        inside = pad(canonical.encode({"kind": kind, "body": body}))
        bare = Envelope(**fields)
        boxed = replace(
            bare, box=seal_group(inside, self.group_keys[fields["generation"]], bare.aad(), self.entropy)
        )
        return replace(boxed, sig=keys.sign(boxed.signed())).to_bytes()

    def put(self, raw: bytes) -> str:
        """Append raw bytes to the log; the reason for which they were skipped, "" if they were not."""
        self.log.append(raw)
        self.state = fold(self.state, raw, self.opener)
        return skipped_because(self.state)

    def say(self, machine: str, entry: Entry) -> str:
        """Seal and append; the reason for which it was skipped, "" if it was not."""
        return self.put(self.seal(machine, entry))

    def must(self, machine: str, entry: Entry) -> None:
        """Seal and append what has to be accepted."""
        reason = self.say(machine, entry)
        assert not reason, reason

    # --- usual steps ---

    def approval(
        self, machine: Machine, *, by: str, roles: Iterable[DeviceRole] = (DeviceRole.HOST,)
    ) -> Approved:
        """What admits the device, and its person if the group does not know it."""
        known = machine.person.id in self.state.members
        approver = self.machines[by].person
        return Approved(
            device=self.certified_device(machine, roles),
            member=None if known else self.certified_member(machine.person, by=approver),
            sealed_keys={
                str(g): seal_to(machine.keys.box_public, key, self.entropy)
                for g, key in self.group_keys.items()
            },
        )

    def join(self, name: str, person: str, role: Role = Role.MEMBER, *, by: str = "attic") -> Machine:
        """A device joins, with its person if that one is new."""
        owner = self.people.get(person) or self.person(person, role)
        machine = self.machine(name, owner)
        self.must(by, self.approval(machine, by=by))
        return machine

    def removal(self, name: str) -> tuple[DeviceRemoved, bytes]:
        """What removes a device, and the new group key; the caller adds it to `group_keys` if it was accepted."""
        gone = self.machines[name].id
        left = [m for m in self.live() if m.id != gone]
        new = self.entropy.bytes(32)
        apps = {
            a.id: self.app_key(a.keys[-1].generation + 1, [m for m in left if m.id in a.keys[-1].sealed])
            for a in self.state.apps.values()
            if not a.removed and gone in a.keys[-1].sealed and len(a.keys[-1].sealed) > 1
        }
        entry = DeviceRemoved(
            device=gone,
            generation=self.state.generation + 1,
            sealed_keys=self.shared(new, left),
            app_keys=apps,
            key_check=key_check(new),
        )
        return entry, new

    def remove(self, name: str, *, by: str = "attic") -> None:
        """Remove a device, and rotate the keys."""
        entry, new = self.removal(name)
        self.must(by, entry)
        self.group_keys[self.state.generation] = new
        self.opener.add(self.group_keys)

    def add_store(self, *, by: str = "attic", store: str = "5" * 16) -> str:
        """A store of the group."""
        self.must(by, StoreAdded(id=store, name="Shelf", backend="directory", config={"path": "/shelf"}))
        return store

    def install(
        self, app: str = "a" * 16, *, by: str = "attic", placed: str = "attic", policy: Policy | None = None
    ) -> str:
        """Install an app, with a store if there is none."""
        store = next(iter(self.state.stores), "") or self.add_store()
        self.must(by, self.installation(app, store=store, placed=placed, policy=policy))
        return app

    def installation(
        self, app: str, *, store: str, placed: str, policy: Policy | None = None
    ) -> AppInstalled:
        """What installs an app."""
        taken = sum(not a.removed for a in self.state.apps.values())
        return AppInstalled(
            app=app,
            name="radicale" if taken == 0 else f"radicale {taken}",
            manifest="services: {}\n",
            spec={"services": {}},
            store=store,
            placed=self.machines[placed].id,
            key=self.app_key(),
            policy=policy or Policy(),
        )

    # --- reading ---

    def reader(self, machine: str, *, extra: Mapping[int, bytes] | None = None) -> GroupOpener:
        """The opener of one of the devices, with all group keys that a welcome would bring unless told."""
        return GroupOpener(self.machines[machine].keys, self.group_keys if extra is None else extra)

    def read(
        self,
        log: Sequence[bytes] | None = None,
        *,
        opener: GroupOpener | None = None,
        state: GroupState | None = None,
    ) -> GroupState:
        """Fold a log (this world's unless told) from its beginning or after `state`, expecting this group."""
        folded = state or replace(GroupState(), id=self.state.id)
        reader = opener or GroupOpener(self.machines["attic"].keys, self.group_keys)
        for raw in self.log if log is None else log:
            folded = fold(folded, raw, reader)
        return folded
