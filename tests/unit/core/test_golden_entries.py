"""Bytes of every entry kind as they were first written: what is in people's logs must be readable for ever.

`tests/golden/entries/SAMPLE.json` is the payload, `SAMPLE.entry` the raw envelope, `history.json` a whole log with its
state's hash. A file that is missing is written by this test, which then fails; a file that is there is never changed: when
a kind gets a field, it gets another sample (`app.moved-2`).
"""

from __future__ import annotations

import json
import random
from dataclasses import fields
from pathlib import Path

import pytest

from fractal.api import canonical
from fractal.api.plain import from_plain
from fractal.core.entries import (
    KINDS,
    Answered,
    AppChanged,
    AppImages,
    AppInstalled,
    AppKeyAdded,
    AppMoved,
    AppRemoved,
    AppRestored,
    AppRestoreWished,
    Approved,
    Challenged,
    Checkpointed,
    DeviceRemoved,
    DeviceUpdated,
    Entry,
    Found,
    GroupChanged,
    GroupCreated,
    InvitationEnded,
    Invited,
    MemberRemoved,
    NewDevice,
    NewMember,
    Pinned,
    Released,
    RoleChanged,
    RouteAdded,
    RouteRemoved,
    Serving,
    StoreAdded,
    StoreRemoved,
    Took,
)
from fractal.core.log import Opened, fold, group_id, state_hash
from fractal.core.model import (
    AppKey,
    ArchivedImage,
    Author,
    Desired,
    Device,
    DeviceRole,
    GroupState,
    Member,
    Point,
    Policy,
    Role,
    Segment,
    Source,
    Timers,
)
from fractal.crypto.keys import DeviceKeys
from fractal.crypto.seal import GroupOpener, key_check, payload_of, seal_entry
from fractal.testing.group import SeededEntropy, World

GOLDEN = Path(__file__).parents[2] / "golden" / "entries"
KEY, SIGNATURE, SEALED = bytes(range(32)), bytes(range(64)), bytes(range(80))
DEVICE, OTHER, MEMBER, APP, STORE = "d" * 20, "e" * 20, "c" * 20, "a" * 16, "5" * 16
APP_KEY = AppKey(generation=2, public=KEY, sealed={DEVICE: SEALED, OTHER: SEALED})
NEW_DEVICE = NewDevice(
    name="Kitchen",
    member=MEMBER,
    sign_key=KEY,
    box_key=KEY,
    certificate=SIGNATURE,
    roles=frozenset({DeviceRole.HOST, DeviceRole.GATEWAY, DeviceRole.STORE}),
)
NEW_MEMBER = NewMember(name="Björn", key=KEY, role=Role.OWNER, by=MEMBER, certificate=SIGNATURE)
TIMERS = Timers(
    profile="fast",
    beat=1,
    patience=2,
    answer_window=3,
    rank_step=4,
    proof=5,
    margin=6,
    poll=7,
    read_timeout=8,
)
POLICY = Policy(
    failover="manual", on_isolation="keep", interval=10_000, standby=2, devices=(DEVICE, OTHER), trust="list"
)
POINT = Point(epoch=3, number=14)

