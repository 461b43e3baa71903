"""A whole agent copies its app's archive to further stores, tells how far they are, and heals one store by the other."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fractal.agent.control.names import UnknownName
from fractal.api.errors import BackendError, Conflict, InvalidInput
from fractal.archive.archive import Mirror, Record
from fractal.builtin.directory import DirectoryStore
from fractal.testing.agents import Bed, bed


@pytest.fixture
async def attic(tmp_path: Path) -> AsyncIterator[Bed]:
    """One device with a group, the app, its store and a second one."""
    async with bed(tmp_path) as made:
        await made.start("Attic")
        await made.found("Attic")
        await more(made, "Cellar")
        await made.install("Attic", interval_s=3600, store="Shelf")
        yield made


async def more(made: Bed, name: str) -> Path:
    """One more store."""
    folder = made.folder / name
    folder.mkdir()
    await made.call("Attic", "store.add", name=name, backend="directory", config={"path": str(folder)})
    return folder


def objects(folder: Path, part: str = "") -> dict[str, bytes]:
    """What of apps' archives a store holds, by key, without epochs."""
    found = {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file() and "/." not in str(path)
    }
    return {
        key: path.read_bytes()
        for key, path in found.items()
        if ("/object/" in key or "/record/" in key) and part in key
    }


async def join(made: Bed, name: str) -> None:
    """Let another agent in, and have it trusted with the app."""
    await made.join(name, by="Attic")
    await made.until(lambda: made.agents[name].keys.id in made.app("Attic").keys[-1].sealed)


async def saved(made: Bed, word: str) -> str:
    """Take a snapshot with this word in it."""
    root = await made.job("Attic").data.root()
    (root / "data" / "word").write_text(word)
    taken = await made.call("Attic", "snapshot.create", app="test", wait_s=30)
    assert taken["done"], (made.job("Attic").saver.problem, made.job("Attic").trouble)
    return str(taken["moment"])


def mirror(made: Bed, name: str = "Cellar") -> dict[str, Any]:
    """What status says of a mirror."""
    (app,) = made.at("Attic").status()["apps"]
    found: dict[str, Any] = next(m for m in app["mirrors"] if m["store"] == name)
    return found


def level(made: Bed, name: str = "Cellar") -> Callable[[], bool]:
    def is_level() -> bool:
        return mirror(made, name) == {"store": name, "behind": 0, "since_s": None, "problem": ""}

    return is_level


async def word(made: Bed, moment: str) -> str:
    opened = await made.call("Attic", "snapshot.open", app="test", at=moment)
    return (Path(opened["path"]) / "data" / "word").read_text()


async def forget(made: Bed) -> None:
    """Delete the local snapshots, so that what is opened has to be brought."""
    job, snapshotter = made.job("Attic"), made.agents["Attic"].snapshotter
    for snapshot in await snapshotter.snapshots(job.data.volume):
        await snapshotter.delete(job.data.volume, snapshot.name)


async def test_the_policy_names_mirrors(attic: Bed) -> None:
    tried = await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"], dry_run=True)
    assert [step["what"] for step in tried["plan"]] == ["mirror the archive of test in Cellar"]
    assert attic.app("Attic").mirrors == ()
    shown = await attic.call("Attic", "app.policy", app="test", mirrors=["cellar"])
    assert shown["policy"]["mirrors"] == ["Cellar"]
    assert (await attic.call("Attic", "app.show", app="test"))["policy"]["mirrors"] == ["Cellar"]
    stores = (await attic.call("Attic", "store.list"))["stores"]
    assert [(s["name"], s["apps"], s["mirrors"]) for s in stores] == [
        ("Cellar", [], ["test"]),
        ("Shelf", ["test"], []),
    ]
    with pytest.raises(UnknownName, match="did you mean 'Cellar'"):
        await attic.call("Attic", "app.policy", app="test", mirrors=["Celar"])
    with pytest.raises(InvalidInput, match="is the store of test itself"):
        await attic.call("Attic", "app.policy", app="test", mirrors=["Shelf"])
    with pytest.raises(Conflict, match=r"is a mirror of test.*--no-mirrors"):
        await attic.call("Attic", "store.remove", store="Cellar")
    again = await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    assert again["plan"] == [], "nothing changes"
    await attic.call("Attic", "app.policy", app="test", mirrors=[])
    await attic.call("Attic", "store.remove", store="Cellar")


