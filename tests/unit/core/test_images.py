"""Which images an app runs, who may say so, and which devices that leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fractal.core.entries import AppImages, AppInstalled, DeviceUpdated, Took
from fractal.core.model import App, ArchivedImage, Role, Segment
from fractal.core.placement import choose, eligible, images_of, refusal, standbys
from fractal.testing.group import World

APP = "a" * 16
SPEC = {"services": [{"name": "web", "image": "wiki:1"}, {"name": "db", "image": "sql:2"}]}
WIKI = ArchivedImage(
    name="wiki:1",
    digest="sha256:" + "1" * 64,
    arch="x86_64",
    object="b" * 32,
    segments=(Segment(size=10, hash=bytes(32)),),
    sealed_key=b"key",
    generation=1,
)
SQL = replace(WIKI, name="sql:2", digest="sha256:" + "2" * 64, object="c" * 32)


def publish(world: World, machine: str, arch: str = "x86_64", *, images: bool = True) -> None:
    runtime = "docker" if images else "process"
    device = world.machines[machine].id
    world.must(machine, DeviceUpdated(device=device, arch=arch, runtime=runtime, images=images))


@pytest.fixture
def world() -> World:
    """Ann's app, which Bob's device owns."""
    world = World.founded()
    world.join("den", "bob", Role.MEMBER)
    publish(world, "attic")
    publish(world, "den")
    entry: AppInstalled = world.installation(APP, store=world.add_store(), placed="den")
    world.must("attic", replace(entry, spec=SPEC))
    world.must("den", Took(epochs={APP: 1}))
    return world


def app(world: World) -> App:
    return world.state.apps[APP]


def names(world: World) -> set[str]:
    return {d.name for d in eligible(world.state, app(world))}


def test_the_owner_brings_the_images(world: World) -> None:
    world.must("den", AppImages(app=APP, images=(WIKI, SQL)))
    assert app(world).pinned_images == {"wiki:1": WIKI, "sql:2": SQL}
    assert images_of(app(world).spec) == ("wiki:1", "sql:2")


def test_nobody_else_who_does_not_manage_the_app_does(world: World) -> None:
    world.join("cellar", "eve", Role.MEMBER)
    assert world.say("cellar", AppImages(app=APP, images=(WIKI,)))
    assert app(world).images == ()


def test_an_owner_that_does_not_manage_the_app_never_exchanges_an_image(world: World) -> None:
    world.must("den", AppImages(app=APP, images=(WIKI, SQL)))
    evil = replace(WIKI, digest="sha256:" + "e" * 64)
    assert world.say("den", AppImages(app=APP, images=(evil, SQL)))
    assert world.say("den", AppImages(app=APP, images=(SQL,)))
    assert world.say("den", AppImages(app=APP, images=(replace(WIKI, replaced_ms=5), evil, SQL)))
    # Sealing the key anew, or bringing another object of the same image, is its duty.
    world.must("den", AppImages(app=APP, images=(replace(WIKI, object="d" * 32, sealed_key=b"new"), SQL)))
    world.must("attic", AppImages(app=APP, images=(evil, SQL)))
    assert app(world).pinned_images["wiki:1"] == evil


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "latest"},
        {"name": "two\nlines"},
        {"name": ""},
        {"arch": "x86 64"},
        {"object": "../../up"},
        {"segments": ()},
        {"segments": (Segment(size=0, hash=bytes(32)),)},
        {"segments": (Segment(size=1, hash=b"short"),)},
        {"generation": 7},
    ],
    ids=str,
)
def test_nonsense_is_refused(world: World, wrong: dict[str, object]) -> None:
    assert world.say("den", AppImages(app=APP, images=(replace(WIKI, **wrong),)))  # type: ignore[arg-type]
    assert world.say("den", AppImages(app=APP, images=(WIKI, WIKI)))
    assert app(world).images == ()


def test_devices_of_another_machine_cannot_take_it_over(world: World) -> None:
    assert names(world) == {"attic", "den"}
    publish(world, "attic", "aarch64")
    assert names(world) == {"attic", "den"}  # nobody knows yet what the images are for
    world.must("den", AppImages(app=APP, images=(WIKI, SQL)))
    assert names(world) == {"den"}
    assert standbys(world.state, app(world)) == ()
    attic = world.state.devices[world.machines["attic"].id]
    assert refusal(world.state, app(world), attic) == "image wiki:1 is for x86_64, and it is aarch64"


def test_devices_whose_runtime_has_no_images_cannot_either(world: World) -> None:
    publish(world, "attic", images=False)
    assert names(world) == {"den"}
    attic = world.state.devices[world.machines["attic"].id]
    assert refusal(world.state, app(world), attic) == "its runtime process runs no container images"
    trusted = [d.id for d in world.state.devices.values()]
    chosen = choose(world.state, spec=SPEC, trusted_devices=trusted, online=dict.fromkeys(trusted, True))
    assert chosen == world.machines["den"].id


def test_a_service_that_runs_without_its_image_needs_none() -> None:
    assert images_of({"services": [{"image": "wiki:1", "process": {"argv": ["wiki"]}}]}) == ()
    assert (
        images_of({"services": "nonsense"})
        == images_of({})
        == images_of({"services": ["x", {"image": 3}]})
        == ()
    )
