"""Who may do what, as one table. Ann is owner (attic), Bob admin (kitchen), Cat member (den), Dan member (shed)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

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
    Challenged,
    Checkpointed,
    DeviceUpdated,
    Entry,
    Found,
    GroupChanged,
    GroupCreated,
    InvitationEnded,
    Invited,
    MemberRemoved,
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
from fractal.core.model import Desired, DeviceRole, Point, Policy, Role, Source
from fractal.crypto.keys import seal_to
from fractal.crypto.seal import key_check
from fractal.testing.group import World

STORE = "5" * 16
APP = "a" * 16
"""Cat's, owned by den at epoch 1."""
NEW = "b" * 16
ALL = ("attic", "kitchen", "den", "shed")
OWNER = ("attic",)
ADMINS = ("attic", "kitchen")
CATS = ("attic", "kitchen", "den")
"""Who manages what is Cat's."""
DEN = ("den",)


def build() -> World:
    world = World.founded()
    world.join("kitchen", "bob", Role.ADMIN)
    world.join("den", "cat")
    world.join("shed", "dan")
    world.add_store()
    world.install(APP, by="den", placed="den")
    world.must("den", Took(epochs={APP: 1}))
    world.must("den", RouteAdded(name="dav.example.org", app=APP))
    world.must("den", AppRestoreWished(app=APP, id="d" * 16, point=Point(epoch=1, number=1)))
    world.must(
        "den",
        Invited(
            id="e" * 16, verify_key=bytes(32), role=Role.MEMBER, expires_ms=0, member=world.people["cat"].id
        ),
    )
    world.must("attic", StoreAdded(id="6" * 16, name="Spare", backend="directory"))
    return world


def removed_member(world: World, name: str) -> MemberRemoved:
    gone = {m.id for m in world.live() if m.person.name == name}
    left = [m for m in world.live() if m.id not in gone]
    new = world.entropy.bytes(32)
    keys = {
        a.id: world.app_key(2, [m for m in left if m.id in a.keys[-1].sealed])
        for a in world.state.apps.values()
        if gone & set(a.keys[-1].sealed)
    }
    return MemberRemoved(
        member=world.people[name].id,
        generation=2,
        sealed_keys=world.shared(new, left),
        app_keys=keys,
        key_check=key_check(new),
    )


def approval(world: World, author: str, person: str, role: Role) -> Entry:
    """A new device: of a member that is there, else of a new one with that role."""
    owner = world.people.get(person) or world.person(person, role)
    return world.approval(world.machine(f"new {person}", owner), by=author)


def installation(world: World, **policy: str) -> AppInstalled:
    return world.installation(NEW, store=STORE, placed="kitchen", policy=Policy(**policy))  # type: ignore[arg-type]


def update(world: World, device: str, **changes: object) -> DeviceUpdated:
    return replace(DeviceUpdated(device=world.machines[device].id), **changes)  # type: ignore[arg-type]


def invitation(role: Role, member: str = "") -> Invited:
    return Invited(id="f" * 16, verify_key=bytes(32), role=role, expires_ms=0, member=member)


def role(world: World, person: str, new: Role) -> RoleChanged:
    return RoleChanged(member=world.people[person].id, role=new)


def checkpoint(world: World) -> Checkpointed:
    return Checkpointed(position=world.state.position, state_hash=bytes(32), store=STORE, key="k")


def widened(world: World) -> AppKeyAdded:
    """The newest key of Cat's app, sealed to a device that joined later."""
    late = world.join("late", "bob")
    newest = world.state.apps[APP].keys[-1]
    sealed = {late.id: seal_to(late.keys.box_public, b"secret", world.entropy)}
    return AppKeyAdded(app=APP, key=replace(newest, sealed=sealed))


Maker = Callable[[World, str], Entry]

