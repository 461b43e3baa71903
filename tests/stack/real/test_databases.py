"""Every moment of databases that were written to all the time starts, is sound, and holds what was acknowledged before it."""

from __future__ import annotations

import pytest

from tests.stack.real.databases import Databases
from tests.stack.real.device import Device
from tests.stack.real.engines import Docker, Podman
from tests.stack.real.test_bare import local_log
from tests.stack.real.world import World


def device(world: World, engine: type[Docker | Podman]) -> Device:
    """One device with a group and a store."""
    made = world.host("Pi", engine, local_log(world))
    made.start_agent()
    world.found(made, ["directory", f"path={world.shared / 'store'}"], timers="fast")
    return made


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", [Docker, Podman])
def test_every_moment_of_busy_databases_is_sound(real: World, engine: type[Docker | Podman]) -> None:
    app = Databases.install(real, device(real, engine))
    app.save_busy(3, every=5)
    assert app.every_moment_holds() >= 3
    print(real.table())
