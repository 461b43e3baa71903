"""The least of the real stack: one app in a container, two devices with Docker and btrfs, one of which dies."""

from __future__ import annotations

import json
import time

import pytest

from tests.stack.bed import until
from tests.stack.real.device import Device
from tests.stack.real.engines import Docker
from tests.stack.real.small import IMAGE, SETTINGS, Notebook, image
from tests.stack.real.world import World, takeover_bound

APP_START = 20
"""Seconds that a machine with all of this on it may take to start busybox."""


def local_log(world: World) -> str:
    """A log that all machines share as a file."""
    path = world.shared / "log.sqlite"
    return f'[coordination]\nbackend = "sqlite"\n[coordination.sqlite]\npath = {json.dumps(str(path))}\n'


def pair(world: World) -> tuple[Device, Device]:
    """Two devices in a group, with the image in their engines."""
    log = local_log(world)
    devices = [world.host(name, Docker, log) for name in ("Pi", "Attic")]
    archive = image(world.folder)
    for device in devices:
        assert device.engine is not None
        device.engine.load(archive, IMAGE, SETTINGS)
        device.start_agent()
    world.found(devices[0], ["directory", f"path={world.shared / 'store'}"], timers="fast")
    world.join(devices[0], devices[1])
    return devices[0], devices[1]


@pytest.mark.timeout(300)
def test_a_device_that_loses_power_is_replaced_and_comes_back_without_a_second_copy(real: World) -> None:
    pi, attic = pair(real)
    app = Notebook.install(real, pi)
    watch = real.watch(pi, attic)
    assert app.add(pi) == 0
    pi.save(app.name)
    assert app.add(pi) == 1
    real.say("power off")
    died = time.monotonic()
    pi.power_off()
    took = app.wait_for(attic, takeover_bound("fast") + APP_START)
    real.figure(
        "power off -> runs elsewhere", f"{took:.1f} s", f"<= {takeover_bound('fast'):.0f} s + its start"
    )
    assert app.lines(attic) == [0], "what was stored, and no more"
    assert app.add(attic) == 1
    started = watch.started(attic.name, died)
    assert started is not None
    assert started - died <= takeover_bound("fast") + APP_START
    real.say("power on")
    pi.power_on()
    until(lambda: len(attic.moments(app.name, branches=True)) == 1, 60, "what Pi had not stored is a branch")
    assert app.at(attic, attic.moments(app.name, branches=True)[0]) == 2
    assert attic.app(app.name)["epoch"] == 2
    assert not pi.runs_of_apps()
    assert app.lines(attic) == [0, 1]
    watch.never_twice()
    print(real.table())
