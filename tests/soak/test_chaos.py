"""SIGKILL of any process at any moment, for as long as one likes: `make soak`, `make soak SECONDS_=3600`.

`CHAOS_SEED` repeats the order of a run's kills; their effects depend on what the machine did meanwhile.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.stack.bed import Bed
from tests.stack.chaos import Chaos

SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))


@pytest.mark.skipif(not SECONDS, reason="set SOAK_SECONDS, or run `make soak`")
@pytest.mark.timeout(SECONDS * 2 + 900)
def test_nothing_that_was_committed_is_lost_and_nothing_runs_twice(bed: Bed) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "0")) or time.time_ns() // 1000 % 1_000_000
    print(f"CHAOS_SEED={seed}")
    bed.group("Kitchen", "Attic", "Cellar")
    ledger = bed.install(bed.devices[0], "fast")
    chaos = Chaos(bed, ledger, seed)
    end = time.monotonic() + SECONDS
    rounds = 0
    while time.monotonic() < end:
        for _ in range(chaos.dice.randint(1, 6)):
            chaos.round()
        owner = chaos.settle()
        chaos.check(owner, restore=1)
        rounds += 1
        print(f"-- {rounds} storms; {len(chaos.committed)} snapshots committed; it runs on {owner.name}")
    chaos.check(owner, restore=5)
    assert chaos.committed