SAMPLES: dict[str, Entry] = {
    "group.created": GroupCreated(
        name="Group 1",
        founder=NEW_MEMBER,
        device=NEW_DEVICE,
        timers=TIMERS,
        sealed_keys={DEVICE: SEALED},
        key_check=KEY,
    ),
    "group.changed": GroupChanged(name="Höhle", timers=TIMERS),
    "invitation.made": Invited(
        id="f" * 20,
        verify_key=KEY,
        role=Role.ADMIN,
        expires_ms=1_700_000_000_000,
        member=MEMBER,
        lobby_key=KEY,
    ),
    "invitation.ended": InvitationEnded(id="f" * 20),
    "device.approved": Approved(
        device=NEW_DEVICE, invitation="f" * 20, member=NEW_MEMBER, sealed_keys={"1": SEALED, "2": SEALED}
    ),
    "device.updated": DeviceUpdated(
        device=DEVICE,
        name="Attic",
        roles=frozenset({DeviceRole.STORE}),
        arch="aarch64",
        version="0.1.0",
        runtime="process",
        snapshot_format="portable/1",
        receives=frozenset({"portable/1", "btrfs-send/1"}),
        capacity=2_048,
        contact={"host": "127.0.0.1", "port": "4433"},
        address="gw.example.org",
        draining=True,
        away_until=1_700_000_000_000,
    ),
    "device.updated-2": DeviceUpdated(device=DEVICE, images=True),
    "device.removed": DeviceRemoved(
        device=OTHER, generation=2, sealed_keys={DEVICE: SEALED}, app_keys={APP: APP_KEY}, key_check=KEY
    ),
    "member.removed": MemberRemoved(
        member=MEMBER, generation=2, sealed_keys={DEVICE: SEALED}, app_keys={APP: APP_KEY}, key_check=KEY
    ),
    "member.role": RoleChanged(member=MEMBER, role=Role.MEMBER),
    "store.added": StoreAdded(id=STORE, name="Shelf", backend="directory", config={"path": "/srv/shelf"}),
    "store.removed": StoreRemoved(id=STORE),
    "app.installed": AppInstalled(
        app=APP,
        name="radicale",
        manifest='services:\n  web: {image: "x"}\n',
        spec={"services": [{"name": "web", "ports": [80]}], "empty": None, "flag": True},
        store=STORE,
        placed=DEVICE,
        key=APP_KEY,
        policy=POLICY,
        secrets={"password": SEALED},
        source=Source(app="b" * 16, point=POINT),
    ),
    "app.changed": AppChanged(
        app=APP,
        name="calendar",
        manifest="services: {}\n",
        spec={},
        policy=POLICY,
        desired=Desired.STOPPED,
        secrets={"password": SEALED},
    ),
    "app.changed-2": AppChanged(app=APP, mirrors=("2" * 20, "3" * 20)),
    "app.installed-2": AppInstalled(
        app=APP,
        name="wiki",
        manifest="",
        spec={},
        store=STORE,
        placed=DEVICE,
        key=APP_KEY,
        mirrors=("2" * 20,),
    ),
    "app.key": AppKeyAdded(app=APP, key=APP_KEY),
    "app.images": AppImages(
        app=APP,
        images=(
            ArchivedImage(
                name="docker.io/library/wiki:1.2",
                digest="sha256:" + "0a" * 32,
                arch="x86_64",
                object="9" * 32,
                segments=(Segment(size=64 << 20, hash=KEY), Segment(size=4_096, hash=KEY)),
                sealed_key=SEALED,
                generation=2,
                replaced_ms=1_700_000_000_000,
            ),
        ),
    ),
    "app.moved": AppMoved(app=APP, to=OTHER),
    "app.restore": AppRestoreWished(app=APP, id="7" * 16, point=POINT),
    "app.restored": AppRestored(app=APP, id="7" * 16),
    "app.removed": AppRemoved(app=APP),
    "app.pinned": Pinned(app=APP, point=POINT, keep=False),
    "lease.challenged": Challenged(device=OTHER),
    "lease.answered": Answered(seen=41),
    "lease.took": Took(epochs={APP: 4, "b" * 16: 9}),
    "lease.found": Found(app=APP, epoch=5, owner=OTHER),
    "lease.released": Released(app=APP, epoch=4, clean=True, base=POINT, unhealthy=True),
    "lease.serving": Serving(app=APP, epoch=4),
    "route.added": RouteAdded(name="dav.example.org", app=APP, kind="tcp", service="web", port="http"),
    "route.removed": RouteRemoved(name="dav.example.org"),
    "log.checkpointed": Checkpointed(position=40, state_hash=KEY, store=STORE, key="g/checkpoint/40"),
}


def kind_of(sample: str) -> str:
    return sample.partition("-")[0]


class Fixture:
    """Keys and a state that never change, below which every sample is sealed."""

    def __init__(self) -> None:
        self.keys = DeviceKeys(KEY, KEY[::-1])
        self.group_key = bytes(range(100, 132))
        self.opener = GroupOpener(self.keys, {1: self.group_key})
        author = Device(
            id=self.keys.id,
            name="x",
            member=MEMBER,
            sign_key=self.keys.sign_public,
            box_key=self.keys.box_public,
        )
        self.state = GroupState(
            id="0" * 32,
            generation=1,
            position=41,
            head=KEY,
            recent=(KEY,),
            devices={author.id: author},
            members={MEMBER: Member(id=MEMBER, name="x", role=Role.OWNER, key=KEY)},
            authors={author.id: Author(number=6, hash=KEY)},
            key_checks={"1": key_check(self.group_key)},
        )

    def raw(self, entry: Entry) -> bytes:
        """The sample as this version writes it."""
        return seal_entry(
            entry, state=self.state, keys=self.keys, group_key=self.group_key, entropy=SeededEntropy(2)
        )


def golden(name: str, made: bytes) -> bytes:
    """The file's bytes; written, and the test failed, if there is no such file yet."""
    path = GOLDEN / name
    if not path.exists():
        path.write_bytes(made)
        pytest.fail(f"{path.name} was missing and has been written: look at it and commit it")
    return path.read_bytes()