TABLE: list[tuple[str, tuple[str, ...], Maker]] = [
    ("rename the group", ADMINS, lambda w, a: GroupChanged(name="x")),
    ("change timers", ADMINS, lambda w, a: GroupChanged(timers=replace(w.state.timers, beat=1000))),
    ("invite a member", ADMINS, lambda w, a: invitation(Role.MEMBER)),
    ("invite an admin", ADMINS, lambda w, a: invitation(Role.ADMIN)),
    ("invite an owner", OWNER, lambda w, a: invitation(Role.OWNER)),
    ("invite a device of Cat's", CATS, lambda w, a: invitation(Role.MEMBER, w.people["cat"].id)),
    ("invite a device of Ann's", OWNER, lambda w, a: invitation(Role.OWNER, w.people["ann"].id)),
    ("withdraw Cat's invitation", CATS, lambda w, a: InvitationEnded(id="e" * 16)),
    ("admit a member", ADMINS, lambda w, a: approval(w, a, "eve", Role.MEMBER)),
    ("admit an admin", ADMINS, lambda w, a: approval(w, a, "eve", Role.ADMIN)),
    ("admit an owner", OWNER, lambda w, a: approval(w, a, "eve", Role.OWNER)),
    ("let in a device of Cat's", CATS, lambda w, a: approval(w, a, "cat", Role.MEMBER)),
    ("let in a device of Ann's", OWNER, lambda w, a: approval(w, a, "ann", Role.OWNER)),
    ("rename den", CATS, lambda w, a: update(w, "den", name="x")),
    ("give den roles", CATS, lambda w, a: update(w, "den", roles=frozenset({DeviceRole.GATEWAY}))),
    ("drain den", CATS, lambda w, a: update(w, "den", draining=True)),
    ("publish den's contact", DEN, lambda w, a: update(w, "den", contact={"host": "x"})),
    ("publish den's capacity", DEN, lambda w, a: update(w, "den", capacity=5)),
    ("say that den is away", DEN, lambda w, a: update(w, "den", away_until=5)),
    ("drain attic", OWNER, lambda w, a: update(w, "attic", draining=True)),
    ("remove den", CATS, lambda w, a: w.removal("den")[0]),
    ("remove kitchen", ADMINS, lambda w, a: w.removal("kitchen")[0]),
    ("remove Cat", CATS, lambda w, a: removed_member(w, "cat")),
    ("remove Bob", ADMINS, lambda w, a: removed_member(w, "bob")),
    ("remove Ann, the last owner", (), lambda w, a: removed_member(w, "ann")),
    ("make Cat an admin", ADMINS, lambda w, a: role(w, "cat", Role.ADMIN)),
    ("make Cat an owner", OWNER, lambda w, a: role(w, "cat", Role.OWNER)),
    ("make Bob a member", ADMINS, lambda w, a: role(w, "bob", Role.MEMBER)),
    ("make Ann, the last owner, a member", (), lambda w, a: role(w, "ann", Role.MEMBER)),
    ("add a store", ADMINS, lambda w, a: StoreAdded(id="7" * 16, name="x", backend="directory")),
    ("remove a store", ADMINS, lambda w, a: StoreRemoved(id="6" * 16)),
    ("remove a store in use", (), lambda w, a: StoreRemoved(id=STORE)),
    ("install an app", ALL, lambda w, a: installation(w)),
    (
        "install an app that must not move and be frozen",
        (),
        lambda w, a: installation(w, on_isolation="keep"),
    ),
    ("change Cat's app", CATS, lambda w, a: AppChanged(app=APP, desired=Desired.STOPPED)),
    ("pass on the key of Cat's app", ALL, lambda w, a: widened(w)),
    ("make a new key for Cat's app", CATS, lambda w, a: AppKeyAdded(app=APP, key=w.app_key(2))),
    ("bring the images of Cat's app", CATS, lambda w, a: AppImages(app=APP, images=())),
    ("move Cat's app", CATS, lambda w, a: AppMoved(app=APP, to=w.machines["kitchen"].id)),
    (
        "wish Cat's app back",
        CATS,
        lambda w, a: AppRestoreWished(app=APP, id="c" * 16, point=Point(epoch=1, number=1)),
    ),
    ("say that Cat's app was restored", DEN, lambda w, a: AppRestored(app=APP, id="d" * 16)),
    ("remove Cat's app", CATS, lambda w, a: AppRemoved(app=APP)),
    ("pin a moment of Cat's app", CATS, lambda w, a: Pinned(app=APP, point=Point(epoch=1, number=1))),
    (
        "challenge Ann's device",
        ("kitchen", "den", "shed"),
        lambda w, a: Challenged(device=w.machines["attic"].id),
    ),
    ("answer", ALL, lambda w, a: Answered(seen=1)),
    ("take the next epoch of Cat's app", ALL, lambda w, a: Took(epochs={APP: 2})),
    ("announce somebody's epoch", ALL, lambda w, a: Found(app=APP, epoch=2, owner=w.machines["kitchen"].id)),
    ("release Cat's app", DEN, lambda w, a: Released(app=APP, epoch=1, clean=True)),
    ("say that Cat's app serves", DEN, lambda w, a: Serving(app=APP, epoch=1)),
    ("route a name to Cat's app", CATS, lambda w, a: RouteAdded(name="x.example.org", app=APP)),
    ("free a name of Cat's app", CATS, lambda w, a: RouteRemoved(name="dav.example.org")),
    ("state a checkpoint", ADMINS, lambda w, a: checkpoint(w)),
]


