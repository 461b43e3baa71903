"""A whole agent keeps its app's archive small, shows what it is going to do, and opens moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fractal.agent.local import Local
from fractal.api.errors import Denied, InvalidInput, NotFound
from fractal.archive.thinning import Thinned
from fractal.core.model import Point
from fractal.core.placement import trusted
from fractal.core.retention import HOUR_MS
from fractal.shell.clock import SystemClock
from fractal.testing.agents import Bed, bed

REAL = SystemClock.wall_ms


class Labels:
    """How far the wall clock is put on; only labels follow it."""

    ahead = 0


@pytest.fixture
async def attic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bed]:
    """One device with a group, a store and the app, at the beginning of an hour."""
    Labels.ahead = HOUR_MS - REAL(SystemClock()) % HOUR_MS
    monkeypatch.setattr(SystemClock, "wall_ms", lambda self: REAL(self) + Labels.ahead)
    async with bed(tmp_path) as made:
        await made.start("Attic")
        await made.found("Attic")
        await made.install("Attic", interval_s=3600)
        yield made


async def hours(attic: Bed, count: int, on: str = "Attic") -> list[str]:
    """Let hours pass on the app's device, with two snapshots in each; the moments."""
    root = await attic.job(on).data.root()
    found = []
    for hour in range(count):
        for half in range(2):
            (root / "data" / "word").write_text(f"{hour}.{half}")
            (root / "data" / "bulk").write_bytes(bytes([hour, half]) * 40_000)
            taken = await attic.call(on, "snapshot.create", app="test", wait_s=30)
            assert taken["done"], (
                attic.job(on).saver.problem,
                attic.job(on).trouble,
                attic.job(on).facts.now,
            )
            found.append(str(taken["moment"]))
        Labels.ahead += HOUR_MS
    return found


async def test_an_archive_is_thinned_by_its_policy_and_what_stays_restores(attic: Bed) -> None:
    shown = await attic.call(
        "Attic", "app.policy", app="test", keep_all_s=3600, keep_hourly=3, keep_daily=1, keep_weekly=1
    )
    assert shown["policy"]["keep"] == {"all_s": 3600.0, "hourly": 3, "daily": 1, "weekly": 1, "bytes": 0}
    moments = await hours(attic, 6)
    outlook = await attic.call("Attic", "snapshot.plan", app="test")
    assert "into one" in outlook["merge"]
    assert outlook["kept"][-1] == {**outlook["kept"][-1], "moment": moments[-1], "why": "newest"}
    tried = await attic.call("Attic", "snapshot.prune", app="test", dry_run=True)
    assert tried["dry_run"] and "merge" in tried["plan"][0]["what"]
    before = [s["moment"] for s in (await attic.call("Attic", "snapshot.list", app="test"))["snapshots"]]
    done = await attic.call("Attic", "snapshot.prune", app="test")
    assert done["merged"] >= 1 and done["let_go"] >= 1 and done["removed"] == 0
    listed = [s["moment"] for s in (await attic.call("Attic", "snapshot.list", app="test"))["snapshots"]]
    assert set(listed) < set(before) and moments[-1] in listed
    assert (await attic.call("Attic", "snapshot.verify", app="test", deep=True))["problems"] == []
    gone = next(m for m in moments if m not in listed)
    with pytest.raises(NotFound, match=r"was let go by the app's retention\. Nearest whole snapshots"):
        await attic.call("Attic", "app.restore", app="test", at=gone, wait_s=0)
    # The next look finds nothing more to do; after a day what was let go leaves.
    assert (await attic.call("Attic", "snapshot.prune", app="test", dry_run=True))["plan"] == []
    archive = await attic.job("Attic").data.archive()
    leaving = await archive.leaving()
    assert leaving and (await attic.call("Attic", "snapshot.plan", app="test"))["leaving_bytes"] > 0
    thinning = attic.job("Attic").care.thinning
    removed = await archive.collect(await thinning.rules(), thinning.owns_highest, grace=0.0)
    assert len(removed) == len(leaving)
    for moment in listed:
        opened = await attic.call("Attic", "snapshot.open", app="test", at=moment)
        word = Path(opened["path"]) / "data" / "word"
        if moment in moments:
            number = moments.index(moment)
            assert word.read_text() == f"{number // 2}.{number % 2}"
    assert (await attic.call("Attic", "snapshot.verify", app="test", deep=True))["problems"] == []


