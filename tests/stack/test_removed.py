"""A removed device keeps its keys, its data and the store's credentials; the group does without it all the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fractal.core.entries import Answered, AppRemoved, Serving, Took
from fractal.core.model import Point
from tests.stack.bed import Bed, until
from tests.stack.rogue import rogue

SECRET_NAME = "what only those who stayed may know"


def point(moment: str) -> Point:
    """A moment as `snapshot list` shows it."""
    epoch, _, number = moment.partition(".")
    return Point(epoch=int(epoch), number=int(number))


async def test_a_removed_device_can_neither_read_nor_take_nor_write(bed: Bed, tmp_path: Path) -> None:
    kitchen, attic, cellar = bed.group("Kitchen", "Attic", "Cellar")
    ledger = bed.install(attic)
    ledger.add(attic)
    saved = ledger.save(attic)
    attic.kill_everything()
    kitchen.run("device", "remove", "Attic", "--group", "Group 1", "--yes")
    until(lambda: any(ledger.answers(d) for d in (kitchen, cellar)), 40, "its app moves")
    owner = next(d for d in (kitchen, cellar) if ledger.answers(d))
    assert ledger.lines(owner) == [0]
    owner.run("group", "invite", "--group", "Group 1")
    kitchen.run("device", "rename", "Cellar", SECRET_NAME, "--group", "Group 1")
    ledger.add(owner)
    newest = ledger.save(owner)
    epoch = owner.app()["epoch"]
    async with rogue(bed, attic, tmp_path / "rogue") as bad:
        mine = bad.keys.id
        assert not bad.before.devices[mine].removed, "it was away when it was removed"
        # It reads that it is out, and nothing after that.
        await bad.journal.poll(0)
        assert bad.journal.state.left
        assert bad.journal.proof_sent is None, "silence in a log that it cannot read proves nothing to it"
        assert SECRET_NAME not in json.dumps(bad.journal.show(), default=repr)
        assert any(SECRET_NAME in e["summary"] for e in kitchen.entries())
        # The data that was written since is closed to it; what it could read before, it still can.
        assert await bad.can_open(ledger.id, point(saved))
        assert not await bad.can_open(ledger.id, point(newest))
        assert set(bad.app_keys(bad.journal.state, ledger.id)) == {1}
        # What it says counts for nothing, whichever state it pretends to know.
        for state in (bad.before, bad.journal.state):
            for entry in (
                Took(epochs={ledger.id: epoch + 1}),
                Serving(app=ledger.id, epoch=epoch),
                Answered(seen=1),
                AppRemoved(app=ledger.id),
            ):
                await bad.append(entry, state)
        for size in (1, 100, 49_152):
            await bad.append_raw(os.urandom(size))
        position = kitchen.status()["group"]["position"]
        until(lambda: cellar.status()["group"]["position"] >= position, 20, "all have read it")
        for device in (kitchen, cellar):
            assert device.app()["epoch"] == epoch
            assert not device.status()["group"]["alarms"]
        # Its snapshots are nobody's main line, neither under its old epoch nor under a later one.
        moments = ledger.moments(owner)
        await bad.write(ledger.id, 1)
        await bad.write(ledger.id, epoch)
        assert ledger.moments(owner) == moments
        ledger.add(owner)
        assert ledger.save(owner) not in moments, "the owner is not kept from storing"
        # It can still create an epoch, as it can write to the store: it is burnt, and the next one is taken.
        # What it put there beforehand, and into the next one that is not its own, is what nobody starts from.
        await bad.write(ledger.id, epoch + 1)
        await bad.write(ledger.id, epoch + 2)
        await bad.create_epoch(ledger.id, epoch + 1)
        ledger.add(owner)  # so that it looks into the store soon
    until(lambda: kitchen.app()["epoch"] > epoch + 1, 60, "the burnt epoch is taken over")
    until(lambda: any(ledger.answers(d) for d in (kitchen, cellar)), 60, "the app runs")
    owner = next(d for d in (kitchen, cellar) if ledger.answers(d))
    assert ledger.lines(owner)[:3] == [0, 1, 2]
    # Its own agent accepts it: it runs nothing and says why.
    attic.start()
    until(
        lambda: any("removed" in a for a in attic.status()["group"]["alarms"]),
        20,
        "it says that it was removed",
    )
    assert not attic.app_pids(ledger.id)
    ledger.never_twice()
