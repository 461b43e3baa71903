"""Apps that misbehave: never healthy, forking, deaf to SIGTERM."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.stack.bed import Bed, Device, kill, nothing, state_of, until

ALTERED = Path(__file__).with_name("altered")


def altered(name: str) -> dict[str, str]:
    """The environment of an agent that is altered by a `sitecustomize`."""
    return {"PYTHONPATH": os.pathsep.join([str(ALTERED / name), os.environ.get("PYTHONPATH", "")])}


def test_an_app_that_never_gets_healthy_tours_the_devices_once(bed: Bed) -> None:
    devices = [bed.device(name, env=altered("quick_to_give_up")) for name in ("Kitchen", "Attic")]
    kitchen, attic = devices
    bed.found(kitchen)
    bed.join(kitchen, attic)
    ledger = bed.install(kitchen, "ill", wait=0)

    def stays_stopped() -> bool:
        app = kitchen.app()
        return "does not get healthy on any device" in app["note"] and not any(
            d.app_pids(ledger.id) for d in devices
        )

    until(stays_stopped, 90, "it was tried everywhere and stays stopped, with an alarm")
    epoch = kitchen.app()["epoch"]
    assert {name for _, name in ledger.watch.starts} == {"Kitchen", "Attic"}, "each device tried it"
    assert epoch <= 3, "once each, and the best rank keeps it"
    began = len(ledger.watch.starts)
    time.sleep(8)
    assert kitchen.app()["epoch"] == attic.app()["epoch"] == epoch, "it tours again"
    assert len(ledger.watch.starts) == began, "it was started again"
    assert attic.app()["note"] == kitchen.app()["note"], "every device tells"
    attic.run("app", "restart", "ledger", "--group", "Group 1", "--wait", "0")
    until(lambda: len(ledger.watch.starts) > began, 20, "it is tried again when somebody says so")
    ledger.never_twice()


@pytest.fixture
def forking(bed: Bed) -> tuple[Bed, Device, Device]:
    """Two devices."""
    kitchen, attic = bed.group("Kitchen", "Attic")
    return bed, kitchen, attic


def test_daemons_that_an_app_forks_are_frozen_moved_and_killed_with_it(
    forking: tuple[Bed, Device, Device],
) -> None:
    bed, kitchen, attic = forking
    ledger = bed.install(kitchen, "forks", "stubborn")
    until(lambda: len(kitchen.app_pids(ledger.id)) == 3, 10, "the app and two daemons")
    ledger.add(kitchen)
    pids = kitchen.app_pids(ledger.id)
    kitchen.signal_agent(signal.SIGSTOP)
    try:
        until(lambda: ledger.frozen(kitchen), 15, "the guard freezes daemons too")
    finally:
        kitchen.signal_agent(signal.SIGCONT)
    until(
        lambda: not ledger.frozen(kitchen) or not kitchen.app_pids(ledger.id),
        30,
        "its right was proved again",
    )
    until(lambda: any(ledger.runs_on(d) for d in (kitchen, attic)), 40, "it runs")
    owner, other = (kitchen, attic) if kitchen.app()["device"] == "Kitchen" else (attic, kitchen)
    if owner is attic:
        assert not any(state_of(pid) for pid in pids), "daemons of a replaced copy live on"
    owner.run("app", "move", "ledger", other.name, "--group", "Group 1", timeout=120)
    ledger.wait_for(other)
    assert not owner.app_pids(ledger.id), "a stubborn daemon was left behind"
    assert ledger.lines(other) == [0]
    until(lambda: len(other.app_pids(ledger.id)) == 3, 10, "the app and two daemons")
    other.run("app", "stop", "ledger", "--group", "Group 1")
    until(lambda: not other.app_pids(ledger.id), 20, "all stopped")
    ledger.never_twice()


def test_an_app_that_dies_at_once_is_started_again_ever_more_slowly(bed: Bed) -> None:
    (kitchen,) = bed.group("Kitchen")
    ledger = bed.install(kitchen)
    for _ in range(3):
        old = kitchen.app_pids(ledger.id)
        kill(old[0], signal.SIGKILL)
        nothing(lambda: set(old) & set(kitchen.app_pids(ledger.id)), 10, "the old copy")  # noqa: B023 - not kept
        until(lambda: ledger.answers(kitchen), 30, "restarted")
    assert ledger.lines(kitchen) == []
