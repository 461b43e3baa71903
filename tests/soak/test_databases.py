"""Databases under steady writes for minutes, saved every ten seconds: every moment starts, is sound and holds what it must."""

from __future__ import annotations

import os

import pytest

from tests.stack.bed import Bed
from tests.stack.busy_sqlite import BusySqlite
from tests.stack.real.databases import Databases
from tests.stack.real.engines import Docker, Podman
from tests.stack.real.test_databases import device
from tests.stack.real.world import World

SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))
EVERY = 10.0
pytestmark = [
    pytest.mark.skipif(not SECONDS, reason="set SOAK_SECONDS, or run `make soak`"),
    pytest.mark.timeout(SECONDS * 20 + 1800),
]


@pytest.mark.parametrize("engine", [Docker, Podman])
def test_every_moment_of_databases_in_containers_is_sound(real: World, engine: type[Docker | Podman]) -> None:
    app = Databases.install(real, device(real, engine))
    app.save_busy(max(1, int(SECONDS / EVERY)), EVERY)
    print(f"{app.every_moment_holds()} moments.\n{real.table()}")


def test_every_moment_of_copied_sqlite_files_is_sound(bed: Bed) -> None:
    (attic,) = bed.group("Attic")
    app = BusySqlite.install(bed, attic)
    app.save_busy(max(1, int(SECONDS / EVERY)), EVERY)
    print(f"{app.every_moment_holds()} moments")
