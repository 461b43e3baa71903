"""The timers `fast` on real parts: how long a site is away when its device's cable is pulled."""

from __future__ import annotations

import pytest

from tests.stack.real.engines import Docker, Podman
from tests.stack.real.scene import LAPTOP, PI, Scene
from tests.stack.real.sniff import canary
from tests.stack.real.test_scenario import first_is_back
from tests.stack.real.world import World


@pytest.mark.timeout(1800)
def test_a_pulled_cable_with_fast_timers(real: World) -> None:
    """As the stack test has it with `standard`; the bound is what the profile's timers give."""
    scene = Scene(real, timers="fast", homes=((PI, Docker), (LAPTOP, Podman)))
    try:
        scene.set_up()
        scene.give_images(scene.pi)
        scene.install()
        first_is_back(scene, canary())
        scene.watch.never_twice()
    finally:
        print(f"\nMeasured:\n{real.table()}")
