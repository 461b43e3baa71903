"""The whole system on real parts for as long as one likes: cables, moves, kills and hangs in any order.

`CHAOS_SEED` repeats the order of a run's mishaps; their effects depend on what the machine did meanwhile.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.stack.bed import until
from tests.stack.real.faults import RECOVERY, faults, one
from tests.stack.real.scene import APP, GROUP, Scene
from tests.stack.real.world import World, takeover_bound

SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))


@pytest.mark.skipif(not SECONDS, reason="set SOAK_SECONDS, or run `make soak`")
@pytest.mark.timeout(SECONDS * 2 + 2400)
def test_every_stored_post_outlives_whatever_happens(real: World) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "0")) or time.time_ns() // 1000 % 1_000_000
    print(f"CHAOS_SEED={seed}")
    scene, dice = Scene(real, timers="fast"), random.Random(seed)
    scene.set_up()
    scene.give_images(scene.pi)
    scene.install()
    mishaps: list[Callable[[Scene, random.Random], None]] = [cable, move, part]
    stored: list[str] = []
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end or not stored:
            owner = scene.owner()
            title = f"Post {len(stored) + 1}"
            scene.blog.write(title, "stored before the next mishap")
            owner.save(APP)
            stored.append(title)
            mishap = dice.choice(mishaps)
            real.say(f"{title} is stored on {owner.name}; next: {mishap.__name__}")
            mishap(scene, dice)
            until(lambda: scene.serves(scene.owner()), RECOVERY, f"the site answers after {mishap.__name__}")
            # Asked of whoever owns it, who may have been away until just now.
            until(lambda: set(stored) <= set(scene.posts()), RECOVERY, f"all of {stored} are there")
            scene.watch.never_twice()
    finally:
        print(f"\n{len(stored)} posts. Measured:\n{real.table()}")


def cable(scene: Scene, dice: random.Random) -> None:
    """The owner is cut off, and comes back after another one has taken over, or before."""
    owner = scene.owner()
    owner.pull()
    try:
        if dice.random() < 0.7:
            bound = takeover_bound(scene.timers) + RECOVERY
            until(lambda: scene.owner() is not owner, bound, f"another device takes over from {owner.name}")
            until(lambda: scene.serves(scene.owner()), bound, "the site answers")
        else:
            time.sleep(dice.uniform(0.5, 4.0))
    finally:
        owner.put_back()
    until(lambda: scene.owner() is owner or not owner.runs_of_apps(), RECOVERY, "no second copy")


def move(scene: Scene, dice: random.Random) -> None:
    """A planned move to one of the others, as soon as it has a copy."""
    target = dice.choice([device for device in scene.hosts if device is not scene.owner()])
    scene.wait_for_copy(target, RECOVERY)
    scene.pi.run("app", "move", APP, target.name, "--group", GROUP)


def part(scene: Scene, dice: random.Random) -> None:
    """A part is killed or hung."""
    one(scene, dice.choice(faults(scene)), dice.choice([signal.SIGKILL, signal.SIGSTOP]))
