"""An owner that lives, answers, and cannot do what its epoch is for: it must let go by itself, as nobody takes from the living."""

from __future__ import annotations

from bisect import insort
from collections.abc import MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from fractal.archive import layout
from fractal.core.plan import Step
from fractal.sim import faults
from fractal.sim.faults import Fault
from fractal.sim.scene import Scene
from fractal.sim.world import Result, simulate

if TYPE_CHECKING:
    from fractal.sim.machine import Machine
    from fractal.sim.world import World

pytestmark = pytest.mark.timeout(600)
SCENE = Scene(faults_for=330.0, rest=60.0)


def fault(number: int, at: float, kind: str, device: int, seconds: float = 1.0, value: float = 0.5) -> Fault:
    return Fault(number=number, at=at, kind=kind, devices=(device,), seconds=seconds, value=value)


def say(result: Result) -> str:
    return "\n".join([*result.timeline[-120:], *result.violations])


def garbage(world: World, _: Machine, fault: Fault) -> None:
    """Somebody who may create objects in the store fills the names of the bases of epochs to come."""
    for epoch in range(2, 2 + int(fault.seconds)):
        key = layout.base_key(world.group_id, world.apps[0], epoch)
        world.network.objects.by_key[key] = b"garbage"
        insort(world.network.keys, key)


def running(world: World, _: Machine, __: Fault) -> None:
    """Somebody looks whether the app runs."""
    if not world.truth.running(world.apps[0]):
        world.wrong("I5", f"the app does not run {world.why_not(world.apps[0])}")


def told(world: World, _: Machine, __: Fault) -> None:
    """Somebody asks why the app does not run."""
    app = world.apps[0]
    said = [
        m.group.jobs[app].problem() for m in world.machines if m.group is not None and app in m.group.jobs
    ]
    if not any("it got healthy on none of its devices" in text for text in said):
        world.wrong("status", f"nobody says why the app does not run: {said}")


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only these runs do."""
    known = cast("MutableMapping[str, object]", faults.KINDS)
    monkeypatch.setitem(known, "bases are spoilt", garbage)
    monkeypatch.setitem(known, "somebody looks", running)
    monkeypatch.setitem(known, "somebody asks", told)


def test_epochs_whose_base_was_filled_with_garbage_are_left_behind() -> None:
    """The taker tried for ever to read its base, and answered every challenge."""
    script = (fault(0, 40.0, "bases are spoilt", 2, seconds=2.0), fault(1, 60.0, "owner dies", 0, 260.0))
    result = simulate(0, script=script, scene=SCENE)
    assert not result.violations, say(result)
    assert result.counts["epochs"] == 4, say(result)
    assert result.counts["entry: released, unhealthy"] == 0, "no device failed it"
    ((_, took),) = result.takeovers
    assert took < 33.0 + 2 * 33.0, say(result)


def test_a_taker_without_room_lets_another_have_it() -> None:
    """It could not restore the data, and kept the app down for as long as its disk was full. In this seed it is first in rank."""
    script = (
        fault(0, 45.0, "disk full", 2, seconds=280.0, value=0.9),
        fault(1, 60.0, "owner dies", 0, seconds=260.0),
    )
    result = simulate(0, script=script, scene=SCENE)
    assert not result.violations, say(result)
    assert result.counts["entry: released, unhealthy"] == 1, say(result)
    ((_, took),) = result.takeovers
    assert took < 33.0 + 120.0 + 33.0, say(result)


@pytest.mark.parametrize("after", [0.5 * n for n in range(1, 15)])
def test_a_move_as_the_log_dies_leaves_the_app_running(after: float) -> None:
    """The app was stopped, and its release noted, which is final, though nobody could hear of it until the log was back."""
    script = (
        # 1.1 / 997 names the first app and the second device.
        fault(0, 45.0, "move", 2, value=1.1 / 997),
        fault(1, 45.0 + after, "cut off from the log", 0, seconds=100.0),
        fault(2, 85.0 + after, "somebody looks", 2),
        fault(3, 135.0 + after, "somebody looks", 2),
    )
    result = simulate(0, script=script, scene=Scene(faults_for=170.0, rest=60.0))
    assert not result.violations, say(result)


@pytest.mark.parametrize("after", [2.0 * n for n in range(2, 12)])
def test_a_log_that_dies_while_the_last_snapshot_is_stored_does_so_too(after: float) -> None:
    """The store takes seconds for each answer, so that the log dies between the stop and the release."""
    script = (
        fault(0, 44.0, "slow store", 0, seconds=60.0, value=0.1),
        fault(1, 45.0, "move", 2, value=1.1 / 997),
        fault(2, 45.0 + after, "cut off from the log", 0, seconds=120.0),
        fault(3, 115.0 + after, "somebody looks", 2),
        fault(4, 155.0 + after, "somebody looks", 2),
    )
    result = simulate(0, script=script, scene=Scene(faults_for=210.0, rest=60.0))
    assert not result.violations, say(result)


def test_an_app_that_no_device_gets_healthy_is_tried_again_after_a_rest() -> None:
    """All tried it while something was wrong with all of them; it stayed stopped for ever, and nothing said why."""
    sick = [fault(n, 0.5, "app gets sick", n, seconds=900.0, value=0.0) for n in range(3)]
    script = (*sick, fault(3, 500.0, "somebody asks", 0))
    result = simulate(0, script=script, scene=replace(SCENE, faults_for=1000.0, rest=400.0))
    assert not result.violations, say(result)
    assert result.counts["entry: released, unhealthy"] == 3, say(
        result
    )  # not once more at each try of the last
    assert result.counts[f"step: {Step.REST.value}"] >= 1, say(result)
    assert result.counts["entry: Serving"] == 1, say(result)
