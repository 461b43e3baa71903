"""Starting and ending an agent: one per state folder, a place to write to, and an orderly goodbye."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fractal.api.errors import ExitCode
from tests.stack.bed import Bed, Device, command, until

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def run_agent(device: Device) -> tuple[int, str]:
    """Run one more agent with a device's configuration until it ends; exit code and output."""
    done = subprocess.run(
        [*command(), "--config", str(device.config), "agent", "run"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_second_agent_with_one_state_folder_refuses(bed: Bed) -> None:
    kitchen = bed.device("Kitchen")
    assert kitchen.agent is not None
    code, output = run_agent(kitchen)
    assert code == ExitCode.CONFLICT
    assert str(kitchen.agent.pid) in output
    assert str(kitchen.state) in output
    assert "Traceback" not in output
    assert kitchen.call("agent.status")["pid"] == kitchen.agent.pid, "the first one goes on"
    kitchen.kill_agent()
    kitchen.start()


@pytest.mark.parametrize("what", ["a file", pytest.param("read-only", marks=root)])
def test_an_unusable_state_folder_is_told_in_one_line(bed: Bed, what: str) -> None:
    kitchen = bed.device("Kitchen", start=False)
    if what == "a file":
        kitchen.state.write_text("")
    else:
        bed.mount(kitchen.state, "1m", "ro,mode=700")
    code, output = run_agent(kitchen)
    assert code == ExitCode.FAILED
    assert str(kitchen.state) in output
    assert "Traceback" not in output
    assert not kitchen.processes()


def test_the_end_of_an_agent_hands_its_apps_over_cleanly(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen, interval=3600)
    for _ in range(3):
        ledger.add(kitchen)
    until(lambda: attic.app()["standby"][0]["behind_s"] is not None, 20, "a warm copy")
    ledger.add(kitchen)
    assert kitchen.end_agent() == 0
    assert not kitchen.app_pids(ledger.id), "it stopped the app before it said goodbye"
    ledger.wait_for(attic)
    assert ledger.lines(attic) == [0, 1, 2, 3], "something was lost in an orderly end"
    (release,) = [e for e in attic.entries() if e["kind"] == "lease.released"]
    assert "clean=true" in release["summary"], "the next device had to wait for nothing"
    assert ledger.moments(attic, branches=True) == []
    kitchen.start()
    until(lambda: kitchen.app()["health"] == "healthy", 20, "it is back and knows where the app is")
    assert kitchen.app()["device"] == "Attic"
    assert not kitchen.app_pids(ledger.id)
    ledger.never_twice()


def test_the_end_of_the_only_agent_stores_everything_and_its_next_start_goes_on(bed: Bed) -> None:
    (kitchen,) = bed.group("Kitchen")
    ledger = bed.install(kitchen, interval=3600)
    ledger.add(kitchen)
    ledger.save(kitchen)
    ledger.add(kitchen)
    assert kitchen.end_agent() == 0
    assert not kitchen.app_pids(ledger.id)
    kitchen.start()
    ledger.wait_for(kitchen, 30)
    assert kitchen.app()["epoch"] == 1, "it gave nothing up, as nobody else could take it"
    assert ledger.lines(kitchen) == [0, 1]
    assert ledger.at(kitchen, ledger.moments(kitchen)[-1]) == 2, "the last changes were stored at the end"


def test_a_drained_device_gives_its_apps_away_and_takes_none(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen, interval=3600)
    ledger.add(kitchen)
    attic.run("device", "drain", "Kitchen", "--group", "Group 1", "--wait", "60")
    ledger.wait_for(attic)
    assert ledger.lines(attic) == [0]
    assert not kitchen.app_pids(ledger.id)
    until(lambda: attic.app()["moving_to"] == "", 10, "the move is over")
    epoch = attic.app()["epoch"]
    attic.kill_everything()
    attic.start()
    until(lambda: ledger.runs_on(attic), 40, "Attic keeps it: Kitchen takes nothing")
    kitchen.run("device", "drain", "Kitchen", "--group", "Group 1", "--off")
    attic.run("app", "move", "ledger", "Kitchen", "--group", "Group 1")
    ledger.wait_for(kitchen)
    assert ledger.lines(kitchen) == [0]
    assert epoch == 2
    ledger.never_twice()


@root
def test_a_full_state_folder_is_told_and_recovered_from(bed: Bed) -> None:
    kitchen = bed.device("Kitchen", start=False)
    bed.mount(kitchen.state, "16m", "mode=700")
    kitchen.start()
    bed.found(kitchen)
    ledger = bed.install(kitchen)
    ledger.add(kitchen)
    saved = ledger.save(kitchen)
    ballast = fill(kitchen.state)
    done = kitchen.call("snapshot.create", app="ledger", wait_s=8)
    assert ledger.answers(kitchen), "the app is not stopped for want of room"
    assert done["moment"] in ("", saved)
    ballast.unlink()
    ledger.add(kitchen)
    until(lambda: ledger.save(kitchen) != saved, 40, "snapshots go on when there is room")
    ledger.verify(kitchen)
    assert ledger.at(kitchen, ledger.moments(kitchen)[-1]) == len(ledger.lines(kitchen))
    # The agent starts again from what a full disk left.
    ballast = fill(kitchen.state)
    kitchen.kill_everything()
    ballast.unlink()
    kitchen.start()
    ledger.wait_for(kitchen, 40)
    ledger.lines(kitchen)
    assert saved in ledger.moments(kitchen)


@root
def test_a_full_store_is_told_and_recovered_from(bed: Bed) -> None:
    bed.mount(bed.store, "2m", "mode=700")
    (kitchen,) = bed.group("Kitchen")
    ledger = bed.install(kitchen)
    ledger.add(kitchen)
    saved = ledger.save(kitchen)
    ballast = fill(bed.store)
    ledger.add(kitchen)
    done = kitchen.call("snapshot.create", app="ledger", wait_s=5)
    assert not done["done"], "reported as stored in a full store"
    assert ledger.answers(kitchen)
    agent = kitchen.call("agent.status")["jobs"]["Group 1: ledger"]
    assert "room" in agent or "space" in agent, agent
    ballast.unlink()
    until(lambda: ledger.save(kitchen) != saved, 40, "snapshots go on when there is room")
    ledger.verify(kitchen)
    assert ledger.at(kitchen, ledger.moments(kitchen)[-1]) == 2


def fill(folder: Path) -> Path:
    """Take all the room that is left."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path
