"""A planned move of an app with a gigabyte of data, from Docker to Podman and back, while people use it."""

from __future__ import annotations

import pytest

from fractal.core.plan import SMALL_ROUND
from tests.stack.real.engines import Docker, Podman
from tests.stack.real.moving import move
from tests.stack.real.scene import APP, GROUP, LAPTOP, PI, Scene
from tests.stack.real.world import World

SIZE = 1 << 30
PARTS = 8
"""Commands inside an app end within a minute, also on a slow machine."""
FILE = "/var/lib/wordpress/wp-content/film"
STORING = 600


@pytest.mark.timeout(1800)  # with the making of images and of a homeserver, once
def test_a_gigabyte_moves_while_people_wait_no_longer_than_for_a_start(real: World) -> None:
    """What is copied while nobody is served does not depend on how much the app holds."""
    scene = Scene(real, homes=((PI, Docker), (LAPTOP, Podman)))
    try:
        scene.set_up()
        scene.give_images(scene.pi)
        scene.install()
        written = [film(scene, f"head -c {SIZE // PARTS} /dev/urandom > $0", n) for n in range(PARTS)]
        done = scene.pi.call("snapshot.create", app=APP, group=GROUP, wait_s=STORING)
        assert done["done"], done
        real.say("a gigabyte is stored")
        for target in (scene.laptop, scene.pi):
            scene.wait_for_copy(target, STORING)
            before = stored(scene)
            move(scene, target, 3, f"planned move of 1 GB to {target.name}")
            sent = [size for moment, size in stored(scene).items() if moment not in before]
            assert sent and sum(sent) < SIZE // 20, "the data was copied again"
            assert sent[-1] <= SMALL_ROUND, "much was copied while nobody was served"
        assert [film(scene, "true", number) for number in range(PARTS)] == written
        scene.watch.never_twice()
    finally:
        print(f"\nMeasured:\n{real.table()}")


def film(scene: Scene, make: str, part: int) -> str:
    """What `make` made of one part of the data, or what is there; its digest."""
    words = ["app", "exec", "--group", GROUP, "--service", "web", APP]
    return scene.pi.run(*words, "sh", "-ec", f"{make}; sha256sum $0", f"{FILE}{part}")


def stored(scene: Scene) -> dict[str, int]:
    """The app's kept moments, oldest first: what each had to bring to the store."""
    found = scene.owner().call("snapshot.list", app=APP, group=GROUP)["snapshots"]
    return {str(one["moment"]): int(one["bytes"]) for one in found}