def test_every_kind_and_every_field_has_a_sample() -> None:
    for kind, body in KINDS.items():
        samples = [entry for name, entry in SAMPLES.items() if kind_of(name) == kind]
        shown = {field for entry in samples for field in canonical.decode(payload_of(entry))["body"]}
        unset = {f.name for f in fields(body)} - shown
        assert not unset, f"{kind}: no sample sets {unset}"


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_the_payload_is_written_as_it_always_was_and_read_back(sample: str) -> None:
    stored = golden(f"{sample}.json", payload_of(SAMPLES[sample]))
    assert payload_of(SAMPLES[sample]) == stored
    value = canonical.decode(stored)
    assert value["kind"] == kind_of(sample)
    assert from_plain(KINDS[kind_of(sample)], value["body"]) == SAMPLES[sample]


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_the_envelope_is_written_as_it_always_was_and_opens(sample: str) -> None:
    fixture, kind = Fixture(), kind_of(sample)
    stored = golden(f"{sample}.entry", fixture.raw(SAMPLES[sample]))
    assert fixture.raw(SAMPLES[sample]) == stored
    opened = fixture.opener.open(stored, fixture.state)
    assert isinstance(opened, Opened)
    assert (opened.kind, opened.header.number, opened.header.position) == (kind, 7, 41)
    assert from_plain(KINDS[kind], opened.body) == SAMPLES[sample]
    assert fold(fixture.state, stored, fixture.opener).authors[fixture.keys.id].number == 7


def test_a_whole_history_still_means_the_same() -> None:
    """Rules of the fold may not change for what was written before; if they must, the kind gets a successor."""
    stored = json.loads(golden("history.json", _history()))
    log = [canonical.unpack(raw) for raw in stored["log"]]
    keys = DeviceKeys.from_bytes(canonical.unpack(stored["device"]))
    opener = GroupOpener(keys, {int(g): canonical.unpack(key) for g, key in stored["group_keys"].items()})
    state = GroupState(id=group_id(log[0]))
    for raw in log:
        state = fold(state, raw, opener)
    # Their words may change, what is skipped may not.
    assert [at for at, _ in state.skips] == [at for at, _ in stored["skips"]]
    assert state_hash(state).hex() == stored["state_hash"]


def _history() -> bytes:
    world = World.founded(seed=11)
    world.join("kitchen", "bob", Role.ADMIN)
    world.join("den", "cat")
    world.install(APP)
    attic, kitchen = world.machines["attic"].id, world.machines["kitchen"].id
    script: list[tuple[str, Entry]] = [
        ("attic", Took(epochs={APP: 1})),
        ("attic", Serving(app=APP, epoch=1)),
        ("den", RouteAdded(name="x.example.org", app=APP)),
        ("attic", RouteAdded(name="x.example.org", app=APP)),
        ("kitchen", Challenged(device=attic)),
        ("kitchen", Took(epochs={APP: 2})),
        ("attic", Answered(seen=3)),
        ("attic", Serving(app=APP, epoch=1)),
        ("kitchen", Released(app=APP, epoch=2, clean=False, unhealthy=True)),
        ("attic", Found(app=APP, epoch=4, owner=attic)),
        ("den", GroupChanged(name="Not allowed")),
        ("kitchen", DeviceUpdated(device=kitchen, arch="x86_64", capacity=7)),
        ("kitchen", Pinned(app=APP, point=POINT)),
    ]
    for author, entry in script:
        world.say(author, entry)
    world.put(b"noise")
    world.put(world.log[3])
    world.remove("den", by="kitchen")
    world.must("kitchen", AppMoved(app=APP, to=kitchen))
    value = {
        "device": canonical.pack(world.machines["attic"].keys.to_bytes()),
        "group_keys": {str(g): canonical.pack(key) for g, key in world.group_keys.items()},
        "log": [canonical.pack(raw) for raw in world.log],
        "skips": [[at, reason] for at, reason in world.state.skips],
        "state_hash": state_hash(world.state).hex(),
    }
    return json.dumps(value, indent=1).encode() + b"\n"


def test_damaged_golden_entries_never_open() -> None:
    """One flipped bit anywhere, in any kind."""
    fixture, rng = Fixture(), random.Random(0)
    for entry in SAMPLES.values():
        raw = bytearray(fixture.raw(entry))
        for _ in range(20):
            at = rng.randrange(len(raw))
            raw[at] ^= 1 << rng.randrange(8)
            assert not isinstance(fixture.opener.open(bytes(raw), fixture.state), Opened)
            raw = bytearray(fixture.raw(entry))
