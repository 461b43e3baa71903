"""Every moment of busy SQLite files starts, is sound, and holds what was acknowledged before it, though they are copied."""

from __future__ import annotations

import pytest

from tests.stack.bed import Bed
from tests.stack.busy_sqlite import BusySqlite


@pytest.mark.timeout(300)
def test_every_moment_of_busy_sqlite_files_is_sound_though_they_are_copied(bed: Bed) -> None:
    (attic,) = bed.group("Attic")
    app = BusySqlite.install(bed, attic)
    app.save_busy(4, every=3)
    assert app.every_moment_holds() >= 4
