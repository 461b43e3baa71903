"""What an epoch holds that nobody owned by the log is no base, however well its objects are signed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from fractal.agent.app_data import AppData
from fractal.core.chain import EMPTY
from fractal.core.model import App, Point, Timers
from fractal.testing.archive_world import APP, GROUP, World

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob

TIMERS = Timers()


@pytest.mark.parametrize("with_base", [False, True])
async def test_a_taker_does_not_start_from_what_a_removed_device_put_into_a_burnt_epoch(
    tmp_path: Path, with_base: bool
) -> None:
    """Attic owned epoch 1. Shed, which was removed, creates 2 and 3 and stores something. Kitchen takes 4."""
    world = World(tmp_path)
    attic, shed, kitchen = world.device("Attic"), world.device("Shed"), world.device("Kitchen")
    kitchen.checks_owners = True
    kitchen.restart()
    await attic.epochs.create(APP, 1, TIMERS)
    one = await attic.save(1, "t-1", {"a": b"good"}, None)
    bases = {1: EMPTY}
    for epoch in (2, 3):
        await shed.epochs.create(APP, epoch, TIMERS)
        if with_base:
            bases[epoch] = await shed.epochs.create_base(APP, epoch, EMPTY)
        await shed.save(epoch, f"evil-{epoch}", {"a": b"evil"}, None)
    await kitchen.epochs.create(APP, 4, TIMERS)

    async def archive() -> object:
        return kitchen.archive

    async def found() -> dict[int, Point]:
        return bases

    app = App(id=APP, name="ledger", manifest="", spec={}, store="s", owner_member="m", epoch=4)
    job = SimpleNamespace(app=app, id=APP)
    data = AppData(cast("AppJob", job))
    changed = cast("Any", data)
    changed.archive, changed.bases = archive, found
    job.app = replace(app, unowned=((2, 3),))
    assert await data.look() == one
    # Without a word of the log, what is signed by its creator counts.
    job.app = app
    assert await data.look() == Point(epoch=3, number=1)


async def test_bases_of_epochs_that_nobody_owned_are_not_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    attic, shed = world.device("Attic"), world.device("Shed")
    await attic.epochs.create(APP, 1, TIMERS)
    await attic.epochs.create_base(APP, 1, EMPTY)
    for epoch in range(2, 100):
        world.objects[f"{GROUP}/epoch/{APP}/{epoch}"] = b"garbage"
    for epoch in range(100, 200):
        await shed.epochs.create(APP, epoch, TIMERS)
        await shed.epochs.create_base(APP, epoch, EMPTY)
    await attic.epochs.create(APP, 200, TIMERS)
    opened = SimpleNamespace(epochs=attic.epochs, listed=await attic.epochs.listing())

    async def store(_: str) -> object:
        return opened

    app = App(id=APP, name="ledger", manifest="", spec={}, store="s", owner_member="m", epoch=200)
    job = SimpleNamespace(app=replace(app, unowned=((2, 199),)), id=APP, group=SimpleNamespace(store=store))
    world.store.gets.clear()
    assert await AppData(cast("AppJob", job)).bases() == {1: EMPTY}
    assert [key for key in world.store.gets if "base" in key] == [
        f"{GROUP}/epoch/{APP}/{epoch}/base" for epoch in (200,)
    ]