async def test_a_mirror_is_filled_and_stays_level(attic: Bed) -> None:
    shelf, cellar = attic.folder / "shelf", attic.folder / "Cellar"
    await saved(attic, "before")
    await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    await attic.until(level(attic))
    assert objects(cellar) == objects(shelf) != {}
    assert not list(cellar.rglob("epoch/*"))
    for number in range(3):
        await saved(attic, f"then {number}")
    await attic.until(lambda: objects(cellar) == objects(shelf))
    await attic.until(level(attic))
    shelved = {path.stat().st_ino for path in shelf.rglob("*") if path.is_file()}
    kept = {path.stat().st_ino for path in cellar.rglob("*") if path.is_file()}
    assert not shelved & kept, "a copy that shares its blocks is none"
    spooled = list((attic.folder / "Attic" / "state").rglob("spool/**/to-*/*"))
    assert spooled == [], "nothing of it stays on the device"


async def test_a_mirror_that_hangs_or_fails_delays_no_snapshot_and_is_level_again_after(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    await attic.until(level(attic))
    cellar = str(attic.folder / "Cellar")
    held, fail = asyncio.Event(), True
    real = DirectoryStore.put_new

    async def put_new(self: DirectoryStore, key: str, data: Any) -> None:
        if cellar in str(vars(self)):
            if fail:
                raise BackendError("the cellar is flooded", retryable=True)
            await held.wait()
        await real(self, key, data)

    monkeypatch.setattr(DirectoryStore, "put_new", put_new)
    monkeypatch.setattr("fractal.agent.mirrors.AGAIN", 0.1)
    await saved(attic, "one")
    await attic.until(lambda: "flooded" in mirror(attic)["problem"])
    lag = mirror(attic)
    assert lag["behind"] >= 1 and lag["since_s"] >= 0
    fail = False
    moments = [await saved(attic, f"held {number}") for number in range(3)]
    await attic.until(lambda: mirror(attic)["behind"] >= 3)
    assert attic.note("Attic") == ""
    # A restart of the app goes on as well, and a handover waits for no mirror.
    assert (await attic.call("Attic", "app.restart", app="test", wait_s=40))["done"]
    held.set()
    await attic.until(level(attic))
    assert objects(attic.folder / "Cellar") == objects(attic.folder / "shelf")
    assert len(moments) == 3


async def test_filling_that_takes_long_looks_again_what_there_is_to_copy(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was let go meanwhile would be looked for, in vain and for days."""
    for number in range(3):
        await saved(attic, str(number))
    looks: list[int] = []
    real = Mirror.look

    async def look(self: Mirror) -> list[Record]:
        found = await real(self)
        looks.append(len(found))
        monkeypatch.setattr("fractal.agent.mirrors.COMPARE", 3600.0 if len(looks) > 3 else 0.0)
        return found

    monkeypatch.setattr(Mirror, "look", look)
    await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    await attic.until(level(attic))
    assert len(looks) == 4 and looks[0] >= 3
    assert objects(attic.folder / "Cellar") == objects(attic.folder / "shelf")


async def test_a_move_waits_for_no_mirror(attic: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    await attic.start("Barn")
    await join(attic, "Barn")
    cellar, held = str(attic.folder / "Cellar"), asyncio.Event()
    real = DirectoryStore.put_new

    async def put_new(self: DirectoryStore, key: str, data: Any) -> None:
        if cellar in str(vars(self)):
            await held.wait()
        await real(self, key, data)

    monkeypatch.setattr(DirectoryStore, "put_new", put_new)
    await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    await attic.until(lambda: mirror(attic)["behind"])
    assert (await attic.call("Attic", "app.move", app="test", device="Barn", wait_s=60))["done"]
    assert attic.app("Barn").owner == attic.at("Barn").me and not held.is_set()
    assert not objects(attic.folder / "Cellar")
    held.set()
    await attic.until(lambda: objects(attic.folder / "Cellar") == objects(attic.folder / "shelf"))


async def test_how_long_it_is_behind_is_known_over_restarts_and_told_by_doctor(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal.agent.control.doctor.MIRROR_LATE", 0.5)
    shutil.rmtree(attic.folder / "Cellar")
    (attic.folder / "Cellar").write_text("no folder")
    await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    await attic.until(lambda: mirror(attic)["problem"])
    assert mirror(attic)["behind"] is None
    await asyncio.sleep(1.0)
    before = mirror(attic)["since_s"]
    await attic.stop("Attic")
    await attic.start("Attic")
    await attic.until(lambda: mirror(attic)["since_s"] is not None and mirror(attic)["problem"])
    assert mirror(attic)["since_s"] >= before >= 1.0
    findings = (await attic.call("Attic", "doctor.run"))["findings"]
    (found,) = [f for f in findings if "mirror Cellar of test" in f["what"]]
    assert "was not compared" in found["what"] and "store check" in found["remedy"] and not found["severe"]
    status = attic.at("Attic").status()
    assert not any("Cellar" in alarm for alarm in status["group"]["alarms"])
    (attic.folder / "Cellar").unlink()
    (attic.folder / "Cellar").mkdir()


async def test_every_moment_opens_though_the_store_lost_all_segments_and_it_heals(attic: Bed) -> None:
    shelf, cellar = attic.folder / "shelf", attic.folder / "Cellar"
    await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    moments = {await saved(attic, text): text for text in ("one", "two", "three")}
    await attic.until(lambda: objects(cellar) == objects(shelf) and level(attic)())
    before = objects(shelf)
    for key in objects(shelf, "/object/"):
        (shelf / key).unlink()
    lost = min(objects(shelf, "/record/"))
    (shelf / lost).unlink()
    await forget(attic)
    for moment, text in moments.items():
        assert await word(attic, moment) == text
    report = await attic.call("Attic", "snapshot.verify", app="test", deep=True)
    assert report["problems"] and all("store Cellar has it" in p["what"] for p in report["problems"])
    tried = await attic.call("Attic", "snapshot.repair", app="test", dry_run=True)
    assert all("in store Shelf" in step["what"] for step in tried["plan"])
    done = await attic.call("Attic", "snapshot.repair", app="test", deep=True)
    assert done["left"] == []
    assert objects(shelf) == before
    assert (await attic.call("Attic", "snapshot.verify", app="test", deep=True))["problems"] == []


async def test_upkeep_heals_without_being_asked_and_says_when_all_is_well(attic: Bed) -> None:
    shelf, cellar = attic.folder / "shelf", attic.folder / "Cellar"
    await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    await saved(attic, "one")
    await attic.until(lambda: objects(cellar) == objects(shelf) and level(attic)())
    before = objects(shelf)
    for key in objects(shelf, "/object/"):
        (shelf / key).unlink()
    care = attic.job("Attic").care
    care._note(verified_ms=0)
    await care.look()
    assert objects(shelf) == before
    await care.look()
    assert care.problem == "" and care.found.problems == 0


async def test_a_mirror_that_rotted_is_healed_by_a_deep_repair(attic: Bed) -> None:
    shelf, cellar = attic.folder / "shelf", attic.folder / "Cellar"
    await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    await saved(attic, "one")
    await attic.until(lambda: objects(cellar) == objects(shelf) and level(attic)())
    key = min(objects(cellar, "/object/"))
    (cellar / key).chmod(0o600)
    (cellar / key).write_bytes(bytes(len((cellar / key).read_bytes())))
    done = await attic.call("Attic", "snapshot.repair", app="test", deep=True)
    named = key.removeprefix("objects/").removesuffix("=")
    assert [(m["object"], m["store"], m["source"]) for m in done["mended"]] == [(named, "Cellar", "Shelf")]
    assert objects(cellar) == objects(shelf)
    assert (await attic.call("Attic", "snapshot.repair", app="test", deep=True))["plan"] == []


async def test_without_mirrors_there_is_nothing_to_repair_from(attic: Bed) -> None:
    with pytest.raises(InvalidInput, match=r"has no mirror.*--mirror STORE"):
        await attic.call("Attic", "snapshot.repair", app="test")


async def test_another_device_knows_the_mirrors_and_fills_them_once_it_owns_the_app(attic: Bed) -> None:
    await attic.start("Barn")
    await join(attic, "Barn")
    await attic.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    await attic.until(level(attic))

    def told() -> list[Any]:
        return [app["mirrors"] for app in attic.at("Barn").status()["apps"]]

    await attic.until(lambda: told() and told()[0] and told()[0][0]["behind"] == 0)
    assert (await attic.call("Attic", "app.move", app="test", device="Barn", wait_s=60))["done"]
    shelf, cellar = attic.folder / "shelf", attic.folder / "Cellar"
    taken = await attic.call("Barn", "snapshot.create", app="test", wait_s=30)
    assert taken["done"]
    await attic.until(lambda: attic.job("Barn").mirrors.copies and objects(cellar) == objects(shelf))
    await attic.until(lambda: not attic.job("Attic").mirrors.copies)
    # Asked for on the device that does not own it, the owner repairs.
    for key in objects(shelf, "/object/"):
        (shelf / key).unlink()
    done = await attic.call("Attic", "snapshot.repair", app="test")
    assert done["mended"] and objects(cellar) == objects(shelf)
