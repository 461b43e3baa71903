"""Gateway and device lose power and come back: the same tunnels lead to the same app, and nobody has to do anything."""

from __future__ import annotations

import time

import pytest

from tests.stack.bed import until
from tests.stack.real.device import Device
from tests.stack.real.engines import Docker
from tests.stack.real.scene import PI, Scene
from tests.stack.real.world import World

BACK = 180.0
"""Seconds within which people must be served again, on a machine that does all of this at once."""


def tunnel(device: Device) -> tuple[str, str]:
    """Public key and UDP port of its end, as WireGuard itself says."""
    key, port = (
        device.machine.run("wg", "show", "all", what).split() for what in ("public-key", "listen-port")
    )
    assert key[0] == port[0] and int(port[1])
    return key[1], port[1]


@pytest.mark.timeout(1800)  # with the making of images and of a homeserver, once
def test_links_survive_reboots_with_the_same_keys_and_ports(real: World) -> None:
    """All processes of a machine end at once, its network with interfaces and packet filters is gone."""
    scene = Scene(real, timers="fast", homes=((PI, Docker),))
    try:
        scene.set_up()
        scene.give_images(scene.pi)
        scene.install()
        scene.blog.write("Before", "a post from before any reboot")
        scene.pi.save("wordpress")
        for device in (scene.gateway, scene.pi):
            before, certificate = tunnel(device), scene.certificate()
            device.power_off()
            assert not device.machine.stuck
            device.power_on()
            begin = time.monotonic()
            until(lambda: scene.serves(scene.pi), BACK, f"the site answers after {device.name} was off")
            real.figure(f"{device.name} is on again -> the site answers", f"{time.monotonic() - begin:.1f} s")
            assert tunnel(device) == before
            assert scene.certificate() == certificate, "issued anew"
            assert "Before" in scene.blog.titles()
        scene.watch.never_twice()
    finally:
        print(f"\nMeasured:\n{real.table()}")