async def test_an_opened_moment_stays_while_snapshots_go_on_and_a_restore_can_be_undone(attic: Bed) -> None:
    moments = await hours(attic, 2)
    opened = await attic.call("Attic", "snapshot.open", app="test", at="90 minutes ago")
    path = Path(opened["path"])
    assert opened["moment"] == moments[0] or opened["moment"] == moments[1]
    await hours(attic, 2)
    assert (path / "data" / "word").exists(), "the next snapshots let it alone"
    with pytest.raises(InvalidInput, match="at most a week"):
        await attic.call("Attic", "snapshot.open", app="test", for_s=10**9)
    # What is not stored yet is stored before a restore, so going back again brings it.
    root = await attic.job("Attic").data.root()
    (root / "data" / "word").write_text("the present")
    await attic.call("Attic", "app.restore", app="test", at=moments[0], wait_s=40)
    root = await attic.job("Attic").data.root()
    assert (root / "data" / "word").read_text() == "0.0"
    listed = (await attic.call("Attic", "snapshot.list", app="test"))["snapshots"]
    found = []
    for one in listed:
        then = await attic.call("Attic", "snapshot.open", app="test", at=one["moment"])
        word = Path(then["path"]) / "data" / "word"
        if word.exists() and word.read_text() == "the present":
            found.append(one["moment"])
    assert found
    await attic.call("Attic", "app.restore", app="test", at=found[-1], wait_s=40)
    assert (await attic.job("Attic").data.root() / "data" / "word").read_text() == "the present"


