"""The store, the log or both go away and come back: docs/explanation/failover.md says what happens to the apps."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.stack.bed import Bed, Device, nothing, until


def alarms(device: Device) -> list[str]:
    """What a device says is wrong with the group."""
    found: list[str] = device.status()["group"]["alarms"]
    return found


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """The folder is not there for a while."""
    hidden = folder.with_name(folder.name + ".away")
    folder.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(folder)


def test_without_its_store_an_app_runs_on_and_stores_everything_later(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen)
    ledger.add(kitchen)
    ledger.save(kitchen)
    pids = kitchen.app_pids(ledger.id)
    with away(bed.store):
        begin = time.monotonic()
        ledger.add(kitchen)
        done = kitchen.call("snapshot.create", app="ledger", wait_s=3)
        assert not done["done"], "a snapshot that no store has was reported as committed"
        ledger.add(kitchen)
        kitchen.call("snapshot.create", app="ledger", wait_s=1)
        time.sleep(8)
        gone = time.monotonic() - begin
        here, there = kitchen.app(), attic.app()
        assert here["health"] == "healthy" and not here["frozen"]
        assert here["would_lose_s"] >= gone - 0.5, "would-lose is smaller than the truth"
        assert there["would_lose_s"] >= gone - 3, "nor may it be on another device"
        for app in (here, there):
            assert str(bed.store) in app["note"], "status says why, on every device"
        assert not bed.store.exists(), "an agent made a store where none was"
    until(lambda: kitchen.app()["would_lose_s"] < gone, 40, "everything was stored when the store came back")
    assert len(ledger.moments(attic)) >= 3
    ledger.verify(attic)
    assert ledger.at(kitchen, ledger.moments(kitchen)[-1]) == 3
    assert kitchen.app_pids(ledger.id) == pids, "the app was disturbed"
    assert kitchen.app()["epoch"] == 1


def test_without_the_log_an_owner_runs_on_by_its_store(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen)
    pids = kitchen.app_pids(ledger.id)
    with away(bed.log):
        time.sleep(12)
        assert ledger.answers(kitchen), "frozen although the store proves its right"
        for device in (kitchen, attic):
            assert any("log" in alarm for alarm in device.status()["group"]["alarms"]), device.name
        ledger.add(kitchen)
        ledger.save(kitchen)
    for device in (kitchen, attic):
        nothing(partial(alarms, device), 30, f"{device.name} reads the log again")
    time.sleep(6)
    assert kitchen.app_pids(ledger.id) == pids, "the app was disturbed"
    assert attic.app()["epoch"] == 1
    ledger.never_twice()


def test_without_log_and_store_an_app_freezes_and_is_thawed(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen)
    ledger.add(kitchen)
    pids = kitchen.app_pids(ledger.id)
    with away(bed.log), away(bed.store):
        until(lambda: ledger.frozen(kitchen), 15, "the app freezes when its proof runs out")
        until(lambda: bool(kitchen.app()["frozen"]), 5, "status says so")
        time.sleep(2)
        assert ledger.frozen(kitchen)
        assert not attic.app_pids(ledger.id)
    until(lambda: ledger.runs_on(kitchen), 30, "and is thawed")
    assert kitchen.app_pids(ledger.id) == pids, "thawed, not restarted"
    assert ledger.lines(kitchen) == [0]
    ledger.never_twice()


def test_an_owner_that_dies_while_the_store_is_away_is_replaced_when_it_is_back(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen)
    ledger.add(kitchen)
    saved = ledger.save(kitchen)
    with away(bed.store):
        kitchen.kill_everything()
        time.sleep(12)
        assert not attic.app_pids(ledger.id), "started without the lock"
    ledger.wait_for(attic)
    assert ledger.lines(attic) == [0]
    assert saved in ledger.moments(attic)
    ledger.never_twice()


def test_an_empty_folder_where_the_store_was_is_not_taken_for_it(bed: Bed) -> None:
    """A disk that is not mounted leaves its empty mount point."""
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen)
    ledger.add(kitchen)
    saved = ledger.save(kitchen)
    pids = kitchen.app_pids(ledger.id)
    with away(bed.store):
        bed.store.mkdir()
        kitchen.kill_agent()
        kitchen.start()
        until(lambda: kitchen.app()["health"] == "healthy", 20, "the log proves enough")
        ledger.add(kitchen)
        done = kitchen.call("snapshot.create", app="ledger", wait_s=6)
        assert not done["done"], "reported as committed in a store that has none of its epochs"
        shutil.rmtree(bed.store)  # what was written below the mount point
    until(lambda: not kitchen.status()["group"]["alarms"], 30, "the store is back")
    ledger.save(kitchen)
    assert ledger.at(kitchen, ledger.moments(attic)[-1]) == 2
    assert saved in ledger.moments(kitchen)
    assert kitchen.app_pids(ledger.id) == pids
    ledger.verify(kitchen)