@pytest.mark.parametrize(("what", "allowed", "make"), TABLE, ids=[row[0] for row in TABLE])
def test_who_may(what: str, allowed: tuple[str, ...], make: Maker) -> None:
    for author in ALL:
        world = build()
        reason = world.say(author, make(world, author))
        assert (reason == "") == (author in allowed), f"{what} by {author}: {reason or 'was accepted'}"


def test_the_table_has_every_kind() -> None:
    world = build()
    seen = {type(make(build(), "attic")) for _, _, make in TABLE}
    assert seen | {GroupCreated} == set(KINDS.values()), world.state.name


def test_a_device_that_runs_an_app_may_move_it_away() -> None:
    """Draining a device needs no right over what runs there."""
    world = build()
    world.must("shed", Took(epochs={APP: 2}))
    assert world.say("shed", AppMoved(app=APP, to=world.machines["den"].id)) == ""


def test_a_trusted_device_renews_a_key_that_a_removed_device_holds() -> None:
    world = build()
    assert world.say("shed", AppKeyAdded(app=APP, key=world.app_key(2))) != ""
    world.join("cave", "dan")
    newest = world.state.apps[APP].keys[-1]
    cave = world.machines["cave"]
    sealed = {cave.id: seal_to(cave.keys.box_public, b"secret", world.entropy)}
    world.must("den", AppKeyAdded(app=APP, key=replace(newest, sealed=sealed)))
    world.remove("cave", by="shed")
    assert world.state.apps[APP].keys[-1].generation == 1
    world.must("kitchen", AppKeyAdded(app=APP, key=world.app_key(2)))


@pytest.mark.parametrize(
    "name", ["", "UPPER.example.org", "a..b", "x y", "-a.org", "a" * 64 + ".org", ":443", "é.org", "a.org\n"]
)
def test_names_of_routes_are_checked(name: str) -> None:
    assert build().say("den", RouteAdded(name=name, app=APP)) != ""


@pytest.mark.parametrize(
    ("name", "good"), [(":1", True), (":65535", True), (":0", False), (":65536", False), ("443", False)]
)
def test_port_routes(name: str, good: bool) -> None:
    assert (build().say("den", RouteAdded(name=name, app=APP, kind="tcp")) == "") == good


def test_the_first_claim_of_a_name_stands() -> None:
    world = build()
    world.install(NEW, by="shed", placed="shed")
    assert "belongs to another app" in world.say("shed", RouteAdded(name="dav.example.org", app=NEW))
    world.must("den", AppRemoved(app=APP))
    world.must("shed", RouteAdded(name="dav.example.org", app=NEW))


