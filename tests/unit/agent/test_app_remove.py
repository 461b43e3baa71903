"""Removing an app loses nothing that it wrote, and its archive can be read afterwards."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.agent.app_job import AppJob
from fractal.api.errors import BackendError, Conflict, NotFound, Unreachable
from fractal.shell.clock import SystemClock
from fractal.testing.agents import Bed, bed, manifest

WRITTEN = bytes(range(256)) * 80
"""20 kB that no snapshot holds yet."""


@pytest.fixture
async def attic(tmp_path: Path) -> AsyncIterator[Bed]:
    """One device with the app running, which is saved once an hour."""
    async with bed(tmp_path) as made:
        await made.start("Attic")
        await made.found("Attic")
        await made.install("Attic", interval_s=3600)
        await made.until(lambda: made.job("Attic").facts.now.committed is not None)
        yield made


async def write(attic: Bed) -> Path:
    """Something that the app wrote a moment ago; the file."""
    path = await attic.job("Attic").data.root() / "data" / "written"
    path.write_bytes(WRITTEN)
    return path


async def copied(attic: Bed, app: str = "test") -> bytes:
    """What the newest moment of an app holds of it."""
    opened = await attic.call("Attic", "snapshot.open", app=app)
    return (Path(str(opened["path"])) / "data" / "written").read_bytes()


async def test_what_was_written_since_the_last_snapshot_is_stored_before_an_app_goes(attic: Bed) -> None:
    path = await write(attic)
    gone = attic.app("Attic").id
    before = (await attic.call("Attic", "snapshot.list", app="test"))["snapshots"]
    dry = await attic.call("Attic", "app.remove", app="test", dry_run=True)
    assert any("last snapshot in Shelf" in step["what"] for step in dry["plan"])
    assert (await attic.call("Attic", "app.remove", app="test", wait_s=40))["done"]
    await attic.until(lambda: gone not in attic.at("Attic").jobs)
    assert not path.exists()
    after = (await attic.call("Attic", "snapshot.list", app="test"))["snapshots"]
    assert len(after) == len(before) + 1 and not any(s["branch"] for s in after)
    assert await copied(attic) == WRITTEN
    listed = await attic.call("Attic", "app.list")
    assert listed["apps"] == [] and [a["name"] for a in listed["removed"]] == ["test"]


async def test_an_app_that_was_removed_can_be_forked_by_name_or_id(attic: Bed) -> None:
    await write(attic)
    gone = attic.app("Attic").id
    await attic.call("Attic", "app.remove", app="test", wait_s=40)
    fork = await attic.call("Attic", "app.fork", app=gone[:8], name="again", wait_s=40)
    assert fork["done"]
    group = attic.at("Attic")
    root = await group.jobs[str(fork["app"])].data.root()
    assert (root / "data" / "written").read_bytes() == WRITTEN
    # A living app of that name is the one that is meant.
    await attic.call("Attic", "app.update", app="again", name="test", wait_s=0)
    assert attic.at("Attic").state.apps[gone].removed
    forked = (await attic.call("Attic", "snapshot.list", app="test"))["snapshots"]
    removed = (await attic.call("Attic", "snapshot.list", app=gone))["snapshots"]
    assert {s["moment"] for s in removed} and forked != removed
    with pytest.raises(NotFound):
        await attic.call("Attic", "app.stop", app=gone)


async def test_an_app_whose_last_snapshot_cannot_be_stored_is_not_removed(attic: Bed, tmp_path: Path) -> None:
    path = await write(attic)
    (tmp_path / "shelf").rename(tmp_path / "away")
    with pytest.raises(BackendError, match=r"is not removed: its last snapshot .*--force"):
        await attic.call("Attic", "app.remove", app="test", wait_s=3)
    assert not attic.app("Attic").removed and path.read_bytes() == WRITTEN
    with pytest.raises(Conflict, match="is not removed"):
        await attic.call("Attic", "app.remove", app="test", discard=True)

    # Forced out, it leaves behind what no store has, and says so until that is stored.
    gone = attic.app("Attic").id
    await attic.call("Attic", "app.remove", app="test", force=True, wait_s=20)
    group = attic.at("Attic")
    await attic.until(lambda: group.jobs[gone].facts.now.root == 0 and group.jobs[gone].facts.now.queue)
    await attic.until(lambda: any("test was removed" in a for a in group.status()["group"]["alarms"]))
    await attic.stop("Attic")
    await attic.start("Attic")
    await attic.until(lambda: gone in attic.at("Attic").jobs)
    await SystemClock().sleep(2)
    assert attic.at("Attic").jobs[gone].facts.now.queue
    await attic.stop("Attic")
    shutil.rmtree(tmp_path / "shelf")  # the mount point, as it were
    (tmp_path / "away").rename(tmp_path / "shelf")
    await attic.start("Attic")
    await attic.until(lambda: not AppJob.left_here(attic.at("Attic"), gone))
    assert await copied(attic) == WRITTEN


async def test_what_cannot_be_stored_of_a_removed_app_is_given_up_by_a_person(
    attic: Bed, tmp_path: Path
) -> None:
    await write(attic)
    gone, volume = attic.app("Attic").id, attic.job("Attic").data.volume
    (tmp_path / "shelf").rename(tmp_path / "away")
    await attic.call("Attic", "app.remove", app="test", force=True, wait_s=20)
    group = attic.at("Attic")
    await attic.until(lambda: group.jobs[gone].facts.now.root == 0 and group.jobs[gone].facts.now.queue)
    assert (await attic.call("Attic", "app.remove", app=gone, discard=True, wait_s=20))["done"]
    assert not await attic.agents["Attic"].snapshotter.snapshots(volume)
    with pytest.raises(NotFound, match="nothing of test waits"):
        await attic.call("Attic", "app.remove", app=gone, discard=True)


async def test_the_app_of_another_device_is_removed_whole_and_that_of_a_silent_one_only_by_force(
    attic: Bed,
) -> None:
    await attic.start("Kitchen")
    await attic.join("Kitchen", by="Attic")
    await attic.until(lambda: attic.at("Kitchen").online(attic.agents["Attic"].keys.id))
    wanted = {"manifest": manifest(), "name": "other", "device": "Attic", "interval_s": 3600, "wait_s": 40}
    assert (await attic.call("Kitchen", "app.install", **wanted))["done"]
    other = next(a.id for a in attic.at("Kitchen").state.apps.values() if a.name == "other")
    root = await attic.at("Attic").jobs[other].data.root()
    (root / "data" / "written").write_bytes(WRITTEN)
    assert (await attic.call("Kitchen", "app.remove", app="other", wait_s=40))["done"]
    await attic.until(lambda: attic.at("Attic").state.apps[other].removed)
    assert await copied(attic, "other") == WRITTEN

    gone = attic.agents["Attic"].keys.id
    await attic.stop("Attic")
    await attic.until(lambda: not attic.at("Kitchen").online(gone))
    with pytest.raises(Unreachable, match=r"Attic, which is silent: what it wrote .*--force"):
        await attic.call("Kitchen", "app.remove", app="test")
    dry = await attic.call("Kitchen", "app.remove", app="test", force=True, dry_run=True)
    assert "may be lost, unless Attic" in dry["plan"][0]["what"]
