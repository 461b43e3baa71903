"""SIGKILL of each kind of process, and of any of them at any moment: what runs, runs once, and nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.stack.bed import GUARD, KEEPER, UNDERTAKER, Bed, Device, Ledger, kill, nothing, until
from tests.stack.chaos import Chaos

VICTIMS: dict[str, Callable[[Device, Ledger], list[int]]] = {
    "app": lambda device, ledger: device.app_pids(ledger.id)[-1:],
    "guard": lambda device, ledger: device.named(GUARD),
    "undertaker": lambda device, ledger: device.named(UNDERTAKER),
    "keeper": lambda device, ledger: device.named(KEEPER),
    "guard and undertaker": lambda device, ledger: device.named(GUARD) + device.named(UNDERTAKER),
    "all but the agent": lambda device, ledger: [
        p for p in device.processes() if device.agent is None or p != device.agent.pid
    ],
}


def alive(device: Device, ledger: Ledger, pids: set[int]) -> set[int]:
    """Which of an app's processes still live."""
    return pids.intersection(device.app_pids(ledger.id))


def test_an_app_comes_back_where_it_was_whichever_process_is_killed(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen)
    for what, victims in VICTIMS.items():
        line = ledger.add(kitchen)
        before = set(kitchen.app_pids(ledger.id))
        pids = victims(kitchen, ledger)
        assert pids, f"{what}: nothing to kill"
        for pid in pids:
            kill(pid, signal.SIGKILL)
        nothing(partial(alive, kitchen, ledger, before), 10, f"{what}: the old copy")
        until(lambda: ledger.runs_on(kitchen), 40, f"{what} killed: the app runs again")
        assert line in ledger.lines(kitchen), what
        assert len(set(kitchen.named(GUARD))) == 1, what
        assert len(kitchen.app_pids(ledger.id)) == 1, what
    assert kitchen.app()["epoch"] == 1, "it went nowhere"
    assert not attic.app_pids(ledger.id)
    ledger.never_twice()
    # The new guards hold it as well as the first one did: without its agent it freezes.
    kitchen.signal_agent(signal.SIGSTOP)
    try:
        until(lambda: ledger.frozen(kitchen) or not kitchen.app_pids(ledger.id), 15, "the app is frozen")
    finally:
        kitchen.signal_agent(signal.SIGCONT)


def test_an_agent_that_is_away_for_seconds_disturbs_nothing(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen)
    pids = kitchen.app_pids(ledger.id)
    guard = kitchen.named(GUARD)
    for end in (kitchen.kill_agent, kitchen.kill_agent):
        ledger.add(kitchen)
        end()
        time.sleep(1.0)
        kitchen.start()
        until(lambda: kitchen.app()["health"] == "healthy", 20, "its agent takes it up again")
        assert kitchen.app_pids(ledger.id) == pids, "the app was restarted"
        assert kitchen.named(GUARD) == guard
    time.sleep(6)
    assert kitchen.app_pids(ledger.id) == pids
    for device in (kitchen, attic):
        app = device.app()
        assert (app["device"], app["epoch"]) == ("Kitchen", 1)
    assert ledger.lines(kitchen) == [0, 1]
    # Nor does the death of the whole device, if it is back before anybody takes over.
    kitchen.kill_everything()
    kitchen.start()
    until(lambda: ledger.runs_on(kitchen), 40, "the app runs again where it was")
    assert kitchen.app()["epoch"] == 1
    assert ledger.lines(kitchen) == [0, 1]
    ledger.never_twice()


def test_a_killed_device_is_replaced_and_what_was_not_stored_is_a_branch(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    ledger = bed.install(kitchen, interval=3600)
    ledger.add(kitchen)
    saved = ledger.save(kitchen)
    ledger.add(kitchen)
    kitchen.kill_everything()
    ledger.wait_for(attic)
    assert ledger.lines(attic) == [0]
    ledger.add(attic)
    kitchen.start()
    until(
        lambda: len(ledger.moments(attic, branches=True)) == 1, 40, "what Kitchen had not stored is a branch"
    )
    (branch,) = ledger.moments(attic, branches=True)
    assert ledger.at(attic, branch) == 2
    assert ledger.at(attic, saved) == 1
    assert not kitchen.app_pids(ledger.id)
    ledger.never_twice()


@pytest.mark.timeout(900)
def test_random_processes_killed_at_random_moments(bed: Bed) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "0")) or time.time_ns() % 1_000_000
    print(f"CHAOS_SEED={seed}")
    bed.group("Kitchen", "Attic")
    ledger = bed.install(bed.devices[0], "fast")
    chaos = Chaos(bed, ledger, seed)
    for _ in range(4):
        chaos.round()
        chaos.check(chaos.settle(), restore=1)
    assert chaos.committed, "no snapshot was ever committed: nothing was tested"
    chaos.check(chaos.settle())