def test_who_a_policy_does_not_trust_gets_no_key() -> None:
    world = build()
    for trust, devices in (("member", ()), ("list", ("den",))):
        listed = tuple(world.machines[d].id for d in devices)
        entry = replace(
            world.installation(NEW, store=STORE, placed="den", policy=Policy(trust=trust, devices=listed)),
            key=world.app_key(1, [world.machines["den"], world.machines["shed"]]),
        )
        assert "not trusted" in world.say("den", entry)
        good = replace(
            entry,
            app=NEW[:-1] + trust[0].replace("m", "d").replace("l", "e"),
            key=world.app_key(1, [world.machines["den"]]),
        )
        assert world.say("den", good) == ""


def test_passing_a_key_on_changes_nothing_else() -> None:
    world = build()
    late = world.join("late", "bob")
    newest = world.state.apps[APP].keys[-1]
    sealed = {late.id: b"for late", world.machines["attic"].id: b"garbage instead"}
    assert "is another" in world.say(
        "shed", AppKeyAdded(app=APP, key=replace(newest, public=bytes(32), sealed=sealed))
    )
    assert world.say("shed", AppKeyAdded(app=APP, key=replace(newest, sealed=sealed))) == ""
    assert world.state.apps[APP].keys == (replace(newest, sealed={**newest.sealed, late.id: b"for late"}),)


def test_only_who_manages_an_app_forks_it() -> None:
    world = build()
    fork = replace(installation(world), source=Source(app=APP, point=Point(epoch=1, number=1)))
    assert "may fork it" in world.say("shed", fork)
    assert "unknown" in world.say(
        "den", replace(fork, source=Source(app="9" * 16, point=Point(epoch=1, number=1)))
    )
    assert world.say("den", fork) == ""


def test_the_device_an_app_is_placed_on_gets_its_key() -> None:
    world = build()
    entry = replace(installation(world), key=world.app_key(1, [world.machines["den"]]))
    assert "placed on" in world.say("den", entry)


def test_routes_go_with_their_app() -> None:
    world = build()
    world.must("den", AppRemoved(app=APP))
    assert not world.state.routes


def test_checkpoints_only_get_newer() -> None:
    world = build()
    world.must("attic", checkpoint(world))
    stated = world.state.checkpoint
    assert stated is not None
    world.must("attic", Answered(seen=1))
    assert world.say("kitchen", replace(checkpoint(world), position=stated.position)) != ""
    assert world.say("kitchen", replace(checkpoint(world), position=world.state.position + 2)) != ""
    assert world.state.checkpoint == stated


def test_a_move_to_where_the_app_is_is_none() -> None:
    world = build()
    world.must("den", AppMoved(app=APP, to=world.machines["kitchen"].id))
    world.must("den", AppMoved(app=APP, to=world.machines["den"].id))
    assert world.state.apps[APP].move_to == ""


def test_the_device_that_runs_an_app_brings_its_certificates_and_no_other_secret() -> None:
    world = build()
    world.must("den", AppChanged(app=APP, secrets={"password": b"p"}))
    certified = AppChanged(app=APP, secrets={"password": b"p", "tls.x.org.key": b"k"})
    assert "only the app's own member" in world.say("shed", certified)
    world.must("shed", Took(epochs={APP: 2}))
    for more in (
        {"secrets": {"tls.x.org.key": b"k"}},
        {"secrets": {"password": b"q", "tls.x.org.key": b"k"}},
        {"secrets": {"password": b"p", "other": b"o"}},
        {"name": "mine"},
        {"desired": Desired.STOPPED},
    ):
        assert world.say("shed", replace(certified, **more)) != ""
    world.must("shed", certified)
    world.must("shed", AppChanged(app=APP, secrets={"password": b"p"}))