async def test_what_is_pinned_while_a_merge_is_under_way_stays(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attic.call(
        "Attic", "app.policy", app="test", keep_all_s=3600, keep_hourly=1, keep_daily=1, keep_weekly=1
    )
    moments = await hours(attic, 5)
    archive = await attic.job("Attic").data.archive()
    thin = archive.thin

    async def slow(*given: Any) -> Thinned:
        await attic.call("Attic", "snapshot.pin", app="test", at=moments[1])
        return await thin(*given)

    monkeypatch.setattr(archive, "thin", slow)
    done = await attic.call("Attic", "snapshot.prune", app="test")
    assert done["let_go"]
    listed = {s["moment"]: s for s in (await attic.call("Attic", "snapshot.list", app="test"))["snapshots"]}
    assert moments[1] in listed and listed[moments[1]]["pinned"] and moments[2] not in listed


async def test_a_pin_that_arrives_while_a_trim_is_written_wins_at_the_next_look(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attic.call(
        "Attic", "app.policy", app="test", keep_all_s=3600, keep_hourly=1, keep_daily=1, keep_weekly=1
    )
    moments = await hours(attic, 5)
    store = (await attic.at("Attic").store(attic.app("Attic").store)).store
    put, pinned = store.put_new, list[str]()

    async def beside(key: str, data: Any) -> None:
        if "/trim/" in key and not pinned:
            pinned.append(key)
            await attic.call("Attic", "snapshot.pin", app="test", at=moments[1])
        await put(key, data)

    async def listed() -> dict[str, Any]:
        found = (await attic.call("Attic", "snapshot.list", app="test"))["snapshots"]
        return {one["moment"]: one for one in found}

    monkeypatch.setattr(store, "put_new", beside)
    assert (await attic.call("Attic", "snapshot.prune", app="test"))["let_go"]
    assert pinned
    await attic.call("Attic", "snapshot.prune", app="test")
    assert (await listed())[moments[1]]["pinned"]
    opened = await attic.call("Attic", "snapshot.open", app="test", at=moments[1])
    assert (Path(opened["path"]) / "data" / "word").read_text() == "0.1"


async def test_a_snapshot_that_is_just_being_taken_survives_that_older_ones_are_pruned(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hours(attic, 1)
    job = attic.job("Attic")
    snapshotter = job.group.agent.snapshotter
    take = snapshotter.snapshot
    stays: list[bool] = []

    async def beside(volume: str, name: str) -> object:
        taken = await take(volume, name)
        await job.data.prune(keep=set())  # as after storing the one before
        stays.append(name in {s.name for s in await snapshotter.snapshots(volume)})
        return taken

    monkeypatch.setattr(snapshotter, "snapshot", beside)
    (await job.data.root() / "data" / "word").write_text("now")
    assert (await attic.call("Attic", "snapshot.create", app="test", wait_s=10))["done"]
    assert stays == [True]


async def test_pruning_takes_nothing_from_a_restore_that_is_under_way(attic: Bed) -> None:
    moments = await hours(attic, 3)
    data = attic.job("Attic").data
    archive = await data.archive()
    snapshotter = attic.agents["Attic"].snapshotter
    first = moment_named(moments[0])
    data._restoring += 1  # somebody opens the second moment, and its parent just came
    await archive.restore(first, snapshotter=snapshotter, volume=data.volume, name_of=arrived)
    await data.prune(keep=set())
    assert arrived(first) in {s.name for s in await snapshotter.snapshots(data.volume)}
    data._restoring -= 1
    await data.prune(keep=set())
    assert arrived(first) not in {s.name for s in await snapshotter.snapshots(data.volume)}


async def test_an_owner_whose_app_does_not_change_makes_room_all_the_same(attic: Bed) -> None:
    """It fetched a whole chain as it took the app. Nothing is stored next that would make room."""
    moments = await hours(attic, 3)
    data = attic.job("Attic").data
    archive, snapshotter = await data.archive(), attic.agents["Attic"].snapshotter
    first = moment_named(moments[0])
    await archive.restore(first, snapshotter=snapshotter, volume=data.volume, name_of=arrived)
    data.crowded = True
    taken = await attic.call("Attic", "snapshot.create", app="test", wait_s=30)
    assert taken["moment"] == moments[-1], "nothing changed"
    await attic.until(lambda: not data.crowded)
    held = {s.name for s in await snapshotter.snapshots(data.volume)}
    assert arrived(first) not in held and len(held) < len(moments)


async def test_an_origin_keeps_what_its_fork_begins_with_until_the_fork_has_stored_something(
    attic: Bed,
) -> None:
    moments = await hours(attic, 1)
    made = await attic.call("Attic", "app.fork", app="test", name="copy", at=moments[0], wait_s=40)
    assert made["done"]
    copy = next(j for j in attic.at("Attic").jobs.values() if j.app.name == "copy")
    rules = attic.job("Attic").care.thinning.rules
    await attic.until(lambda: copy.facts.now.committed is not None)
    assert moment_named(moments[0]) not in (await rules()).pins
    copy.facts.change(committed=None)  # serving, and its first snapshot still on its way
    assert copy.app.serving == copy.app.epoch and moment_named(moments[0]) in (await rules()).pins


async def test_an_app_is_saved_while_a_restore_is_still_fetching(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = await hours(attic, 1)
    job, arrived = attic.job("Attic"), asyncio.Event()
    hold = job.data.hold

    async def slow(point: Point) -> None:
        await arrived.wait()
        await hold(point)

    monkeypatch.setattr(job.data, "hold", slow)
    await attic.call("Attic", "app.restore", app="test", at=moments[0], wait_s=0)
    (await job.data.root() / "data" / "word").write_text("meanwhile")
    assert (await attic.call("Attic", "snapshot.create", app="test", wait_s=30))["done"]
    assert job.app.restored != (job.app.restore.id if job.app.restore else "")
    arrived.set()
    await attic.until(lambda: job.app.restore is None or job.app.restored == job.app.restore.id)
    assert (await job.data.root() / "data" / "word").read_text() == "0.0"


def moment_named(text: str) -> Point:
    epoch, _, number = text.partition(".")
    return Point(epoch=int(epoch), number=int(number))


def arrived(point: Point) -> str:
    """As a restore names it."""
    return Local().name_of(point)


async def test_a_device_without_the_apps_key_opens_nothing_and_says_who_can(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hours(attic, 1)
    data = attic.job("Attic").data
    held = data.keyring()
    monkeypatch.setattr(data, "keyring", lambda: type(held)(generation=1, public=held.public))
    with pytest.raises(Denied, match=r"open it on one that does \(Attic\)"):
        await attic.call("Attic", "snapshot.open", app="test")


async def test_who_takes_an_app_over_goes_on_merging_from_what_its_copy_brought(attic: Bed) -> None:
    """Neither the warm copy nor the move makes a full record necessary, and the old owner's moments stay openable."""
    await attic.start("Kitchen")
    await attic.join("Kitchen", by="Attic")
    policy = {"keep_all_s": 3600, "keep_hourly": 3, "keep_daily": 1, "keep_weekly": 1}
    await attic.call("Attic", "app.policy", app="test", interval_s=3600, **policy)
    before = await hours(attic, 3)
    await attic.call("Attic", "snapshot.prune", app="test")
    await attic.until(lambda: attic.job("Kitchen").data.fetched == attic.job("Attic").facts.now.committed)
    kitchen = attic.agents["Kitchen"].keys.id  # which may be the first to read that it is trusted
    await attic.until(lambda: trusted(attic.job("Attic").app, kitchen))
    moved = await attic.call("Attic", "app.move", app="test", device="Kitchen", wait_s=60)
    assert moved["done"]
    after = await hours(attic, 3, on="Kitchen")
    # Asked on another device, it is done where the app runs.
    done = await attic.call("Attic", "snapshot.prune", app="test")
    assert done["merged"] >= 2
    timeline = await (await attic.job("Kitchen").data.archive()).timeline()
    fulls = [r.point for r in timeline.counting.values() if r.parent is None]
    assert len(fulls) == 1 and fulls[0].epoch == 1, "only the very first one"
    merges = [r for r in timeline.counting.values() if r.level]
    assert {r.epoch for r in merges} >= {2}
    listed = [x["moment"] for x in (await attic.call("Kitchen", "snapshot.list", app="test"))["snapshots"]]
    assert after[-1] in listed
    for index, moment in enumerate([*before, *after]):
        if moment in listed:
            opened = await attic.call("Attic", "snapshot.open", app="test", at=moment)
            word = (Path(opened["path"]) / "data" / "word").read_text()
            assert word == f"{index % 6 // 2}.{index % 2}"
    assert (await attic.call("Attic", "snapshot.verify", app="test", deep=True))["problems"] == []
